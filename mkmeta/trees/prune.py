"""Taking subtrees out of a manifest, so that their paths fall through to the volume again.

A directory that loses something is no longer recorded completely: it becomes a merge directory, and so do those above
it, while all that stays in them is recorded as before. One that loses everything goes as well. The result is what a
scan would have recorded that selects everything that stays, piece by piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, NothingSelectedError
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory, Root
from mkmeta.pattern import NOWHERE, Patterns, State
from mkmeta.trees.assembly import Assembly, Item, LeftOut, Opening, Source, is_directory
from mkmeta.trees.links import LinkNames


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
    patterns = Patterns(drop)
    pruner = _Pruner(patterns)
    before = reader.root.directory.entries
    with ManifestWriter(stream) as writer, LinkNames([reader], by_inode=False) as links:
        left_out = LeftOut(row for row in reader.info.left_out if not _matches(patterns, row[0]))
        assembly = Assembly(writer, links, left_out, facts=reader.facts_place is not None)
        top, place = assembly.run(pruner.open(source.top(), b"", patterns.start()))
        unmatched = tuple(pattern for number, pattern in enumerate(patterns.sources) if number not in pruner.matched)
        if not pruner.matched:
            hint = "patterns are relative to the root of the manifest; mkmeta ls shows what is in it"
            raise NothingSelectedError("no pattern matched anything", path=source.name, hint=hint)
        if not top.entries:
            raise MkmetaError(
                "nothing would be left", path=source.name, hint="to retire all of it, deactivate the layer instead"
            )
        info: Info = dataclasses.replace(
            reader.info, left_out=left_out.rows(), counts={**assembly.counts, **source.counts()}
        )
        root = Root(directory=top, links=writer.add_links(links.rows()), digests=reader.root.digests)
        manifest_id = writer.finish(root, info, place)
    return PruneReport(
        manifest_id=manifest_id,
        entries=top.entries,
        dropped=before - top.entries,
        counts=info.counts,
        unmatched=unmatched,
    )


class _Pruner:
    """Walks the manifest along the patterns."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self.matched: set[int] = set()

    def open(self, item: Item, path: bytes, state: State) -> Opening:
        """A directory that stays, but for what matches in it."""
        items = item.source.items(item, path)
        return Opening(path, item, item, items, self._steps(items, path, state))

    def _steps(self, items: list[Item], path: bytes, state: State) -> Iterator[Item | Opening]:
        prefix = path + b"/" if path else b""
        for item in items:
            below, matched = self._patterns.advance(state, item.name) if state else (NOWHERE, [])
            if matched:
                self.matched.update(matched)
                self._look_inside(item, prefix + item.name, below)
            elif is_directory(item):
                yield self.open(item, prefix + item.name, below)
            else:
                yield item

    def _look_inside(self, item: Item, path: bytes, state: State) -> None:
        """Sees which patterns match in what is dropped, so that none is said to have matched nothing."""
        stack = [(item, path, state)]
        while stack:
            item, path, state = stack.pop()
            state = tuple(position for position in state if position[0] not in self.matched)
            if not state or not isinstance(item.node, Directory):
                continue
            for entry in item.source.items(item, path):
                below, matched = self._patterns.advance(state, entry.name)
                self.matched.update(matched)
                stack.append((entry, path + b"/" + entry.name, below))


def _matches(patterns: Patterns, path: bytes) -> bool:
    """Whether a pattern matches a path or one above it."""
    state = patterns.start()
    for name in path.split(b"/"):
        state, matched = patterns.advance(state, name)
        if matched:
            return True
    return False
