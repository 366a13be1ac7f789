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
The result is opaque only where one input has all of it (below), so that nothing is hidden which the
volume shows. Where they disagree, Conflict.FAIL refuses with the first path.

Without conflicts merging is associative, commutative and idempotent, a manifest of an empty tree with the same root is
neutral, and the ID is that of a scan which selects both; hard links between inputs are what their facts prove. With
Conflict.LATER it is a fold from the left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import merge as merge_sorted
from itertools import groupby
from typing import BinaryIO, NoReturn

from mkmeta import __version__
from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, UsageError, printable
from mkmeta.manifest.content_writer import carry
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import STORED_COUNTS, Counts, Directory, DirectoryKind
from mkmeta.trees.changes import in_words, own_changes
from mkmeta.trees.recorded import Enter, Extra, Item, Keep, Source, Step, assemble
from mkmeta.trees.writer import TreeWriter

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
    facts: bool  # whether all inputs have facts; without, hard links between inputs cannot be known


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
    if conflict is Conflict.FAIL:  # of what they agree on it is that one's facts count, whatever the order
        distinct.sort(key=lambda source: source.reader.id)
    facts = all(source.reader.facts_place is not None for source in distinct)
    first = sources[0].reader
    contents = carry(source.reader for source in distinct)
    with ManifestWriter(stream, contents) as manifest, TreeWriter(manifest, first.info.hard_links) as writer:
        adopted = max(distinct, key=lambda source: source.reader.file.size if source.reader.facts_place else -1)
        if adopted.reader.facts_place is not None:
            manifest.adopt(adopted.reader)
            adopted.adopted = True
        assemble(writer, _Merger(conflict, sources).enter([source.top() for source in distinct], b""))
        info = merged_info(sources, writer.counts)
        manifest_id = writer.finish(info, first.root.digests)
    return MergeReport(
        manifest_id=manifest_id, entries=writer.entries, counts=info.counts, left_out=info.left_out, facts=facts
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
        if mine.hard_links is not its.hard_links:
            problem = f"was scanned with another --hard-links than {printable(first.name)}"
            raise UsageError(problem, path=other.name, hint=_SCAN_HINT)
        for what, patterns, others in (
            ("--hide", mine.hide, its.hide),
            ("--drop-xattr", mine.drop_xattrs, its.drop_xattrs),
        ):
            if set(patterns) != set(others):
                problem = f"was scanned with other {what} patterns than {printable(first.name)}"
                raise UsageError(problem, path=other.name, hint=_SCAN_HINT)


def merged_info(sources: Sequence[Source], counts: Counts) -> Info:
    """Where the result comes from.

    Its time is the earliest: a later scan that builds on it trusts what has not changed since then. One in the future,
    of a clock that was ahead, is kept: then nothing is trusted.
    """
    now = time.time_ns()
    infos = [source.reader.info for source in sources]
    select = dict.fromkeys(pattern for info in infos for pattern in (info.select or (b"*",)))
    left_out = dict(row for info in reversed(infos) for row in reversed(info.left_out))  # of several reasons the first
    return Info(
        root=infos[0].root,
        created=max(
            (info.created for info in infos if info.created > now), default=min(info.created for info in infos)
        ),
        tool=f"mkmeta {__version__}",
        select=tuple(select) if any(info.select for info in infos) else (),
        hide=infos[0].hide,
        drop_xattrs=infos[0].drop_xattrs,
        inline=tuple(dict.fromkeys(rule for info in infos for rule in info.inline)),
        inline_all=any(info.inline_all for info in infos),
        hard_links=infos[0].hard_links,
        left_out=tuple(row for row in sorted(left_out.items()) if not any(has_all_of(s, row[0]) for s in sources)),
        counts=stored_counts(counts),
    )


def has_all_of(source: Source, path: bytes) -> bool:
    """Whether an input records what is at `path` as a whole."""
    node = source.reader.find(path)
    return node is not None and not (isinstance(node, Directory) and node.kind is DirectoryKind.MERGE)


def stored_counts(counts: Counts) -> dict[str, int]:
    """Counts for an info record."""
    return dict(zip(Counts._fields[:STORED_COUNTS], counts, strict=False))


def _distinct(sources: Sequence[Source]) -> list[Source]:
    """One source for each ID, with facts if there is one, in the order of last mention: the last one overrides."""
    found: dict[ObjectId, Source] = {}
    for source in sources:
        twin = found.pop(source.reader.id, source)
        found[source.reader.id] = source if source.reader.facts_place is not None else twin
    return list(found.values())


@dataclass(slots=True, eq=False)
class _Combined(Enter):
    """A directory that several inputs have, and whether it came out as the input it may stay what it is in has it."""

    same: bool = True


class _Merger:
    """Decides path by path."""

    def __init__(self, conflict: Conflict, given: Sequence[Source]) -> None:
        self._conflict = conflict
        self._given = given  # in the order of the call, which is the order that messages name them in

    def enter(self, items: Sequence[Item], path: bytes) -> _Combined:
        """The directory that several inputs have, none of which overrides another as a whole."""
        if self._conflict is Conflict.FAIL:
            self._check_own(items, path)
        parts = _unlike(items)
        origin = next((item for item in parts if item.is_opaque), parts[-1])
        assert isinstance(origin.node, Directory)
        combined = _Combined(items[-1], origin.node.kind, iter(()))
        combined.steps = self._steps(combined, origin, parts, path)
        return combined

    def _steps(self, combined: _Combined, origin: Item, parts: list[Item], path: bytes) -> Iterator[Step]:
        prefix = path + b"/" if path else b""
        extras = [Extra(part, path) for part in parts]
        streams = [_numbered(number, part.source.items(part, path)) for number, part in enumerate(parts)]
        for name, group in groupby(merge_sorted(*streams, key=_place_of), key=lambda pair: pair[1].name):
            found = list(group)
            for number, item in found:
                extras[number].take(item)
            items = [item for _, item in found]
            if self._conflict is Conflict.FAIL:
                there = {number for number, _ in found}
                for number, part in enumerate(parts):
                    if part.is_opaque and number not in there:
                        _refuse(prefix + name, f"is in {_said(items[0])}, but not in {_said(part)}")
            recorded = next((item for number, item in found if parts[number] is origin), None)
            step = self._combine(items, prefix + name)
            yield step
            own = step.item if isinstance(step, Keep) else step.own
            if isinstance(step, Keep):
                combined.same &= recorded is not None and own.node == recorded.node
            else:
                alike = recorded is not None and not set(own_changes(own.node, recorded.node)) - {"kind"}
                combined.same &= alike and step.same
        if not combined.same or set(own_changes(combined.own.node, origin.node)) - {"kind"}:
            combined.same = False
            combined.kind = DirectoryKind.MERGE
        combined.extra = Counts(*map(max, *(extra.hidden() for extra in extras), Counts()))

    def _combine(self, items: list[Item], path: bytes) -> Keep | _Combined:
        """What comes of the entries that the inputs have at a path."""
        if len(items) > 1:
            if self._conflict is Conflict.LATER:
                items = _standing(items)
            else:
                self._check_own(items, path)
        last = items[-1]
        if not isinstance(last.node, Directory):
            if last.inode:
                return Keep(last)
            return Keep(next((item for item in reversed(items) if item.inode and item.node == last.node), last))
        unlike = _unlike(items)
        if len(unlike) == 1 and not set(own_changes(last.node, unlike[0].node)):
            return Keep(unlike[0])
        return self.enter(items, path)

    def _check_own(self, items: Sequence[Item], path: bytes) -> None:
        first = items[0]
        for other in items[1:]:
            changes = [change for change in own_changes(first.node, other.node) if change != "kind"]
            if changes:
                one, two = sorted((first, other), key=lambda item: self._given.index(item.source))
                words = in_words(changes, one.node, two.node)
                _refuse(path, f"differs between {_said(one)} and {_said(two)}: {words}")


def _unlike(items: Sequence[Item]) -> list[Item]:
    """One directory of each content, with facts if there is one with facts, in the order of last mention."""
    unique: dict[tuple[ObjectId, DirectoryKind], Item] = {}
    for item in items:
        assert isinstance(item.node, Directory)
        key = (item.node.children, item.node.kind)
        twin = unique.pop(key, item)  # what is there again goes to the end, where it overrides what is between
        unique[key] = item if item.facts is not None else twin
    return list(unique.values())


def _numbered(number: int, items: Iterator[Item]) -> Iterator[tuple[int, Item]]:
    return ((number, item) for item in items)


def _place_of(pair: tuple[int, Item]) -> tuple[bytes, int]:
    return pair[1].name, pair[0]


def _standing(items: list[Item]) -> list[Item]:
    """What the last one does not override as a whole: the directories that can be merged with it."""
    standing: list[Item] = []
    for item in reversed(items):
        if not isinstance(item.node, Directory):
            return standing[::-1] or [item]
        standing.append(item)
        if item.is_opaque:
            break
    return standing[::-1]


def _said(item: Item) -> str:
    return printable(item.source.name)


def _refuse(path: bytes, problem: str) -> NoReturn:
    hint = "--on-conflict later takes what the later manifest has; a new scan of both would settle it"
    raise MkmetaError(problem, path=path or b"/", hint=hint)
