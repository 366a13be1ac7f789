"""Looking at what may never answer: in a child process, which is ended when it does not, and whose place another takes.

System calls that wait for a dead server cannot be given a deadline, but a process that waits for one can be killed, or
left behind (nfs(5), "intr"; a FUSE daemon's callers). What the caller has locked or open is safe from it.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from mkmeta.linux.process import fork_with_pipe

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS: Final = 3.0  # for one look: what needs no server takes microseconds, on a busy machine milliseconds
_GRACE: Final = 0.5  # seconds to die in; one that cannot yet is left to init
_SIZE = struct.Struct("=I")  # of the message that follows


def watched(
    work: Callable[[Item], Result], items: Sequence[Item], seconds: float = SECONDS
) -> Iterator[tuple[Item, Result | None]]:
    """Calls `work` for each item, in order, in a child process; yields each item with what it returned, pickled.

    None where there was no answer within `seconds`, or the child died of it: then the next item is for another child.
    What `work` changes stays in the child; it must raise nothing.
    """
    done = 0
    while done < len(items):
        rest = items[done:]
        child, reader = fork_with_pipe(lambda writer, rest=rest: _run(work, rest, writer))  # type: ignore[misc]
        try:
            for result in _messages(reader, seconds):
                yield items[done], result  # type: ignore[misc]
                done += 1
            if done < len(items):
                yield items[done], None
                done += 1
        finally:
            os.close(reader)
            _end(child)


def _run(work: Callable[[Item], Result], items: Sequence[Item], writer: int) -> None:
    for item in items:
        data = pickle.dumps(work(item))
        data = _SIZE.pack(len(data)) + data
        while data:
            data = data[os.write(writer, data) :]


def _messages(reader: int, seconds: float) -> Iterator[object]:
    """What the child sends, until it ends, or sends nothing for that long."""
    buffer = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        while len(buffer) >= _SIZE.size and len(buffer) >= (end := _SIZE.size + _SIZE.unpack_from(buffer)[0]):
            yield pickle.loads(buffer[_SIZE.size : end])  # both ends are this program
            buffer = buffer[end:]
        if not poll.poll(seconds * 1000):
            return
        if not (received := os.read(reader, 1 << 16)):
            return
        buffer += received


def _end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + _GRACE
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.002)
