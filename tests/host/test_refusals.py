"""What the kernel would mount and mkmeta does not: each with its exit code, its reason, and nothing changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture(autouse=True)
def _nothing_left(host: Host) -> object:
    yield
    assert host.stack() == []
    assert host.leftovers() == []


def test_nfs_export(host: Host) -> None:
    assert "zeros" in host.activate("-o", "nfs_export=on", check=16).err
    assert host.activate("-o", "nfs_export=off,xino=off", check=0).code == 0
    host.call("deactivate", host.point)


@pytest.mark.parametrize(
    "option", ["metacopy=off", "userxattr", "redirect_dir=off", "verity=on", "lowerdir=/etc", "rw"]
)
def test_options_that_are_not_the_callers(host: Host, option: str) -> None:
    assert host.activate("-o", option, check=None).code in (2, 16)


@pytest.mark.parametrize(
    ("done", "words"),
    [
        ("cp -r --preserve=mode,ownership,timestamps,links $S $C", "as zeros"),
        ("cp -a $S $C; chown -R 65534:65534 $C", "belongs to 65534:65534, recorded was 0:0"),
        ("cp -a $S $C; chmod -R go-rwx $C", "has mode "),
        ('cp -a $S $C; find $C/generations/*/private -type f -exec $PY -c "$STRIP" {} +', "as zeros"),
    ],
    ids=["attributes", "owners", "modes", "attributes of files"],
)
def test_a_store_that_was_copied_without_some_things_is_built_anew(host: Host, done: str, words: str) -> None:
    """It would show wrong data; that its manifest is there already is no reason to build nothing."""
    copy = host.top / "copy"
    strip = "import os, sys; [os.removexattr(p, 'trusted.overlay.metacopy') for p in sys.argv[1:] if os.listxattr(p)]"
    names = {"S": str(host.store), "C": str(copy), "PY": sys.executable, "STRIP": strip}
    subprocess.run(["sh", "-c", done], env={**os.environ, **names}, check=True)
    call = ("activate", copy, host.point, "--lower", host.volume)
    refused = host.call(*call, check=16)
    assert words in refused.err and "build --store" in refused.err
    host.call("build", host.top / "sw.mkm", "--store", copy)
    host.call(*call)
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("deactivate", host.point)


@pytest.mark.parametrize("verity", ["on", "require"])
def test_verity_over_a_volume_without(host: Host, verity: str) -> None:
    refused = host.activate("--verity", verity, check=16)
    assert "no fs-verity" in refused.err
    assert "grp/paint/v1/" in refused.err


def test_verity_required_of_a_layer_without(host: Host) -> None:
    host.call("build", host.top / "sw.mkm", "--store", host.store, "--no-verity")
    assert "no fs-verity digests" in host.activate("--verity", "require", check=16).err
    host.activate("--verity", "on")  # harmless: there is nothing to compare
    host.call("deactivate", host.point)


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_a_layer_made_from_another_root(host: Host, profile: str, mount: Mount) -> None:
    other = host.top / "other"
    shutil.copytree(host.volume, other)
    call = ("activate", host.store, host.point, "--lower", other, "--profile", profile)
    assert f"made from {host.volume}, not from {other}" in host.call(*call, check=16).err
    host.call(*call, "--other-root")
    host.call("deactivate", host.point)


def test_a_prefix_names_the_root_below_the_volume(host: Host) -> None:
    manifest = host.top / "inside.mkm"
    host.call("scan", host.volume / "grp", "--select", "paint/v1", "-o", manifest)
    host.call("build", manifest, "--store", host.store, "--redirect-prefix", "grp")
    host.activate("--profile", "data-only")
    assert (host.point / "paint/v1/lib/one").read_text() == "first\n"
    host.call("deactivate", host.point)


def test_the_same_layer_writable_twice(host: Host) -> None:
    host.activate("--profile", "upper")
    second = host.top / "second"
    second.mkdir()
    again = host.call("activate", host.store, second, "--lower", host.volume, "--profile", "upper", check=16)
    assert str(host.point) in again.err
    assert "mounted already" in again.err
    host.call("deactivate", host.point)


def test_a_layer_that_is_read_cannot_become_writable(host: Host) -> None:
    host.activate()
    second = host.top / "second"
    second.mkdir()
    assert (
        "mounted already"
        in host.call("activate", host.store, second, "--lower", host.volume, "--profile", "upper", check=16).err
    )
    assert not list(host.store.glob("generations/*/written"))
    host.call("deactivate", host.point)


def test_layers_that_share_files_cannot_become_writable(host: Host) -> None:
    """A change of a file's mode through one would change it in the other."""
    host.release("v2", {"lib/two": "second\n"})
    base = next(host.store.glob("generations/000001-*/layer"))
    manifest = host.top / "sw.mkm"
    host.call("scan", host.volume, "--select", "grp/*/v*", "-o", manifest)
    host.call("build", manifest, "--store", host.store, "--base", base)
    for generation in ("1", "2"):
        refused = host.activate("--generation", generation, "--profile", "upper", check=16)
        assert "shared with another" in refused.err
        host.activate("--generation", generation)
        host.call("deactivate", host.point)


def test_a_layer_of_trusted_attributes_in_a_user_namespace(host: Host) -> None:
    """The kernel would mount it, and every file would be full of zeros."""
    command = host.command("activate", host.store, host.point, "--lower", host.volume)
    refused = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, "zeros" in refused.stderr) == (16, True), refused.stderr


def test_a_layer_of_user_attributes_is_mounted_with_userxattr(host: Host) -> None:
    host.userxattr = True
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.activate()
    assert (host.point / "grp/paint/v2/lib/two").read_text() == "second\n"
    assert host.live().userxattr
    host.call("deactivate", host.point)


def test_a_layer_that_is_not_the_generations(host: Host) -> None:
    (generation,) = host.store.glob("generations/0*")
    os.setxattr(generation / "layer", "trusted.overlay.mkmeta", bytes(32))
    assert "not the one its generation names" in host.activate(check=1).err


def test_the_volume_at_or_below_the_mount_point(host: Host) -> None:
    for lower in (host.point, host.point / "below"):
        lower.mkdir(exist_ok=True)
        assert "cannot be at or below" in host.call("activate", host.store, host.point, "--lower", lower, check=2).err


def test_an_older_generation_needs_to_be_asked_for(host: Host) -> None:
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.activate()
    second = host.top / "second"
    second.mkdir()
    host.call("activate", host.store, second, "--lower", host.volume, "--generation", "1")  # moves `current`
    refused = host.activate(check=16)
    assert "rollback" in refused.err
    assert b"/000002-" in host.live().layer
    host.call("deactivate", second)
    host.call("deactivate", host.point)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("activate", "{top}/nowhere", "{point}", "--lower", "{volume}"), 1, "there is no such directory"),
        (("activate", "{volume}", "{point}", "--lower", "{volume}"), 1, "store"),
        (("activate", "{store}", "{top}/no/where", "--lower", "{volume}"), 2, "make the directory first"),
        (("activate", "{store}", "{point}", "--lower", "{top}/nowhere"), 2, "mount it first"),
        (("activate", "{store}", "{point}"), 2, "--lower is needed"),
        (("activate", "{store}", "{point}", "--lower", "{volume}", "--generation", "7"), 15, "7"),
        (("activate", "{store}", "{point}", "--lower", "{volume}", "--userxattr"), 2, "--follow"),
        (("rollback", "{point}"), 20, "no layer is mounted here"),
        (("deactivate", "{point}"), 20, "no layer is mounted here"),
        (("refresh", "{point}"), 20, "no layer is mounted here"),
        (("status", "{point}"), 20, "no layer is mounted here"),
        (("gc", "{volume}"), 1, "store"),
        (("gc", "{store}", "--keep", "0"), 2, "from 1 to 1,000,000"),
        (("gc", "{store}", "--min-age", "soon"), 2, "time span"),
        (("gc", "{store}", "--pace", "2"), 2, "share"),
    ],
)
def test_bad_input_is_one_line_and_a_code(host: Host, arguments: tuple[str, ...], code: int, words: str) -> None:
    places = {"top": host.top, "point": host.point, "store": host.store, "volume": host.volume}
    verb, *rest = (argument.format(**places) for argument in arguments)
    done = host.call(verb, *rest, check=code)
    assert words in done.err
    assert len([line for line in done.err.splitlines() if "usage:" not in line and line.startswith("mkmeta")]) <= 2


def test_a_busy_mount_goes_only_when_asked_twice(host: Host) -> None:
    host.activate()
    with (host.point / "grp/paint/v1/lib/one").open() as file:
        busy = host.call("deactivate", host.point, check=1)
        assert f"({os.getpid()})" in busy.err
        host.call("deactivate", host.point, "--detach")
        assert file.read() == "first\n"


def test_who_may_not_mount_is_told(host: Host, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if os.stat(directory).st_uid == 0 and str(directory) not in ("/", "/dev", "/dev/shm", "/tmp"):
            directory.chmod(0o755)
    command = host.command("activate", host.store, host.point, "--lower", host.volume)
    run = tmp_path / "own"
    run.mkdir()
    os.chown(run, 65534, 65534)
    command[-1] = str(run)
    refused = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode in (1, 16)
    assert "Traceback" not in refused.stderr


def test_a_mount_that_came_with_its_namespace(host: Host) -> None:
    """In a user namespace it is locked: the host keeps it, and nobody is told to do what was just done."""
    for directory in (host.top, *host.top.parents):
        if os.stat(directory).st_uid == 0 and len(directory.parts) > 2:
            directory.chmod(0o755)
    host.activate()
    before = host.stack()
    for detach in ([], ["--detach"]):
        command = ["unshare", "--user", "--map-root-user", "--mount", *host.command("deactivate", host.point), *detach]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "--detach" not in refused.stderr and "only where it was made" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert host.stack() == before
    host.call("deactivate", host.point)
