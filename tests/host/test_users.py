"""`gc` keeps what is used in ways that hardly show, and everything when it cannot look."""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mkmeta.linux.asking import watched
from mkmeta.linux.mount import MNT_DETACH, leave_mount_namespace, mount, open_tree_clone_of, umount2
from mkmeta.linux.mountinfo import mount_of, mounts
from mkmeta.linux.namespaces import open_proc
from mkmeta.mounts.holding import Found, Looker
from mkmeta.mounts.users import Usage, look, mount_tables
from tests.host.hosts import Host
from tests.store.processes import fork, wait

pytestmark = pytest.mark.needs("root", "overlay")
AT_ONCE = ("--keep", "1", "--min-age", "0")
_PRELUDE = """
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def ok(result):
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
point = sys.argv[1]
"""
_READY = "\nprint('ready', flush=True)\ntime.sleep(1000)\n"


@contextlib.contextmanager
def program(script: str, *args: str | Path, within: tuple[str, ...] = ()) -> Iterator[int]:
    """A Python program that has done what it should, until the block ends; its process ID."""
    command = [*within, sys.executable, "-c", _PRELUDE + script + _READY, *map(str, args)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def _numbers(host: Host) -> list[int]:
    return sorted(int(path.name[:6]) for path in (host.store / "generations").iterdir())


def _removes_all_but(host: Host, kept: list[int]) -> None:
    """The kernel takes a moment to take a namespace apart whose last process has ended."""
    deadline = time.monotonic() + 5
    while True:
        host.call("gc", host.store, *AT_ONCE)
        if _numbers(host) == kept or time.monotonic() > deadline:
            assert _numbers(host) == kept
            return
        time.sleep(0.1)


def _newer(host: Host, count: int = 2) -> None:
    for number in range(count):
        host.release(f"n{number}", {"lib/new": "new\n"})
        host.publish()


def _by_hand(options: str, at: Path, cwd: Path | None = None) -> None:
    subprocess.run(
        ["mount", "-t", "overlay", "hand", "-o", options, at],
        check=True,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"},
    )


THREAD = "def run():\n    {}\n    global done; done = True\n    time.sleep(1000)\n"
THREAD += "done = False\nthreading.Thread(target=run, daemon=True).start()\nwhile not done: time.sleep(0.01)\n"
HOLDERS = {
    "a descriptor": "fd = os.open(point + '/grp/paint/v1/lib/one', os.O_RDONLY)",
    "a descriptor of what is not in the layer": "fd = os.open(point, os.O_RDONLY)",
    "a mapping": "f = os.open(point + '/grp/paint/v1/lib/one', 0)\n"
    "m = mmap.mmap(f, 0, prot=mmap.PROT_READ); m[0]; os.close(f)\n"
    # Python's own copy of the descriptor
    "[os.close(n) for n in range(3, 64) if os.path.exists(f'/proc/self/fd/{n}')]",
    "a working directory": "os.chdir(point + '/grp/paint')",
    "a root": "os.chroot(point + '/grp')",
    "a thread's working directory": THREAD.format("ok(libc.unshare(0x200)); os.chdir(point + '/grp')"),
    "a thread's descriptor": THREAD.format("ok(libc.unshare(0x400)); os.open(point + '/grp', os.O_RDONLY)"),
    "a thread's mount namespace": THREAD.format("ok(libc.unshare(0x20200))"),
    "a namespace": "ok(libc.unshare(0x20000))",
    "a namespace seen from a chroot": "ok(libc.unshare(0x20000)); os.chroot('/proc'); os.chdir('/')",
    "a namespace by a descriptor alone": "pid = os.fork()\n"
    "if pid == 0:\n    ok(libc.unshare(0x20000)); time.sleep(1000)\n"
    "time.sleep(0.3); fd = os.open(f'/proc/{pid}/ns/mnt', 0); os.kill(pid, 9); os.waitpid(pid, 0)",
    "a detached mount": "fd = ok(libc.syscall(428, -100, point.encode(), 1))",
    "a tree with the mount in it": "fd = ok(libc.syscall(428, -100, os.path.dirname(point).encode(), 0x8001))",
}


@pytest.mark.parametrize("how", HOLDERS)
@pytest.mark.parametrize("profile", ["nested", "merge"])
def test_a_program_that_has_it_in_some_way(host: Host, how: str, profile: str) -> None:
    mount(os.fsencode(host.top), os.fsencode(host.top), None, 0x1000)
    host.activate("--profile", profile)
    with program(HOLDERS[how], host.point):
        _newer(host)
        host.activate()
        said = host.call("gc", host.store, *AT_ONCE).err
        assert _numbers(host) == [1, 3], said
    _removes_all_but(host, [3])


def test_a_namespace_that_only_a_message_keeps(host: Host) -> None:
    """Its descriptor is on its way through a socket: no process has it."""
    host.activate()
    one, other = socket.socketpair()
    with program("ok(libc.unshare(0x20000))", host.point) as process:
        namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY)
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [namespace]))])
        os.close(namespace)
    _newer(host)
    host.activate()
    host.call("gc", host.store, *AT_ONCE)
    kept = _numbers(host)
    one.close()
    other.close()
    assert kept == ([1, 3] if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12) else [3])


def test_a_namespace_that_only_a_mount_keeps(host: Host) -> None:
    host.activate()
    (host.top / "kept").touch()
    kept = os.fsencode(host.top / "kept")
    # The kernel takes no namespace with a lower number than that of the one it is mounted in, against cycles (EINVAL).
    # From 6.18 on each processor numbers its own: on the one that made ours, what comes later is higher.
    for processor in os.sched_getaffinity(0):
        made = f"os.sched_setaffinity(0, {{{processor}}}); ok(libc.unshare(0x20000))"
        with program(made, host.point) as process, contextlib.suppress(OSError):
            mount(b"/proc/%d/ns/mnt" % process, kept, None, 0x1000)
            break
    assert mount_of(kept, mounts()).fstype == b"nsfs"
    _newer(host)
    host.activate()
    host.call("gc", host.store, *AT_ONCE)
    assert _numbers(host) == [1, 3]
    umount2(kept)
    _removes_all_but(host, [3])


BY_HAND = {
    "through current": ("lowerdir={store}/current/layer:{volume}", None),
    "relative": ("lowerdir=layer:{volume}", "current"),
    "as the directory one is in": ("lowerdir=.:{volume}", "current/layer"),
    "through a link": ("lowerdir={top}/link:{volume}", None),
    "as a bind that is gone": ("lowerdir={top}/bind:{volume}", None),
    "under another": ("lowerdir={top}/empty:{store}/current/layer:{volume}", None),
    "as the lower of a writable one": (
        "lowerdir={store}/current/layer:{volume},upperdir={top}/u,workdir={top}/w",
        None,
    ),
}


@pytest.mark.parametrize("how", BY_HAND)
def test_mounted_by_hand(host: Host, how: str) -> None:
    """Names say what they say when somebody mounts, not what they say later."""
    options, cwd = BY_HAND[how]
    for name in ("bind", "empty", "u", "w"):
        (host.top / name).mkdir()
    layer = os.path.realpath(host.store / "current/layer")
    (host.top / "link").symlink_to(layer)
    mount(os.fsencode(layer), os.fsencode(host.top / "bind"), None, 0x1000)
    options = options.format(store=host.store, volume=host.volume, top=host.top)
    _by_hand(
        f"{'' if 'upperdir' in options else 'ro,'}metacopy=on,{options}", host.point, host.store / cwd if cwd else None
    )
    umount2(os.fsencode(host.top / "bind"), MNT_DETACH)
    (host.top / "link").unlink()
    _newer(host)
    host.call("gc", host.store, *AT_ONCE)
    assert 1 in _numbers(host)
    umount2(os.fsencode(host.point))
    _removes_all_but(host, [3])


def test_nested_by_hand_and_the_inner_one_out_of_sight(host: Host) -> None:
    inner = host.top / "inner"
    inner.mkdir()
    _by_hand(f"ro,metacopy=on,lowerdir={host.store}/current/layer::{host.volume}", inner)
    _by_hand(f"ro,lowerdir={inner}:{host.volume}", host.point)
    umount2(os.fsencode(inner), MNT_DETACH)
    _newer(host)
    host.call("gc", host.store, *AT_ONCE)
    assert _numbers(host) == [1, 3]


@pytest.mark.parametrize("way", ["a path", "a relative one", "a path, and the layer is gone", "a path through a link"])
def test_a_container_above_a_directory_of_it(host: Host, way: str) -> None:
    """Its overlay has no handles, nothing in its root is where the layer has it. Nested layers can have none above."""
    for name in ("u", "w", "c", "link"):
        (host.top / name).mkdir()
    host.activate("--profile", "merge")
    lower = "paint" if "relative" in way else f"{host.point}/grp/paint"
    if "link" in way:
        (host.top / "link/sw").symlink_to(host.point)
        lower = f"{host.top}/link/sw/grp/../grp/paint"
    options = f"lowerdir={lower},upperdir={host.top}/u,workdir={host.top}/w"
    _by_hand(options, host.top / "c", host.point / "grp")
    _newer(host)
    host.activate("--profile", "merge")
    if "gone" in way:
        host.call("deactivate", host.point)
    host.call("gc", host.store, *AT_ONCE)
    assert 1 in _numbers(host)
    assert (host.top / "c/v1/lib/one").read_text() == "first\n"
    umount2(os.fsencode(host.top / "c"))
    _removes_all_but(host, [3])


def test_overlays_of_others_above_overlays_keep_nothing(host: Host) -> None:
    """Without handles, and with names that the layer has too."""
    for name in ("lower/grp/paint", "empty", "inner", "u", "w", "c"):
        (host.top / name).mkdir(parents=True)
    (host.top / "lower/grp/paint/file").write_text("x")
    _by_hand(f"ro,lowerdir={host.top}/lower:{host.top}/empty", host.top / "inner")
    _by_hand(f"lowerdir={host.top}/inner/grp/paint,upperdir={host.top}/u,workdir={host.top}/w", host.top / "c")
    _newer(host)
    host.call("gc", host.store, *AT_ONCE)
    assert _numbers(host) == [3]
    umount2(os.fsencode(host.top / "c"))
    umount2(os.fsencode(host.top / "inner"))


def test_overlays_of_others_keep_nothing(host: Host) -> None:
    """A container's, on the same filesystem, with names as containers have them; one that is detached and in use."""
    for name in ("l", "u", "w", "c", "d"):
        (host.top / name).mkdir()
    (host.top / "l/file").write_text("x")
    _by_hand("lowerdir=l,upperdir=u,workdir=w", host.top / "c", host.top)
    _by_hand(f"ro,lowerdir={host.top}/l:{host.top}/d", host.point)
    with program("os.chdir(point); fd = os.open('file', 0)", host.point):
        umount2(os.fsencode(host.point), MNT_DETACH)
        _newer(host)
        host.call("gc", host.store, *AT_ONCE)
        assert _numbers(host) == [3]


BLIND = {
    "without CAP_SYS_PTRACE": ("setpriv", "--bounding-set=-sys_ptrace"),
    "in a pid namespace": ("unshare", "--pid", "--fork", "--mount-proc"),
    "in a user namespace": ("unshare", "--user", "--map-root-user"),
    "where processes are hidden": (
        *("unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec setpriv "$@"', "-"),
        "--bounding-set=-sys_ptrace",
    ),
}


@pytest.mark.needs("setpriv", "unshare")
@pytest.mark.parametrize("how", BLIND)
def test_whoever_cannot_look_removes_nothing(host: Host, how: str) -> None:
    """Nobody uses anything here: the same call with all rights removes it."""
    _newer(host)
    # a process like any other, to look into which takes CAP_SYS_PTRACE
    with program("pass", host.point):
        command = [*BLIND[how], *host.command("gc", host.store, *AT_ONCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert _numbers(host) == [1, 2, 3], done.stderr
    assert done.returncode == 0
    assert "in the initial pid namespace" in done.stderr
    assert "perhaps in use" in done.stderr
    _removes_all_but(host, [3])


@contextlib.contextmanager
def _dead_filesystem(at: Path) -> Iterator[None]:
    """FUSE whose daemon never answers anything."""
    at.mkdir()
    daemon = os.open("/dev/fuse", os.O_RDWR)
    try:
        mount(b"dead", os.fsencode(at), b"fuse", 0, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % daemon)
        yield
    finally:
        os.close(daemon)


@pytest.mark.parametrize("detached", [False, True])
def test_a_dead_filesystem_of_somebody_else_is_not_asked(host: Host, detached: bool) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine lacks: FUSE")
    host.activate()
    dead = host.top / "dead"
    with _dead_filesystem(dead), program("fd = os.open(point, os.O_PATH)", dead):
        if detached:
            umount2(os.fsencode(dead), MNT_DETACH)
        _newer(host)
        host.activate()
        said = host.call("gc", host.store, *AT_ONCE).err + host.call("status", host.point).err
        assert "answer" not in said  # who asks it gets none, and says so
        assert _numbers(host) == [3]


def test_others_may_use_the_store_while_gc_looks(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock is held; and what they do meanwhile is seen, by looking again."""
    host.activate()
    _newer(host)
    looks: list[Usage] = []

    def look_and_act(layers: list[bytes]) -> Usage:
        usage = look(layers)
        if not looks:
            host.call("activate", host.store, host.point, "--generation", "2", "--wait", "0")
        looks.append(usage)
        return usage

    monkeypatch.setattr("mkmeta.host.collection.look", look_and_act)
    host.call("gc", host.store, *AT_ONCE)
    assert len(looks) >= 2
    assert _numbers(host) == [2, 3], [usage.unseen for usage in looks]


def test_a_tree_that_is_in_no_namespace_can_be_copied_from_linux_6_15() -> None:
    """What the word for older kernels rests on."""
    tree = ctypes.CDLL(None).syscall(428, -100, b"/proc", 1)
    assert tree >= 0
    newer = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, tree)
        if newer:
            os.close(open_tree_clone_of(tree))
        else:
            with pytest.raises(OSError, match="Invalid argument"):
                open_tree_clone_of(tree)


def test_the_mount_id_of_a_descriptor_asks_nobody(tmp_path: Path) -> None:
    with open_proc() as proc:
        fd = os.open(tmp_path, os.O_PATH)
        assert proc.mount_id(fd) > 0
        os.close(fd)


def test_in_a_chroot_to_a_plain_directory(host: Host) -> None:
    """No line of its mount table is the mount its root is on; the whole namespace's has it."""
    jail = host.top / "jail"
    (jail / "proc").mkdir(parents=True)
    (jail / "inside").mkdir()
    mount(b"/proc", os.fsencode(jail / "proc"), None, 0x5000)

    def run() -> int:
        os.chroot(jail)
        os.chdir("/inside")
        assert mount_of(b"/inside", mounts()).id not in [one.id for one in mounts()]
        leave_mount_namespace()
        assert sorted(os.listdir("..")) == ["inside", "proc"]
        assert sorted(os.listdir("/")) == ["inside", "proc"]
        mount(b"x", b"/inside", b"tmpfs", 0)
        assert len(mount_tables().tables) > 0
        return 0

    assert wait(fork(run)) == 0
    assert not os.path.ismount(jail / "inside")


_DEEP = """
os.chdir(point)
for _ in range(20):
    os.mkdir('x' * 250)
    os.chdir('x' * 250)
fd = os.open('file', os.O_RDWR | os.O_CREAT)
os.write(fd, b'x')
mapping = mmap.mmap(fd, 1)
"""


def test_what_lies_deeper_than_a_path_can_say_is_in_nobodys_way(host: Host, tmp_path: Path) -> None:
    """Any user can have it open: the kernel does not say what it is called (ENAMETOOLONG)."""
    (tmp_path / "theirs").mkdir()
    host.activate()
    _newer(host)
    try:
        with program(_DEEP, tmp_path / "theirs"):
            host.activate()
            host.call("status", host.point)
            _removes_all_but(host, [3])
            host.call("deactivate", host.point)
            assert host.leftovers() == []
    finally:
        subprocess.run(["rm", "-r", tmp_path / "theirs"], check=True)


def test_what_gives_no_answer_is_given_up() -> None:
    """One that hangs, one whose child dies of it; the others are looked at."""

    def work(item: str) -> str:
        if item == "hangs":
            time.sleep(1000)
        if item == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return item.upper()

    items = ["a", "hangs", "b", "dies", "c" * 100_000]
    found = dict(watched(work, items, 0.3))
    assert found == {"a": "A", "hangs": None, "b": "B", "dies": None, "c" * 100_000: "C" * 100_000}


def test_a_process_that_gives_no_answer_keeps_everything(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Looker.look
    with program("pass", host.point) as silent:

        def look_or_hang(looker: Looker, process: int) -> Found:
            if process == silent:
                time.sleep(1000)
            return real(looker, process)

        monkeypatch.setattr(Looker, "look", look_or_hang)
        monkeypatch.setattr("mkmeta.mounts.users.watched", partial(watched, seconds=0.5))
        _newer(host)
        done = host.call("gc", host.store, *AT_ONCE)
    assert _numbers(host) == [1, 2, 3]
    assert f"process {silent} (python" in done.err
    assert "no answer" in done.err
