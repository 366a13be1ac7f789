"""What child processes need of the kernel: to end with their parent, and to start without its signals."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_DESCRIPTORS: Final = 1 << 16  # more than anybody has open here
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


def default_ending_signals() -> None:
    """In a child: they end it at once, but for those that whoever started this program ignores."""
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def release_ending_signals() -> None:
    """Lets a child forked while they were held have them, once it has set its handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def fork_with(work: Callable[[int], None], ours: int, theirs: int) -> int:
    """Forks a child that does `work` with its end of a connection, and then ends; closes that end here."""
    parent = os.getpid()
    with ending_signals_held():
        child = os.fork()
        if child == 0:
            try:
                default_ending_signals()
                release_ending_signals()
                die_with_parent(parent)
                os.close(ours)
                gc.disable()  # it would look through all that the parent has, and copy the pages of it
                work(theirs)
            except BaseException:
                print_traceback()
            finally:
                os._exit(0)
    os.close(theirs)
    return child


def print_traceback() -> None:
    """In a child: that of the exception being handled, to its standard error, whatever this program made of its own."""
    os.write(2, traceback.format_exc().encode(errors="backslashreplace"))


def keep_only(*fds: int) -> None:
    """In a child: closes what it was born with, but `fds`; input and output become /dev/null, unless they are of these.

    A child that waits for a dead server cannot always be killed: nobody shall wait for the end of a pipe it has.
    """
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:  # a chroot may have none
        null = os.memfd_create("null", 0)
    for number in (0, 1, 2):
        if number not in fds:
            os.dup2(null, number)
    start = 3
    for fd in sorted(fds):
        os.closerange(start, fd)
        start = max(start, fd + 1)
    os.closerange(start, _DESCRIPTORS)


def end_child(child: int, grace: float) -> None:
    """Kills a child and waits for it; one that cannot die within `grace` seconds, as a server has it, is left to init.

    A request that a FUSE server has read is waited for even then (fs/fuse/dev.c, request_wait_answer).
    """
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + grace
    pause = 0.0001  # seconds; most have ended by themselves
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
