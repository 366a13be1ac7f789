"""Switching under users: no gap, no mixture, nothing left over, and the old mount stays when the new one fails."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkmeta.linux import mount as calls
from mkmeta.linux.mountinfo import mounts
from mkmeta.mounts import switch
from mkmeta.mounts.live import live_at
from tests.host.hosts import Host, kill_sometimes, mounts_below, took

pytestmark = pytest.mark.needs("root", "overlay")


def _two_generations(host: Host) -> None:
    host.release("v2", {"lib/two": "second\n"})
    host.publish()


def test_activate_is_idempotent(host: Host) -> None:
    assert host.activate("--json").messages[-1]["action"] == "mounted"
    before = host.stack()
    assert host.activate("--json").messages[-1]["action"] == "unchanged"
    assert host.activate("--profile", "nested", "--generation", "1", "--json").messages[-1]["action"] == "unchanged"
    assert host.stack() == before


def test_a_switch_replaces_and_rollback_goes_back(host: Host) -> None:
    host.activate()
    _two_generations(host)
    assert not (host.point / "grp/paint/v1/lib/two").exists()
    assert host.call("activate", host.store, host.point, "--json").messages[-1]["action"] == "switched"
    assert (host.point / "grp/paint/v2/lib/two").read_text() == "second\n"
    assert host.call("rollback", host.point, "--json").messages[-1]["generation"] == 1
    assert host.call("activate", host.store, host.point, "--json").messages[-1]["action"] == "unchanged"  # it stays
    assert host.call("rollback", host.point, "--to", "1", "--json").messages[-1]["action"] == "unchanged"
    host.call("rollback", host.point, check=15)
    host.activate("--generation", "2")
    assert len(host.stack()) == 1
    assert host.leftovers() == []


def test_another_profile_is_a_switch(host: Host) -> None:
    host.activate("--profile", "merge")
    assert host.activate("--profile", "data-only", "--json").messages[-1]["action"] == "switched"
    assert host.activate("--json").messages[-1]["action"] == "unchanged"  # auto is content with what there is
    assert host.live().profile == "data-only"


def test_what_is_open_stays_with_the_old_mount(host: Host) -> None:
    host.activate()
    with (host.point / "grp/paint/v1/lib/one").open() as file:
        directory = os.open(host.point / "grp/paint", os.O_RDONLY)
        host.release("v1", {"lib/more": "more\n"})
        host.publish()
        host.activate()
        assert file.read() == "first\n"
        assert "more" not in os.listdir(os.open("v1/lib", os.O_RDONLY, dir_fd=directory))
        assert "more" in os.listdir(host.point / "grp/paint/v1/lib")
        os.close(directory)


def test_a_hundred_switches_leave_one_mount_and_no_descriptor(host: Host) -> None:
    _two_generations(host)
    host.activate()
    everywhere, descriptors = len(mounts_below(host.top)), len(os.listdir("/proc/self/fd"))
    for number in range(100):
        host.activate("--generation", str(1 + number % 2))
    assert (len(mounts_below(host.top)), len(os.listdir("/proc/self/fd"))) == (everywhere, descriptors)
    assert len(host.stack()) == 1
    assert host.leftovers() == []


@pytest.mark.parametrize("propagation", ["private", "shared", "slave", "unbindable"])
def test_propagation_of_the_mount_below(host: Host, propagation: str) -> None:
    """In the mount point's own filesystem, with a peer in another namespace that has to see the same."""
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", host.point.parent / "sw"], check=True)
    subprocess.run(["mount", "--make-shared", host.point], check=True)
    if propagation != "shared":
        subprocess.run(["mount", f"--make-{propagation}", host.point], check=True)
    below = host.point / "here"
    below.mkdir()
    host.activate("--over")  # on top of a mount that is not ours, and not empty
    host.call("deactivate", host.point)
    peer = subprocess.Popen(["unshare", "--mount", "--propagation", "unchanged", "sleep", "100"])
    try:
        time.sleep(0.3)
        _two_generations(host)
        host.call("activate", host.store, below, "--lower", host.volume)
        for number in (1, 2, 1):
            host.call("activate", host.store, below, "--generation", str(number))
            (live,) = live_at(os.fsencode(below), mounts())
            assert f"{number:06}-" in os.fsdecode(live.layer)
            seen = live_at(os.fsencode(below), mounts(peer.pid))
            assert [one.short_id for one in seen] == ([live.short_id] if propagation == "shared" else [])
        host.call("deactivate", below)
        assert live_at(os.fsencode(below), mounts(peer.pid)) == []
        assert host.leftovers() == []
    finally:
        peer.kill()
        peer.wait()


def test_if_the_new_mount_cannot_be_made_the_old_one_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.activate()
    _two_generations(host)
    before = host.stack()

    def fail(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), b"x")

    for step in ("mount", "create"):
        with monkeypatch.context() as patch:
            patch.setattr(calls.FilesystemContext, step, fail)
            assert host.activate(check=1).err.startswith("mkmeta: ")
        assert host.stack() == before
        assert host.leftovers() == []
    with monkeypatch.context() as patch:
        patch.setattr(switch, "move_mount", lambda fd, target, beneath=False: fail() if beneath else None)
        host.activate(check=1)
    assert host.stack() == before
    assert os.readlink(host.store / "current").endswith("000002-" + host.publish()[:12])
    host.activate()


def test_without_mount_beneath_the_gap_must_be_allowed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.activate()
    _two_generations(host)
    real = calls.move_mount

    def older_kernel(fd: int, target: bytes, *, beneath: bool = False) -> None:
        if beneath:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), target)
        real(fd, target)

    monkeypatch.setattr(switch, "move_mount", older_kernel)
    refused = host.activate(check=17)
    assert "--allow-gap" in refused.err
    assert os.readlink(host.store / "current").split("/")[1].startswith("000002")
    first = host.live().layer
    assert b"/000001-" in first
    host.activate("--allow-gap")
    assert b"/000002-" in host.live().layer
    assert len(host.stack()) == 1

    def broken(fd: int, target: bytes, *, beneath: bool = False) -> None:
        if not beneath and os.fsencode(host.point) == target and not broken_once:
            broken_once.append(True)
            raise OSError(errno.EIO, os.strerror(errno.EIO), target)
        older_kernel(fd, target, beneath=beneath)

    broken_once: list[bool] = []
    monkeypatch.setattr(switch, "move_mount", broken)
    host.activate("--generation", "1", "--allow-gap", check=1)
    assert b"/000002-" in host.live().layer  # it came back


def test_an_interrupted_switch_is_finished_by_the_next_call(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.activate()
    _two_generations(host)
    with monkeypatch.context() as patch:
        patch.setattr(switch, "umount_fd", lambda *_args: None)  # as if killed before the old one is detached
        host.activate()
    assert len(host.stack()) == 2
    assert b"/000001-" in live_at(os.fsencode(host.point), mounts())[-1].layer
    assert host.call("status", host.point, check=22).err.count("a switch was interrupted") == 1
    assert host.activate("--json").messages[-1]["action"] == "unchanged"
    assert b"/000002-" in host.live().layer
    assert host.leftovers() == []


def test_something_else_on_top_is_never_unmounted(host: Host) -> None:
    host.activate()
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-other", host.point], check=True)
    host.call("deactivate", host.point, check=20)
    host.call("rollback", host.point, check=20)
    assert host.stack()[-1].source == b"mkmeta-other"


_LOAD = """
import os, subprocess, sys, time
point, stop = sys.argv[1], sys.argv[2]
allowed = [set(names.split(",")) for names in sys.argv[3:]]
rounds = 0
while not os.path.exists(stop):
    names = set(os.listdir(point + "/grp/paint/v1/lib"))
    assert names in allowed, names
    for name in ("one", "empty"):
        os.stat(point + "/grp/paint/v1/lib/" + name)
    with open(point + "/grp/paint/v1/lib/one") as file:
        assert file.read() == "first\\n"
    try:
        os.stat(point + "/grp/paint/v1/lib/nowhere")
        raise SystemExit("found what is not there")
    except FileNotFoundError:
        pass
    os.stat(point + "/notes")
    with os.scandir(point + "/grp/paint/v1") as entries:
        for entry in entries:
            entry.stat()
    if rounds % 20 == 0:
        assert subprocess.run([point + "/grp/paint/v1/bin/tool"], capture_output=True, check=True).stdout == b"one\\n"
    rounds += 1
print(rounds)
"""


@pytest.mark.parametrize("profile", ["nested", "merge"])
def test_programs_notice_nothing_of_switches(host: Host, profile: str) -> None:
    """Several processes list, stat, open, exec all the time: no error, and every listing is one generation's."""
    host.release("v1", {"lib/more": "more\n"})
    host.publish()
    host.activate("--profile", profile)
    stop = host.top / "stop"
    arguments = [str(host.point), str(stop), "one,empty", "one,empty,more"]
    programs = [
        subprocess.Popen([sys.executable, "-c", _LOAD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for number in range(50):
            host.activate("--profile", profile, "--generation", str(1 + number % 2))
    finally:
        stop.touch()
        outcomes = [(*program.communicate(), program.returncode) for program in programs]
    for out, err, code in outcomes:
        assert (code, err) == (0, b"")
        assert int(out) > 20
    assert len(host.stack()) == 1


def test_two_activations_at_once(host: Host) -> None:
    _two_generations(host)
    host.activate("--generation", "1")
    racing = [
        subprocess.Popen(
            host.command("activate", host.store, host.point, "--generation", str(1 + number % 2)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for one in racing:
        _out, err = one.communicate()
        assert one.returncode == 0, err
    assert len(host.stack()) == 1
    assert host.leftovers() == []


def test_who_holds_the_lock_is_named(host: Host) -> None:
    import fcntl

    host.activate()
    with (host.run / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate()
        lock.write(f"{os.getpid()} switch\n")
        lock.flush()
        held = host.activate("--wait", "0.3", check=14)
    assert f"process {os.getpid()}" in held.err
    assert "switch" in held.err


def kill_activations(host: Host, times: int) -> int:
    """Kills `activate` at random points; after each, the path has to be there and the same call has to work. (Another
    may be refused: one that would go back from what the killed one had mounted, and not yet made the current one.)
    """
    _two_generations(host)
    chance = random.Random(times)
    killed = 0
    for number in range(times):
        first, second = (
            host.command("activate", host.store, host.point, "--lower", host.volume, "--generation", str(wanted))
            for wanted in (1 + number % 2, 2 - number % 2)
        )
        killed += kill_sometimes(second, chance.uniform(0.4, 1.1) * took(first)) == -signal.SIGKILL
        assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
        assert len(host.stack()) <= 2
        if number % 5 == 0:
            host.activate("--generation", str(2 - number % 2))
            assert len(host.stack()) == 1
            assert host.leftovers() == []
    host.activate("--generation", "2")
    assert len(host.stack()) == 1
    assert host.leftovers() == []
    return killed


def test_killed_activations(host: Host) -> None:
    assert kill_activations(host, 20) > 3


@pytest.mark.slow
def test_activations_killed_at_a_hundred_points(host: Host) -> None:
    assert kill_activations(host, 100) >= 40


@pytest.mark.needs("data-only userxattr")
def test_in_a_user_namespace(tmp_path: Path) -> None:
    """An ordinary user's own namespaces, and a layer with user.* attributes: the whole life of a mount."""
    inside = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from tests.host.hosts import host_in\n"
        "for host in host_in(pathlib.Path(sys.argv[2]), userxattr=True):\n"
        "    host.activate(); assert host.live().profile == 'nested'\n"
        "    assert (host.point / 'grp/paint/v1/lib/one').read_text() == 'first\\n'\n"
        "    assert (host.point / 'notes').read_text() == 'not selected\\n'\n"
        "    host.release('v2', {'lib/two': 'second\\n'}); host.publish(); host.activate()\n"
        "    assert (host.point / 'grp/paint/v2/lib/two').read_text() == 'second\\n'\n"
        "    assert len(host.stack()) == 1 and host.leftovers() == []\n"
        "    host.call('refresh', host.point); host.call('rollback', host.point)\n"
        "    assert 'follow the redirects' in host.activate('--profile', 'merge', check=16).err\n"
        "    host.call('deactivate', host.point); print('done')\n"
    )
    root = Path(__file__).parents[2]
    top = tmp_path / "ns"
    top.mkdir()
    os.chmod(tmp_path, 0o755)
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        inside,
        str(root),
        str(top / "host"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_move_mount_beneath_is_what_is_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this kernel there is never a moment with the path uncovered: the old mount goes after the new one is there."""
    host.activate()
    _two_generations(host)
    order: list[str] = []
    real_move, real_umount = calls.move_mount, calls.umount_fd

    def move(fd: int, target: bytes, *, beneath: bool = False) -> None:
        order.append(f"move beneath={beneath}" if target == os.fsencode(host.point) else "inner")
        real_move(fd, target, beneath=beneath)

    def umount(fd: int, flags: int = 0) -> None:
        order.append("umount")
        real_umount(fd, flags)

    monkeypatch.setattr(switch, "move_mount", move)
    monkeypatch.setattr(switch, "umount_fd", umount)
    host.activate()
    assert order == ["move beneath=True", "umount"]
