"""Locks: who waits, for whom, for how long, and what a killed holder leaves."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.errors import ExitCode, LockedError, StoreError
from mkmeta.store.lock import changed, held
from tests.store.processes import fork, wait
from tests.store.stores import ignore


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "lock")


def holder(path: bytes, purpose: str, seconds: float = 60, *, shared: bool = False) -> int:
    """A process that holds the lock; returns once it does."""
    ready, theirs = os.pipe()

    def run() -> int:
        with held(path, purpose, wait=0, note=ignore, shared=shared):
            os.write(theirs, b"x")
            time.sleep(seconds)
        return 0

    pid = fork(run)
    os.close(theirs)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return pid


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return 0


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait(pid)


def test_the_file_names_who_holds_it(path: bytes) -> None:
    with held(path, "gc", wait=0, note=ignore):
        assert Path(os.fsdecode(path)).read_text() == f"{os.getpid()} gc\n"
    assert Path(os.fsdecode(path)).read_bytes() == b""
    assert Path(os.fsdecode(path)).stat().st_mode == 0o100600


def test_a_name_alone_is_one_in_the_working_directory(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.fsdecode(os.path.dirname(path)))
    with held(b"lock", "gc", wait=0, note=ignore):
        assert Path(os.fsdecode(path)).read_text() == f"{os.getpid()} gc\n"


def test_the_umask_does_not_matter(path: bytes) -> None:
    before = os.umask(0o077)
    try:
        with held(path, "gc", wait=0, note=ignore):
            pass
    finally:
        os.umask(before)
    assert os.stat(path).st_mode == 0o100600


def test_who_does_not_get_it_is_told_who_has_it(path: bytes) -> None:
    pid = holder(path, "build")
    message = rf"in use by process {pid} \(mkmeta build\)"
    with pytest.raises(LockedError, match=message) as caught, held(path, "gc", wait=0, note=ignore):
        pytest.fail("got it")
    assert caught.value.exit_code is ExitCode.LOCKED
    assert caught.value.path == path
    assert "--wait" in (caught.value.hint or "")
    end(pid)
    with held(path, "gc", wait=0, note=ignore):  # though it could not clear its name
        pass


def test_waiting_is_said_once_and_ends(path: bytes) -> None:
    pid = holder(path, "build", 0.5)
    notes: list[str] = []
    with held(path, "gc", wait=60, note=notes.append):
        assert notes == [f"waiting for process {pid} (mkmeta build)"]
    wait(pid)
    started = time.monotonic()
    pid = holder(path, "build")
    with pytest.raises(LockedError), held(path, "gc", wait=0.3, note=notes.append):
        pytest.fail("got it")
    assert time.monotonic() - started >= 0.3
    end(pid)


def test_shared(path: bytes) -> None:
    pid = holder(path, "status", shared=True)
    with held(path, "status", wait=0, note=ignore, shared=True):
        pass
    with pytest.raises(LockedError), held(path, "gc", wait=0, note=ignore):
        pytest.fail("got it")
    end(pid)


@pytest.mark.parametrize("content", [b"", b"x", b"1 \x1b[31m\n", b"999999999999 gc\n", b"4194304 gc\n", b"1" * 5000])
def test_what_stands_in_the_file_is_not_trusted(path: bytes, content: bytes) -> None:
    Path(os.fsdecode(path)).write_bytes(content)
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match=r"^.*in use by another process$"), held(path, "gc", wait=0, note=ignore):
            pytest.fail("got it")


def make_directory(path: bytes) -> None:
    os.mkdir(path)


def make_link(path: bytes) -> None:
    Path(os.fsdecode(path) + "-precious").write_text("precious")
    os.symlink(path + b"-precious", path)


@pytest.mark.parametrize(
    ("make", "message"), [(make_directory, "is a directory"), (make_link, "too many levels of symbolic links")]
)
def test_what_is_no_lock(path: bytes, make: Callable[[bytes], None], message: str) -> None:
    make(path)
    with pytest.raises(StoreError, match=message), held(path, "gc", wait=0, note=ignore):
        pytest.fail("got it")
    if make is make_link:
        assert Path(os.fsdecode(path) + "-precious").read_text() == "precious"


@pytest.mark.needs("root")
def test_others_can_neither_open_nor_hold_it(path: bytes) -> None:
    """Also one that an earlier mkmeta left open to all, once it was used."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.chmod(path, 0o644)
    with held(path, "build", wait=0, note=ignore):
        pass

    def run() -> int:
        os.chdir(os.path.dirname(path))  # what is above it is closed to others
        os.chmod(b".", 0o755)
        os.setuid(65534)
        with pytest.raises(PermissionError):
            os.open(b"lock", os.O_RDONLY)
        with pytest.raises(StoreError, match="lock: cannot be opened: permission denied") as caught:
            held(b"lock", "status", wait=0, note=ignore).__enter__()
        return 0 if caught.value.hint else 1

    assert wait(fork(run)) == 0


@pytest.mark.needs("root")
def test_a_lock_of_somebody_elses_making(path: bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError, match="somebody else made it"), held(path, "gc", wait=0, note=ignore):
        pytest.fail("got it")
    os.chown(os.path.dirname(path), 65534, 65534)  # the store is his: then root may
    with held(path, "gc", wait=0, note=ignore):
        pass


def test_what_was_done_meanwhile_shows(path: bytes) -> None:
    assert changed(path) == 0
    with held(path, "gc", wait=0, note=ignore):
        pass
    before = changed(path)
    time.sleep(0.03)  # more than a tick of the kernel's clock
    with held(path, "gc", wait=0, note=ignore) as last:
        assert last == before
    time.sleep(0.03)
    with held(path, "gc", wait=0, note=ignore) as last:
        assert last > before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_can_be_interrupted(path: bytes, number: signal.Signals) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    pid = holder(path, "build")
    try:
        with pytest.raises(Stopped), held(path, "gc", wait=60, note=lambda _: os.kill(os.getpid(), number)):
            pytest.fail("got it")
    finally:
        signal.signal(number, before)
        end(pid)


def test_a_child_does_not_prolong_it(path: bytes) -> None:
    with held(path, "build", wait=0, note=ignore):
        pid = fork(lambda: sleep(60))
    with held(path, "gc", wait=0, note=ignore):
        pass
    end(pid)
