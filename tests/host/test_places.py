"""What lies at a mount point: what must not be hidden is not, and what belongs to others stays theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mkmeta.cli.host_arguments import runtime_directory
from mkmeta.errors import MountError, RefusedError
from mkmeta.host.place import check_place
from mkmeta.linux import mount as calls
from mkmeta.linux.mountinfo import Mount, mount_id, mounts, seen_at, visible_at
from mkmeta.mounts import switch
from mkmeta.mounts.run import RunDirectory
from tests.host.hosts import Host
from tests.store.processes import fork, wait

pytestmark = pytest.mark.needs("root", "overlay")


def _tmpfs(point: Path, *files: str) -> None:
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-other", point], check=True)
    for name in files:
        (point / name).write_text("theirs\n")


def _bind(source: Path, point: Path) -> None:
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, point], check=True)


def _next_release(host: Host) -> None:
    host.release("v2", {"lib/two": "second\n"})
    host.publish()


@pytest.mark.parametrize(
    "point", ["/", "/usr", "/etc", "/var", "/proc", "/sys", "/dev", "/dev/shm", "/usr/lib", "/run"]
)
def test_directories_of_the_system_are_refused(host: Host, point: str) -> None:
    before = mounts()
    done = host.call("activate", host.store, point, "--lower", host.volume, "--over", check=None)
    assert done.code in (2, 16)  # 2: the volume would be below it
    assert mounts() == before


def test_what_mkmeta_needs_is_not_hidden(host: Host) -> None:
    store = host.point / "store"
    host.call("build", host.top / "sw.mkm", "--store", store)
    assert "the store" in host.call("activate", store, host.point, "--lower", host.volume, "--over", check=16).err
    shutil.rmtree(store)
    point, volume = os.fsencode(host.point), os.fsencode(host.volume)
    with pytest.raises(RefusedError, match="run directory"):
        check_place(point, store=b"/elsewhere", lower=volume, run=RunDirectory(point + b"/run"))
    with pytest.raises(RefusedError, match="run directory"):
        check_place(point, store=b"/elsewhere", lower=volume, run=RunDirectory(os.path.dirname(point)))
    inside = next(host.store.glob("generations/*"))
    done = host.call("activate", host.store, inside, "--lower", host.volume, "--over", check=16)
    assert "is in the store" in done.err
    program = Path(sys.prefix)
    assert "mkmeta itself" in host.call("activate", host.store, program, "--lower", host.volume, "--over", check=16).err
    host.activate()


def test_a_place_in_the_volume_is_refused(host: Host) -> None:
    """By its own name, and by another one of the same directory."""
    (host.volume / "here").mkdir()
    alias = host.top / "alias"
    _bind(host.volume, alias)
    for point in (host.volume / "here", alias / "here", host.volume / "grp/paint"):
        done = host.call("activate", host.store, point, "--lower", host.volume, "--over", check=16)
        assert "lies in the volume" in done.err
    assert (
        "cannot be at or below" in host.call("activate", host.store, host.volume, "--lower", host.volume, check=2).err
    )


def test_files_are_not_hidden_without_a_word(host: Host) -> None:
    (host.point / "important").write_text("data\n")
    assert "important" in host.activate(check=16).err
    assert (host.point / "important").read_text() == "data\n"
    assert "hides what is there, important" in host.activate("--over").err
    _next_release(host)
    assert "hides" not in host.activate().err  # it is a layer that goes
    host.call("deactivate", host.point)
    assert (host.point / "important").read_text() == "data\n"


def test_mounts_of_others_are_not_hidden_without_a_word(host: Host) -> None:
    _tmpfs(host.point, "theirs")
    refused = host.activate(check=16)
    assert "mkmeta-other (tmpfs) with what is there, theirs" in refused.err
    host.activate("--over")
    host.call("deactivate", host.point)
    assert (host.point / "theirs").exists()
    subprocess.run(["umount", host.point], check=True)
    _tmpfs(host.point)
    assert "which is empty" in host.activate().err
    host.call("deactivate", host.point)
    subprocess.run(["umount", host.point], check=True)
    _tmpfs(host.point / "below")
    assert f"mounted at {host.point}/below" in host.activate(check=16).err
    host.activate("--over")


def test_mounts_below_come_along(host: Host) -> None:
    host.activate()
    (host.volume / "local").mkdir()
    (host.volume / "grp/paint/v1/site").mkdir()
    host.publish()
    host.activate()
    _tmpfs(host.point / "local", "one")
    _tmpfs(host.point / "grp/paint/v1/site", "two")
    (host.point / "local/deep").mkdir()
    _tmpfs(host.point / "local/deep", "three")
    theirs = [host.point / name for name in ("local/one", "grp/paint/v1/site/two", "local/deep/three")]
    count = len([one for one in mounts() if one.source == b"mkmeta-other"])
    _next_release(host)
    for verb, *args in (
        ("activate", host.store, host.point),
        ("rollback", host.point),
        ("activate", host.store, host.point),
    ):
        host.call(str(verb), *args)
        assert [path.read_text() for path in theirs] == ["theirs\n"] * 3
    assert len([one for one in mounts() if one.source == b"mkmeta-other"]) == count
    busy = host.call("deactivate", host.point, check=1)
    assert f"mounts below it, at {host.point}/grp/paint/v1/site, {host.point}/local" in busy.err
    assert "with it goes what is mounted below it" in host.call("deactivate", host.point, "--detach").err
    assert host.leftovers() == []


def test_a_mount_that_has_no_place_in_the_new_layer(host: Host) -> None:
    (host.volume / "grp/paint/v1/site").mkdir()
    host.publish()
    host.activate()
    _tmpfs(host.point / "grp/paint/v1/site", "theirs")
    before = mounts()
    (host.volume / "grp/paint/v1/site").rmdir()
    host.publish()
    refused = host.activate(check=16)
    assert "no place for it" in refused.err
    assert mounts() == before
    assert host.leftovers() == []
    subprocess.run(["umount", host.point / "grp/paint/v1/site"], check=True)
    host.activate()


def test_a_switch_that_was_interrupted_loses_no_mount_below(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.volume / "local").mkdir()
    host.activate()
    _tmpfs(host.point / "local", "theirs")
    _next_release(host)

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    for step in ("move_mount_to", "umount_fd"):
        with monkeypatch.context() as patch:
            patch.setattr(switch, step, killed)
            host.call("activate", host.store, host.point, "--generation", "2", check=130)
        assert (host.point / "local/theirs").exists()
        host.activate("--generation", "2")
        assert (host.point / "local/theirs").exists()
        assert len(host.stack()) == 1
        host.call("rollback", host.point)


def test_a_bind_mount_of_a_layer_is_not_behind(host: Host) -> None:
    container, part = host.top / "container", host.top / "part"
    host.activate()
    _bind(host.point, container)
    _bind(host.point / "grp/paint", part)
    _next_release(host)
    host.activate()
    messages = [one for one in host.call("status", "--json").messages if str(host.top) in str(one.get("mountpoint"))]
    assert [(one["mountpoint"], one["state"]) for one in messages] == [(str(host.point), "current")]
    assert messages[0]["copies"] == [{"path": str(container)}]
    before = mounts()
    for place in (container, part):
        host.call("status", place, check=20)
        for verb in ("rollback", "refresh", "deactivate"):
            assert "no layer is mounted here" in host.call(verb, place, check=20).err
        host.call("activate", host.store, place, "--lower", host.volume, check=16)
    assert mounts() == before
    assert (container / "grp/paint/v1/lib/one").read_text() == "first\n"


def test_a_layer_that_was_moved_is_the_same(host: Host, tmp_path: Path) -> None:
    """By mount(8), or with a directory above it; what was made from it by bind is not, whatever number that has."""
    for name in ("sites", "copies"):
        (tmp_path / name).mkdir()
        _bind(tmp_path / name, tmp_path / name)
        subprocess.run(["mount", "--make-private", tmp_path / name], check=True)
    point = tmp_path / "sites" / "sw"
    host.call("activate", host.store, point, "--lower", host.volume)
    _bind(point, tmp_path / "copies" / "before")
    (tmp_path / "sites" / "moved").mkdir()
    for number, by in enumerate(("move", "rename"), start=2):
        there = point
        if by == "move":
            point = tmp_path / "sites" / "moved" / "sw"
            point.mkdir()
            subprocess.run(["mount", "--move", there, point], check=True)
        else:
            (tmp_path / "sites" / "moved").rename(tmp_path / "sites" / "renamed")
            point = tmp_path / "sites" / "renamed" / "sw"
        host.call("status", point)
        host.release(f"v{number}", {"lib/more": f"{number}\n"})
        host.publish()
        done = host.call("activate", "--json", host.store, point)
        assert done.messages[-1]["action"] == "switched", by
        assert (point / f"grp/paint/v{number}/lib/more").read_text() == f"{number}\n"
        # numbers of mounts are given again, the lowest first
        for copy in range(3):
            _bind(tmp_path / "copies" / "before", tmp_path / "copies" / f"{by}{copy}")
        found = [one["mountpoint"] for one in host.call("status", "--json").messages if one["message_type"] == "mount"]
        assert found == [str(point)], by
    for copied in (tmp_path / "copies").iterdir():
        host.call("deactivate", copied, check=20)
        subprocess.run(["umount", copied], check=True)
    host.call("deactivate", point)
    assert host.leftovers() == []
    for name in ("sites", "copies"):
        subprocess.run(["umount", tmp_path / name], check=True)


def test_a_layer_that_users_do_not_see(host: Host) -> None:
    """Covered at a directory above, and at its own."""
    sites = host.top / "sites"
    point = sites / "sw"
    point.mkdir(parents=True)
    activate = ("activate", host.store, point, "--lower", host.volume)
    host.call(*activate)
    _tmpfs(sites)
    point.mkdir()
    assert f"mounted over it, at {sites}" in host.call("status", point, check=22).err
    host.call("deactivate", point, check=20)
    host.call(*activate)
    assert (point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("status", point)
    host.call("deactivate", point)
    subprocess.run(["umount", sites], check=True)
    host.call("status", point)
    _tmpfs(point)
    assert "of type tmpfs is on top" in host.call("status", point, check=22).err


def test_a_layer_in_a_namespace_apart(host: Host) -> None:
    command = ["unshare", "--mount", "--propagation", "private", *host.command("activate", host.store, host.point)]
    command += ["--lower", str(host.volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "do not see it" in done.stderr


@pytest.mark.parametrize("name", ["link", ".nfs0001", "0123456789abcdef", "x"])
def test_litter_in_the_run_directory(host: Host, name: str) -> None:
    host.activate()
    inner = host.run / "inner"
    (inner / name).symlink_to("/")
    (inner / "directory").mkdir()
    (inner / "fedcba9876543210").mkdir()
    (inner / "fedcba9876543210/file").write_text("")
    _next_release(host)
    host.activate()
    host.call("rollback", host.point)
    host.call("deactivate", host.point)
    assert os.path.isdir("/")
    assert (inner / "directory").exists()
    assert (inner / "fedcba9876543210/file").exists()


def test_the_run_directory_of_others_is_refused_with_a_way_out(tmp_path: Path) -> None:
    """Before anything is done: the lock in it would not open."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # what leads to tmp_path is closed
        os.chmod(name, 0o755)
        run = RunDirectory.open(os.fsencode(name) + b"/run", None).path

        def as_nobody() -> int:
            os.setuid(65534)
            with pytest.raises(MountError, match="is not for you to write to") as caught:
                RunDirectory.open(run, None)
            return 0 if "--run-dir" in str(caught.value.hint) else 1

        assert wait(fork(as_nobody)) == 0


@pytest.mark.parametrize("value", ["", "relative", "./x"])
def test_a_runtime_directory_that_is_not_absolute_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It would be another one in each working directory, and `/mkmeta` where it is empty."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert runtime_directory() is None
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime_directory() == b"/run/user/1000"


def test_visible_is_what_lookups_come_to(tmp_path: Path) -> None:
    """Against the kernel, for every mount there is and those made here on top of each other."""
    a, b = tmp_path / "a", tmp_path / "a/b"
    b.mkdir(parents=True)
    try:
        for point in (b, b, a, a):
            subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", point], check=True)
        b.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", b], check=True)
        table = mounts()
        for path in (tmp_path, a, b):
            with open_path(path) as number:
                mount = seen_at(os.fsencode(path), table)
                assert (mount.id if mount else None) == number
        assert len([one for one in table if one.point == os.fsencode(b)]) == 3
        assert len(visible_at(os.fsencode(b), table)) == 1
        assert len(visible_at(os.fsencode(a), table)) == 2
    finally:
        while below := [one for one in mounts() if one.point.startswith(os.fsencode(tmp_path))]:
            calls.umount2(_last(below).point, calls.MNT_DETACH)


def _last(found: list[Mount]) -> Mount:
    return found[-1]


@contextmanager
def open_path(path: Path) -> Iterator[int]:
    """The ID of the mount a lookup ends on, as the kernel says."""
    fd = os.open(path, os.O_PATH)
    try:
        yield mount_id(fd)
    finally:
        os.close(fd)


def test_a_mount_point_is_made(host: Host) -> None:
    """One directory, where all may go through it, outside of the volume; not kept when nothing is mounted there."""
    new = host.top / "new"
    before = os.umask(0o077)
    try:
        refused = host.call("activate", host.store, new, "--lower", host.volume, "--generation", "7", check=15)
        assert ": made" not in refused.err
        assert not new.exists()
        inside = host.volume / "new"
        assert "lies in the volume" in host.call("activate", host.store, inside, "--lower", host.volume, check=16).err
        assert not inside.exists()
        host.call("activate", host.store, new / "deep", "--lower", host.volume, check=2)
        assert not new.exists()
        assert "made, as a mount point" in host.call("activate", host.store, new, "--lower", host.volume).err
    finally:
        os.umask(before)
    assert (new / "grp").is_dir()
    host.call("deactivate", new)
    assert new.stat().st_mode == 0o040755
    assert ": made" not in host.call("activate", host.store, new, "--lower", host.volume).err
    host.call("deactivate", new)


def test_a_mount_point_is_not_made_where_a_link_leads_nowhere(host: Host) -> None:
    link, nowhere = host.top / "link", host.top / "nowhere"
    link.symlink_to(nowhere.name)
    for given in (link, f"{link}/"):
        host.call("activate", host.store, given, "--lower", host.volume, check=2)
        assert not nowhere.exists()


def test_a_mount_point_that_somebody_removed_is_not_made(host: Host) -> None:
    """From another mount namespace, which takes the mount away here (Linux 3.18). Who makes it anew wants the layer."""
    host.activate()
    elsewhere = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
    subprocess.run([*elsewhere, 'umount "$1" && rmdir "$1"', "sh", host.point], check=True)
    assert not host.point.exists()
    host.activate(check=2)
    assert not host.point.exists()
    host.point.mkdir()
    host.activate()
