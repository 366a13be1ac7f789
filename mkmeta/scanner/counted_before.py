"""What a base counted that a scan on it does not ask for again: what was left out on purpose, where nothing changed.

Names that servers make up, attributes and ACLs that are not recorded: of a directory that has the entries of the base
they count as the base says. Of another one those count that this scan came upon: of its files that have not changed,
nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import sub
from typing import Final

from mkmeta.model import STORED_COUNTS, Counts, DirectoryKind
from mkmeta.scanner.base import Base, BaseDirectory
from mkmeta.scanner.records import Child

_FIRST: Final = Counts._fields.index("hidden")  # this count and those after it are of what is left out on purpose


class CountedBefore:
    """What was left out of one directory, and is not counted yet."""

    def __init__(
        self, base: Base | None, directory: BaseDirectory | None, kind: DirectoryKind | None, path: bytes
    ) -> None:
        """`directory`: what the base has there, if that is what is there now. Raises FormatError."""
        self._base = base
        self._left: list[int] = []  # nothing is
        if base is not None and directory is not None and directory.kind is kind is DirectoryKind.OPAQUE:
            counts = base.counts(directory, path)[_FIRST:STORED_COUNTS]
            if any(counts):
                self._left = list(counts)

    def subtract(self, counted: Sequence[int], children: Iterable[Child]) -> None:
        """Takes out of that what this scan counted, and what is below directories. Raises FormatError."""
        if self._base is None or not self._left:
            return
        below = [self._base.counts(child.base, child.name) for child in children if child.base is not None]
        for counts in (counted, *below):
            self._left = list(map(sub, self._left, counts[_FIRST:]))

    def left(self) -> Counts:
        """What is left of it."""
        return Counts(*[0] * _FIRST, *(max(count, 0) for count in self._left))
