"""Recorded manifests as sources of trees: what is taken from them as it is, and what is put together anew.

Whoever combines manifests walks them, and says of each directory that does not stay as it is what comes into it, name
by name, as steps; `assemble` does the rest. Of the directories from the root to where the walk is, cursors are held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import sub
from typing import Final, NamedTuple

from blake3 import blake3

from mkmeta.codec.container import Location
from mkmeta.codec.objects import encode_entry
from mkmeta.errors import FormatError
from mkmeta.manifest.cursor import counts_of
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NO_COUNTS, Counts, Directory, DirectoryKind, LinkRow, Node, PrimaryRow, tree_order
from mkmeta.trees.links import FINGERPRINT_BYTES, Look
from mkmeta.trees.writer import ChildName, LinkedName, Opening, Part, Place, TreeWriter, own_entry

OF_THE_FILE = "compact_bytes"  # of `counts`: how large a file is without what its tree does not need; ours has no such
_UNKNOWN_NLINK: Final = 2**32 - 1  # of an inode of which a manifest without facts says that it has several names


class Item(NamedTuple):
    """An entry of an input, with its facts."""

    name: bytes
    node: Node
    inode: int  # 0: not known
    change_time: int  # ns since the epoch; 0 where the inode is not known
    nlink: int  # names of the inode on the volume; 1 where that is not known
    facts: Location | None  # of a directory: those of what is in it
    source: Source

    @property
    def is_opaque(self) -> bool:
        """Whether it is an opaque directory."""
        return isinstance(self.node, Directory) and self.node.kind is DirectoryKind.OPAQUE


@dataclass(eq=False, slots=True)
class Source:
    """An input."""

    reader: ManifestReader
    name: bytes  # what the user calls it
    adopted: bool = False  # the result has its objects and facts, in their places
    _rows: _Rows | None = field(default=None, init=False)

    def top(self) -> Item:
        """Its root."""
        return Item(b"", self.reader.root.directory, 0, 0, 1, self.reader.facts_place, self)

    def check(self) -> None:
        """Raises FormatError naming the input unless root, info and hard links are valid."""
        with self.named():
            _ = self.reader.root, self.reader.info
            self.reader.check_links()

    def items(self, directory: Item, path: bytes) -> Iterator[Item]:
        """What is in a directory of this input. Raises FormatError naming the input."""
        node = directory.node
        assert isinstance(node, Directory)
        with self.named():
            for entry in self.reader.recorded(node, path, directory.facts):
                yield Item(*entry, self)

    def counts(self, item: Item, path: bytes) -> Counts:
        """What an entry adds to the counts, all below it included; zero of a directory without facts."""
        if not isinstance(item.node, Directory):
            return counts_of(item.node, item.nlink)
        if item.facts is None:
            return Counts()
        with self.named():
            return self.reader.counts(item.facts, path)

    def look(self, item: Item, path: bytes) -> Look | None:
        """What the input proves of an inode with several names. Without facts paths must ascend from call to call."""
        if item.nlink > 1:
            return Look(item.inode, item.change_time, item.nlink, _fingerprint(item.node))
        if item.inode or self.reader.root.links is None:
            return None
        if self._rows is None:
            self._rows = _Rows(self.reader)
        primary = self._rows.primary(path)
        if primary is None:
            return None
        label = blake3(self.reader.id + b"\0" + primary).digest(8)
        return Look(int.from_bytes(label, "big"), 0, _UNKNOWN_NLINK, _fingerprint(item.node))

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Names the input in errors that do not name a file."""
        try:
            yield
        except FormatError as error:
            error.path = error.path or self.name
            raise


class Keep(NamedTuple):
    """A step: an entry as an input has it, with all below it."""

    item: Item


@dataclass(slots=True, eq=False)
class Enter:
    """A step: a directory that is put together anew."""

    own: Item  # whose name, attributes, and facts of its own, it gets
    kind: DirectoryKind  # what it is to be, unless something in it is dropped; may be set while the steps are taken
    steps: Iterator[Step]
    extra: Counts = NO_COUNTS  # what was left out in it on purpose; may be set while the steps are taken


class Drop(NamedTuple):
    """A step: something that is there is not recorded any more."""


Step = Keep | Enter | Drop


def assemble(writer: TreeWriter, top: Enter) -> None:
    """Puts a tree together. Raises MkmetaError, FormatError naming an input."""
    stack: list[tuple[Opening, Enter]] = [(writer.open(writer.root, DirectoryKind.MERGE), top)]
    while stack:
        opening, enter = stack[-1]
        step = next(enter.steps, None)
        match step:
            case None:
                stack.pop()
                if enter.kind is DirectoryKind.MERGE:
                    writer.drop(opening)
                assert isinstance(enter.own.node, Directory)
                writer.close(opening, own_entry(enter.own.name, enter.own.node), enter.extra)
            case Drop():
                writer.drop(opening)
            case Keep(item):
                copied = _keep(writer, opening, item)
                if copied is not None:
                    stack.append(copied)
            case Enter():
                place = _place(writer, opening, step.own, step.kind)
                stack.append((writer.open(place, step.kind), step))


def _keep(writer: TreeWriter, opening: Opening, item: Item) -> tuple[Opening, Enter] | None:
    """Takes an entry; a directory whose objects have to be copied becomes one that is put together."""
    node, source = item.node, item.source
    path = opening.path + b"/" + item.name if opening.path else item.name
    if not isinstance(node, Directory):
        look = source.look(item, path)
        inode, change_time, nlink = (item.inode, item.change_time, 1) if look is None else look[:3]
        part = Part([encode_entry(item.name, node)], (), [inode], [change_time], {0: nlink} if nlink > 1 else {})
        links = [LinkedName(item.name, look)] if look is not None else ()
        writer.extend(opening, part, counts_of(node, nlink), links)
        return None
    place = _place(writer, opening, item, node.kind)
    if not source.adopted or item.facts is None:
        enter = Enter(item, node.kind, iter(()))
        enter.steps = _copied(enter, path)
        return writer.open(place, node.kind), enter
    counts = source.counts(item, path)
    subtree = place.subtree.place.path if place.subtree is not None else None
    if counts.linked:
        _harvest(writer, item, path, subtree)
    merges = node.kind is DirectoryKind.MERGE
    writer.fill(place, encode_entry(item.name, node), node.entries + 1, item.facts, counts, merges=merges)
    return None


def _copied(enter: Enter, path: bytes) -> Iterator[Step]:
    """The steps of a directory that stays what it is."""
    extra = Extra(enter.own, path)
    for item in enter.own.source.items(enter.own, path):
        extra.take(item)
        yield Keep(item)
    enter.extra = extra.hidden()


class Extra:
    """What was left out on purpose in a directory itself: what its counts say beyond its entries'."""

    def __init__(self, directory: Item, path: bytes) -> None:
        self._prefix = path + b"/" if path else b""
        self.rest = directory.source.counts(directory, path)

    def take(self, item: Item) -> None:
        """An entry of it."""
        below = item.source.counts(item, self._prefix + item.name)
        self.rest = Counts(*map(sub, self.rest, below))

    def hidden(self) -> Counts:
        """The counts of names and attributes, when all entries were taken; not below zero, whatever facts say."""
        first = Counts._fields.index("hidden")
        return Counts(*([0] * first), *(max(count, 0) for count in self.rest[first:]))


def _place(writer: TreeWriter, opening: Opening, item: Item, kind: DirectoryKind) -> Place:
    child = ChildName(item.name, kind, 0)
    (place,) = writer.extend(opening, Part((b"", b""), (child,), [item.inode], [item.change_time], {}))
    return place


def _harvest(writer: TreeWriter, top: Item, path: bytes, subtree: bytes | None) -> None:
    """Says of every name of an inode with several that is below a directory which stays as it is."""
    stack = [(path, subtree, top.source.items(top, path))]
    while stack:
        path, subtree, items = stack[-1]
        prefix = path + b"/"
        links: list[LinkedName] = []
        for item in items:
            if isinstance(item.node, Directory):
                if item.source.counts(item, prefix + item.name).linked:
                    below = prefix + item.name
                    inside = subtree or (below if item.is_opaque else None)
                    stack.append((below, inside, item.source.items(item, below)))
                    break
            elif (look := item.source.look(item, prefix + item.name)) is not None:
                links.append(LinkedName(item.name, look))
        else:
            stack.pop()
        writer.add_links(path, subtree, links)


class _Rows:
    """The link rows of an input, followed along a walk."""

    def __init__(self, reader: ManifestReader) -> None:
        self._rows: Iterator[PrimaryRow | LinkRow] = reader.links()
        self._next()

    def primary(self, path: bytes) -> bytes | None:
        """The primary of the inode at a path; None when no row names it. Paths ascend from call to call."""
        key = tree_order(path)
        while self._row is not None and self._key < key:
            self._next()
        if self._row is None or self._key != key:
            return None
        return self._row.target if isinstance(self._row, LinkRow) else self._row.path

    def _next(self) -> None:
        self._row = next(self._rows, None)
        self._key = tree_order(self._row.path) if self._row is not None else b""


def _fingerprint(node: Node) -> bytes:
    return blake3(encode_entry(b"", node)).digest(FINGERPRINT_BYTES)
