"""Merging manifests of one volume, such as the shards of a scan: what a scan of all selections would have recorded.

What becomes of a path that several inputs have, A given before B. "Within": every entry of the merge directory is in
the opaque one, and the same there.

    A, B                    agree when                       result          otherwise, with Conflict.LATER
    anything, nothing       always                           A
    entry, entry            they are equal                   that            B
    entry, directory        never                            -               B
    merge, merge            own attributes equal             both, merged    both, merged; own attributes of B
    opaque, opaque          equal, with all below            that            B
    merge, opaque           attributes equal, A within B     B, opaque       B
    opaque, merge           attributes equal, B within A     A, opaque       both, merged, as a merge directory

An opaque directory says what is in it and that nothing else is; a merge directory says nothing of the names it has not.
The result is opaque only where one input has all of it (mkmeta.trees.assembly), so that nothing is hidden which the
volume shows. Where they disagree, Conflict.FAIL refuses with the first path.

Without conflicts merging is associative, commutative and idempotent, a manifest of an empty tree with the same root is
neutral, and the ID is that of a scan which selects both, hard links included where all inputs have facts. With
Conflict.LATER it is a fold from the left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, NoReturn

from mkmeta import __version__
from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, UsageError, printable
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory, DirectoryKind, Root
from mkmeta.trees.assembly import Assembly, Item, LeftOut, Opening, Source, is_directory
from mkmeta.trees.changes import in_words, own_changes
from mkmeta.trees.links import LinkNames

_SCAN_HINT = "scan them with the same options"


class Conflict(StrEnum):
    """What to do where inputs disagree."""

    FAIL = "fail"
    LATER = "later"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """What came of it."""

    manifest_id: ObjectId
    entries: int
    counts: dict[str, int]
    left_out: tuple[tuple[bytes, str], ...]
    facts: bool  # whether the result has facts; without, hard links between inputs cannot be known


def merge(
    sources: Sequence[Source], stream: BinaryIO, *, conflict: Conflict = Conflict.FAIL, other_root: bool = False
) -> MergeReport:
    """Writes the merged manifest to `stream`.

    Raises UsageError for inputs that are no manifests of one volume, MkmetaError at a conflict, FormatError for an
    input that is no valid manifest, OSError when `stream` cannot be written.
    """
    for source in sources:
        source.check()
    check_alike(sources, other_root=other_root)
    distinct = _distinct(sources)
    facts = all(source.reader.facts_place is not None for source in distinct)
    left_out = LeftOut(row for source in sources for row in source.reader.info.left_out)
    readers = [source.reader for source in distinct]
    split = conflict is Conflict.LATER
    with (
        ManifestWriter(stream) as writer,
        LinkNames(readers, by_inode=facts and len(distinct) > 1, split=split) as links,
    ):
        assembly = Assembly(writer, links, left_out, facts=facts)
        top, place = assembly.run(_Merger(conflict).combine_directories([source.top() for source in distinct], b""))
        info = merged_info(sources, assembly.counts, left_out)
        root = Root(directory=top, links=writer.add_links(links.rows()), digests=readers[0].root.digests)
        manifest_id = writer.finish(root, info, place)
    return MergeReport(
        manifest_id=manifest_id, entries=top.entries, counts=info.counts, left_out=info.left_out, facts=facts
    )


def check_alike(sources: Sequence[Source], *, other_root: bool) -> None:
    """Raises UsageError unless the inputs can be parts of one manifest."""
    first = sources[0]
    for other in sources[1:]:
        one, two = first.reader.root.digests, other.reader.root.digests
        if one != two:
            words = (", ".join(digests) or "no" for digests in (one, two))
            problem = "has {1} digests, {name} has {0}".format(*words, name=printable(first.name))
            raise UsageError(problem, path=other.name, hint=_SCAN_HINT)
        mine, its = first.reader.info, other.reader.info
        if mine.root != its.root and not other_root:
            raise UsageError(
                f"is of {printable(its.root)}, {printable(first.name)} of {printable(mine.root)}",
                path=other.name,
                hint="if both are the same volume, mounted in different places, --other-root says so",
            )
        for what, patterns, others in (
            ("--hide", mine.hide, its.hide),
            ("--drop-xattr", mine.drop_xattrs, its.drop_xattrs),
        ):
            if set(patterns) != set(others):
                problem = f"was scanned with other {what} patterns than {printable(first.name)}"
                raise UsageError(problem, path=other.name, hint=_SCAN_HINT)


def merged_info(sources: Sequence[Source], counts: Counter[str], left_out: LeftOut) -> Info:
    """Where the result comes from.

    Its time is the earliest: a later scan that builds on it trusts what has not changed since then. What the tree does
    not tell, such as hidden names, is summed up; of what several inputs recorded it counts more than once.
    """
    infos = [source.reader.info for source in sources]
    select = dict.fromkeys(pattern for info in infos for pattern in (info.select or (b"*",)))
    totals: Counter[str] = Counter()
    for source in _distinct(sources):
        totals.update(source.counts())
    return Info(
        root=infos[0].root,
        created=min(info.created for info in infos),
        tool=f"mkmeta {__version__}",
        select=tuple(select) if any(info.select for info in infos) else (),
        hide=infos[0].hide,
        drop_xattrs=infos[0].drop_xattrs,
        left_out=left_out.rows(),
        counts={**counts, **totals},
    )


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """One source for each ID, with facts if there is one, in the order of last mention: the last one overrides."""
    found: dict[ObjectId, Source] = {}
    for source in sources:
        twin = found.pop(source.reader.id, source)
        found[source.reader.id] = source if source.reader.facts_place is not None else twin
    return list(found.values())


class _Merger:
    """Decides path by path."""

    def __init__(self, conflict: Conflict) -> None:
        self._conflict = conflict

    def combine_directories(self, items: Sequence[Item], path: bytes) -> Opening:
        """The directory that several inputs have, none of which overrides another as a whole."""
        if self._conflict is Conflict.FAIL:
            self._check_own(items, path)
        unique: dict[tuple[ObjectId, DirectoryKind], Item] = {}
        for item in items:
            key = _contents(item)
            twin = unique.pop(key, item)  # what is there again goes to the end, where it overrides what is between
            unique[key] = item if item.facts is not None else twin
        parts = [(item, item.source.items(item, path)) for item in unique.values()]
        origin, originals = next(((item, below) for item, below in parts if _is_opaque(item)), parts[-1])
        steps = self._steps(parts, path)
        return Opening(path, items[-1], origin, originals, steps)

    def _steps(self, parts: list[tuple[Item, list[Item]]], path: bytes) -> Iterator[Item | Opening]:
        prefix = path + b"/" if path else b""
        if len(parts) == 1:
            for item in parts[0][1]:
                yield self._combine([item], prefix + item.name)
            return
        by_name: dict[bytes, list[Item]] = {}
        for _, below in parts:
            for item in below:
                by_name.setdefault(item.name, []).append(item)
        complete = [(item, {entry.name for entry in below}) for item, below in parts if _is_opaque(item)]
        for name, items in sorted(by_name.items()):
            if self._conflict is Conflict.FAIL:
                for item, names in complete:
                    if name not in names:
                        _refuse(prefix + name, f"is in {_said(items[0])}, but not in {_said(item)}")
            yield self._combine(items, prefix + name)

    def _combine(self, items: list[Item], path: bytes) -> Item | Opening:
        """What comes of the entries that the inputs have at a path."""
        if len(items) > 1:
            if self._conflict is Conflict.LATER:
                items = _standing(items)
            else:
                self._check_own(items, path)
        last = items[-1]
        if is_directory(last):
            return self.combine_directories(items, path)
        if last.inode:
            return last
        return next((item for item in reversed(items) if item.inode and item.node == last.node), last)

    def _check_own(self, items: Sequence[Item], path: bytes) -> None:
        first = items[0]
        for other in items[1:]:
            changes = [change for change in own_changes(first.node, other.node) if change != "kind"]
            if changes:
                words = in_words(changes, first.node, other.node)
                _refuse(path, f"differs between {_said(first)} and {_said(other)}: {words}")


def _standing(items: list[Item]) -> list[Item]:
    """What the last one does not override as a whole: the directories that can be merged with it."""
    standing: list[Item] = []
    for item in reversed(items):
        if not is_directory(item):
            return standing[::-1] or [item]
        standing.append(item)
        if _is_opaque(item):
            break
    return standing[::-1]


def _contents(item: Item) -> tuple[ObjectId, DirectoryKind]:
    assert isinstance(item.node, Directory)
    return item.node.children, item.node.kind


def _is_opaque(item: Item) -> bool:
    return isinstance(item.node, Directory) and item.node.kind is DirectoryKind.OPAQUE


def _said(item: Item) -> str:
    return printable(item.source.name)


def _refuse(path: bytes, problem: str) -> NoReturn:
    hint = "--on-conflict later takes what the later manifest has; a new scan of both would settle it"
    raise MkmetaError(problem, path=path or b"/", hint=hint)
