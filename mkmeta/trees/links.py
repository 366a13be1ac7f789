"""Hard links of a tree that is put together from parts: which names are one inode.

What a scan knows by inode number is known here by the facts of the inputs. Without facts, there are only the rows of
each: names that are one inode in any input are one in the result, but two names that no single input has both of stay
two files.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Self

from blake3 import blake3

from mkmeta.codec.objects import encode_entry
from mkmeta.errors import MkmetaError, ScanError
from mkmeta.manifest.links import FINGERPRINT_BYTES, LinkCollector
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import LinkRow, Node, PrimaryRow, tree_order

_LABEL_BYTES = 8


class LinkNames:
    """Takes the names of the result in tree order; gives its rows at the end. A context manager.

    Memory does not grow with the number of links, but without facts with that of inodes for which the inputs have names
    that overlap, and primaries that differ.
    """

    def __init__(self, readers: Sequence[ManifestReader], *, by_inode: bool, split: bool = False) -> None:
        """`by_inode`: the inputs have facts. `split`: names recorded in different ways are no links, instead of an
        error. The links of the inputs are true: they were checked.
        """
        self._by_inode = by_inode
        self._split = split
        self._joined: dict[int, int] = {} if by_inode else _joined(readers)
        self._cursors = [_Cursor(reader) for reader in readers if reader.root.links is not None]
        self._names = LinkCollector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._names.__exit__(*args)

    def add(self, path: bytes, node: Node, inode: int) -> None:
        """A name of the result that is no directory; `inode` is 0 where it is not known."""
        label = inode if self._by_inode and inode else self._label(path)
        if label is None:
            return
        fingerprint = blake3(encode_entry(b"", node)).digest(FINGERPRINT_BYTES)
        if self._split:
            label = _hash(label.to_bytes(_LABEL_BYTES, "big") + fingerprint)
        self._names.add(label, path, fingerprint, 0)

    def rows(self) -> Iterator[PrimaryRow | LinkRow]:
        """The rows of the link pages. Raises MkmetaError when the names of an inode are not recorded alike."""
        try:
            yield from self._names.rows(())
        except ScanError as error:
            raise MkmetaError(
                "is recorded in another way under another name of the same inode: it changed between the scans",
                path=error.path,
                hint="scan again, or let the later one win with --on-conflict later",
            ) from None

    def _label(self, path: bytes) -> int | None:
        """What stands for the inode of a name that the rows of an input have."""
        key = tree_order(path)
        labels = [label for cursor in self._cursors if (label := cursor.at(key)) is not None]
        return _top(self._joined, labels[0]) if labels else None


class _Cursor:
    """The rows of one input, followed along a walk."""

    def __init__(self, reader: ManifestReader) -> None:
        self._rows = reader.links()
        self._next()

    def at(self, key: bytes) -> int | None:
        """The label of the row at a path, given its tree order; paths ascend from call to call."""
        while self._row is not None and self._key < key:
            self._next()
        return _label_of(self._row) if self._row is not None and self._key == key else None

    def _next(self) -> None:
        self._row = next(self._rows, None)
        self._key = tree_order(self._row.path) if self._row is not None else b""


def _joined(readers: Sequence[ManifestReader]) -> dict[int, int]:
    """Labels that stand for one inode, as a forest: of a name that has several, all are joined."""
    above: dict[int, int] = {}
    path, first = b"", 0
    for row in heapq.merge(*(reader.links() for reader in readers), key=lambda row: tree_order(row.path)):
        label = _top(above, _label_of(row))
        if row.path != path:
            path, first = row.path, label
            continue
        first = _top(above, first)
        if label != first:
            above[label] = first
    return above


def _top(above: dict[int, int], label: int) -> int:
    while label in above:
        label = above[label]
    return label


def _label_of(row: PrimaryRow | LinkRow) -> int:
    return _hash(row.target if isinstance(row, LinkRow) else row.path)


def _hash(data: bytes) -> int:
    return int.from_bytes(blake3(data).digest(_LABEL_BYTES), "big")
