"""What differs between two trees, each recorded in a manifest or found in a layer, in tree order.

Memory follows the widest directory. Where both are manifests, only directories with different IDs are opened, and in
these only entries that differ are decoded: equal bytes are equal entries, whatever they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from mkmeta.codec.objects import decode_entry, unpack_rows
from mkmeta.errors import FormatError, printable
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
_Comparison = Callable[[Directory, Directory, bytes], Iterable[_Pair]]


class Side(Protocol):
    """A tree that can be compared with another."""

    def find(self, path: bytes) -> Node | None:
        """What is at `path` (empty: the root)."""

    def directory(self, directory: Directory, path: bytes) -> list[Entry]:
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


def diff(one: Side, other: Side, top: bytes = b"", *, everything: bool = False) -> Iterator[Difference]:
    """The differences at and below `top`, in tree order; a directory comes before what is in it.

    A directory that was added, removed, or is of another type on the other side is one difference; with `everything`,
    each entry below it is another one. Raises KeyError when neither side has `top`, FormatError for what is read and
    not a valid manifest.
    """
    before, after = one.find(top), other.find(top)
    if before is None and after is None:
        raise KeyError(top)
    comparison = _entry_by_entry(one, other)
    if isinstance(one, ManifestReader) and isinstance(other, ManifestReader):
        if one.id == other.id:
            return iter(())
        comparison = _between_manifests(one, other)
    found = _walk(one, other, (top, before, after), comparison, everything)
    return _with_links(found, _differing_rows(one, other, top), one, other, everything)


def _walk(one: Side, other: Side, top: _Pair, comparison: _Comparison, everything: bool) -> Iterator[Difference]:
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
            below = _below(one, other, path, before, after, comparison, everything)
            if below is not None:
                stack.append((path + b"/" if path else b"", below))
                break
        else:
            stack.pop()


def _below(
    one: Side,
    other: Side,
    path: bytes,
    before: Node | None,
    after: Node | None,
    comparison: _Comparison,
    everything: bool,
) -> Iterator[_Pair] | None:
    """The differing pairs in what is a directory on both sides, or, with `everything`, on one."""
    match before, after:
        case Directory(), Directory():
            same = before.children == after.children and before.children
            return None if same else iter(comparison(before, after, path))
        case Directory(), _ if everything:
            return ((name, node, None) for name, node in one.directory(before, path))
        case _, Directory() if everything:
            return ((name, None, node) for name, node in other.directory(after, path))
    return None


def _entry_by_entry(one: Side, other: Side) -> _Comparison:
    """Compares directories entry by entry."""

    def comparison(before: Directory, after: Directory, path: bytes) -> Iterator[_Pair]:
        olds, news = dict(one.directory(before, path)), dict(other.directory(after, path))
        pairs = ((name, olds.get(name), news.get(name)) for name in sorted(olds.keys() | news.keys()))
        return ((name, old, _alike(old, new)) for name, old, new in pairs)

    return comparison


def _alike(before: Node | None, after: Node | None) -> Node | None:
    """`after`, with the permission bits of `before` where both are symlinks: a layer cannot have others than 0777."""
    if isinstance(before, Symlink) and isinstance(after, Symlink) and before.mode != after.mode:
        return dataclasses.replace(after, mode=before.mode)
    return after


def _between_manifests(one: ManifestReader, other: ManifestReader) -> _Comparison:
    """Compares directories as msgpack has them, and decodes what differs."""

    def comparison(before: Directory, after: Directory, path: bytes) -> list[_Pair]:
        try:
            olds = unpack_rows(one.object_of(before.children, ""))
            news = unpack_rows(other.object_of(after.children, ""))
            pairs = _differing(olds, news)
        except (FormatError, TypeError, IndexError):
            for reader, directory in ((one, before), (other, after)):
                reader.directory(directory, path)  # says precisely what is wrong, and where
            raise
        if not pairs:  # then what differs is the encoding, of which there is one
            for reader, directory in ((one, before), (other, after)):
                reader.directory(directory, path)
        where = f"directory '{printable(path)}'" if path else "root directory"
        room = PATH_LIMIT - (len(path) + 1 if path else 0)
        decoded: list[_Pair] = []
        budget = [before.entries - len(olds), after.entries - len(news)]
        for name, *rows in pairs:
            nodes: list[Node | None] = []
            for side, row in enumerate(rows):
                node = None if row is None else decode_entry(row, where).node
                if isinstance(node, Directory):
                    budget[side] -= node.entries
                nodes.append(node)
            if min(budget) < 0:  # what is walked gets smaller with each step, so that it has an end
                raise FormatError(f"{where}: holds more entries than recorded")
            if len(name) > room:
                raise FormatError(f"{where}: the path of '{printable(name)}' is longer than {PATH_LIMIT} bytes")
            decoded.append((name, nodes[0], nodes[1]))
        return decoded

    return comparison


def _differing(olds: list[list[object]], news: list[list[object]]) -> list[tuple[bytes, object, object]]:
    """The elements that are not the same on both sides, by name. TypeError or IndexError when they are no entries."""
    if len(olds) == len(news):
        pairs = [(old, new) for old, new in zip(olds, news, strict=True) if old != new]
        if all(old[0] == new[0] for old, new in pairs):
            return [(old[0], old, new) for old, new in pairs]  # type: ignore[misc]
    by_name, there = {row[0]: row for row in olds}, {row[0]: row for row in news}
    names = sorted(by_name.keys() | there.keys())  # type: ignore[type-var]
    return [
        (name, by_name.get(name), there.get(name))  # type: ignore[misc]
        for name in names
        if by_name.get(name) != there.get(name)
    ]


def _with_links(
    found: Iterator[Difference], rows: Iterator[_RowPair], one: Side, other: Side, everything: bool
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


def _of_row(row: _RowPair, one: Side, other: Side) -> Iterator[Difference]:
    before, after = one.find(row.path), other.find(row.path)
    if before is not None and after is not None:  # else a row that names nothing, in a manifest that is not valid
        yield Difference(row.path, before, after, [HARD_LINKS], row.before, row.after)


def _differing_rows(one: Side, other: Side, top: bytes) -> Iterator[_RowPair]:
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


def _rows(one: Side, other: Side) -> tuple[Iterator[Row], Iterator[Row]]:
    """The hard links of both; of two manifests, without the pages that both have at the same place."""
    if not isinstance(one, ManifestReader) or not isinstance(other, ManifestReader):
        return one.links(), other.links()
    if one.root.links == other.root.links:
        return iter(()), iter(())
    pages = zip(one.link_pages(), other.link_pages(), strict=False)
    shared = frozenset(number for number, (page, twin) in enumerate(pages) if page == twin)
    return one.links(skip=shared), other.links(skip=shared)
