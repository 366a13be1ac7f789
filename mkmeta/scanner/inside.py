"""Reading names in a directory of a subtree, all of which is recorded."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from mkmeta.codec.nfs4_acl import Access
from mkmeta.linux.ownership import Strangers
from mkmeta.model import ID_MAX, NAME_MAX, NS, PATH_LIMIT, SIZE_MAX, DirectoryKind
from mkmeta.pattern import NOWHERE, State
from mkmeta.scanner.base import BLAKE3, MODE, NAME, SIZE, XATTRS, Base, Recorded, Row, linked_name
from mkmeta.scanner.entry import NOT_HERE, EntryReader
from mkmeta.scanner.inlining import Inline
from mkmeta.scanner.looking import look
from mkmeta.scanner.records import Child, Listing, Unfaithful
from mkmeta.scanner.unchanged import looks_as_recorded

_TYPE_SHIFT: Final = 12  # of a mode
_NLINK, _SIZE = itemgetter(stat.ST_NLINK), itemgetter(stat.ST_SIZE)  # a stat_result is a tuple
_REGULAR, _SYMLINK = stat.S_IFREG >> _TYPE_SHIFT, stat.S_IFLNK >> _TYPE_SHIFT
LARGE_FILE: Final = 8 << 20  # bytes; a larger file is a task of its own, so that no worker is left with all the work


@dataclass(frozen=True, slots=True)
class Inside:
    """What holds for all names in one directory of a subtree."""

    prefix: bytes
    select: State  # only serves to see which patterns match
    hide: State
    base: Base | None
    as_before: bool  # it has the names that the base has
    inline: Inline | None = None  # None: no content is taken

    def read(self, reader: EntryReader, names: Sequence[bytes], recorded: Recorded | None, *, whole: bool) -> Listing:
        """What is at names that follow each other; `whole`: there are no others.

        Raises Changed, and Unfaithful: what the first of them alone would, if any would.
        """
        if self.as_before and self.base is not None and recorded is not None:
            found = self._all_as_recorded(reader, self.base, recorded, whole=whole)
            if found is not None:
                return found
        try:
            return self._read_at_once(reader, names, recorded)
        except Unfaithful as problem:
            if len(names) <= 1 or problem.path == self.prefix + names[0]:
                raise
        listing = Listing()
        listing.join([self._read_at_once(reader, [name], recorded) for name in names])
        return listing

    def _read_at_once(self, reader: EntryReader, names: Sequence[bytes], recorded: Recorded | None) -> Listing:
        listing = Listing()
        prefix, device = self.prefix, reader.rules.device
        below_hide: dict[bytes, State] = {}  # what is not in it leads nowhere
        unless: dict[bytes, list[int]] = {}  # patterns that hide a name if it is a directory
        if self.hide:
            names, below_hide, unless = self._visible(reader, names, listing)
        looks = look(prefix, names)  # all of one kind of call after the other: half the time of taking turns
        if unless:
            names, looks = self._without_directories(names, looks, unless, listing)
        inline = self.inline
        unchanged = unchanged_rows(self.base, recorded, names, looks)
        if inline is not None:
            unchanged = {name: row for name, row in unchanged.items() if not is_lacking(reader, prefix, inline, row)}
        directories = recorded.directories() if recorded is not None else {}
        # Directories are asked by who reads them. On NFS each answer is a request.
        changed = [
            name
            for name, seen in zip(names, looks, strict=True)
            if name not in unchanged and not stat.S_ISDIR(seen.st_mode)
        ]
        xattr_names = reader.list_xattrs(prefix, changed)
        crowded = bool(reader.rules.mount_points) or len(prefix) > PATH_LIMIT - NAME_MAX
        strange = reader.rules.strangers != Strangers()
        if not (crowded or strange or self.select or unchanged or inline or reader.hasher.enabled or any(xattr_names)):
            plain = plain_rows(names, looks)
            if plain is not None:
                listing.add(plain)
                listing.tally.bytes = sum([seen.st_size for seen in looks])
                listing.add_looks(looks, device)
                return listing
        xattrs = dict(zip(changed, xattr_names, strict=True))
        large = LARGE_FILE if reader.hasher.enabled else SIZE_MAX
        rows: list[list[object]] = []
        read = 0
        for position, (name, seen) in enumerate(zip(names, looks, strict=True)):
            below_select = self._advance(reader, name, listing) if self.select else NOWHERE
            if crowded:
                reader.check_place(prefix + name)
            mode = seen.st_mode
            if name in unchanged:
                rows.append(take_over(unchanged[name], seen, listing, device))
                reader.keep(prefix, rows[-1:], inline)
            elif stat.S_ISDIR(mode) or (seen.st_size > large and stat.S_ISREG(mode)):
                kind = DirectoryKind.OPAQUE if stat.S_ISDIR(mode) else None
                below = below_hide.get(name, NOWHERE)
                further = inline_below(reader, inline, name) if kind is not None else None
                child = Child(name, kind, below_select, below, position, directories.get(name), inline=further)
                listing.children.append(child)
                read += kind is None
                listing.add(rows)
                rows = []
            else:
                limit = inline_limit(reader, inline, name)
                rows.append(reader.row(prefix, name, seen, xattrs[name], listing, limit))
                read += 1
        listing.add(rows)
        listing.add_looks(looks, device)
        if listing.links:
            listing.linked = {number: seen.st_nlink for number, seen in enumerate(looks) if is_linked(seen)}
        if recorded is not None and not read:
            listing.same = listing.inodes == recorded.inodes and listing.change_times == recorded.change_times
        return listing

    def _all_as_recorded(self, reader: EntryReader, base: Base, recorded: Recorded, *, whole: bool) -> Listing | None:
        """What the base has, if each of it is unchanged; directories in it may have changed inside.

        This is what a scan on a base spends its time with: `_read_at_once` would find the same, at twice the cost.
        """
        if reader.rules.mount_points or len(self.prefix) > PATH_LIMIT - NAME_MAX:
            return None
        looks = looks_as_recorded(base, recorded)
        if looks is None:
            return None
        rows, has_directories = recorded.rows, bool(recorded.places)
        inline = self.inline
        if inline is not None and any(is_lacking(reader, self.prefix, inline, row) for row in rows):
            return None
        reader.keep(self.prefix, rows, inline)
        listing = Listing(inodes=recorded.inodes, change_times=recorded.change_times, same=True)
        if has_directories:
            self._add_around_directories(reader, recorded, listing)
        elif whole and base.adopted:
            listing.entries = len(rows)  # nobody needs what the new manifest has already
        else:
            listing.add(rows)
        types = [seen.st_mode >> _TYPE_SHIFT for seen in looks]
        tally, files = listing.tally, types.count(_REGULAR)
        tally.unchanged = listing.entries
        tally.symlinks = types.count(_SYMLINK)
        tally.others = listing.entries - files - tally.symlinks
        if files == len(looks):
            tally.bytes = sum(map(_SIZE, looks))
        else:
            tally.bytes = sum(seen.st_size for seen in looks if seen.st_mode >> _TYPE_SHIFT == _REGULAR)
        if looks and max(map(_NLINK, looks)) > 1:
            listing.linked = {number: seen.st_nlink for number, seen in enumerate(looks) if is_linked(seen)}
            device = reader.rules.device
            listing.links = [linked_name(looks[number], rows[number], device) for number in listing.linked]
        return listing

    def _add_around_directories(self, reader: EntryReader, recorded: Recorded, listing: Listing) -> None:
        """Adds pieces and children: entries as the base has them."""
        directories = recorded.directories()
        piece: list[list[object]] = []
        for position, row in enumerate(recorded.rows):
            if not stat.S_ISDIR(row[MODE]):
                piece.append(row)
                continue
            listing.add(piece)
            piece = []
            name: bytes = row[NAME]
            inline = inline_below(reader, self.inline, name)
            base = directories.get(name)
            child = Child(name, DirectoryKind.OPAQUE, NOWHERE, NOWHERE, position, base, inline=inline)
            listing.children.append(child)
        listing.add(piece)

    def _visible(
        self, reader: EntryReader, names: Sequence[bytes], listing: Listing
    ) -> tuple[list[bytes], dict[bytes, State], dict[bytes, list[int]]]:
        """The names that are not to be hidden, how far the patterns are that hide what is below them, and patterns
        that hide some of them if they are directories.
        """
        below = {}
        unless = {}
        patterns = reader.rules.hide
        for name in names:
            state, hidden = patterns.advance(self.hide, name)
            if patterns.fitting(hidden, is_directory=False):
                _note_hidden(hidden, listing)
                continue
            below[name] = state
            if hidden:
                unless[name] = hidden
        return list(below), below, unless

    def _without_directories(
        self,
        names: Sequence[bytes],
        looks: list[os.stat_result],
        unless: dict[bytes, list[int]],
        listing: Listing,
    ) -> tuple[list[bytes], list[os.stat_result]]:
        """The names, and the looks at them, without those that are hidden because they are directories."""
        kept = []
        for name, seen in zip(names, looks, strict=True):
            if name in unless and stat.S_ISDIR(seen.st_mode):
                _note_hidden(unless[name], listing)
            else:
                kept.append((name, seen))
        return [name for name, _ in kept], [seen for _, seen in kept]

    def _advance(self, reader: EntryReader, name: bytes, listing: Listing) -> State:
        """Follows patterns, of which only those that have matched nothing yet are of interest."""
        below, matched = reader.rules.select.advance(self.select, name)
        listing.matched.update(matched)
        reader.matched.update(matched)
        return tuple(position for position in below if position[0] not in reader.matched)


def _note_hidden(patterns: list[int], listing: Listing) -> None:
    listing.tally.hidden += 1
    listing.matched.update(~number for number in patterns)


def plain_rows(names: Sequence[bytes], looks: Sequence[os.stat_result]) -> list[list[object]] | None:
    """The entries of files of one name each, without digests and xattrs, as `EntryReader.row` makes them; None where
    not all are such files. Most directories have no others.
    """
    if any(
        seen.st_mode >> _TYPE_SHIFT != _REGULAR or seen.st_nlink > 1 or seen.st_uid > ID_MAX or seen.st_gid > ID_MAX
        for seen in looks
    ):
        return None
    return [
        [name, seen.st_mode, seen.st_uid, seen.st_gid, *divmod(seen.st_mtime_ns, NS), seen.st_size, None, None]
        for name, seen in zip(names, looks, strict=True)
    ]


def unchanged_rows(
    base: Base | None, recorded: Recorded | None, names: Sequence[bytes], looks: list[os.stat_result]
) -> dict[bytes, Row]:
    """The entries of the base for those of the names that are as they were."""
    if recorded is None or base is None:
        return {}
    return base.unchanged(recorded, dict(zip(names, looks, strict=True)))


def is_lacking(reader: EntryReader, prefix: bytes, inline: Inline, row: Row) -> bool:
    """Whether the base has not got the content of a file that is to be taken, given its entry.

    Raises Unfaithful, Changed.
    """
    inlining = reader.rules.inlining
    if inlining is None or not stat.S_ISREG(row[MODE]) or not 0 < row[SIZE] <= inlining.limit(inline, row[NAME]):
        return False
    xattrs = row[XATTRS] if len(row) > XATTRS else ()
    if not inlining.wants(row[MODE], xattrs) or inlining.has(row[BLAKE3], row[SIZE]):
        return False
    is_closed = prefix + row[NAME] in inlining.closed
    return not is_closed or reader.allows_everybody(prefix, row[NAME], Access.READ)


def inline_limit(reader: EntryReader, inline: Inline | None, name: bytes) -> int:
    """How many bytes a file may have to be taken; NOT_HERE: it is in a closed directory."""
    inlining = reader.rules.inlining
    return inlining.limit(inline, name) if inlining is not None and inline is not None else NOT_HERE


def inline_below(reader: EntryReader, inline: Inline | None, name: bytes) -> Inline | None:
    """What holds for a directory, as far as its name tells."""
    inlining = reader.rules.inlining
    return inlining.below(inline, name) if inlining is not None and inline is not None else None


def is_linked(seen: os.stat_result) -> bool:
    """Whether something has several names. A directory has one."""
    return seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode)


def take_over(row: Row, seen: os.stat_result, listing: Listing, device: int) -> Row:
    """The entry of the base for something that is as it was."""
    tally = listing.tally
    tally.unchanged += 1
    if stat.S_ISREG(seen.st_mode):
        tally.bytes += seen.st_size
    elif stat.S_ISLNK(seen.st_mode):
        tally.symlinks += 1
    else:
        tally.others += 1
    if seen.st_nlink > 1:
        listing.links.append(linked_name(seen, row, device))
    return row
