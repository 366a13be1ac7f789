"""Several requests in flight in one worker: each thread has its own working directory, and nothing gets mixed up."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from mkmeta.scanner import worker
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
    """Opens files with the latency of a network, and sees how many are asked for at once."""

    def __init__(self) -> None:
        self._most = ctypes.c_int.from_buffer(mmap.mmap(-1, 4096))  # shared with the worker process
        self._now = 0
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        return self._most.value

    def __call__(self, name: bytes) -> int:
        with self._lock:
            self._now += 1
            self._most.value = max(self._most.value, self._now)
        time.sleep(0.001)
        with self._lock:
            self._now -= 1
        return open_content(name)


def test_latency_is_hidden_by_requests_in_flight(volume: Path) -> None:
    plain = scan_tree(volume).id
    server = SlowServer()
    assert scan_tree(volume, open_content=server).id == plain
    assert server.most >= 4


def test_one_lane_where_threads_cannot_have_directories(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seccomp filter, as containers have, refuses unshare: then nothing may run beside the one working directory."""

    def unshare(flags: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    plain = scan_tree(volume).id
    monkeypatch.setattr(worker, "unshare", unshare)
    server = SlowServer()
    assert scan_tree(volume, open_content=server).id == plain
    assert server.most == 1
