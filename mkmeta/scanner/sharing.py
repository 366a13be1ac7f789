"""Work on the names of one directory that several lanes do together, some names at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from mkmeta.scanner.looking import change_directory

if TYPE_CHECKING:
    from mkmeta.scanner.listing import DirectoryReader
    from mkmeta.scanner.records import Listing

FEW: Final = 8  # names that are worth a turn of their own
_MANY: Final = 512  # names at most: others may come to help, and want to find something left
_SHORT, _LONG = 0.002, 0.02  # seconds: between them a turn should take, so that the last one is not waited for long


class Pace:
    """How many names one lane takes at a time: few while each is waited for, many while memory answers."""

    def __init__(self) -> None:
        self.names = FEW

    def count(self, names: int, seconds: float) -> None:
        """Takes note of a turn."""
        if seconds < _SHORT and names >= self.names:
            self.names = min(self.names * 2, _MANY)
        elif seconds > _LONG:
            self.names = max(self.names // 2, FEW)


class Shared:
    """What is to be done with each of so many names of the directory open as `fd`.

    Turns are taken in ascending order, and after the first that failed no more: what it found does not depend on how
    the names were divided.
    """

    def __init__(self, path: bytes, fd: int, names: int, work: Callable[[DirectoryReader, int, int], Listing]) -> None:
        """`work` is given the reader of a lane whose working directory this is, and from where to where."""
        self._path = path
        self._fd = fd
        self._work = work
        self._left = range(names)
        self._lock = threading.Condition()
        self._turns = 0  # that are being taken
        self._found: dict[int, Listing] = {}
        self._failed: dict[int, BaseException] = {}

    @property
    def left(self) -> int:
        """Names nobody has taken yet."""
        return len(self._left)

    def claim(self, names: int) -> range | None:
        """Takes so many names; None when there are none left. `perform` has to follow."""
        with self._lock:
            turn, self._left = self._left[:names], self._left[names:]
            self._turns += bool(turn)
        return turn or None

    def perform(self, reader: DirectoryReader, turn: range, *, enter: bool) -> None:
        """Does what was claimed; with `enter` in what becomes the working directory."""
        started = time.perf_counter()
        try:
            if enter:
                change_directory(self._fd, self._path)
            found = self._work(reader, turn.start, turn.stop)
        except BaseException as error:
            with self._lock:
                self._failed[turn.start] = error
                self._left = range(0)
                self._end()
            return
        reader.pace.count(len(turn), time.perf_counter() - started)
        with self._lock:
            self._found[turn.start] = found
            self._end()

    def wait(self) -> list[Listing]:
        """What was found, in the order of the names, when all turns are over. Raises what the first failure raised."""
        with self._lock:
            while self._turns:
                self._lock.wait()
        if self._failed:
            raise self._failed[min(self._failed)]
        return [self._found[start] for start in sorted(self._found)]

    def _end(self) -> None:
        self._turns -= 1
        if not self._turns:
            self._lock.notify()


class Company(Protocol):
    """Whoever can find others to share work with."""

    def share(self, shared: Shared) -> list[Listing]:
        """Sees to it that all is done, and returns what `Shared.wait` does."""
