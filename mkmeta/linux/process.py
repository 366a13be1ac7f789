"""What worker processes need of the kernel: to end with their parent, and to start without its signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when `parent`, the process that forked it, ends; at once if it has already."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def ending_signals_held() -> Iterator[None]:
    """Holds back the signals that end a program. Fork inside: a child then starts with them held, and none is lost.

    Otherwise a signal that finds the child before it has handlers of its own would unwind the parent's stack in it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_ending_signals() -> None:
    """Lets a child forked while they were held have them, once it has set its handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
