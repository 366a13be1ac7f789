"""`--userxattr` as an ordinary user: built and mounted in a user namespace of his own, and built without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mkmeta
from tests.layer.layers import attributes, xattrs
from tests.layer.manifests import manifest_from, manifest_of
from tests.vectors.trees import Tree, regular

pytestmark = pytest.mark.needs("root", "user namespaces", "getfattr", "unshare")

USER = 4711


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user's, with a volume in it; not in pytest's own, which are closed to others."""
    with tempfile.TemporaryDirectory(prefix="mkmeta-test-") as name:
        Path(name).chmod(0o755)
        yield make_volume(Path(name) / "place")


def make_volume(place: Path) -> Path:
    """Makes the volume."""
    volume = place / "volume"
    (volume / "pkg" / "closed").mkdir(parents=True)
    (volume / "pkg" / "read-only").mkdir()
    (volume / "pkg" / "read-only" / "file").write_text("inside")
    (volume / "pkg" / "data").write_text("hello")
    (volume / "pkg" / "private").write_text("mine")
    (volume / "pkg" / "link").symlink_to("data")
    os.mkfifo(volume / "pkg" / "fifo")
    os.link(volume / "pkg" / "data", volume / "pkg" / "read-only" / "data")
    os.setxattr(volume / "pkg" / "private", "user.note", b"n")
    (volume / "pkg" / "private").chmod(0o400)
    (volume / "pkg" / "closed").chmod(0o000)
    (volume / "pkg" / "read-only").chmod(0o555)
    (volume / "not-selected").write_text("later")
    return place


def give_to_user(place: Path) -> None:
    """Makes everything in `place` the user's own."""
    for directory, directories, files in os.walk(place):
        for name in [".", *directories, *files]:
            os.chown(Path(directory, name), USER, USER, follow_symlinks=False)


# In a mount namespace of its own, what closes the interpreter to others (a pyenv in /root) is replaced by a directory
# that holds nothing but the interpreter.
_OPEN_UP = """
closed=$1 base=$2; shift 2
if [ -n "$closed" ]; then
    hold=$(mktemp -d); mount --bind "$base" "$hold"
    mount -t tmpfs -o mode=755 none "$closed"; mkdir -p "$base"; mount --bind "$hold" "$base"
    umount "$hold"; rmdir "$hold"
fi
exec "$@"
"""


def as_user(script: str, *, namespace: bool) -> subprocess.CompletedProcess[str]:
    """Runs a script as USER, with `mkmeta` in it, in a namespace where he is root or outside of one."""
    base = Path(sys.base_prefix)
    closed = next((str(path) for path in reversed(base.parents) if not path.stat().st_mode & 0o001), "")
    command = ["unshare", "--mount", "sh", "-ec", _OPEN_UP, "sh", closed, str(base)]
    command += ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    if namespace:
        command += ["unshare", "--user", "--map-root-user", "--mount"]
    command += ["sh", "-ec", f'mkmeta() {{ "{sys.executable}" -m mkmeta "$@"; }}; {script}']
    environment = {**os.environ, "PYTHONPATH": str(Path(mkmeta.__file__).parents[1]), "HOME": "/"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


@pytest.mark.needs("data-only userxattr")
def test_built_and_mounted_by_an_ordinary_user(place: Path) -> None:
    (place.parent / "m").write_bytes(manifest_of(place / "volume"))  # root's files: so he sees his, where he is root
    (place.parent / "m").chmod(0o644)
    give_to_user(place)
    result = as_user(
        f"""cd {place}; mkmeta build --userxattr ../m layer; mkdir mnt
        mount -t overlay x -o ro,userxattr,lowerdir=$PWD/layer::$PWD/volume mnt
        cat mnt/pkg/data mnt/pkg/private mnt/pkg/read-only/data; getfattr -d -m - -R mnt | grep -v '^#'
        """,
        namespace=True,
    )
    assert result.returncode == 0, result.stderr
    assert "hellominehello" in result.stdout
    assert "mkmeta=" not in result.stdout
    assert attributes(place / "layer") == attributes(place / "volume")
    assert xattrs(place / "layer" / "pkg" / "data") == {
        "user.overlay.metacopy": b"",
        "user.overlay.redirect": b"/pkg/data",
    }
    assert xattrs(place / "layer" / "pkg" / "private")["user.note"] == b"n"
    assert xattrs(place / "layer" / "pkg") == {"user.overlay.opaque": b"y", "user.overlay.overlay.opaque": b"y"}


def test_built_without_a_namespace(place: Path) -> None:
    """What is all his own, an ordinary user builds as he is; a second build replaces and removes the first."""
    give_to_user(place)
    shutil.rmtree(place / "volume" / "pkg" / "read-only")
    (place.parent / "m").write_bytes(manifest_of(place / "volume"))
    (place.parent / "m").chmod(0o644)
    for _ in range(2):
        result = as_user(f"cd {place}; mkmeta build --userxattr --swap --discard ../m layer", namespace=False)
        assert result.returncode == 0, result.stderr
        assert attributes(place / "layer") == attributes(place / "volume")
    assert sorted(os.listdir(place)) == ["layer", "volume"]


@pytest.mark.parametrize(
    ("namespace", "options", "owner", "message"),
    [
        (False, "", 4711, "xattr trusted.overlay.mkmeta of 32 bytes cannot be set"),
        (True, "", 0, "xattr trusted.overlay.mkmeta of 32 bytes cannot be set"),
        (False, "--userxattr", 5, "owner 0:0 cannot be set: operation not permitted"),
        (True, "--userxattr", 5, "owner 5:5 cannot be set: invalid argument"),
    ],
)
def test_what_he_may_not(place: Path, namespace: bool, options: str, owner: int, message: str) -> None:
    give_to_user(place)
    tree = Tree(children={b"f": regular(1)}, uid=owner, gid=owner)
    (place.parent / "m").write_bytes(manifest_from(tree))
    (place.parent / "m").chmod(0o644)
    result = as_user(f"cd {place}; mkmeta build {options} ../m layer", namespace=namespace)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert os.listdir(place) == ["volume"]
