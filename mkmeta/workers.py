"""Worker processes: forked once, fed with messages over pipes, never outliving their parent.

Forked rather than spawned, so that what they work with (descriptors, compiled patterns) is simply there. Fork before
starting threads. A worker ends when its pipe does; Ctrl-C is the parent's to handle.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NoReturn, Self

from mkmeta.errors import MkmetaError
from mkmeta.linux.memory import give_back_large_buffers
from mkmeta.linux.process import default_ending_signals, die_with_parent, ending_signals_held, release_ending_signals


def available_processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, main: Callable[[Connection], None], others: list[Worker]) -> None:
        """Fork inside `ending_signals_held`."""
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.tasks = 0  # outstanding, kept by the pool's user
        inherited = [self.connection, *(other.connection for other in others)]
        self._process = context.Process(target=_run, args=(main, theirs, inherited, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        """Sends a message, pickled: both ends are this program. Raises MkmetaError when the worker is gone."""
        try:
            self.connection.send(message)
        except OSError:
            self._died()

    def receive(self) -> Any:
        """The next message. Raises MkmetaError when the worker is gone."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._died()

    def receive_file(self) -> IO[bytes]:
        """The file that `send_file` sent after the last message. Raises MkmetaError when the worker is gone."""
        with socket.socket(fileno=os.dup(self.connection.fileno())) as end:
            _, fds, _, _ = socket.recv_fds(end, 1, 1)
        if not fds:
            self._died()
        return os.fdopen(fds[0], "rb")

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.connection.close()
        self._process.terminate()
        self._process.join()

    def _died(self) -> NoReturn:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise MkmetaError(
            f"a worker process {how}", hint="if the kernel ran out of memory (see dmesg), use fewer workers: -j"
        )


class WorkerPool:
    """A fixed number of workers. A context manager; leaving it ends them."""

    def __init__(self, count: int, main: Callable[[Connection], None]) -> None:
        """`main` runs in each worker with its end of the pipe, and returns when that is closed."""
        self.workers: list[Worker] = []
        give_back_large_buffers()  # theirs as well as ours: both sides handle many frames
        try:
            with ending_signals_held():
                for _ in range(count):
                    self.workers.append(Worker(main, self.workers))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    def ready(self) -> Iterator[Worker]:
        """Waits until workers have sent something, and yields them."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection)):
            yield by_connection[connection]  # type: ignore[index]  # wait() returns what it was given


def send_file(connection: Connection, file: IO[bytes]) -> None:
    """In a worker: hands an open file to the parent, with the place in it. Raises BrokenPipeError when that is gone."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        socket.send_fds(end, [b"f"], [file.fileno()])


def messages(connection: Connection) -> Iterator[Any]:
    """In a worker: the messages of the parent, until it closes the pipe or dies."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield connection.recv()


def _run(main: Callable[[Connection], None], connection: Connection, inherited: list[Connection], parent: int) -> None:
    die_with_parent(parent)  # at once, not when it next looks at the pipe: what it holds open is locked
    default_ending_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells it to stop
    release_ending_signals()
    for other in inherited:
        other.close()
    gc.disable()  # workers make no reference cycles to speak of, but many lists that would be looked through
    with contextlib.suppress(BrokenPipeError):  # the parent died first
        main(connection)
