"""Reading names in a directory of which only a part is recorded, or looked at: what patterns lead to.

Each name is looked at on its own: others may come and go meanwhile, and what cannot be recorded is left out alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mkmeta.model import DirectoryKind
from mkmeta.pattern import NOWHERE, Patterns, State
from mkmeta.scanner.base import Base, Recorded, Row, inode_number
from mkmeta.scanner.entry import EntryReader
from mkmeta.scanner.inlining import Inline
from mkmeta.scanner.inside import (
    LARGE_FILE,
    inline_below,
    inline_limit,
    is_lacking,
    is_linked,
    take_over,
    unchanged_rows,
)
from mkmeta.scanner.looking import is_transient, look_if_there
from mkmeta.scanner.records import Changed, Child, Listing, Tally, Unfaithful

_DOT: Final = ord(".")


class Names(Protocol):
    """What is to be done with the names in a directory."""

    def read(self, reader: EntryReader, names: Sequence[bytes], recorded: Recorded | None, *, whole: bool) -> Listing:
        """What is at names that follow each other, and what the base has there; `whole`: there are no others."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A merge directory: what is selected in it, and the directories that may hold more of it."""

    prefix: bytes
    select: State
    hide: State
    base: Base | None
    inline: Inline | None = None  # None: no content is taken

    def read(self, reader: EntryReader, names: Sequence[bytes], recorded: Recorded | None, *, whole: bool) -> Listing:
        """What is at names that follow each other."""
        found = _Found(reader, self.prefix, recorded, self.inline)
        rules = reader.rules
        below_hide = NOWHERE
        hidden: list[int] = []
        for name in names:
            below_select, matched = rules.select.advance(self.select, name)
            if not matched and not below_select:
                continue
            if self.hide:
                below_hide, hidden = rules.hide.advance(self.hide, name)
                if rules.hide.fitting(hidden, is_directory=False):
                    found.hide(hidden)
                    continue
            with found.alone():
                seen = look_if_there(self.prefix, name)
                if seen is None:
                    continue  # a name in a merge directory may come and go
                is_directory = stat.S_ISDIR(seen.st_mode)
                if hidden and is_directory:
                    found.hide(hidden)
                    continue
                matched = rules.select.fitting(matched, is_directory=is_directory)
                if not (matched or is_directory) or found.is_transient(name):
                    continue
                found.match(matched)
                kind = DirectoryKind.OPAQUE if matched else DirectoryKind.MERGE
                rows = unchanged_rows(self.base, recorded, [name], [seen])
                if rows and not (self.inline is not None and is_lacking(reader, self.prefix, self.inline, rows[name])):
                    found.keep(rows[name], seen)
                else:
                    found.read(name, seen, kind, below_select, below_hide, None)
        return found.end()


@dataclass(frozen=True, slots=True)
class OnTheWay:
    """A directory on the way to what is to be looked at, in a subtree (opaque) or not: nothing but that.

    What is below a directory of a subtree that the base does not have, or that is another one now, is looked at as
    a whole. So is, whatever the patterns say, a name that is not in a directory of which the base is `complete`.
    """

    prefix: bytes
    patterns: Patterns
    only: State
    select: State
    hide: State
    inside: bool  # of a subtree
    listed: bool  # all names in it are asked for, so that those of the base that are not among them are gone
    complete: bool
    inline: Inline | None = None  # None: no content is taken

    # A slash at the end of one of `patterns` makes no difference: what is named is looked at, whatever it has become.

    def read(self, reader: EntryReader, names: Sequence[bytes], recorded: Recorded | None, *, whole: bool) -> Listing:
        """What is at names that follow each other, and what of the base is not there."""
        found = _Found(reader, self.prefix, recorded, self.inline)
        listing = found.listing
        there = set(recorded.names()) if recorded is not None else set()
        if self.listed:
            names = [name for name in names if not (name[0] == _DOT and is_transient(self.prefix, name, Tally()))]
            listing.gone += sorted(there.difference(names))
        for name in names:
            below_only, matched = self.patterns.advance(self.only, name)
            new = bool(matched) or (self.complete and name not in there)
            if not new and not below_only:
                continue
            below_select, selected = reader.rules.select.advance(self.select, name)
            if not self.inside and not selected and not below_select:
                continue
            below_hide = NOWHERE
            hidden: list[int] = []
            if self.hide:
                below_hide, hidden = reader.rules.hide.advance(self.hide, name)
                if reader.rules.hide.fitting(hidden, is_directory=False):
                    continue
            with found.alone():
                seen = look_if_there(self.prefix, name)
                is_directory = seen is not None and stat.S_ISDIR(seen.st_mode)
                if seen is None or (hidden and is_directory):
                    listing.gone.append(name)
                    continue
                selected = reader.rules.select.fitting(selected, is_directory=is_directory)
                opaque = self.inside or bool(selected)
                if opaque and not new:
                    base = found.directories.get(name)
                    new = not is_directory or base is None or base.inode != inode_number(seen, reader.rules.device)
                if not (opaque or is_directory) or found.is_transient(name):
                    listing.gone.append(name)
                    continue
                found.match(selected)
                found.match_only(matched)
                if new:  # what patterns lead to in it is looked at as well, there or not
                    found.match_only([number for number, _ in below_only])
                kind = DirectoryKind.OPAQUE if opaque else DirectoryKind.MERGE
                found.read(name, seen, kind, below_select, below_hide, None if new else below_only)
        return found.end()


class _Found:
    """What was found at names that are each looked at on their own."""

    def __init__(self, reader: EntryReader, prefix: bytes, recorded: Recorded | None, inline: Inline | None) -> None:
        self._reader = reader
        self._inline = inline
        self._prefix = prefix
        self.directories = recorded.directories() if recorded is not None else {}
        self.listing = Listing()
        self._rows: list[list[object]] = []  # of the piece that is being filled

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What cannot be recorded in it is left out."""
        try:
            yield
        except Unfaithful as problem:
            self.listing.left_out.append((problem.path, problem.why))
        except Changed as change:
            self.listing.left_out.append((change.path, "changed while it was read"))

    def is_transient(self, name: bytes) -> bool:
        """Whether a name comes and goes by itself."""
        return name[0] == _DOT and is_transient(self._prefix, name, self.listing.tally)

    def match(self, patterns: Collection[int]) -> None:
        """Patterns of the selection match."""
        self.listing.matched.update(patterns)

    def hide(self, patterns: Collection[int]) -> None:
        """Patterns hide a name."""
        self.listing.tally.hidden += 1
        self.listing.matched.update(~number for number in patterns)

    def match_only(self, patterns: Collection[int]) -> None:
        """Patterns of what is looked at match."""
        self.listing.matched_only.update(patterns)

    def keep(self, row: Row, seen: os.stat_result) -> None:
        """Takes over what the base has."""
        self._reader.check_place(self._prefix + row[0])
        self._reader.keep(self._prefix, [row], self._inline)
        self._rows.append(take_over(row, seen, self.listing, self._reader.rules.device))
        self._add_look(seen)

    def read(
        self,
        name: bytes,
        seen: os.stat_result,
        kind: DirectoryKind,
        select: State,
        hide: State,
        only: State | None,
    ) -> None:
        """Reads an entry, or leaves that to a task of its own. `kind` is what a directory becomes."""
        listing = self.listing
        self._reader.check_place(self._prefix + name)
        is_directory = stat.S_ISDIR(seen.st_mode)
        if is_directory or (seen.st_size > LARGE_FILE and stat.S_ISREG(seen.st_mode)):
            base = self.directories.get(name)
            below = kind if is_directory else None
            inline = inline_below(self._reader, self._inline, name) if is_directory else None
            listing.children.append(Child(name, below, select, hide, len(listing.inodes), base, only, inline))
            listing.add(self._rows)
            self._rows = []
        else:
            limit = inline_limit(self._reader, self._inline, name)
            self._rows.append(self._reader.row_once_more(self._prefix, name, listing, limit))
        self._add_look(seen)

    def end(self) -> Listing:
        """All of it."""
        self.listing.add(self._rows)
        return self.listing

    def _add_look(self, seen: os.stat_result) -> None:
        listing = self.listing
        if is_linked(seen):
            listing.linked[len(listing.inodes)] = seen.st_nlink
        listing.inodes.append(inode_number(seen, self._reader.rules.device))
        listing.change_times.append(seen.st_ctime_ns)
