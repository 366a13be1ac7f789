"""How many directories a scan will find in those that it has handed out: so that not too many wait in memory.

Tasks are taken depth first, but many at once, for workers must not run out of them: each lane has two, whatever they
bring. Each may bring as many as there are directories in it: those that a worker reads along count, for the next one
may have no time for that. What those of the same depth brought so far tells, about, what is to come.
"""

from __future__ import annotations

from typing import Final

WAITING_MAX: Final = 4096  # tasks that may be on their way to wait; each takes a KiB or so
_UNKNOWN: Final = 64  # of a depth of which nothing has come yet


class Forecast:
    """Counts what tasks bring."""

    def __init__(self) -> None:
        self._brought: dict[int, tuple[int, int]] = {}  # by depth: tasks that came back, and how many they brought
        self._outstanding: dict[int, tuple[int, int]] = {}  # by number: depth, and what was expected
        self._expected = 0  # of all that are outstanding

    def fits(self, path: bytes) -> bool:
        """Whether one more can be handed out, by what is expected."""
        return self._expected + self._of(_depth(path)) <= WAITING_MAX

    def handed_out(self, number: int, path: bytes) -> None:
        """A worker has it."""
        depth = _depth(path)
        expected = self._of(depth)
        self._outstanding[number] = depth, expected
        self._expected += expected

    def came_back(self, number: int, brought: int) -> None:
        """It brought so many."""
        depth, expected = self._outstanding.pop(number)
        self._expected -= expected
        tasks, total = self._brought.get(depth, (0, 0))
        self._brought[depth] = tasks + 1, total + brought

    def _of(self, depth: int) -> int:
        tasks, total = self._brought.get(depth, (0, 0))
        return -(-total // tasks) if tasks else _UNKNOWN


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0
