"""What differs between two trees, each recorded in a manifest or found in a layer, in tree order.

Of each directory on the way no more than a cursor is held. Where both are manifests, only directories with different
IDs are opened, and in these only entries that differ are decoded: equal bytes are equal entries, whatever they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from mkmeta.codec.objects import decode_entry, unpack_rows
from mkmeta.errors import FormatError, printable
from mkmeta.manifest.cursor import Cursor, directory_at
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import (
    PATH_LIMIT,
    Directory,
    Entry,
    LinkRow,
    Node,
    PrimaryRow,
    Symlink,
    tree_order,
)
from mkmeta.trees.changes import own_changes

Row = PrimaryRow | LinkRow
HARD_LINKS: Final = "hard links"  # among the changes: the path has other names, or is another name
_Pair = tuple[bytes, Node | None, Node | None]  # name, before, after


class Tree(Protocol):
    """A tree that can be compared with another."""

    def find(self, path: bytes) -> Node | None:
        """What is at `path` (empty: the root)."""

    def entries(self, directory: Directory, path: bytes) -> Iterator[Entry]:
        """What is in the directory at `path`, ascending by name."""

    def links(self) -> Iterator[Row]:
        """The hard links, in tree order."""


class _RowPair(NamedTuple):
    """What the hard links say of a path on each side; None: nothing."""

    path: bytes
    before: Row | None
    after: Row | None


class Difference(NamedTuple):
    """A path at which the trees differ."""

    path: bytes
    before: Node | None
    after: Node | None
    changes: list[str]  # empty: added or removed
    row_before: Row | None = None  # what the hard links say of the path
    row_after: Row | None = None


def diff(one: Tree, other: Tree, top: bytes = b"", *, everything: bool = False) -> Iterator[Difference]:
    """The differences at and below `top`, in tree order; a directory comes before what is in it.

    A directory that was added, removed, or is of another type on the other side is one difference; with `everything`,
    each entry below it is another one. Raises KeyError when neither side has `top`, FormatError for what is read and
    not a valid manifest.
    """
    before, after = one.find(top), other.find(top)
    if before is None and after is None:
        raise KeyError(top)
    if isinstance(one, ManifestReader) and isinstance(other, ManifestReader) and one.id == other.id:
        return iter(())
    found = _walk(one, other, (top, before, after), everything)
    return _with_links(found, _differing_rows(one, other, top), one, other, everything)


def _walk(one: Tree, other: Tree, top: _Pair, everything: bool) -> Iterator[Difference]:
    """The differences without the hard links."""
    stack: list[tuple[bytes, Iterator[_Pair]]] = [(b"", iter([top]))]
    while stack:
        prefix, pairs = stack[-1]
        for name, before, after in pairs:
            path = prefix + name
            if before is None or after is None:
                yield Difference(path, before, after, [])
            elif before is not after:
                changes = own_changes(before, after)
                if changes:
                    yield Difference(path, before, after, changes)
            below = _below(one, other, path, before, after, everything=everything)
            if below is not None:
                stack.append((path + b"/" if path else b"", below))
                break
        else:
            stack.pop()


def _below(
    one: Tree, other: Tree, path: bytes, before: Node | None, after: Node | None, *, everything: bool
) -> Iterator[_Pair] | None:
    """The differing pairs in what is a directory on both sides, or, with `everything`, on one."""
    match before, after:
        case Directory(), Directory():
            if before.children == after.children and before.children:
                return None
            if isinstance(one, ManifestReader) and isinstance(other, ManifestReader):
                return _RowPairs(one, _slim(before), other, _slim(after), path)
            return _EntryPairs(_ahead(one, before, path), _ahead(other, after, path))
        case Directory(), _ if everything:
            return _EntryPairs(_ahead(one, before, path), _Ahead(iter(())))
        case _, Directory() if everything:
            return _EntryPairs(_Ahead(iter(())), _ahead(other, after, path))
    return None


class _Coming(Protocol):
    """What is in a directory, ascending by name."""

    def peek(self) -> Any:
        """The next one; None at the end."""

    def advance(self) -> None:
        """Goes on to the one after it."""


class _Pairs(Iterator[_Pair]):
    """What is called the same in two directories, together. Between two pairs nothing of an entry is held here."""

    def __init__(self, old: _Coming, new: _Coming) -> None:
        self._old = old
        self._new = new
        self._last = b""

    def __next__(self) -> _Pair:
        while True:
            old, new = self._old.peek(), self._new.peek()
            if old is None and new is None:
                raise StopIteration
            names = [self._name(one) for one in (old, new) if one is not None]
            name = min(names)
            if name <= self._last:
                raise FormatError("the entries of a directory are not in order")
            self._last = name
            if old is not None and names[0] == name:
                self._old.advance()
            else:
                old = None
            if new is not None and names[-1] == name:
                self._new.advance()
            else:
                new = None
            pair = self._pair(name, old, new)
            if pair is not None:
                return pair

    def _name(self, one: Any) -> bytes:
        raise NotImplementedError

    def _pair(self, name: bytes, old: Any, new: Any) -> _Pair | None:
        """What is called `name`; None: the same on both sides."""
        raise NotImplementedError


class _EntryPairs(_Pairs):
    """The same of entries."""

    def _name(self, one: Entry) -> bytes:
        return one.name

    def _pair(self, name: bytes, old: Entry | None, new: Entry | None) -> _Pair:
        before, after = old and old.node, new and new.node
        if isinstance(before, Symlink) and isinstance(after, Symlink) and before.mode != after.mode:
            after = dataclasses.replace(after, mode=before.mode)  # a layer cannot have other bits than 0777
        return name, before, after


class _Ahead:
    """An iterator, which is asked for an element no sooner than somebody wants to see it."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._next: Entry | None = None

    def peek(self) -> Entry | None:
        if self._next is None:
            self._next = next(self._entries, None)
        return self._next

    def advance(self) -> None:
        self._next = None


class _CursorAhead:
    """A cursor, which holds what is ahead as long as there is room."""

    def __init__(self, cursor: Cursor[Entry]) -> None:
        self._cursor = cursor

    def peek(self) -> Entry | None:
        place = self._cursor.tell()
        entry = next(self._cursor, None)
        self._cursor.seek(place)
        return entry

    def advance(self) -> None:
        next(self._cursor)


def _ahead(tree: Tree, directory: Directory, path: bytes) -> _Coming:
    if isinstance(tree, ManifestReader):
        return _CursorAhead(tree.entries(_slim(directory), path))
    return _Ahead(tree.entries(directory, path))


def _slim(directory: Directory) -> Directory:
    """What is needed to find what is in a directory: its own xattrs may be large, and it has others above it."""
    return dataclasses.replace(directory, xattrs=()) if directory.xattrs else directory


class _RowPairs(_Pairs):
    """The differing entries of directories of two manifests, which are compared as msgpack has them.

    Pages that both have are not opened, and entries decoded only where they differ.
    """

    def __init__(
        self, one: ManifestReader, before: Directory, other: ManifestReader, after: Directory, path: bytes
    ) -> None:
        self._sides = ((one, before), (other, after))
        self._path = path
        self._budget = [before.entries, after.entries]
        self._found = False
        pages = [reader.pages(directory, path) for reader, directory in self._sides]
        shared = {page.id for page in pages[0]} & {page.id for page in pages[1]}
        own = [sum(1 << number for number, page in enumerate(here) if page.id not in shared) for here in pages]
        rows = [_Rows(reader, at, path, mine) for (reader, at), mine in zip(self._sides, own, strict=True)]
        super().__init__(*rows)

    def __next__(self) -> _Pair:
        try:
            pair = super().__next__()
        except StopIteration:
            if not self._found:  # then what differs is the encoding, of which there is one
                self._check()
            raise
        except FormatError:
            self._check()
            raise
        self._found = True
        return pair

    def _check(self) -> None:
        """Raises the FormatError that says precisely what is wrong with the directories, and where."""
        for reader, directory in self._sides:
            for _ in reader.entries(directory, self._path):
                pass

    def _name(self, one: object) -> bytes:
        if type(one) is list and one and type(one[0]) is bytes:
            return one[0]
        raise FormatError("a directory has something in it that is no entry")

    def _pair(self, name: bytes, old: object, new: object) -> _Pair | None:
        if old == new:
            return None
        where = directory_at(self._path)
        nodes: list[Node | None] = []
        for side, row in enumerate((old, new)):
            node = None if row is None else decode_entry(row, where).node
            if isinstance(node, Directory):
                self._budget[side] -= 1 + node.entries
            nodes.append(node)
        if min(self._budget) < 0:  # what is walked gets smaller with each step, so that it has an end
            raise FormatError(f"{where}: holds more entries than recorded")
        if len(name) > PATH_LIMIT - (len(self._path) + 1 if self._path else 0):
            raise FormatError(f"{where}: the path of '{printable(name)}' is longer than {PATH_LIMIT} bytes")
        return name, nodes[0], nodes[1]


class _Rows:
    """The entries in some pages of a directory, as msgpack has them. What is held may be taken away at any time."""

    def __init__(self, reader: ManifestReader, directory: Directory, path: bytes, pages: int) -> None:
        self.held: list[Any] | None = None
        self._reader = reader
        self._directory = directory
        self._path = path
        self._pages = pages  # a bit for each to come, as there can be many on every level; the lowest one is read now
        self._position = 0

    def peek(self) -> Any:
        held = self._load() if self.held is None else self.held
        while self._position == len(held):
            if not self._pages:
                self._reader.cursors.release(self)
                return None
            self._pages &= self._pages - 1
            self._position = 0
            held = self._load()
        return held[self._position]

    def advance(self) -> None:
        self._position += 1

    def _load(self) -> list[Any]:
        self.held = []
        if self._pages:
            number = (self._pages & -self._pages).bit_length() - 1
            page = self._reader.pages(self._directory, self._path)[number]
            data = self._reader.page_bytes(page, self._path)
            self.held = unpack_rows(data)
            self._reader.cursors.hold(self, len(data))
        return self.held


def _with_links(
    found: Iterator[Difference], rows: Iterator[_RowPair], one: Tree, other: Tree, everything: bool
) -> Iterator[Difference]:
    """Adds what the hard links say to the differences, and the paths at which nothing but they differ, in between."""
    row = next(rows, None)
    for difference in found:
        key = tree_order(difference.path)
        while row is not None and tree_order(row.path) < key:
            yield from _of_row(row, one, other)
            row = next(rows, None)
        if row is not None and row.path == difference.path:
            changes = [*difference.changes, HARD_LINKS] if difference.changes else []
            difference = difference._replace(changes=changes, row_before=row.before, row_after=row.after)
            row = next(rows, None)
        yield difference
        if not everything and isinstance(difference.before, Directory) != isinstance(difference.after, Directory):
            while row is not None and row.path.startswith(difference.path + b"/"):
                row = next(rows, None)
    while row is not None:
        yield from _of_row(row, one, other)
        row = next(rows, None)


def _of_row(row: _RowPair, one: Tree, other: Tree) -> Iterator[Difference]:
    before, after = one.find(row.path), other.find(row.path)
    if before is not None and after is not None:  # else a row that names nothing, in a manifest that is not valid
        yield Difference(row.path, before, after, [HARD_LINKS], row.before, row.after)


def _differing_rows(one: Tree, other: Tree, top: bytes) -> Iterator[_RowPair]:
    """The paths at and below `top` of which the hard links say something else."""
    olds, news = _rows(one, other)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        old_key = tree_order(old.path) if old is not None else None
        new_key = tree_order(new.path) if new is not None else None
        before = old if new_key is None or (old_key is not None and old_key <= new_key) else None
        after = new if old_key is None or (new_key is not None and new_key <= old_key) else None
        path = (before or after).path  # type: ignore[union-attr]
        if before != after and (not top or path == top or path.startswith(top + b"/")):
            yield _RowPair(path, before, after)
        old = next(olds, None) if before is not None else old
        new = next(news, None) if after is not None else new


def _rows(one: Tree, other: Tree) -> tuple[Iterator[Row], Iterator[Row]]:
    """The hard links of both; of two manifests, without the pages that both have at the same place."""
    if not isinstance(one, ManifestReader) or not isinstance(other, ManifestReader):
        return one.links(), other.links()
    if one.root.links == other.root.links:
        return iter(()), iter(())
    pages = zip(one.link_pages(), other.link_pages(), strict=False)
    shared = frozenset(number for number, (page, twin) in enumerate(pages) if page == twin)
    return one.links(skip=shared), other.links(skip=shared)
