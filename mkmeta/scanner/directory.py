"""Reading one directory, or one large file, of the scanned tree: what a worker does for one task.

Everything is looked at before and after; what changed in between is read once more, and given up if it changed again.
An NFS client may answer the second look at a directory itself: with the attributes that came with the last answer about
a name in it, which is as late as anything that was recorded. What a manifest cannot carry faithfully raises Unfaithful,
and the whole subtree it is in is left out.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass
from typing import IO, Final, NamedTuple

from mkmeta.codec.nfs4_acl import Access
from mkmeta.codec.packing import pack
from mkmeta.linux.filesystem import BTRFS, filesystem_magic
from mkmeta.linux.mountinfo import mount_id
from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import NAME_MAX, PATH_LIMIT, DirectoryKind
from mkmeta.pattern import State
from mkmeta.scanner.base import BaseDirectory, Recorded, RecordedDirectory
from mkmeta.scanner.entry import ACCESS_ACL, MOUNT_POINT, EntryReader, twice
from mkmeta.scanner.gathering import Gathering
from mkmeta.scanner.inlining import Inline
from mkmeta.scanner.inside import Inside, is_linked
from mkmeta.scanner.looking import change_directory, failure, fstat, has_acls, is_transient, listdir, look, same
from mkmeta.scanner.records import Changed, Listing, ScanRules, Tally, Unfaithful
from mkmeta.scanner.sharing import Company, Pace, Shared
from mkmeta.scanner.skeleton import Names, OnTheWay, Skeleton
from mkmeta.scanner.unchanged import links_among, looks_as_recorded
from mkmeta.trees.writer import LinkedName, Own

_DOT: Final = ord(".")
_NO_OWN: Final = Own(b"", b"")
# BTRFS_EMPTY_SUBVOL_DIR_OBJECTID (linux/btrfs_tree.h), the inode of an empty directory that is nowhere on disk: what a
# snapshot shows where a subvolume was. Its times are when it was last looked up. Other inodes count from 256 on
_NO_SUBVOLUME: Final = 2


@dataclass(slots=True)
class Reading:
    """What came of a task."""

    listing: Listing  # all of it, or what follows the runs
    runs: IO[bytes] | None = None  # see Gathering.take_runs
    has_children: bool = False
    own: Own | None = _NO_OWN  # of a directory; None: as the base has it


class Unchanged(NamedTuple):
    """A directory without directories that is, with all in it, as the base has it."""

    links: list[LinkedName]  # names in it of inodes that have several


class DirectoryReader(EntryReader):
    """Reads directories for one thread, which must have a working directory of its own.

    Names are looked up relative to the working directory: no path limit, no race on the way, and the cheapest way to
    ask for the xattrs of a name.
    """

    def __init__(self, rules: ScanRules) -> None:
        super().__init__(rules)
        self.company: Company | None = None  # other lanes, if there can be any
        self.pace = Pace()
        self.has_acls = rules.inlining is not None and has_acls(rules.root_fd)

    def read_directory(
        self,
        path: bytes,
        kind: DirectoryKind,
        select: State,
        hide: State,
        base: BaseDirectory | None = None,
        only: State | None = None,
        inline: Inline | None = None,
    ) -> Reading | Unchanged:
        """The directory at `path`. Raises Unfaithful, FormatError when the base is damaged, and MkmetaError when there
        is no room for temporary files.
        """
        return twice(lambda: self._read_directory(path, kind, select, hide, base, only, inline))

    def read_file(self, path: bytes) -> Reading:
        """The large file at `path`. Raises Unfaithful."""
        return Reading(twice(lambda: self._read_file(path)))

    def _read_directory(
        self,
        path: bytes,
        kind: DirectoryKind,
        select: State,
        hide: State,
        base: BaseDirectory | None,
        only: State | None,
        inline: Inline | None,
    ) -> Reading | Unchanged:
        fd = self._enter(path)
        try:
            before = fstat(fd, path)
            if before.st_dev != self.rules.device and not self._is_same_mount(fd):
                raise Unfaithful(path, MOUNT_POINT)
            if before.st_ino == _NO_SUBVOLUME and filesystem_magic(fd) == BTRFS:
                raise Unfaithful(
                    path, "stands for a subvolume that is not in this btrfs snapshot: its times are made up"
                )
            prefix = path + b"/" if path else b""
            tally = Tally()
            if inline is not None and self.rules.inlining is not None:
                inlining = self.rules.inlining
                inline = inlining.within(inline, before.st_mode, self._acl(path))
                if inline is not None and not self.allows_everybody(prefix, b".", Access.SEARCH):
                    inline = None
                    if self.collector is not None:
                        self.collector.close(path)
                elif inline is not None and inline.known and inlining.asks:
                    was_open = base is not None and path not in inlining.closed and base.is_public
                    inline = inline._replace(known=was_open)
            as_before = base is not None and only is None and self._is_same(base, kind, before, select, hide)
            recorded: Recorded | RecordedDirectory | None = None
            if base is not None and self.rules.base is not None:
                recorded = self.rules.base.glance(base) if as_before else None
                if recorded is not None and inline is None:
                    links = self._links_of_leaf(path, recorded)
                    if links is not None:
                        return Unchanged(links)
                recorded = recorded or self.rules.base.read(base, path)
            work: Names
            if only is not None:
                assert self.rules.only is not None
                inside = kind is DirectoryKind.OPAQUE
                wanted = None if inside else self.rules.only.names(only)
                complete = base is not None and base.kind is DirectoryKind.OPAQUE
                work = OnTheWay(
                    prefix,
                    self.rules.only,
                    only,
                    select,
                    hide,
                    inside,
                    listed=wanted is None,
                    complete=complete,
                    inline=inline,
                )
                names = listdir(fd, path) if wanted is None else sorted(wanted)
            elif kind is DirectoryKind.MERGE:
                wanted = self.rules.select.names(select)
                names = listdir(fd, path) if wanted is None else sorted(wanted)
                work = Skeleton(prefix, select, hide, self.rules.base, inline)
            else:
                if as_before and recorded is not None:
                    names = recorded.names()
                else:
                    names = _lasting(prefix, listdir(fd, path), tally)
                work = Inside(prefix, select, hide, self.rules.base, as_before, inline)
            reading = self._read_names(path, fd, names, recorded, work)
            try:
                if as_before and base is not None:  # its names were not listed, and its attributes cannot have changed
                    reading.own = None
                else:
                    reading.own = self.describe(path, before, kind if only is None else DirectoryKind.MERGE, tally)
                    if kind is DirectoryKind.OPAQUE and not same(fstat(fd, path), before):
                        raise Changed(path)
            except BaseException:
                if reading.runs is not None:
                    reading.runs.close()
                raise
            reading.listing.tally.add(tally)
            return reading
        finally:
            os.close(fd)

    def _read_names(
        self, path: bytes, fd: int, names: list[bytes], recorded: Recorded | RecordedDirectory | None, work: Names
    ) -> Reading:
        """Has names of the working directory, open as `fd`, read: at once, or by turns that others share."""
        count = len(names)
        if count <= 2 * self.pace.names:
            started = time.perf_counter()
            there = recorded.between(b"", None) if recorded is not None else None
            listing = work.read(self, names, there, whole=True)
            self.pace.count(count, time.perf_counter() - started)
            self.matched |= listing.matched
            self.matched_only |= listing.matched_only
            return Reading(listing, has_children=bool(listing.children))

        def read(reader: DirectoryReader, start: int, stop: int) -> Listing:
            there = None
            if recorded is not None:
                first = names[start] if start else b""
                there = recorded.between(first, names[stop] if stop < count else None)
            return work.read(reader, names[start:stop], there, whole=False)

        with Gathering() as gathering:
            shared = Shared(path, fd, count, read, gathering)
            if self.company is not None:
                self.company.share(shared)
            while (turn := shared.claim(self.pace.names)) is not None:
                shared.perform(self, turn, enter=False)
            shared.wait()
            self.matched |= gathering.matched
            self.matched_only |= gathering.matched_only
            return Reading(gathering.last(), gathering.take_runs(), has_children=gathering.has_children)

    def _links_of_leaf(self, path: bytes, recorded: Recorded) -> list[LinkedName] | None:
        """Whether there is in the working directory what the base has, and no directory: the names of inodes that have
        several. None: it is not so, or there is more to do to know.

        Of a scan on a base this is most. `Inside.read` would find the same, in twice the time.
        """
        rules = self.rules
        base, count = rules.base, len(recorded.rows)
        if base is None or not base.adopted or recorded.places or count > 2 * self.pace.names:
            return None
        if rules.mount_points or len(path) > PATH_LIMIT - NAME_MAX - 1:
            return None
        started = time.perf_counter()
        looks = looks_as_recorded(base, recorded)
        self.pace.count(count, time.perf_counter() - started)
        return links_among(recorded, looks, rules.device) if looks is not None else None

    def _read_file(self, path: bytes) -> Listing:
        listing = Listing()
        parent, slash, name = path.rpartition(b"/")
        os.close(self._enter(parent))
        (seen,), (xattr_names,) = look(parent + slash, [name]), self.list_xattrs(parent + slash, [name])
        if not stat.S_ISREG(seen.st_mode):
            raise Changed(path)
        listing.pieces = [pack(self.row(parent + slash, name, seen, xattr_names, listing))]
        listing.entries = 1
        if is_linked(seen):
            listing.linked[0] = seen.st_nlink
        return listing

    def _acl(self, path: bytes) -> bytes | None:
        """The access ACL of the working directory, if it has one. Raises Unfaithful, Changed."""
        if not self.has_acls:
            return None
        try:
            return os.getxattr(b".", ACCESS_ACL)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise failure(path, error) from None

    def _enter(self, path: bytes) -> int:
        """Opens a directory and makes it the working directory."""
        try:
            fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.rules.root_fd)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Unfaithful(path, MOUNT_POINT) from None
            raise failure(path, error) from None
        try:
            change_directory(fd, path)
        except BaseException:
            os.close(fd)
            raise
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


def _lasting(prefix: bytes, names: list[bytes], tally: Tally) -> list[bytes]:
    """The names without those that server and client make up and take away."""
    dotted = [name for name in names if name[0] == _DOT]
    transient = {name for name in dotted if is_transient(prefix, name, tally)}
    return [name for name in names if name not in transient] if transient else names
