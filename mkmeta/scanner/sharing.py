"""Work on the names of one directory that several lanes do together, some names at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from mkmeta.scanner.looking import change_directory

if TYPE_CHECKING:
    from mkmeta.scanner.directory import DirectoryReader
    from mkmeta.scanner.gathering import Gathering
    from mkmeta.scanner.records import Listing

FEW: Final = 4  # names that are worth a turn of their own
_MANY: Final = 512  # names at most: others may come to help, and want to find something left
_SHORT, _LONG = 0.002, 0.02  # seconds: between them a turn should take, so that the last one is not waited for long
_AHEAD: Final = 8192  # names that others may be ahead of the slowest turn: what they found waits in memory

Work = Callable[["DirectoryReader", int, int], "Listing"]


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

    def __init__(self, path: bytes, fd: int, names: int, work: Work, gathering: Gathering) -> None:
        """`work` is given the reader of a lane whose working directory this is, and from where to where."""
        self._path = path
        self._fd = fd
        self._names = names
        self._work = work
        self._gathering = gathering
        self._lock = threading.Condition()
        self._claimed = 0  # names
        self._gathered = 0
        self._turns = 0  # that are being taken
        self._found: dict[int, tuple[int, Listing]] = {}  # by their first name: where they end, and what they found
        self._failed: dict[int, BaseException] = {}

    @property
    def left(self) -> int:
        """Names that can be taken now."""
        return min(self._names, self._gathered + _AHEAD) - self._claimed if not self._failed else 0

    @property
    def is_over(self) -> bool:
        """Whether all names have been taken, or no more will be."""
        return self._claimed == self._names or bool(self._failed)

    def claim(self, names: int) -> range | None:
        """Takes so many names; None when none can be taken now. `perform` has to follow."""
        with self._lock:
            turn = range(self._claimed, self._claimed + max(min(names, self.left), 0))
            self._claimed = turn.stop
            self._turns += bool(turn)
        return turn or None

    def perform(self, reader: DirectoryReader, turn: range, *, enter: bool) -> None:
        """Does what was claimed; with `enter` in what becomes the working directory."""
        started = time.perf_counter()
        try:
            if enter:
                change_directory(self._fd, self._path)
            found = self._work(reader, turn.start, turn.stop)
            reader.pace.count(len(turn), time.perf_counter() - started)
            with self._lock:
                self._found[turn.start] = turn.stop, found
                while self._gathered in self._found:
                    self._gathered, found = self._found.pop(self._gathered)
                    self._gathering.add(found)
                self._end()
        except BaseException as error:
            with self._lock:
                self._failed[turn.start] = error
                self._end()

    def wait_for_a_turn(self) -> None:
        """Waits until one of the turns that others take is over."""
        with self._lock:
            turns = self._turns
            self._lock.wait_for(lambda: self._turns < turns or not self._turns or self.left)

    def wait(self) -> None:
        """Until all turns are over. Raises what the first failure raised."""
        with self._lock:
            self._lock.wait_for(lambda: not self._turns)
        if self._failed:
            raise self._failed[min(self._failed)]

    def _end(self) -> None:
        self._turns -= 1
        self._lock.notify_all()


class Company(Protocol):
    """Whoever can find others to share work with."""

    def share(self, shared: Shared) -> None:
        """Sees to it that all is done; then does what `Shared.wait` does."""
