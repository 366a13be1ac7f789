"""Asks what may never answer, a server above all, from a child process that can be given up.

System calls on a hard NFS mount or a FUSE filesystem wait for ever, but not in a process that was killed (nfs(5),
"intr"). What waits for the child is a select(2): signals that end this process end it at once.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from mkmeta.errors import MkmetaError
from mkmeta.linux.process import end_child, fork_with, keep_only

Result = TypeVar("Result")

_SIZE: Final = struct.Struct("=I")  # of the message that follows
_DESCRIPTORS: Final = 200  # at most in one answer; SCM_MAX_FD of the kernel is 253
_GRACE: Final = 0.1  # seconds for a child that was given up to die in
_PIECE: Final = 65536  # bytes read at once


class NoAnswerError(Exception):
    """What was asked did not answer in time. No TimeoutError: that is ETIMEDOUT, the answer of some servers."""


@dataclass(frozen=True)
class _Bug:
    """An error that was not foreseen."""

    text: str


class Asked(Generic[Result]):
    """A question on its way: `work` runs in a child from now on. A context manager: left, the child is ended."""

    def __init__(
        self, work: Callable[[], Result], descriptors: Callable[[Result], Sequence[int]] | None = None
    ) -> None:
        """`descriptors` of the child's result are handed over too, and then to be had from `descriptors`."""
        ours, theirs = socket.socketpair()
        self._socket = ours
        self.descriptors: list[int] = []
        try:
            self._child = fork_with(lambda end: _answer(work, descriptors, end), ours.fileno(), theirs.detach())
        except BaseException:
            ours.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        end_child(self._child, _GRACE)

    def answer(self, deadline: float) -> Result:
        """What `work` returned or raised: MkmetaError, OSError. NoAnswerError at `deadline`, a monotonic time."""
        data = b""
        while len(data) < _SIZE.size or len(data) < _SIZE.size + _SIZE.unpack_from(data)[0]:
            if not select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NoAnswerError
            piece, found, _flags, _address = socket.recv_fds(self._socket, _PIECE, _DESCRIPTORS)
            self.descriptors += found
            if not piece:
                raise ChildProcessError("a process that looked at something died; `dmesg` may say why")
            data += piece
        result: Result | Exception | _Bug = pickle.loads(data[_SIZE.size :])  # both ends are this program
        if isinstance(result, _Bug):
            raise RuntimeError(result.text)
        if isinstance(result, Exception):
            raise result
        return result


def ask(work: Callable[[], Result], seconds: float) -> Result:
    """What `work` returns or raises, from a child. Raises NoAnswerError after `seconds`."""
    with Asked(work) as asked:
        return asked.answer(time.monotonic() + seconds)


def _answer(work: Callable[[], Result], descriptors: Callable[[Result], Sequence[int]] | None, end: int) -> None:
    """In the child."""
    keep_only(end)
    found: Sequence[int] = ()
    try:
        result: object = work()
        if descriptors is not None:
            found = descriptors(result)  # type: ignore[arg-type]
    except (MkmetaError, OSError) as error:
        result = error
    except BaseException:
        result = _Bug(traceback.format_exc())
    data = pickle.dumps(result)
    with socket.socket(fileno=end) as ours:
        if found:
            socket.send_fds(ours, [_SIZE.pack(len(data))], list(found))
        else:
            ours.sendall(_SIZE.pack(len(data)))
        ours.sendall(data)
    for fd in found:
        os.close(fd)
