"""Reading one directory, or one large file, of the scanned tree: what a worker does for one task.

Everything is looked at before and after; what changed in between is read once more, and given up if it changed again.
What a manifest cannot carry faithfully raises Unfaithful, and the whole subtree it is in is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final

from mkmeta.codec.packing import array_header, pack
from mkmeta.errors import FormatError, printable
from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import NAME_MAX, NS, PATH_LIMIT, SIZE_MAX, DirectoryKind
from mkmeta.pattern import NOWHERE, State
from mkmeta.scanner.base import BaseDirectory, Recorded, Row, fingerprint, head_and_tail
from mkmeta.scanner.entry import MOUNT_POINT, EntryReader, twice
from mkmeta.scanner.looking import failure, fstat, is_transient, listdir, look, look_if_there, same
from mkmeta.scanner.records import Changed, Child, Listing, ScanRules, Tally, Unfaithful

LARGE_FILE: Final = 8 << 20  # bytes; a larger file is a task of its own, so that no worker is left with all the work
_DOT: Final = ord(".")


class DirectoryReader(EntryReader):
    """Reads directories for one thread, which must have a working directory of its own.

    Names are looked up relative to the working directory: no path limit, no race on the way, and the cheapest way to
    ask for the xattrs of a name.
    """

    def __init__(self, rules: ScanRules) -> None:
        super().__init__(rules)
        self.matched: set[int] = set()  # selection patterns seen to match
        self.matched_only: set[int] = set()  # those of what is walked

    @property
    def adopted(self) -> bool:
        """Whether the new manifest has the objects of the base already."""
        return self.rules.base is not None and self.rules.base.adopted

    def read_directory(
        self,
        path: bytes,
        kind: DirectoryKind,
        select: State,
        hide: State,
        base: BaseDirectory | None = None,
        only: State | None = None,
    ) -> Listing:
        """The directory at `path`. Raises Unfaithful, and FormatError when the base is damaged."""
        return twice(lambda: self._read_directory(path, kind, select, hide, base, only))

    def read_file(self, path: bytes) -> Listing:
        """The large file at `path`. Raises Unfaithful."""
        return twice(lambda: self._read_file(path))

    def _read_directory(
        self,
        path: bytes,
        kind: DirectoryKind,
        select: State,
        hide: State,
        base: BaseDirectory | None,
        only: State | None,
    ) -> Listing:
        listing = Listing()
        recorded = None
        if base is not None and self.rules.base is not None:
            recorded = self.rules.base.read(base, path)
        fd = self._enter(path)
        try:
            before = fstat(fd, path)
            if before.st_dev != self.rules.device:
                raise Unfaithful(path, MOUNT_POINT)
            prefix = path + b"/" if path else b""
            if only is not None and (recorded is not None or kind is DirectoryKind.MERGE):
                self._read_along(prefix, fd, kind, only, select, hide, listing, recorded)
                self.describe(path, before, kind, listing)
                return listing
            as_before = base is not None and self._is_same(base, kind, before, select, hide)
            if kind is DirectoryKind.MERGE:
                wanted = self.rules.select.names(select)
                names = sorted(listdir(fd, path) if wanted is None else wanted)
                self._read_merge(prefix, names, select, hide, listing, recorded)
            elif as_before and recorded is not None:
                if recorded.places or not self._is_all_as_recorded(recorded, listing):
                    self._read_opaque(prefix, recorded.names(), select, hide, listing, recorded)
            else:
                names = self._lasting(prefix, sorted(listdir(fd, path)), listing.tally)
                self._read_opaque(prefix, names, select, hide, listing, recorded)
            if as_before and base is not None:  # its names were not listed, and its attributes cannot have changed
                listing.head, listing.tail = head_and_tail(base)
                return listing
            self.describe(path, before, kind, listing)
            if kind is DirectoryKind.OPAQUE and not same(fstat(fd, path), before):
                raise Changed(path)
        finally:
            os.close(fd)
        return listing

    def _read_file(self, path: bytes) -> Listing:
        listing = Listing()
        parent, slash, name = path.rpartition(b"/")
        os.close(self._enter(parent))
        (seen,), (xattr_names,) = look(parent + slash, [name]), self.list_xattrs(parent + slash, [name])
        if not stat.S_ISREG(seen.st_mode):
            raise Changed(path)
        listing.pieces = [pack(self.row(parent + slash, name, seen, xattr_names, listing))]
        listing.entries = 1
        return listing

    def _enter(self, path: bytes) -> int:
        """Opens a directory and makes it the working directory."""
        try:
            fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.rules.root_fd)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Unfaithful(path, MOUNT_POINT) from None
            raise failure(path, error) from None
        os.fchdir(fd)
        return fd

    def _is_same(
        self, base: BaseDirectory, kind: DirectoryKind, seen: os.stat_result, select: State, hide: State
    ) -> bool:
        """Whether a directory of a subtree has the names and attributes it has in the base."""
        return (
            self.rules.base is not None
            and kind is base.kind is DirectoryKind.OPAQUE
            and not (select or hide)  # what names match, and how many are hidden, is not recorded
            and self.rules.base.is_same(base, seen)
        )

    def _read_opaque(
        self,
        prefix: bytes,
        names: list[bytes],
        select: State,
        hide: State,
        listing: Listing,
        recorded: Recorded | None,
    ) -> None:
        """Everything in a directory of a subtree. `select` only serves to see which patterns match."""
        below_hide: dict[bytes, State] = {}  # what is not in it leads nowhere
        if hide:
            names, below_hide = self._visible(names, hide, listing.tally)
        looks = look(prefix, names)  # all of one kind of call after the other: half the time of taking turns
        unchanged = self._unchanged(recorded, names, looks)
        directories = recorded.directories() if recorded is not None else {}
        changed = [name for name in names if name not in unchanged] if unchanged else names
        xattrs = dict(zip(changed, self.list_xattrs(prefix, changed), strict=True))
        crowded = bool(self.rules.mount_points) or len(prefix) > PATH_LIMIT - NAME_MAX
        large = LARGE_FILE if self.hasher.enabled else SIZE_MAX
        rows: list[list[object]] = []
        read = 0
        for position, (name, seen) in enumerate(zip(names, looks, strict=True)):
            below_select = self._advance_inside(select, name) if select else NOWHERE
            if crowded:
                self.check_place(prefix + name)
            mode = seen.st_mode
            if name in unchanged:
                rows.append(_take_over(unchanged[name], seen, listing))
            elif stat.S_ISDIR(mode) or (seen.st_size > large and stat.S_ISREG(mode)):
                kind = DirectoryKind.OPAQUE if stat.S_ISDIR(mode) else None
                below = below_hide.get(name, NOWHERE)
                listing.children.append(Child(name, kind, below_select, below, position, directories.get(name)))
                read += kind is None
                _add_piece(rows, listing)
                rows = []
            else:
                rows.append(self.row(prefix, name, seen, xattrs[name], listing))
                read += 1
        _add_piece(rows, listing)
        listing.inodes = [seen.st_ino for seen in looks]
        listing.change_times = [seen.st_ctime_ns for seen in looks]
        if recorded is not None and not read:
            listing.same = listing.inodes == recorded.inodes and listing.change_times == recorded.change_times

    def _is_all_as_recorded(self, recorded: Recorded, listing: Listing) -> bool:
        """Whether each entry of a directory without directories is unchanged; then the listing is complete.

        This is what a scan on a base spends its time with: `_read_opaque` would find the same, at twice the cost.
        """
        base = self.rules.base
        if base is None or self.rules.mount_points:
            return False
        limit, regular = base.trusted_before, stat.S_IFREG
        tally = Tally(unchanged=len(recorded.rows))
        links = []
        try:
            for row, inode, change_time in zip(recorded.rows, recorded.inodes, recorded.change_times, strict=True):
                seen = os.lstat(row[0])
                if not (
                    seen.st_ctime_ns == change_time < limit
                    and seen.st_ino == inode
                    and seen.st_mode == row[1]
                    and seen.st_mtime_ns == row[4] * NS + row[5]
                ):
                    return False
                file_type = stat.S_IFMT(row[1])
                if file_type == regular:
                    if seen.st_size != row[6]:
                        return False
                    tally.bytes += seen.st_size
                elif file_type == stat.S_IFLNK:
                    tally.symlinks += 1
                else:
                    tally.others += 1
                if seen.st_nlink > 1:
                    links.append((inode, row[0], fingerprint(row)))
        except OSError:
            return False  # whoever looks once more will say what it is
        listing.entries = len(recorded.rows)
        listing.tally, listing.links, listing.same = tally, links, True
        listing.inodes, listing.change_times = recorded.inodes, recorded.change_times
        if not base.adopted:
            listing.pieces = [pack(recorded.rows)[len(array_header(len(recorded.rows))) :]]
        return True

    def _unchanged(
        self, recorded: Recorded | None, names: list[bytes], looks: list[os.stat_result]
    ) -> dict[bytes, Row]:
        if recorded is None or self.rules.base is None:
            return {}
        return self.rules.base.unchanged(recorded, dict(zip(names, looks, strict=True)))

    def _lasting(self, prefix: bytes, names: list[bytes], tally: Tally) -> list[bytes]:
        """The names without those that server and client make up and take away."""
        dotted = [name for name in names if name[0] == _DOT]
        transient = {name for name in dotted if is_transient(prefix, name, tally)}
        return [name for name in names if name not in transient] if transient else names

    def _visible(self, names: list[bytes], hide: State, tally: Tally) -> tuple[list[bytes], dict[bytes, State]]:
        """The names that are not to be hidden, and how far the patterns are that hide what is below them."""
        below = {}
        for name in names:
            state, hidden = self.rules.hide.advance(hide, name)
            if hidden:
                tally.hidden += 1
            else:
                below[name] = state
        return list(below), below

    def _advance_inside(self, select: State, name: bytes) -> State:
        """Follows patterns inside a subtree, where only those that have matched nothing yet are of interest."""
        below, matched = self.rules.select.advance(select, name)
        self.matched.update(matched)
        return tuple(position for position in below if position[0] not in self.matched)

    def _read_merge(
        self,
        prefix: bytes,
        names: list[bytes],
        select: State,
        hide: State,
        listing: Listing,
        recorded: Recorded | None,
    ) -> None:
        """What is selected in a skeleton directory, and the directories that may hold more of it."""
        below_hide = NOWHERE
        rows: list[list[object]] = []
        directories = recorded.directories() if recorded is not None else {}
        for name in names:
            below_select, matched = self.rules.select.advance(select, name)
            if not matched and not below_select:
                continue
            if hide:
                below_hide, hidden = self.rules.hide.advance(hide, name)
                if hidden:
                    listing.tally.hidden += 1
                    continue
            try:
                seen = look_if_there(prefix, name)
                if seen is None:
                    continue  # a name in a merge directory may come and go
                is_directory = stat.S_ISDIR(seen.st_mode)
                if not (matched or is_directory) or (name[0] == _DOT and is_transient(prefix, name, listing.tally)):
                    continue
                self.matched.update(matched)
                self.check_place(prefix + name)
                if is_directory or (seen.st_size > LARGE_FILE and stat.S_ISREG(seen.st_mode)):
                    kind = (DirectoryKind.OPAQUE if matched else DirectoryKind.MERGE) if is_directory else None
                    base = directories.get(name)
                    listing.children.append(Child(name, kind, below_select, below_hide, len(listing.inodes), base))
                    _add_piece(rows, listing)
                    rows = []
                elif unchanged := self._unchanged(recorded, [name], [seen]):
                    rows.append(_take_over(unchanged[name], seen, listing))
                else:
                    rows.append(self.row_once_more(prefix, name, listing))
            except Unfaithful as problem:
                listing.left_out.append((problem.path, problem.why))
                continue
            except Changed as change:
                listing.left_out.append((change.path, "changed while it was read"))
                continue
            listing.inodes.append(seen.st_ino)
            listing.change_times.append(seen.st_ctime_ns)
        _add_piece(rows, listing)

    def _read_along(
        self,
        prefix: bytes,
        fd: int,
        kind: DirectoryKind,
        only: State,
        select: State,
        hide: State,
        listing: Listing,
        recorded: Recorded | None,
    ) -> None:
        """A directory on the way to what is walked: the rest of it is what the base has, and is not looked at."""
        patterns = self.rules.only
        assert patterns is not None
        listing.along = True
        there = recorded.names() if recorded is not None else []
        candidates = patterns.names(only)
        if candidates is None:
            candidates = {*self._lasting(prefix, sorted(listdir(fd, prefix[:-1])), listing.tally), *there}
        steps = {name: patterns.advance(only, name) for name in candidates}
        steps = {name: step for name, step in steps.items() if step[0] or step[1]}
        rows: list[list[object]] = []
        for name, row, inode, change_time, base in _merged(steps, recorded):
            if name not in steps:
                position = len(listing.inodes)
                if stat.S_ISDIR(row[1]):
                    if base is None:
                        raise FormatError(f"base: '{printable(prefix + name)}' has no facts")
                    listing.children.append(Child(name, base.kind, NOWHERE, NOWHERE, position, base, kept=True))
                    _add_piece(rows, listing)
                    rows = []
                else:
                    listing.tally.kept += 1
                    rows.append(row)
                listing.inodes.append(inode)
                listing.change_times.append(change_time)
                continue
            below_only, matched = steps[name]
            self.matched_only.update(matched if row else ())
            children = len(listing.children)
            try:
                rows = self._step(
                    prefix, name, kind, None if matched else below_only, select, hide, listing, rows, base, matched
                )
            except Unfaithful as problem:
                if kind is DirectoryKind.OPAQUE:
                    raise
                listing.left_out.append((problem.path, problem.why))
            except Changed:
                pass  # it is not there, or not any more
            further = len(listing.children) > children and listing.children[-1].only is not None
            if row and not (further and base is not None):
                listing.replaced.append(pack(row))
        _add_piece(rows, listing)

    def _step(
        self,
        prefix: bytes,
        name: bytes,
        kind: DirectoryKind,
        only: State | None,
        select: State,
        hide: State,
        listing: Listing,
        rows: list[list[object]],
        base: BaseDirectory | None,
        matched: list[int],
    ) -> list[list[object]]:
        """One name on the way, or at its end. Returns the rows that are not in a piece yet."""
        below_select, selected = self.rules.select.advance(select, name)
        if kind is DirectoryKind.MERGE and not selected and not below_select:
            return rows
        below_hide = NOWHERE
        if hide:
            below_hide, hidden = self.rules.hide.advance(hide, name)
            if hidden:
                listing.tally.hidden += 1
                return rows
        (seen,) = look(prefix, [name])
        self.matched_only.update(matched)
        is_directory = stat.S_ISDIR(seen.st_mode)
        opaque = kind is DirectoryKind.OPAQUE or bool(selected)
        if not (opaque or is_directory) or (name[0] == _DOT and is_transient(prefix, name, listing.tally)):
            return rows
        self.matched.update(selected)
        self.check_place(prefix + name)
        if is_directory or (seen.st_size > LARGE_FILE and stat.S_ISREG(seen.st_mode)):
            below = (DirectoryKind.OPAQUE if opaque else DirectoryKind.MERGE) if is_directory else None
            if base is None and below is DirectoryKind.OPAQUE:
                only = None  # complete or not at all
            position = len(listing.inodes)
            listing.children.append(Child(name, below, below_select, below_hide, position, base, only))
            _add_piece(rows, listing)
            rows = []
        else:
            rows.append(self.row_once_more(prefix, name, listing))
        listing.inodes.append(seen.st_ino)
        listing.change_times.append(seen.st_ctime_ns)
        return rows


def _merged(
    steps: Iterable[bytes], recorded: Recorded | None
) -> Iterator[tuple[bytes, Row, int, int, BaseDirectory | None]]:
    """Names of the base and others, ascending; with entry, inode, change time and directory where the base has it."""
    found: dict[bytes, tuple[bytes, Row, int, int, BaseDirectory | None]] = {
        name: (name, [], 0, 0, None) for name in steps
    }
    if recorded is not None:
        directories = recorded.directories()
        for row, inode, change_time in zip(recorded.rows, recorded.inodes, recorded.change_times, strict=True):
            found[row[0]] = (row[0], row, inode, change_time, directories.get(row[0]))
    return iter([found[name] for name in sorted(found)])


def _take_over(row: Row, seen: os.stat_result, listing: Listing) -> Row:
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
        listing.links.append((seen.st_ino, row[0], fingerprint(row)))
    return row


def _add_piece(rows: list[list[object]], listing: Listing) -> None:
    listing.pieces.append(pack(rows)[len(array_header(len(rows))) :])
    listing.entries += len(rows)
