"""A layer that was tampered with: every corruption is found, and named; an untouched one has no finding."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mkmeta.errors import MkmetaError
from mkmeta.plan import Plan
from tests.conftest import Mount
from tests.scanner.helpers import make_sample, scan_tree
from tests.verifier.checking import brief, found, make_layer

pytestmark = pytest.mark.needs("root", "trusted xattrs")

P = "trusted.overlay."
LIB = "grp/a/v1/lib"


@dataclass
class Sample:
    """A manifest and its layer."""

    manifest: Path
    layer: Path

    def check(self) -> list[tuple[str, str, str]]:
        return brief(found(self.manifest, self.layer))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("verify")
    make_sample(top / "volume", privileged=True)
    disk = top / "volume" / LIB / "disk"
    disk.unlink()
    os.mknod(disk, stat.S_IFBLK | 0o640, os.makedev(8, 17))  # the sample's own has a number beyond those of xfs
    scanned = scan_tree(top / "volume", "grp/*/v*", "tools/x")
    assert not scanned.report.left_out
    return scanned.path


@pytest.fixture
def sample(made: Path, tmp_path: Path) -> Sample:
    return Sample(made, make_layer(made, tmp_path / "layer"))


def times_kept(path: Path, change: Callable[[], object]) -> None:
    """Makes a change to a name without its directory showing it."""
    status = path.parent.stat()
    change()
    os.utime(path.parent, ns=(status.st_mtime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("fstype", ["tmpfs", "ext4", "xfs", "btrfs"])
def test_an_untouched_layer_has_no_finding(made: Path, tmp_path: Path, mount: Mount, fstype: str) -> None:
    where = mount("tmpfs") if fstype == "tmpfs" else make_filesystem(fstype, tmp_path, mount)
    assert found(made, make_layer(made, where / "layer"), layer_jobs=2) == []


@pytest.mark.parametrize("plan", [{"prefix": b"some/where"}, {"verity": False}])
def test_the_plan_is_the_oracle(made: Path, tmp_path: Path, plan: dict[str, object]) -> None:
    layer = make_layer(made, tmp_path / "layer", **plan)
    assert found(made, layer, Plan(**plan)) == []  # type: ignore[arg-type]
    whats = {one.what for one in found(made, layer)}
    assert whats == {"xattr"}, "without the right plan, redirect or metacopy differ"


def test_layers_in_the_user_namespace(tmp_path: Path) -> None:
    (tmp_path / "volume/v1/dir").mkdir(parents=True)
    (tmp_path / "volume/v1/file").write_text("x")
    manifest = scan_tree(tmp_path / "volume", "v1").path
    layer = make_layer(manifest, tmp_path / "layer", userxattr=True)
    assert found(manifest, layer, Plan(userxattr=True)) == []
    os.removexattr(layer / "v1", "user.overlay.opaque")
    assert brief(found(manifest, layer, Plan(userxattr=True))) == [("layer", "v1", "xattr")]


def make_filesystem(fstype: str, tmp_path: Path, mount: Mount) -> Path:
    if shutil.which(f"mkfs.{fstype}") is None:
        pytest.skip(f"no mkfs.{fstype}")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([f"mkfs.{fstype}", "-q", image], check=True, capture_output=True)
    try:
        return mount(fstype, "loop", image)
    except OSError as error:
        pytest.skip(str(error))


def chmod(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.lstat().st_mode) ^ 0o020)


def rewrite(path: Path, xattr: str, value: bytes) -> None:
    assert os.getxattr(path, P + xattr) != value
    os.setxattr(path, P + xattr, value)


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    def change() -> None:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        make(path)

    times_kept(path, change)


def retarget(path: Path) -> None:
    status = path.lstat()
    replaced(path, lambda link: link.symlink_to("elsewhere"))
    os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
    os.setxattr(path, "trusted.on-link", b"t", follow_symlinks=False)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def renumber(path: Path) -> None:
    status = path.lstat()
    replaced(path, lambda node: os.mknod(node, status.st_mode, os.makedev(1, 5)))
    os.chown(path, status.st_uid, status.st_gid)
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def resize(path: Path) -> None:
    status = path.lstat()
    os.truncate(path, status.st_size + 1)
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def swap_redirects(path: Path) -> None:
    other = path.with_name("more") if path.name == "block" else path
    one, two = os.getxattr(path, P + "redirect"), os.getxattr(other, P + "redirect")
    os.setxattr(path, P + "redirect", two)
    os.setxattr(other, P + "redirect", one)


def swap_digests(path: Path) -> None:
    other = path.with_name("more")
    one, two = os.getxattr(path, P + "metacopy"), os.getxattr(other, P + "metacopy")
    os.setxattr(path, P + "metacopy", two)
    os.setxattr(other, P + "metacopy", one)


def break_link(path: Path) -> None:
    def change() -> None:
        copy = path.with_name(".copy")
        shutil.copy2(path, copy)
        os.rename(copy, path)

    times_kept(path, change)


V2 = "grp/a/v2/lib"
# what is done to which path; what must be found, and where
CORRUPTIONS: dict[str, tuple[str, Callable[[Path], object], list[tuple[str, str]]]] = {
    "mode of a file": (f"{V2}/block", chmod, [(f"{V2}/block", "mode")]),
    "mode of a directory": ("grp/b/v1/lib/deep", chmod, [("grp/b/v1/lib/deep", "mode")]),
    "mode of a skeleton directory": ("grp", chmod, [("grp", "mode")]),
    "mode of the root": (".", chmod, [("", "mode")]),
    "owner": (f"{V2}/block", lambda path: os.chown(path, 7, -1), [(f"{V2}/block", "owner")]),
    "group": (f"{V2}/block", lambda path: os.chown(path, -1, 7), [(f"{V2}/block", "owner")]),
    "owner of a link": (
        f"{LIB}/dangling",
        lambda path: os.chown(path, 7, 7, follow_symlinks=False),
        [(f"{LIB}/dangling", "owner")],
    ),
    "mtime by a nanosecond": (
        f"{V2}/block",
        lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
        [(f"{V2}/block", "mtime")],
    ),
    "mtime of a directory": (V2, lambda path: os.utime(path, ns=(0, 0)), [(V2, "mtime")]),
    "size": (f"{V2}/block", resize, [(f"{V2}/block", "size")]),
    "target": (f"{LIB}/link", retarget, [(f"{LIB}/link", "target")]),
    "device number": (f"{LIB}/null", renumber, [(f"{LIB}/null", "device")]),
    "recorded xattr changed": (
        f"{LIB}/one.py",
        lambda path: os.setxattr(path, "user.note", b"other"),
        [(f"{LIB}/one.py", "xattr")],
    ),
    "recorded xattr removed": (
        f"{LIB}/one.py",
        lambda path: os.removexattr(path, "trusted.secret"),
        [(f"{LIB}/one.py", "xattr")],
    ),
    "xattr added": (
        f"{V2}/block",
        lambda path: os.setxattr(path, "user.more", b""),
        [(f"{V2}/block", "xattr")],
    ),
    "opaque removed": (V2, lambda path: os.removexattr(path, P + "opaque"), [(V2, "xattr")]),
    "opaque ignored by the kernel": (V2, lambda path: rewrite(path, "opaque", b"yy"), [(V2, "xattr")]),
    "escaped opaque removed": (V2, lambda path: os.removexattr(path, P + "overlay.opaque"), [(V2, "xattr")]),
    "skeleton made opaque": ("grp/a", lambda path: os.setxattr(path, P + "opaque", b"y"), [("grp/a", "xattr")]),
    "metacopy removed": (
        f"{V2}/block",
        lambda path: os.removexattr(path, P + "metacopy"),
        [(f"{V2}/block", "xattr")],
    ),
    "metacopy emptied": (f"{V2}/block", lambda path: rewrite(path, "metacopy", b""), [(f"{V2}/block", "xattr")]),
    "redirect removed": (
        f"{V2}/block",
        lambda path: os.removexattr(path, P + "redirect"),
        [(f"{V2}/block", "xattr")],
    ),
    "redirect changed": (
        f"{V2}/block",
        lambda path: rewrite(path, "redirect", b"/etc/shadow"),
        [(f"{V2}/block", "xattr")],
    ),
    "redirects swapped": (
        f"{V2}/block",
        swap_redirects,
        [(f"{V2}/block", "xattr"), (f"{V2}/more", "xattr")],
    ),
    "digests swapped": (f"{V2}/block", swap_digests, [(f"{V2}/block", "xattr"), (f"{V2}/more", "xattr")]),
    "metacopy on an empty file": (
        f"{LIB}/nothing",
        lambda path: os.setxattr(path, P + "metacopy", b""),
        [(f"{LIB}/nothing", "xattr")],
    ),
    "whiteout attribute": (
        f"{LIB}/nothing",
        lambda path: os.setxattr(path, P + "whiteout", b"y"),
        [(f"{LIB}/nothing", "xattr")],
    ),
    "redirect on a directory": (V2, lambda path: os.setxattr(path, P + "redirect", b"/x"), [(V2, "xattr")]),
    "ID changed": (".", lambda path: rewrite(path, "mkmeta", bytes(32)), [("", "id")]),
    "ID removed": (".", lambda path: os.removexattr(path, P + "mkmeta"), [("", "id")]),
    "opaque root": (".", lambda path: os.setxattr(path, P + "opaque", b"y"), [("", "xattr")]),
    "extra file": (f"{V2}/new", lambda path: times_kept(path, path.touch), [(f"{V2}/new", "extra")]),
    "extra directory": (
        f"{V2}/new/deeper",
        lambda path: times_kept(path.parent, lambda: path.mkdir(parents=True)),
        [(f"{V2}/new", "extra")],
    ),
    "extra whiteout": (
        f"{V2}/new",
        lambda path: times_kept(path, lambda: os.mknod(path, stat.S_IFCHR, 0)),
        [(f"{V2}/new", "extra")],
    ),
    "extra name in the skeleton": ("grp/new", lambda path: times_kept(path, path.touch), [("grp/new", "extra")]),
    "missing file": (f"{V2}/block", lambda path: times_kept(path, path.unlink), [(f"{V2}/block", "missing")]),
    "missing subtree": (
        "grp/a/v2",
        lambda path: times_kept(path, lambda: shutil.rmtree(path)),
        [("grp/a/v2", "missing")],
    ),
    "file replaced by a whiteout": (
        f"{V2}/block",
        lambda path: replaced(path, lambda node: os.mknod(node, stat.S_IFCHR, 0)),
        [(f"{V2}/block", "type")],
    ),
    "file replaced by a fifo": (f"{V2}/block", lambda path: replaced(path, os.mkfifo), [(f"{V2}/block", "type")]),
    "directory replaced by a link to it": (
        V2,
        lambda path: path.rename(path.with_name("aside")).with_name("lib").symlink_to("aside"),
        [("grp/a/v2", "mtime"), ("grp/a/v2/aside", "extra"), (V2, "type")],
    ),
    "hard link broken": (
        f"{LIB}/same",
        break_link,
        [(f"{LIB}/one.py", "link"), (f"{LIB}/same", "link")],
    ),
    "hard link broken by a file of its own": (
        f"{LIB}/same",
        lambda path: replaced(path, Path.touch),
        [(f"{LIB}/one.py", "link"), (f"{LIB}/same", "link")],
    ),
    "hard link missing": (
        f"{LIB}/same",
        lambda path: times_kept(path, path.unlink),
        [(f"{LIB}/one.py", "link"), (f"{LIB}/same", "missing")],
    ),
    "one more hard link": (
        f"{V2}/block",
        lambda path: os.link(path, path.parents[5] / "outside"),
        [(f"{V2}/block", "link")],
    ),
    "one more name of linked files": (
        f"{LIB}/one.py",
        lambda path: os.link(path, path.parents[5] / "outside"),
        [(f"{LIB}/one.py", "link")],
    ),
    "another inode's name": (
        f"{V2}/block",
        lambda path: replaced(path, lambda name: os.link(path.with_name("more"), name)),
        [*[(f"{V2}/block", what) for what in ("mtime", "size", "xattr", "xattr", "link")], (f"{V2}/more", "link")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corruption_is_found_and_named(sample: Sample, corruption: str) -> None:
    path, corrupt, expected = CORRUPTIONS[corruption]
    assert sample.check() == []
    corrupt(sample.layer / path)
    assert sample.check() == [("layer", path, what) for path, what in expected]


def test_messages_say_what_is_and_what_should_be(sample: Sample) -> None:
    block = sample.layer / V2 / "block"
    block.chmod(0o600)
    rewrite(block, "redirect", b"/etc/\xff\nshadow")
    (mode, redirect) = found(sample.manifest, sample.layer)
    assert mode.message == "mode is 0600 instead of 0644"
    assert redirect.message == f"xattr {P}redirect is '/etc/\\xff\\x0ashadow' instead of '/{V2}/block'"
    assert mode.subtree == b"grp/a/v2"


def test_a_hostile_layer_is_looked_at_and_never_entered(sample: Sample) -> None:
    """Links to anywhere, loops, fifos, devices, names of any bytes, a tree deeper than a path can name."""
    layer = sample.layer
    lib = layer / V2
    shutil.rmtree(layer / "grp/b/v1/lib/deep")
    (layer / "grp/b/v1/lib/deep").symlink_to("/")
    shutil.rmtree(layer / "tools/x")
    (layer / "tools/x").symlink_to("../tools/x")  # to itself
    (lib / "block").unlink()
    os.mkfifo(lib / "block")
    (lib / "more").unlink()
    os.mknod(lib / "more", stat.S_IFBLK | 0o600, os.makedev(1, 0))
    os.symlink("/dev/zero", lib / "zero")
    for name in (b"\xff\xfe", b"new\nline", b"\x1b[2J", b"x" * 255):
        os.mkdir(os.fsencode(lib) + b"/" + name)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(lib, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.mkdir(lib / "deep")
    here = os.open(lib / "deep", os.O_RDONLY)
    for _ in range(40):  # 40 times 200 bytes are more than a path can have
        os.mkdir(b"d" * 200, dir_fd=here)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    seen = dict.fromkeys((path, what) for _, path, what in sample.check())
    extra = {"zero", "socket", "deep", "new\nline", "\x1b[2J", "x" * 255, "\udcff\udcfe"}
    assert set(seen) == {
        ("grp/b/v1/lib", "mtime"),
        ("grp/b/v1/lib/deep", "type"),
        ("tools", "mtime"),
        ("tools/x", "type"),
        (V2, "mtime"),
        (f"{V2}/block", "type"),
        (f"{V2}/more", "type"),
    } | {(f"{V2}/{name}", "extra") for name in extra}


def test_a_mount_in_a_layer_is_a_finding(sample: Sample, mount: Mount) -> None:
    mount("tmpfs", at=sample.layer / V2)
    assert (V2, "unreadable") in {(path, what) for _, path, what in sample.check()}


def test_what_is_no_layer(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MkmetaError, match="cannot be opened"):
        found(made, tmp_path / "none")
    seen = brief(found(made, tmp_path / "empty"))
    assert ("layer", "", "id") in seen and ("layer", "grp", "missing") in seen
