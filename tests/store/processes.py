"""Processes that are killed: this program, forked, so that what it does can be stopped at any step."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

# Python's functions for system calls that change something, or that a kill between two of them could matter to
_CHANGING = (
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "symlink",
    "fchmod",
    "chmod",
    "write",
    "pwrite",
    "ftruncate",
    "setxattr",
)
STEPS: Final = frozenset((*_CHANGING, "open", "close", "fsync", "flock", "fork"))


def fork(run: Callable[[], int]) -> int:
    """Runs a function in a process of its own, with its result for an exit code. Returns the process ID."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = run()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Its exit code; below zero the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_killed(run: Callable[[], int], step: int) -> bool:
    """Runs a function in a process that is killed before its step number `step`. Returns whether it got that far."""
    parent = os.getpid()

    def count(_frame: FrameType, event: str, function: object) -> None:
        nonlocal step
        if event == "c_call" and getattr(function, "__name__", "") in STEPS and os.getppid() == parent:
            if step == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            step -= 1

    def stepped() -> int:
        sys.setprofile(count)
        try:
            return run()
        finally:
            sys.setprofile(None)

    code = wait(fork(stepped))
    assert code in (0, -signal.SIGKILL)
    return code != 0
