"""Volumes that are absent, wrong, replaced or back: a layer goes over the volume it was made of, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.linux.mountinfo import mounts, visible_at
from mkmeta.mounts.run import Placed, RunDirectory
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.fixture
def elsewhere(host: Host, tmp_path: Path) -> Path:
    """What the volume has, on a filesystem of its own; mounted at the volume's place by `mount --bind`."""
    return _filesystem(host.volume, tmp_path / "elsewhere")


def _filesystem(source: Path, place: Path) -> Path:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", place], check=True)
    shutil.copytree(source, place, dirs_exist_ok=True, symlinks=True)
    return place


def _mount(source: Path, point: Path) -> None:
    subprocess.run(["mount", "--bind", source, point], check=True)


def _unmount(point: Path) -> None:
    subprocess.run(["umount", "-l", point], check=True)


def _emptied(host: Host) -> None:
    """As a host looks when the volume is not mounted yet."""
    shutil.rmtree(host.volume)
    host.volume.mkdir()


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_an_empty_directory_is_not_the_volume(host: Host, profile: str) -> None:
    _emptied(host)
    refused = host.activate("--profile", profile, check=16)
    assert "not mounted" in refused.err
    assert (host.stack(), host.leftovers()) == ([], [])
    assert not list(host.store.glob("generations/*/written"))


def test_another_directory_is_not_the_volume(host: Host, tmp_path: Path) -> None:
    """Files of other sizes at the same paths, and other files."""
    for name in ("one", "empty"):
        (host.volume / "grp/paint/v1/lib" / name).write_text("something else")
    (host.volume / "grp/paint/v1/bin/tool").unlink()
    assert "this is not the volume" in host.activate(check=16).err
    assert host.stack() == []


def test_one_release_that_is_left_is_enough(host: Host) -> None:
    """Releases are deleted one day: of forty, one is left."""
    for number in range(40):
        host.release(f"v1.{number}", {"lib/a": f"release {number}\n", "lib/b": f"also of {number}\n"})
    host.publish()
    for number in range(39):
        shutil.rmtree(host.volume / f"grp/paint/v1.{number}")
    shutil.rmtree(host.volume / "grp/paint/v1")
    done = host.activate()
    assert "are as recorded" in done.err
    assert (host.point / "grp/paint/v1.39/lib/a").read_text() == "release 39\n"


def test_a_copy_with_times_of_its_own_will_do(host: Host) -> None:
    copy = host.volume.with_name("copy")
    shutil.copytree(host.volume, copy, copy_function=shutil.copyfile)
    shutil.rmtree(host.volume)
    copy.rename(host.volume)
    assert "as recorded" not in host.activate().err


def test_a_volume_that_is_late(host: Host, elsewhere: Path) -> None:
    _emptied(host)
    host.activate(check=16)
    _mount(elsewhere, host.volume)
    host.activate()
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_a_volume_that_was_mounted_anew(host: Host, elsewhere: Path, tmp_path: Path, profile: str) -> None:
    _mount(elsewhere, host.volume)
    host.activate("--profile", profile)
    host.call("status", host.point)
    other = _filesystem(elsewhere, tmp_path / "other")
    (other / "fresh").write_text("fresh\n")
    _unmount(host.volume)
    assert "mounted anew" in host.call("status", host.point, check=22).err
    _mount(other, host.volume)
    assert "mounted anew" in host.call("status", host.point, check=22).err
    if profile == "upper":
        host.call("deactivate", host.point)
        host.activate("--profile", profile)
    else:
        assert host.activate("--json", "--profile", profile).messages[-1]["action"] == "switched"
    assert host.live().profile == profile
    assert (host.point / "fresh").exists() is (profile != "data-only")
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("status", host.point)
    assert host.activate("--json", "--profile", profile).messages[-1]["action"] == "unchanged"
    assert host.leftovers() == []


def test_the_same_volume_unmounted_and_back_is_the_same(host: Host, elsewhere: Path) -> None:
    _mount(elsewhere, host.volume)
    host.activate()
    _unmount(host.volume)
    host.call("status", host.point, check=22)
    _mount(elsewhere, host.volume)
    host.call("status", host.point)
    assert host.activate("--json").messages[-1]["action"] == "unchanged"


def test_following_mounts_anew_too(host: Host, elsewhere: Path, tmp_path: Path) -> None:
    """Although nothing was published."""
    pointer = host.volume / ".mkmeta.json"
    client = host.top / "client"
    host.call("publish", host.store, "--pointer", elsewhere / ".mkmeta.json")
    _mount(elsewhere, host.volume)
    call = ("activate", client, host.point, "--lower", host.volume, "--follow", pointer, "--json")
    assert host.call(*call).messages[-1]["action"] == "mounted"
    assert host.call(*call).messages[-1]["action"] == "nothing"
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", other], check=True)
    subprocess.run(["cp", "-a", f"{elsewhere}/.", other], check=True)
    _unmount(host.volume)
    _mount(other, host.volume)
    assert host.call(*call).messages[-1]["action"] == "switched"
    host.call("status", host.point)
    assert host.call(*call).messages[-1]["action"] == "nothing"


@pytest.mark.parametrize("flag", ["nosuid", "nodev", "noexec"])
def test_flags_that_have_changed_are_repeated(host: Host, flag: str) -> None:
    _mount(host.volume, host.volume)
    subprocess.run(["mount", "-o", "remount,bind,suid,dev,exec", host.volume], check=True)
    activate = ("--allow-setid", "--json")
    host.activate(*activate)
    for change, names in ((flag, {flag}), ("suid,dev,exec", set[str]())):
        subprocess.run(["mount", "-o", f"remount,bind,{change}", host.volume], check=True)
        if names:
            assert f"mounted {flag} by now" in host.call("status", host.point, check=22).err
        (message,) = host.activate(*activate).messages
        assert (message["action"], set(message["flags"])) == ("switched", names)
        assert {one.decode() for one in host.live().mount.flags} & {"nosuid", "nodev", "noexec"} == names
        host.call("status", host.point)
    assert host.activate(*activate).messages[-1]["action"] == "unchanged"


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_what_is_remembered_goes_by_the_device_of_the_overlay(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    run = RunDirectory(os.fsencode(host.run))
    shown = visible_at(os.fsencode(host.point), mounts())[-1]
    status = os.stat(host.volume)
    assert run.placed(shown.device) == Placed(os.fsencode(host.point), status.st_dev, status.st_ino, shown.id)
    host.call("deactivate", host.point)
    assert run.placed(shown.device) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"point": 1, "volume": [1, 2]}', '{"point": "/x"}', "[" * 9999]
)
def test_what_is_remembered_may_be_damaged(host: Host, text: str) -> None:
    host.activate()
    (record,) = (host.run / "mounts").iterdir()
    record.write_text(text)
    host.call("status", host.point)
    assert host.activate("--json").messages[-1]["action"] == "unchanged"
    host.call("deactivate", host.point)


def test_a_store_on_an_overlay_falls_back_to_merge(host: Host, tmp_path: Path) -> None:
    parts = [tmp_path / name for name in ("low", "up", "work", "container")]
    for part in parts:
        part.mkdir()
    low, up, work, container = parts
    options = f"lowerdir={low},upperdir={up},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "container", "-o", options, container], check=True)
    store = container / "store"
    host.call("build", host.top / "sw.mkm", "--store", store)
    done = host.call("activate", store, host.point, "--lower", host.volume)
    assert "profile merge, as nested does not work here (the store: on an overlay" in done.err
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    assert host.call("activate", store, host.point, "--json").messages[-1]["action"] == "unchanged"
    host.call("deactivate", host.point)
    subprocess.run(["umount", "-l", container], check=True)


def _has_autofs() -> bool:
    return "autofs" in Path("/proc/filesystems").read_text()


@pytest.mark.skipif(not _has_autofs(), reason="no autofs")
def test_a_volume_that_is_mounted_when_it_is_first_used(host: Host, tmp_path: Path) -> None:
    """Its flags are those it has then, not those of the place where it will be."""
    source = tmp_path / "source"
    host.volume.rename(source)
    host.volume.mkdir()
    command = [sys.executable, "-m", "tests.host.automounter", str(source), str(host.volume)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        (message,) = host.activate("--allow-setid", "--json").messages
        assert set(message["flags"]) == {"nosuid", "nodev"}
        assert {b"nosuid", b"nodev"} <= host.live().mount.flags
        assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
        host.call("status", host.point)
        host.call("deactivate", host.point)
    finally:
        for _ in visible_at(os.fsencode(host.volume), mounts()):
            _unmount(host.volume)
        program.kill()
        program.communicate()


def test_a_store_below_a_directory_called_inner(host: Host, tmp_path: Path) -> None:
    """What a mount is is not guessed from the names of directories."""
    store = tmp_path / "inner" / "store"
    store.parent.mkdir()
    host.call("build", host.top / "sw.mkm", "--store", store)
    host.call("activate", store, host.point, "--lower", host.volume, "--profile", "merge")
    assert host.live().profile == "merge"
    host.call("status", host.point)
    host.call("refresh", host.point)
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.call("build", host.top / "sw.mkm", "--store", store)
    host.call("activate", store, host.point, "--profile", "merge")
    host.call("rollback", host.point)
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("deactivate", host.point)


_IN_A_CHROOT = """
set -e
jail=$1; shift
for directory in "$@"; do
    [ -e "$directory" ] || continue
    mkdir -p "$jail$directory"; mount --rbind "$directory" "$jail$directory"
done
in_jail() { chroot "$jail" env PYTHONPATH="$ROOT" "$PYTHON" -m mkmeta "$@"; }
in_jail scan -q /vol --select 'grp/*' -o /sw.mkm; in_jail build -q /sw.mkm --store /store
in_jail activate -q /store /sw --lower /vol --run-dir /run; in_jail status /sw --run-dir /run
cat "$jail/sw/grp/file"; in_jail deactivate -q /sw --run-dir /run
"""


def test_in_a_chroot_to_a_plain_directory(tmp_path: Path) -> None:
    """There no line of the mount table is of the mount that the root is on."""
    jail, root = tmp_path / "jail", Path(__file__).parents[2]
    for name in ("vol/grp", "sw", "run"):
        (jail / name).mkdir(parents=True)
    (jail / "vol/grp/file").write_text("data\n")
    places = ["/usr", "/bin", "/lib", "/lib64", "/etc", "/proc", "/dev", str(root), sys.prefix, sys.base_prefix]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_A_CHROOT, "-", str(jail), *places],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ROOT": str(root), "PYTHON": sys.executable},
    )
    assert (done.returncode, "data\n" in done.stdout) == (0, True), done
