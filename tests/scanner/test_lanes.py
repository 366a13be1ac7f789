"""Several requests in flight in one worker: each thread has its own working directory, and nothing gets mixed up."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import threading
from pathlib import Path

import pytest

from mkmeta.scanner import governor, performing, scan, worker
from mkmeta.scanner.hashing import ContentHasher
from mkmeta.scanner.looking import open_content
from tests.scanner.helpers import scan_tree

DIRECTORIES, FILES = 200, 8


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Many directories with the same names in them, and other contents."""
    root = tmp_path / "volume"
    for number in range(DIRECTORIES):
        directory = root / f"d{number % 10}" / f"e{number}"
        directory.mkdir(parents=True)
        for name in range(FILES):
            (directory / f"f{name}").write_text(f"{number} {name}")
    return root


class SlowServer:
    """Opens files slowly until so many are asked for at once, and sees how many that are at most."""

    def __init__(self, until: int, seconds: float = 0.02) -> None:
        self._most = ctypes.c_int.from_buffer(mmap.mmap(-1, 4096))  # shared with the worker process
        self._until = until
        self._seconds = seconds  # that an answer takes until then
        self._now = 0
        self._changed = threading.Condition()

    @property
    def most(self) -> int:
        return self._most.value

    def __call__(self, name: bytes) -> int:
        with self._changed:
            self._now += 1
            self._most.value = max(self._most.value, self._now)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._most.value >= self._until, timeout=self._seconds)
            self._now -= 1
        return open_content(name)


def test_latency_is_hidden_by_requests_in_flight(volume: Path) -> None:
    plain = scan_tree(volume).id
    server = SlowServer(until=16)
    assert scan_tree(volume, open_content=server).id == plain
    assert server.most >= 16


@pytest.mark.parametrize("bad", [(), (3, 200), (200, 3), (700,)])
def test_the_names_of_one_directory_are_shared(tmp_path: Path, bad: tuple[int, ...]) -> None:
    """And what is found, or is wrong first, does not depend on who looks at which name."""
    wide = tmp_path / "volume" / "top" / "wide"
    wide.mkdir(parents=True)
    (tmp_path / "volume" / "other").mkdir()
    for number in range(800):
        (wide / f"f{number:03}").write_text(f"{number}")
        if number % 7 == 0:
            os.link(wide / f"f{number:03}", wide / f"g{number:03}")
        if number % 50 == 0:
            (wide / f"f{number:03}d").mkdir()
    for number in bad:
        os.setxattr(wide / f"f{number:03}", "trusted.overlay.origin", b"x")
    plain = scan_tree(tmp_path / "volume", "*")
    server = SlowServer(until=16)
    slow = scan_tree(tmp_path / "volume", "*", open_content=server)
    assert slow.nodes() == plain.nodes()
    assert slow.left_out() == plain.left_out()
    if bad:
        assert f"f{min(bad):03}" in str(slow.left_out())
    else:
        assert slow.id == plain.id
        assert server.most >= 16


def test_one_lane_where_threads_cannot_have_directories(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seccomp filter, as containers have, refuses unshare: then nothing may run beside the one working directory."""

    def unshare(flags: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    plain = scan_tree(volume).id
    monkeypatch.setattr(worker, "unshare", unshare)
    server = SlowServer(until=2, seconds=0.001)
    assert scan_tree(volume, open_content=server).id == plain
    assert server.most == 1


def test_lanes_that_end_leave_nothing_behind(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look for no reference cycles: whatever a lane had goes with it, or to the next one."""
    monkeypatch.setattr(worker, "_PATIENCE", 0.0)  # so that lanes end all the time
    monkeypatch.setattr(performing, "MOMENT", 0.0)
    monkeypatch.setattr(scan, "_TASKS_PER_WORKER", 0)
    monkeypatch.setattr(governor, "LANES_MAX", 1)
    lanes = ctypes.c_int.from_buffer(mmap.mmap(-1, 4096))  # shared with the worker process
    most = ctypes.c_int.from_buffer(mmap.mmap(-1, 4096))
    begin = threading.Thread.start
    opened: list[bytes] = []

    def start(thread: threading.Thread) -> None:
        lanes.value += 1
        begin(thread)

    def open_and_count(name: bytes) -> int:
        opened.append(name)
        if len(opened) % 100 == 0:
            most.value = max(most.value, sum(type(thing) is ContentHasher for thing in gc.get_objects()))
        return open_content(name)

    monkeypatch.setattr(threading.Thread, "start", start)
    scan_tree(volume, open_content=open_and_count)
    assert lanes.value > 3
    assert most.value == 1
