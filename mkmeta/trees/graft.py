"""Grafting a scan of parts into a manifest of the whole: what `scan --only` does after it has looked.

The part is what an ordinary scan recorded that went only where patterns lead. At a path, with B what the base has there
and P what the part has:

    path                                                 result
    a pattern matches it, or one above it                P, whatever B is; nothing where P has nothing
    on the way to where one may match:
      it was gone when it was looked for                 nothing
      P is a merge directory, B a directory              both, name by name; attributes of P, opaque if B is
      P is anything else                                 P, recorded whole: B has nothing there, or another directory
      P has nothing                                      B: it does not lead to anything that is selected
    anything else                                        B; P where it was looked at although B has nothing there

So nothing becomes opaque that was not recorded whole by one scan: B was, or P. What the part could not record takes the
subtree of the base that it is in with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import merge as merge_sorted
from itertools import groupby
from typing import BinaryIO

from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.errors import ScanError
from mkmeta.manifest.closed import ClosedPaths
from mkmeta.manifest.content_writer import carry
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Counts, Directory, DirectoryKind
from mkmeta.pattern import Patterns, State
from mkmeta.trees.merge import has_all_of, stored_counts
from mkmeta.trees.prune import match_inside
from mkmeta.trees.recorded import OF_THE_FILE, Drop, Enter, Extra, Item, Keep, Source, Step, assemble
from mkmeta.trees.writer import TreeWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftReport:
    """What came of it."""

    manifest_id: ObjectId
    entries: int
    counts: Counts
    left_out: tuple[tuple[bytes, str], ...]
    matched: frozenset[int]  # patterns that matched something the base had


def graft(
    base: Source,
    part: Source,
    only: Patterns,
    stream: BinaryIO,
    *,
    gone: Collection[bytes] = (),
    empty: Collection[bytes] = (),
    asked: bool = True,
) -> GraftReport:
    """Writes the base with the part in it to `stream`.

    `gone` are paths that were looked for and not there; `empty` are directories on the way in which nothing was found,
    which the part has as opaque directories, so that it has them at all. Not `asked`: the base does not know what NFSv4
    ACLs close, on a volume that has them; so no content is taken for what stays of it.

    Raises FormatError for a base that is damaged, ScanError when nothing is left, OSError when `stream` cannot be
    written.
    """
    old, new = base.reader.info, part.reader.info
    lost = {_subtree(base, path): why for path, why in reversed(new.left_out)}
    wanted = any(size for _, size in new.inline)  # or else what the base has is to be left
    known = (
        path
        for path in (old.closed or () if asked else ())
        if only.first_match(path, is_directory=True) is None and not has_all_of(part, path)
    )
    closed = (*(new.closed or ()), *known)
    contents = carry([base.reader, part.reader], everything=new.inline_all, closed=closed) if wanted else None
    with ManifestWriter(stream, contents) as manifest, TreeWriter(manifest, old.hard_links) as writer:
        with base.named():
            manifest.adopt(base.reader)
        base.adopted = True
        unasked = contents.closed if contents is not None and not asked else None
        grafter = _Grafter(only, frozenset(gone), frozenset(empty), lost, unasked)
        assemble(writer, grafter.enter(base.top(), part.top(), b"", only.start()))
        left_out = dict(lost)
        for path, why in old.left_out:
            if only.first_match(path, is_directory=True) is None and not has_all_of(part, path):
                left_out.setdefault(path, why)
        if not writer.entries:
            raise ScanError("nothing would be left in the manifest", path=old.root, hint="the base is as it was")
        counts = writer.counts
        info: Info = dataclasses.replace(
            new,
            created=old.created,  # what is trusted the next time must not be younger than what was not looked at
            left_out=tuple(sorted(left_out.items())),
            counts={
                **stored_counts(counts),
                "unchanged": new.counts.get("unchanged", 0),
                OF_THE_FILE: old.counts.get(OF_THE_FILE, base.reader.file.size),
            },
        )
        manifest_id = writer.finish(info, base.reader.root.digests)
    return GraftReport(
        manifest_id=manifest_id,
        entries=writer.entries,
        counts=counts,
        left_out=info.left_out,
        matched=frozenset(grafter.matched),
    )


def _subtree(base: Source, path: bytes) -> bytes:
    """The subtree of the base that what is at a path, there or not, belongs to."""
    names = path.split(b"/")
    for count in range(1, len(names)):
        above = b"/".join(names[:count])
        node = base.reader.find(above)
        if isinstance(node, Directory) and node.kind is DirectoryKind.OPAQUE:
            return above
    return path


class _Grafter:
    """Decides path by path."""

    def __init__(
        self,
        only: Patterns,
        gone: Collection[bytes],
        empty: Collection[bytes],
        lost: Collection[bytes],
        unasked: ClosedPaths | None,
    ) -> None:
        """`unasked`: gets the paths of what stays of the base; None: nobody needs them."""
        self._only = only
        self._unasked = unasked
        self._gone = gone
        self._empty = empty
        self._lost = lost
        self.matched: set[int] = set()

    def enter(self, old: Item | None, new: Item, path: bytes, state: State) -> Enter:
        """A directory on the way; None: the base has none there."""
        kind = DirectoryKind.MERGE if old is None or not old.is_opaque else DirectoryKind.OPAQUE
        enter = Enter(new, kind, iter(()))
        enter.steps = self._steps(enter, old, new, path, state)
        return enter

    def _steps(self, enter: Enter, old: Item | None, new: Item, path: bytes, state: State) -> Iterator[Step]:
        prefix = path + b"/" if path else b""
        extra = Extra(old or new, path)
        olds = old.source.items(old, path) if old is not None else iter(())
        both = merge_sorted(olds, new.source.items(new, path), key=lambda item: item.name)
        for name, items in groupby(both, key=lambda item: item.name):
            there: Item | None = None
            seen: Item | None = None
            for item in items:
                if item.source is new.source:
                    seen = item
                else:
                    there = item
            known = there if old is not None else seen
            if known is not None:
                extra.take(known)
            step = self._graft(there, seen, prefix + name, *self._only.advance(state, name))
            if step is not None:
                yield step
        enter.extra = extra.hidden()

    def _graft(
        self, there: Item | None, seen: Item | None, path: bytes, below: State, matched: list[int]
    ) -> Step | None:
        step = self._step(there, seen, path, below, matched)
        if there is not None:
            if self._unasked is not None and isinstance(step, Keep) and step.item is there:
                self._unasked.add(path)
            self.matched.update(matched)
            if below and not isinstance(step, Enter):
                match_inside(self._only, there, path, below, self.matched)
        return step

    def _step(
        self, there: Item | None, seen: Item | None, path: bytes, below: State, matched: list[int]
    ) -> Step | None:
        if path in self._lost:
            return Drop()
        if matched or (below and path in self._gone):
            return Keep(seen) if seen is not None else None
        if seen is None:
            return Keep(there) if there is not None and path not in self._gone else None
        if isinstance(seen.node, Directory) and (not seen.is_opaque or path in self._empty):
            return self.enter(there if there and isinstance(there.node, Directory) else None, seen, path, below)
        return Keep(seen)
