"""What a verification found: collected on disk, given back in tree order, however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Self

from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import tree_order

_END: Final = b"\0\0"  # after a path's key: sorts before what is below it, and no name is empty
_SEQUENCE_BYTES: Final = 8


class Side(StrEnum):
    """What is not as it should be."""

    LAYER = "layer"
    VOLUME = "volume"  # what it says of names and attributes
    DATA = "data"  # what is in its files


class Finding(NamedTuple):
    """One difference."""

    side: Side
    path: bytes  # relative to the root; empty: the root itself
    what: str  # mode, xattr, missing, extra ...: a word for programs (formats/cli.md)
    message: str  # for people
    subtree: bytes  # what was selected and has `path` in it; above the selection: `path`


class Reporter:
    """Makes findings of what is seen in one tree."""

    def __init__(self, side: Side, tell: Callable[[Finding], None]) -> None:
        self._side = side
        self._tell = tell

    def add(
        self, path: bytes, what: str, message: str, *, subtree: bytes | None = None, side: Side | None = None
    ) -> None:
        """A finding at a path, which is in `subtree`, or above all."""
        self._tell(Finding(side or self._side, path, what, message, subtree or path))


class Findings:
    """Findings of several processes. A context manager; memory does not grow with their number."""

    def __init__(self) -> None:
        self._sorted = ExternalSorter()
        self.count = 0
        self.sides: Counter[str] = Counter()  # how many of each side

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sorted.__exit__(kind, error, trace)

    def add(self, finding: Finding) -> None:
        """Takes one in. Raises MkmetaError when the temporary directory is full."""
        fields = (finding.subtree, finding.side.encode(), finding.what.encode(), finding.message.encode())
        sequence = self.count.to_bytes(_SEQUENCE_BYTES, "big")
        self._sorted.add(tree_order(finding.path) + _END + sequence + b"\0".join(fields))
        self.count += 1
        self.sides[str(finding.side)] += 1

    def __iter__(self) -> Iterator[Finding]:
        """All of them in tree order, those of one path in the order they were added in. Once; ends `add`."""
        for record in self._sorted:
            # No name is empty, so no key has two NULs in a row; that of the root has no bytes at all.
            end = 0 if record.startswith(_END) else record.index(_END)
            fields = record[end + len(_END) + _SEQUENCE_BYTES :].split(b"\0", 3)
            subtree, side, what, message = fields
            path = record[:end].replace(b"\0", b"/")
            yield Finding(Side(side.decode()), path, what.decode(), message.decode(), subtree)
