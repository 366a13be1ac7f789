"""Asks what may never answer, a server above all, from child processes that can be given up.

System calls on a hard NFS mount or a FUSE filesystem wait for ever, but not in a process that was killed (nfs(5),
"intr"). What waits for a child is a poll(2): signals that end this process end it at once. Three ways to ask:

- `ask`, `Asked`: one question, a function of a module and its arguments (functools.partial). Inside of `reused()` the
  child that has answered takes the next question: a fork takes milliseconds, and as many again for its pages.
- `Asked(..., alone=True)`: in a child of its own, for what changes that (namespaces, the root). Anything callable.
- `watched`: many questions of one kind, each with its own deadline; another child goes on where one was given up.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from mkmeta.errors import MkmetaError
from mkmeta.linux.process import end_child, fork_with, keep_only, print_traceback

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS: Final = 3.0  # for one look of `watched`: what needs no server takes microseconds, on a busy machine more
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


class Child:
    """A forked process, and the messages between it and this one: pickled, as both ends are this program."""

    def __init__(self, work: Callable[[socket.socket], None], keep: Sequence[int] = ()) -> None:
        """`work` runs in the child with its end of the connection; of what is open here it has `keep` besides."""
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._buffer = b""
        self.descriptors: list[int] = []  # that came with messages: whose they are, the receiver knows
        try:
            self._pid = fork_with(lambda end: _begin(work, end, keep), ours.fileno(), theirs.detach())
        except BaseException:
            ours.close()
            raise

    def send(self, message: bytes) -> None:
        """Sends what was pickled. Raises OSError when the child is gone."""
        self._socket.sendall(_SIZE.pack(len(message)) + message)

    def receive(self, deadline: float | None) -> Any:
        """The next message. Raises NoAnswerError at `deadline`, a monotonic time; EOFError when the child has ended."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while (message := self._complete()) is None:
            if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
                raise NoAnswerError
            piece, found, _flags, _address = socket.recv_fds(self._socket, _PIECE, _DESCRIPTORS)
            self.descriptors += found
            if not piece:
                raise EOFError
            self._buffer += piece
        return pickle.loads(message)

    def end(self, grace: float = _GRACE) -> None:
        """Ends it, whatever it does; what cannot die within `grace` seconds is left to init."""
        self._socket.close()
        end_child(self._pid, grace)

    def _complete(self) -> bytes | None:
        if len(self._buffer) < _SIZE.size:
            return None
        end = _SIZE.size + _SIZE.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        message, self._buffer = self._buffer[_SIZE.size : end], self._buffer[end:]
        return message


def send(end: socket.socket, message: object, descriptors: Sequence[int] = ()) -> None:
    """In a child: a message, and open files with it, to its parent."""
    data = pickle.dumps(message)
    if descriptors:
        socket.send_fds(end, [_SIZE.pack(len(data))], list(descriptors))
        end.sendall(data)
    else:
        end.sendall(_SIZE.pack(len(data)) + data)


@dataclass
class _Pool:
    """Children that have answered and wait for the next question."""

    owner: int = 0  # the process whose they are
    users: int = 0  # blocks of `reused` entered and not left
    idle: list[Child] = field(default_factory=list)


_pool = _Pool()


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Within, a child answers one question after the other. Blocks may be in blocks: the children end with the outer.

    They have the working directory and the namespaces that this process had at the first question.
    """
    global _pool
    if _pool.owner != os.getpid():
        _pool = _Pool(os.getpid())  # or what a parent has: not ours
    pool = _pool
    pool.users += 1
    try:
        yield
    finally:
        pool.users -= 1
        if not pool.users:
            while pool.idle:
                pool.idle.pop().end()


class Asked(Generic[Result]):
    """A question on its way: a child does `work` from now on. A context manager: left without an answer, that ends."""

    def __init__(self, work: Callable[[], Result], *, descriptors: bool = False, alone: bool = False) -> None:
        """`descriptors`: what it returns are open files, which are handed over, to be had from `descriptors`.

        `work` can be pickled, unless `alone`: then it runs in a child of its own.
        """
        self.descriptors: list[int] = []
        self._answered = False
        self._pool = _pool if not alone and _pool.users and _pool.owner == os.getpid() else None
        if alone:
            self._child = Child(lambda end: _answer(end, work, descriptors))
            return
        question = pickle.dumps((work, descriptors))
        while self._pool and self._pool.idle:
            child = self._pool.idle.pop()
            try:
                child.send(question)
            except OSError:  # somebody has killed it
                child.end()
                continue
            self._child = child
            return
        self._child = Child(_serve)
        try:
            self._child.send(question)
        except BaseException:
            self._child.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._answered and self._pool is not None and self._pool.users:
            self._pool.idle.append(self._child)
        else:
            self._child.end()

    def answer(self, deadline: float | None) -> Result:
        """What `work` returned or raised: MkmetaError, OSError. NoAnswerError at `deadline`, a monotonic time."""
        try:
            result: Result | Exception | _Bug = self._child.receive(deadline)
        except EOFError:
            raise ChildProcessError("a process that looked at something died; `dmesg` may say why") from None
        finally:
            self.descriptors += self._child.descriptors
            self._child.descriptors = []
        self._answered = True
        if isinstance(result, _Bug):
            raise RuntimeError(result.text)
        if isinstance(result, Exception):
            raise result
        return result


def ask(work: Callable[[], Result], seconds: float) -> Result:
    """What `work`, which can be pickled, returns or raises. Raises NoAnswerError after `seconds`."""
    with Asked(work) as asked:
        return asked.answer(time.monotonic() + seconds)


def watched(
    work: Callable[[Item], Result], items: Sequence[Item], seconds: float = SECONDS, keep: Sequence[int] = ()
) -> Iterator[tuple[Item, Result | None]]:
    """Calls `work` for each item, in order, in a child that has `keep` open; yields each item with what it returned.

    None where it raised OSError, where there was no answer within `seconds`, or the child died of it: then the next
    item is for another child. What `work` changes stays in the child.
    """
    done = 0
    while done < len(items):
        rest = items[done:]
        child = Child(lambda end, rest=rest: _each(end, work, rest), keep)  # type: ignore[misc]
        try:
            for item in rest:
                done += 1
                try:
                    result: Result | _Bug | None = child.receive(time.monotonic() + seconds)
                except (NoAnswerError, EOFError):
                    yield item, None
                    break
                if isinstance(result, _Bug):
                    raise RuntimeError(result.text)
                yield item, result
        finally:
            child.end()


# --- in the child ---


def _begin(work: Callable[[socket.socket], None], end: int, keep: Sequence[int]) -> None:
    keep_only(end, *keep)
    with socket.socket(fileno=end) as ours:
        try:
            work(ours)
        except (BrokenPipeError, ConnectionResetError):
            return  # the parent has given us up
        except Exception:
            print_traceback()  # before the parent sees that our end is gone, and ends us


def _serve(end: socket.socket) -> None:
    """Answers questions until there are no more."""
    with end.makefile("rb") as questions:
        while header := questions.read(_SIZE.size):
            work, descriptors = pickle.loads(questions.read(_SIZE.unpack(header)[0]))
            _answer(end, work, descriptors)


def _answer(end: socket.socket, work: Callable[[], Any], descriptors: bool) -> None:
    found: Sequence[int] = ()
    try:
        result: object = work()
        if descriptors:
            found = result  # type: ignore[assignment]
    except (MkmetaError, OSError) as error:
        result = error
    except Exception:
        result = _Bug(traceback.format_exc())
    send(end, result, found)
    for fd in found:
        os.close(fd)


def _each(end: socket.socket, work: Callable[[Item], Any], items: Sequence[Item]) -> None:
    for item in items:
        try:
            result: object = work(item)
        except OSError:
            result = None
        except Exception:
            result = _Bug(traceback.format_exc())
        send(end, result)
