"""Taking subtrees out of a manifest, so that their paths fall through to the volume again.

A directory that loses something is no longer recorded completely: it becomes a merge directory, and so do those above
it, while all that stays in them is recorded as before. One that loses everything goes as well. The result is what a
scan would have recorded that selects everything that stays, piece by piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Generic, Protocol, TypeVar

from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, NothingSelectedError
from mkmeta.manifest.content_writer import carry
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory
from mkmeta.pattern import Patterns, State, check_pattern
from mkmeta.trees.merge import stored_counts
from mkmeta.trees.recorded import Drop, Enter, Extra, Item, Keep, Source, Step, assemble
from mkmeta.trees.writer import TreeWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """What came of it."""

    manifest_id: ObjectId
    entries: int
    dropped: int  # entries the manifest had and the result has not
    counts: dict[str, int]
    unmatched: tuple[bytes, ...]  # patterns that matched nothing


def prune(source: Source, drop: Sequence[bytes], stream: BinaryIO) -> PruneReport:
    """Writes the manifest without what matches one of the patterns to `stream`.

    Raises UsageError for a bad pattern, NothingSelectedError when none matched, MkmetaError when nothing would be left,
    FormatError for an input that is no valid manifest, OSError when `stream` cannot be written.
    """
    source.check()
    reader = source.reader
    for pattern in drop:
        check_pattern(pattern, lambda path: reader.find(path) is not None, root=reader.info.root)
    patterns = Patterns(drop)
    pruner = _PatternPruner(patterns)
    before = reader.root.directory.entries
    with ManifestWriter(stream, carry([reader])) as manifest, TreeWriter(manifest, reader.info.hard_links) as writer:
        _adopt(manifest, source)
        assemble(writer, pruner.enter(source.top(), b"", patterns.start()))
        unmatched = tuple(pattern for number, pattern in enumerate(patterns.sources) if number not in pruner.matched)
        if not pruner.matched:
            hint = "patterns are relative to the root of the manifest; mkmeta ls shows what is in it"
            raise NothingSelectedError("no pattern matched anything", path=source.name, hint=hint)
        if not writer.entries:
            raise MkmetaError(
                "nothing would be left", path=source.name, hint="to retire all of it, deactivate the layer instead"
            )
        left_out = tuple(row for row in reader.info.left_out if patterns.first_match(row[0], is_directory=True) is None)
        info = dataclasses.replace(reader.info, left_out=left_out, counts=stored_counts(writer.counts))
        manifest_id = writer.finish(info, reader.root.digests)
    return PruneReport(
        manifest_id=manifest_id,
        entries=writer.entries,
        dropped=before - writer.entries,
        counts=info.counts,
        unmatched=unmatched,
    )


def leave_out(source: Source, reasons: dict[bytes, str], stream: BinaryIO) -> tuple[Info, int]:
    """Writes the manifest without the subtrees at the paths of `reasons`, which go to what is left out.

    Returns the result's info record and number of entries. Raises as `prune`; nothing may be left.
    """
    reader = source.reader
    with ManifestWriter(stream, carry([reader])) as manifest, TreeWriter(manifest, reader.info.hard_links) as writer:
        _adopt(manifest, source)
        paths = _Paths(reasons)
        assemble(writer, _Pruner(paths).enter(source.top(), b"", paths.start()))
        left_out = tuple(sorted({**dict(reader.info.left_out), **reasons}.items()))
        counts = {**reader.info.counts, **stored_counts(writer.counts)}
        info = dataclasses.replace(reader.info, left_out=left_out, counts=counts)
        writer.finish(info, reader.root.digests)
    return info, writer.entries


def _adopt(manifest: ManifestWriter, source: Source) -> None:
    if source.reader.facts_place is not None:
        with source.named():
            manifest.adopt(source.reader)
        source.adopted = True


_S = TypeVar("_S")


class _Chooser(Protocol[_S]):
    """Patterns, or what is walked like them."""

    def advance(self, state: _S, name: bytes, /) -> tuple[_S, list[int]]: ...

    def fitting(self, matched: list[int], /, *, is_directory: bool) -> list[int]: ...


class _Paths:
    """Single paths, to be walked to. A state is a path on the way to one, or nothing."""

    def __init__(self, paths: Collection[bytes]) -> None:
        self._ends = frozenset(paths)
        self._above = {path[:at] for path in paths for at in range(len(path)) if path[at : at + 1] == b"/"}

    def start(self) -> bytes:
        return b"/"

    def advance(self, state: bytes, name: bytes) -> tuple[bytes, list[int]]:
        path = name if state == b"/" else state + b"/" + name
        return (path if path in self._above else b""), [0] if path in self._ends else []

    def fitting(self, matched: list[int], *, is_directory: bool) -> list[int]:
        return matched


class _Pruner(Generic[_S]):
    """Walks the manifest along what is to be dropped."""

    def __init__(self, chooser: _Chooser[_S]) -> None:
        self._chooser = chooser
        self.matched: set[int] = set()

    def enter(self, item: Item, path: bytes, state: _S) -> Enter:
        """A directory that stays, but for what is dropped in it."""
        assert isinstance(item.node, Directory)
        enter = Enter(item, item.node.kind, iter(()))
        enter.steps = self._steps(enter, path, state)
        return enter

    def _steps(self, enter: Enter, path: bytes, state: _S) -> Iterator[Step]:
        prefix = path + b"/" if path else b""
        extra = Extra(enter.own, path)
        for item in enter.own.source.items(enter.own, path):
            extra.take(item)
            below, matched = self._chooser.advance(state, item.name)
            matched = self._chooser.fitting(matched, is_directory=isinstance(item.node, Directory))
            if matched:
                self.matched.update(matched)
                self._dropped(item, prefix + item.name, below)
                yield Drop()
            elif below and isinstance(item.node, Directory):
                yield self.enter(item, prefix + item.name, below)
            else:
                yield Keep(item)
        enter.extra = extra.hidden()

    def _dropped(self, item: Item, path: bytes, state: _S) -> None:
        """Called for what is dropped."""


class _PatternPruner(_Pruner[State]):
    """Sees which patterns match in what is dropped, so that none is said to have matched nothing."""

    def __init__(self, patterns: Patterns) -> None:
        super().__init__(patterns)
        self._patterns = patterns

    def _dropped(self, item: Item, path: bytes, state: State) -> None:
        match_inside(self._patterns, item, path, state, self.matched)


def match_inside(patterns: Patterns, item: Item, path: bytes, state: State, matched: set[int]) -> None:
    """Adds to `matched` the patterns that match something below `item`, at `path`, where they have come to `state`."""
    stack = [(item, path, state)]
    while stack:
        item, path, state = stack.pop()
        state = tuple(position for position in state if position[0] not in matched)
        if not state or not isinstance(item.node, Directory):
            continue
        for entry in item.source.items(item, path):
            below, found = patterns.advance(state, entry.name)
            matched.update(patterns.fitting(found, is_directory=isinstance(entry.node, Directory)))
            if below and isinstance(entry.node, Directory):
                stack.append((entry, path + b"/" + entry.name, below))
