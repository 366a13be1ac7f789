"""Reading one directory, or one large file, of the scanned tree: what a worker does for one task.

Everything is looked at before and after; what changed in between is read once more, and given up if it changed again.
What a manifest cannot carry faithfully raises Unfaithful, and the whole subtree it is in is left out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from operator import add
from typing import Final, NamedTuple, TypeVar

from blake3 import blake3

from mkmeta.codec.objects import xattr_problem
from mkmeta.codec.packing import array_header, pack
from mkmeta.errors import printable, reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.links import FINGERPRINT_BYTES
from mkmeta.model import ID_MAX, NAME_MAX, NS, PATH_LIMIT, SIZE_MAX, SYMLINK_TARGET_MAX, DigestName, DirectoryKind
from mkmeta.scanner.hashing import ContentHasher, Digests
from mkmeta.scanner.pattern import NOWHERE, Patterns, State

LARGE_FILE: Final = 8 << 20  # bytes; a larger file is a task of its own, so that no worker is left with all the work
NFS4_ACL_XATTRS: Final = frozenset({b"system.nfs4_acl", b"system.nfs4_dacl", b"system.nfs4_sacl"})
SNAPSHOT_NAME: Final = b".snapshot"  # how filers show older states of a directory
_DOT: Final = ord(".")
_NO_DIGESTS: Final = (None, None)
_NO_OWNER: Final = f"belongs to the invalid ID {ID_MAX + 1}, which no file can be given"
_MOUNT_POINT: Final = "is a mount point, which overlayfs does not follow"
# Names the NFS client gives to files deleted while open: ".nfs", file ID, counter (fs/nfs/unlink.c, nfs_sillyrename)
_SILLY_RENAMED = re.compile(rb"\.nfs[0-9a-f]{16,}")
# The kernel's answers when a name went away between listing and looking
_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP})


class Unfaithful(Exception):
    """Something a manifest cannot carry: where, and why."""

    def __init__(self, path: bytes, why: str, *, error: OSError | None = None) -> None:
        super().__init__(why)
        self.path = path
        self.why = why
        self.errno = error.errno if error else None


class _Changed(Exception):
    """Something is not what it was a moment ago."""

    def __init__(self, path: bytes) -> None:
        self.path = path


class Child(NamedTuple):
    """Something below a directory that is a task of its own."""

    name: bytes
    kind: DirectoryKind | None  # None: a large file
    select: State
    hide: State
    position: int  # among the entries


class Counts(NamedTuple):
    """What was recorded, and what was left out on purpose."""

    dirs: int = 0
    skeleton: int = 0  # merge directories, not in dirs
    files: int = 0
    symlinks: int = 0
    others: int = 0  # fifos, sockets, devices
    bytes: int = 0  # st_size of all files
    hidden: int = 0  # names left out by --hide
    snapshots: int = 0  # .snapshot directories left out
    silly_renamed: int = 0  # .nfsXXXX files left out
    nfs4_acl: int = 0  # entries with an NFSv4 ACL, which is not recorded
    dropped_xattrs: int = 0  # left out by --drop-xattr

    def plus(self, other: Iterable[int]) -> Counts:
        """The sums with what another Counts, or a plain tuple of its fields, holds."""
        return Counts(*map(add, self, other))


@dataclass(slots=True)
class Tally:
    """Counts of one listing while it is made; fields as in Counts."""

    symlinks: int = 0
    others: int = 0
    bytes: int = 0
    hidden: int = 0
    snapshots: int = 0
    silly_renamed: int = 0
    nfs4_acl: int = 0
    dropped_xattrs: int = 0


@dataclass(slots=True)
class Listing:
    """A directory as its object will need it: packed entries, with a gap for every child.

    `pieces[i]` holds the entries before child i, the last piece those after the last child. A large file comes as a
    listing with one piece, its entry.
    """

    entries: int = 0  # in the pieces
    pieces: list[bytes] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)  # per entry, children included
    change_times: list[int] = field(default_factory=list)
    links: list[tuple[int, bytes, bytes]] = field(default_factory=list)  # inode, name, fingerprint
    left_out: list[tuple[bytes, str]] = field(default_factory=list)  # entries of a merge directory: path, why
    head: bytes = b""  # the directory's own entry, up to the ID of its object
    tail: bytes = b""  # the rest of it, after the number of entries
    tally: Tally = field(default_factory=Tally)

    def counts(self, kind: DirectoryKind | None) -> tuple[int, ...]:
        """The fields of Counts for this listing, which was of a directory of this kind or, None, a large file."""
        tally = self.tally
        return (
            kind is DirectoryKind.OPAQUE,
            0,
            self.entries - tally.symlinks - tally.others,
            tally.symlinks,
            tally.others,
            tally.bytes,
            tally.hidden,
            tally.snapshots,
            tally.silly_renamed,
            tally.nfs4_acl,
            tally.dropped_xattrs,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """What holds for the whole scan; workers inherit it."""

    root_fd: int
    device: int  # st_dev of the root
    select: Patterns
    hide: Patterns
    drop_xattrs: Patterns  # each a single component
    digests: Collection[DigestName]
    mount_points: Collection[bytes]  # paths below the root
    open_content: Callable[[bytes], int]  # opens a file of the working directory for hashing


class DirectoryReader:
    """Reads directories for one thread, which must have a working directory of its own.

    Names are looked up relative to the working directory: no path limit, no race on the way, and the cheapest way to
    ask for the xattrs of a name.
    """

    def __init__(self, rules: ScanRules) -> None:
        self._rules = rules
        self._hasher = ContentHasher(rules.digests)
        self._drop_start = rules.drop_xattrs.start()
        # Where none is to be recorded none is asked for: on NFS each answer takes a request (GETACL, LISTXATTRS)
        self._list_xattrs = _no_xattrs if b"*" in rules.drop_xattrs.sources else _list_xattrs
        self.matched: set[int] = set()  # selection patterns seen to match

    def read_directory(self, path: bytes, kind: DirectoryKind, select: State, hide: State) -> Listing:
        """The directory at `path`. Raises Unfaithful."""
        return _twice(lambda: self._read_directory(path, kind, select, hide))

    def read_file(self, path: bytes) -> Listing:
        """The large file at `path`. Raises Unfaithful."""
        return _twice(lambda: self._read_file(path))

    def _read_directory(self, path: bytes, kind: DirectoryKind, select: State, hide: State) -> Listing:
        listing = Listing()
        fd = self._enter(path)
        try:
            before = _fstat(fd, path)
            if before.st_dev != self._rules.device:
                raise Unfaithful(path, _MOUNT_POINT)
            names = self._rules.select.names(select) if kind is DirectoryKind.MERGE else None
            if names is None:
                names = _listdir(fd, path)
            prefix = path + b"/" if path else b""
            if kind is DirectoryKind.MERGE:
                self._read_merge(prefix, sorted(names), select, hide, listing)
            else:
                self._read_opaque(prefix, sorted(names), select, hide, listing)
            self._describe(path, before, kind, listing)
            if kind is DirectoryKind.OPAQUE and not _same(_fstat(fd, path), before):
                raise _Changed(path)
        finally:
            os.close(fd)
        return listing

    def _read_file(self, path: bytes) -> Listing:
        listing = Listing()
        parent, slash, name = path.rpartition(b"/")
        os.close(self._enter(parent))
        (seen,), (xattr_names,) = _look(parent + slash, [name]), self._list_xattrs(parent + slash, [name])
        if not stat.S_ISREG(seen.st_mode):
            raise _Changed(path)
        listing.pieces = [pack(self._row(parent + slash, name, seen, xattr_names, listing))]
        listing.entries = 1
        return listing

    def _enter(self, path: bytes) -> int:
        """Opens a directory and makes it the working directory."""
        try:
            fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._rules.root_fd)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise Unfaithful(path, _MOUNT_POINT) from None
            raise _failure(path, error) from None
        os.fchdir(fd)
        return fd

    def _read_opaque(self, prefix: bytes, names: list[bytes], select: State, hide: State, listing: Listing) -> None:
        """Everything in a directory of a subtree. `select` only serves to see which patterns match."""
        names = self._lasting(prefix, names, listing.tally)
        below_hide: dict[bytes, State] = {}  # what is not in it leads nowhere
        if hide:
            names, below_hide = self._visible(names, hide, listing.tally)
        looks = _look(prefix, names)  # all of one kind of call after the other: half the time of taking turns
        xattrs = self._list_xattrs(prefix, names)
        crowded = bool(self._rules.mount_points) or len(prefix) > PATH_LIMIT - NAME_MAX
        large = LARGE_FILE if self._hasher.enabled else SIZE_MAX
        rows: list[list[object]] = []
        for position, (name, seen, xattr_names) in enumerate(zip(names, looks, xattrs, strict=True)):
            below_select = self._advance_inside(select, name) if select else NOWHERE
            if crowded:
                self._check_place(prefix + name)
            mode = seen.st_mode
            if stat.S_ISDIR(mode) or (seen.st_size > large and stat.S_ISREG(mode)):
                kind = DirectoryKind.OPAQUE if stat.S_ISDIR(mode) else None
                listing.children.append(Child(name, kind, below_select, below_hide.get(name, NOWHERE), position))
                _add_piece(rows, listing)
                rows = []
            else:
                rows.append(self._row(prefix, name, seen, xattr_names, listing))
        _add_piece(rows, listing)
        listing.inodes = [seen.st_ino for seen in looks]
        listing.change_times = [seen.st_ctime_ns for seen in looks]

    def _lasting(self, prefix: bytes, names: list[bytes], tally: Tally) -> list[bytes]:
        """The names without those that server and client make up and take away."""
        dotted = [name for name in names if name[0] == _DOT]
        transient = {name for name in dotted if _is_transient(prefix, name, tally)}
        return [name for name in names if name not in transient] if transient else names

    def _visible(self, names: list[bytes], hide: State, tally: Tally) -> tuple[list[bytes], dict[bytes, State]]:
        """The names that are not to be hidden, and how far the patterns are that hide what is below them."""
        below = {}
        for name in names:
            state, hidden = self._rules.hide.advance(hide, name)
            if hidden:
                tally.hidden += 1
            else:
                below[name] = state
        return list(below), below

    def _advance_inside(self, select: State, name: bytes) -> State:
        """Follows patterns inside a subtree, where only those that have matched nothing yet are of interest."""
        below, matched = self._rules.select.advance(select, name)
        self.matched.update(matched)
        return tuple(position for position in below if position[0] not in self.matched)

    def _read_merge(self, prefix: bytes, names: list[bytes], select: State, hide: State, listing: Listing) -> None:
        """What is selected in a skeleton directory, and the directories that may hold more of it."""
        below_hide = NOWHERE
        rows: list[list[object]] = []
        for name in names:
            below_select, matched = self._rules.select.advance(select, name)
            if not matched and not below_select:
                continue
            if hide:
                below_hide, hidden = self._rules.hide.advance(hide, name)
                if hidden:
                    listing.tally.hidden += 1
                    continue
            try:
                (seen,) = _look(prefix, [name])
                is_directory = stat.S_ISDIR(seen.st_mode)
                if not (matched or is_directory) or (name[0] == _DOT and _is_transient(prefix, name, listing.tally)):
                    continue
                self.matched.update(matched)
                self._check_place(prefix + name)
                if is_directory or (seen.st_size > LARGE_FILE and stat.S_ISREG(seen.st_mode)):
                    kind = (DirectoryKind.OPAQUE if matched else DirectoryKind.MERGE) if is_directory else None
                    listing.children.append(Child(name, kind, below_select, below_hide, len(listing.inodes)))
                    _add_piece(rows, listing)
                    rows = []
                else:
                    rows.append(self._row_once_more(prefix, name, listing))
            except Unfaithful as problem:
                listing.left_out.append((problem.path, problem.why))
                continue
            except _Changed:
                continue  # a name in a merge directory may come and go
            listing.inodes.append(seen.st_ino)
            listing.change_times.append(seen.st_ctime_ns)
        _add_piece(rows, listing)

    def _row_once_more(self, prefix: bytes, name: bytes, listing: Listing) -> list[object]:
        def row() -> list[object]:
            (seen,), (xattr_names,) = _look(prefix, [name]), self._list_xattrs(prefix, [name])
            return self._row(prefix, name, seen, xattr_names, listing)

        return _twice(row)

    def _check_place(self, path: bytes) -> None:
        if len(path) > PATH_LIMIT:
            raise Unfaithful(path, f"its path is longer than {PATH_LIMIT} bytes: the kernel would not follow it")
        if path in self._rules.mount_points:
            raise Unfaithful(path, _MOUNT_POINT)

    def _row(
        self, prefix: bytes, name: bytes, seen: os.stat_result, xattr_names: list[str], listing: Listing
    ) -> list[object]:
        """The entry of anything but a directory, ready to be packed (formats/manifest.md section 3.1)."""
        mode, uid, gid = seen.st_mode, seen.st_uid, seen.st_gid
        if uid > ID_MAX or gid > ID_MAX:
            raise Unfaithful(prefix + name, _NO_OWNER)
        sec, nsec = divmod(seen.st_mtime_ns, NS)
        row: list[object] = [name, mode, uid, gid, sec, nsec]
        file_type = stat.S_IFMT(mode)
        if file_type == stat.S_IFREG:
            row.append(seen.st_size)
            row += self._digests(prefix, name, seen) if self._hasher.enabled else _NO_DIGESTS
        elif file_type == stat.S_IFLNK:
            row.append(_readlink(prefix, name))
        elif file_type in (stat.S_IFCHR, stat.S_IFBLK):
            device = os.major(seen.st_rdev), os.minor(seen.st_rdev)
            if file_type == stat.S_IFCHR and device == (0, 0):
                raise Unfaithful(prefix + name, "is an overlayfs whiteout: it hides a name instead of showing one")
            row += device
        if xattr_names:
            xattrs = self._read_xattrs(prefix, name, xattr_names, listing.tally)
            if xattrs:
                row.append(xattrs)
            (again,) = _look(prefix, [name])
            if not _same(again, seen):
                raise _Changed(prefix + name)
        if seen.st_nlink > 1:
            fingerprint = blake3(b"".join(map(pack, row[1:]))).digest(FINGERPRINT_BYTES)
            listing.links.append((seen.st_ino, name, fingerprint))
        if file_type == stat.S_IFREG:
            listing.tally.bytes += seen.st_size
        elif file_type == stat.S_IFLNK:
            listing.tally.symlinks += 1
        else:
            listing.tally.others += 1
        return row

    def _digests(self, prefix: bytes, name: bytes, seen: os.stat_result) -> Digests:
        if not seen.st_size:
            return self._hasher.of_nothing
        try:
            fd = self._rules.open_content(name)
            try:
                size, digests = self._hasher.digest(fd, seen.st_size)
                after = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _failure(prefix + name, error) from None
        if size != seen.st_size or not _same(after, seen):
            raise _Changed(prefix + name)
        return digests

    def _describe(self, path: bytes, own: os.stat_result, kind: DirectoryKind, listing: Listing) -> None:
        """The directory's own entry."""
        if own.st_uid > ID_MAX or own.st_gid > ID_MAX:
            raise Unfaithful(path, _NO_OWNER)
        (xattr_names,) = self._list_xattrs(path, [b"."])
        xattrs = self._read_xattrs(path, b"", xattr_names, listing.tally) if xattr_names else []
        fields = pack([path.rpartition(b"/")[2], own.st_mode, own.st_uid, own.st_gid, *divmod(own.st_mtime_ns, NS)])
        # an array of so few elements has a header of one byte; three more fields follow, and the xattrs
        listing.head = array_header(10 if xattrs else 9) + fields[1:]
        listing.tail = pack(int(kind)) + (pack(xattrs) if xattrs else b"")

    def _read_xattrs(self, prefix: bytes, name: bytes, xattr_names: list[str], tally: Tally) -> list[bytes]:
        """Names and values in turn, ascending by name. An empty `name` is the directory at `prefix`."""
        flat: list[bytes] = []
        for xattr in sorted(map(os.fsencode, xattr_names)):
            if xattr in NFS4_ACL_XATTRS:
                tally.nfs4_acl += xattr == b"system.nfs4_acl"
                continue
            if self._rules.drop_xattrs.advance(self._drop_start, xattr)[1]:
                tally.dropped_xattrs += 1
                continue
            problem = xattr_problem(xattr)
            if problem:
                why = f"has the xattr {printable(xattr)}, which cannot be carried: {problem}"
                raise Unfaithful(prefix + name, why)
            try:
                flat += (xattr, os.getxattr(name or b".", xattr, follow_symlinks=False))
            except OSError as error:
                if error.errno in (errno.ENODATA, errno.ERANGE):
                    raise _Changed(prefix + name) from None
                raise _failure(prefix + name, error) from None
        return flat


def open_content(name: bytes) -> int:
    """Opens a file of the working directory for hashing. Not blocking: it may have become a fifo."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


_T = TypeVar("_T")


def _twice(read: Callable[[], _T]) -> _T:
    """What `read` returns; when it finds a change, what it returns the second time."""
    try:
        return read()
    except _Changed:
        pass
    try:
        return read()
    except _Changed as change:
        raise Unfaithful(change.path, "changed while it was read, twice") from None


def _add_piece(rows: list[list[object]], listing: Listing) -> None:
    listing.pieces.append(pack(rows)[len(array_header(len(rows))) :])
    listing.entries += len(rows)


def _same(seen: os.stat_result, before: os.stat_result) -> bool:
    """Whether two looks at a name, or at what it named, found the same inode with nothing done to it in between."""
    return (
        seen.st_ctime_ns == before.st_ctime_ns
        and seen.st_mtime_ns == before.st_mtime_ns
        and seen.st_size == before.st_size
        and seen.st_ino == before.st_ino
    )


def _fstat(fd: int, path: bytes) -> os.stat_result:
    """What fstat(2) says of an open directory: a file server may be asked, and not answer."""
    try:
        return os.fstat(fd)
    except OSError as error:
        raise _failure(path, error) from None


def _listdir(fd: int, path: bytes) -> set[bytes]:
    """The names in an open directory: opening it once more would be one more question to a file server."""
    try:
        return set(map(os.fsencode, os.listdir(fd)))
    except OSError as error:
        raise _failure(path, error) from None


def _look(prefix: bytes, names: list[bytes]) -> list[os.stat_result]:
    """What lstat(2) says of names in the working directory, which is at `prefix`."""
    try:
        return [os.lstat(name) for name in names]
    except OSError as error:
        raise _failure(prefix + error.filename, error) from None


def _list_xattrs(prefix: bytes, names: list[bytes]) -> list[list[str]]:
    """The names of the xattrs of names in the working directory; none where the filesystem knows none."""
    try:
        return [os.listxattr(name, follow_symlinks=False) for name in names]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return [_list_xattrs(prefix, [name])[0] for name in names] if len(names) > 1 else [[]]
        raise _failure(prefix + (b"" if error.filename == b"." else error.filename), error) from None


def _no_xattrs(_prefix: bytes, names: list[bytes]) -> list[list[str]]:
    return [[]] * len(names)


def _readlink(prefix: bytes, name: bytes) -> bytes:
    try:
        target = os.readlink(name)
    except OSError as error:
        raise _failure(prefix + name, error) from None
    if not 1 <= len(target) <= SYMLINK_TARGET_MAX:
        raise Unfaithful(prefix + name, f"is a symlink with a target of {len(target)} bytes")
    return target


def _failure(path: bytes, error: OSError) -> Exception:
    """What to raise for an error of the filesystem."""
    if error.errno in _GONE:
        return _Changed(path)
    return Unfaithful(path, f"cannot be read: {reason(error)}", error=error)


def _is_transient(prefix: bytes, name: bytes, tally: Tally) -> bool:
    """Whether a name is one of those that server and client make up and take away."""
    if name == SNAPSHOT_NAME:
        (seen,) = _look(prefix, [name])
        if stat.S_ISDIR(seen.st_mode):
            tally.snapshots += 1
            return True
    if _SILLY_RENAMED.fullmatch(name):
        tally.silly_renamed += 1
        return True
    return False
