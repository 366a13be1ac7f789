"""A lease tells whether anybody has a file open, the kernel included."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mkmeta.linux.descriptors import closing
from mkmeta.linux.lease import Use, leased
from mkmeta.linux.loop import attach, backing_file
from tests.store.processes import fork, wait


def _use(path: Path) -> Use:
    with leased(os.fsencode(path)) as use:
        return use


@contextlib.contextmanager
def _mapping(path: Path) -> Iterator[None]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        yield


@contextlib.contextmanager
def _on_its_way(path: Path) -> Iterator[None]:
    """In a message that nobody has received."""
    one, other = socket.socketpair()
    with one, other:
        with path.open("rb") as file:
            socket.send_fds(one, [b"x"], [file.fileno()])
        yield


@contextlib.contextmanager
def _in_another_process(path: Path) -> Iterator[None]:
    script = "import sys; f = open(sys.argv[1]); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield
        child.communicate("")


@pytest.mark.parametrize("how", [Path.open, _mapping, _on_its_way, _in_another_process])
def test_whoever_has_it_open(tmp_path: Path, how: Callable[[Path], contextlib.AbstractContextManager[object]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert _use(path) is Use.NONE
    with how(path):
        assert _use(path) is Use.OPEN
    assert _use(path) is Use.NONE
    link = tmp_path / "link"
    os.link(path, link)
    with how(path):
        assert _use(link) is Use.OPEN  # it is about the inode


@pytest.mark.needs("loop mounts")
def test_a_loop_device(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    device, fd = attach(os.fsencode(path))
    with closing(fd):
        assert backing_file(device) == os.fsencode(path)
        assert _use(path) is Use.OPEN
        with pytest.raises(OSError, match=r"Read-only|not permitted"):
            Path(os.fsdecode(device)).write_bytes(b"x")
    assert path.read_bytes() == bytes(1 << 20)
    assert backing_file(b"/dev/null") is None
    assert backing_file(b"/dev/loop0/../sda") is None


def test_whoever_opens_it_meanwhile_waits_and_no_signal_harms_us(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    signalled: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, _frame: signalled.append(number))
    try:
        with leased(os.fsencode(path)) as use:
            assert use is Use.NONE
            reader, writer = os.pipe()

            def opens() -> int:
                os.write(writer, b"x")
                path.open("rb").close()
                return 0

            child = fork(opens)
            os.read(reader, 1)
            while not signalled:  # the kernel tells us that somebody waits
                signal.sigtimedwait([], 0.01)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert wait(child) == 0
        os.close(reader)
        os.close(writer)
    finally:
        signal.signal(signal.SIGURG, before)
