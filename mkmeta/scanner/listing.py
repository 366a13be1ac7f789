"""Reading one directory, or one large file, of the scanned tree: what a worker does for one task.

Everything is looked at before and after; what changed in between is read once more, and given up if it changed again.
What a manifest cannot carry faithfully raises Unfaithful, and the whole subtree it is in is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from mkmeta.codec.packing import array_header, pack
from mkmeta.linux.mountinfo import mount_id
from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import NAME_MAX, PATH_LIMIT, SIZE_MAX, DirectoryKind
from mkmeta.pattern import NOWHERE, State
from mkmeta.scanner.base import BaseDirectory, Recorded, Row, head_and_tail, inode_number, linked_name
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
            if before.st_dev != self.rules.device and not self._is_same_mount(fd):
                raise Unfaithful(path, MOUNT_POINT)
            prefix = path + b"/" if path else b""
            if only is not None:
                complete = base is not None and base.kind is DirectoryKind.OPAQUE
                self._read_along(prefix, fd, kind, only, select, hide, listing, recorded, complete=complete)
                self.describe(path, before, DirectoryKind.MERGE, listing)
                if kind is DirectoryKind.OPAQUE and not same(fstat(fd, path), before):
                    raise Changed(path)
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
        if _is_linked(seen):
            listing.linked[0] = seen.st_nlink
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

    def _is_same_mount(self, fd: int) -> bool:
        """Whether a directory on another device is on the root's mount all the same, as a btrfs subvolume is."""
        try:
            return mount_id(fd) == mount_id(self.rules.root_fd)
        except OSError:
            return False  # without /proc

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
                rows.append(_take_over(unchanged[name], seen, listing, self.rules.device))
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
        device = self.rules.device
        if all(seen.st_dev == device for seen in looks):
            listing.inodes = [seen.st_ino for seen in looks]
        else:
            listing.inodes = [inode_number(seen, device) for seen in looks]
        listing.change_times = [seen.st_ctime_ns for seen in looks]
        if listing.links:
            listing.linked = {number: seen.st_nlink for number, seen in enumerate(looks) if _is_linked(seen)}
        if recorded is not None and not read:
            listing.same = listing.inodes == recorded.inodes and listing.change_times == recorded.change_times

    def _is_all_as_recorded(self, recorded: Recorded, listing: Listing) -> bool:
        """Whether each entry of a directory without directories is unchanged; then the listing is complete.

        This is what a scan on a base spends its time with: `_read_opaque` would find the same, at twice the cost.
        """
        base = self.rules.base
        if base is None or self.rules.mount_points:
            return False
        tally = Tally(unchanged=len(recorded.rows))
        links = []
        linked = {}
        device = self.rules.device
        try:
            for number, (row, inode, change_time) in enumerate(
                zip(recorded.rows, recorded.inodes, recorded.change_times, strict=True)
            ):
                seen = os.lstat(row[0])
                if not base.is_as_recorded(row, inode, change_time, seen):
                    return False
                file_type = stat.S_IFMT(row[1])
                if file_type == stat.S_IFREG:
                    tally.bytes += seen.st_size
                elif file_type == stat.S_IFLNK:
                    tally.symlinks += 1
                else:
                    tally.others += 1
                if seen.st_nlink > 1:
                    linked[number] = seen.st_nlink
                    links.append(linked_name(seen, row, device))
        except OSError:
            return False  # whoever looks once more will say what it is
        listing.entries = len(recorded.rows)
        listing.tally, listing.links, listing.linked, listing.same = tally, links, linked, True
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
                    rows.append(_take_over(unchanged[name], seen, listing, self.rules.device))
                else:
                    rows.append(self.row_once_more(prefix, name, listing))
            except Unfaithful as problem:
                listing.left_out.append((problem.path, problem.why))
                continue
            except Changed as change:
                listing.left_out.append((change.path, "changed while it was read"))
                continue
            self._add_look(seen, listing)
        _add_piece(rows, listing)

    def _add_look(self, seen: os.stat_result, listing: Listing) -> None:
        """Adds the facts of an entry."""
        if _is_linked(seen):
            listing.linked[len(listing.inodes)] = seen.st_nlink
        listing.inodes.append(inode_number(seen, self.rules.device))
        listing.change_times.append(seen.st_ctime_ns)

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
        *,
        complete: bool,
    ) -> None:
        """A directory on the way to what is to be looked at, in a subtree (opaque) or not: nothing but that.

        What is below a directory of a subtree that the base does not have, or that is another one now, is looked at as
        a whole. So is, whatever the patterns say, a name that is not in a directory of which the base is `complete`.
        """
        patterns = self.rules.only
        assert patterns is not None
        inside = kind is DirectoryKind.OPAQUE
        there = set(recorded.names()) if recorded is not None else set()
        directories = recorded.directories() if recorded is not None else {}
        wanted = None if inside else patterns.names(only)
        listed = self._lasting(prefix, sorted(listdir(fd, prefix[:-1])), Tally()) if wanted is None else sorted(wanted)
        if wanted is None:
            listing.gone += sorted(there.difference(listed))
        rows: list[list[object]] = []
        for name in listed:
            below_only, matched = patterns.advance(only, name)
            whole = bool(matched) or (complete and name not in there)
            if not whole and not below_only:
                continue
            below_select, selected = self.rules.select.advance(select, name)
            if not inside and not selected and not below_select:
                continue
            below_hide = NOWHERE
            if hide:
                below_hide, hidden = self.rules.hide.advance(hide, name)
                if hidden:
                    continue
            opaque = inside or bool(selected)
            try:
                seen = look_if_there(prefix, name)
                if seen is None:
                    listing.gone.append(name)
                    continue
                is_directory = stat.S_ISDIR(seen.st_mode)
                if opaque and not whole:
                    base = directories.get(name)
                    whole = not is_directory or base is None or base.inode != inode_number(seen, self.rules.device)
                if not (opaque or is_directory) or (name[0] == _DOT and is_transient(prefix, name, listing.tally)):
                    listing.gone.append(name)
                    continue
                self.matched.update(selected)
                self.matched_only.update(matched)
                if whole:  # what patterns lead to in it is looked at as well, there or not
                    self.matched_only.update(number for number, _ in below_only)
                self.check_place(prefix + name)
                if is_directory or (seen.st_size > LARGE_FILE and stat.S_ISREG(seen.st_mode)):
                    below = (DirectoryKind.OPAQUE if opaque else DirectoryKind.MERGE) if is_directory else None
                    base, further = directories.get(name), None if whole else below_only
                    position = len(listing.inodes)
                    listing.children.append(Child(name, below, below_select, below_hide, position, base, further))
                    _add_piece(rows, listing)
                    rows = []
                else:
                    rows.append(self.row_once_more(prefix, name, listing))
            except Unfaithful as problem:
                listing.left_out.append((problem.path, problem.why))
                continue
            except Changed as change:
                listing.left_out.append((change.path, "changed while it was read"))
                continue
            self._add_look(seen, listing)
        _add_piece(rows, listing)


def _is_linked(seen: os.stat_result) -> bool:
    return seen.st_nlink > 1 and not stat.S_ISDIR(seen.st_mode)


def _take_over(row: Row, seen: os.stat_result, listing: Listing, device: int) -> Row:
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


def _add_piece(rows: list[list[object]], listing: Listing) -> None:
    listing.pieces.append(pack(rows)[len(array_header(len(rows))) :])
    listing.entries += len(rows)
