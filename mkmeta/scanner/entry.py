"""Reading one entry of the scanned tree, anything but the content of a directory, into what its object will hold."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from mkmeta.codec.acl import mode_without_acl
from mkmeta.codec.container import CONTENT_SIZE_MAX
from mkmeta.codec.nfs4_acl import Access, allows_everybody
from mkmeta.codec.objects import OBJECT_SIZE_MAX, xattr_problem
from mkmeta.errors import printable
from mkmeta.model import ACL_SHADOWS, NS, PATH_LIMIT, DirectoryKind
from mkmeta.scanner.base import MODE, NAME, SIZE, XATTRS, Row, linked_name
from mkmeta.scanner.hashing import ContentHasher, Digests
from mkmeta.scanner.inlining import Collector, Inline
from mkmeta.scanner.looking import failure, has_acls, list_acls, list_xattrs, look, no_xattrs, readlink, same
from mkmeta.scanner.records import Changed, Listing, ScanRules, Tally, Unfaithful
from mkmeta.scanner.turns import note_wait
from mkmeta.trees.writer import Own, make_own

NFS4_ACL_XATTRS: Final = frozenset({b"system.nfs4_acl", b"system.nfs4_dacl", b"system.nfs4_sacl"})
NFS4_ACL: Final = "system.nfs4_acl"
ACCESS_ACL: Final = b"system.posix_acl_access"
_XATTRS_MAX: Final = OBJECT_SIZE_MAX - (64 << 10)  # bytes: with all else, and msgpack's headers, they fit an object
MOUNT_POINT: Final = "is a mount point, which overlayfs does not follow"
_T = TypeVar("_T")
NOT_HERE: Final = -1  # no file has so few bytes
_NO_DIGESTS: Final = (None, None)


class EntryReader:
    """Reads entries for one thread, which must have a working directory of its own."""

    def __init__(self, rules: ScanRules) -> None:
        self.rules = rules
        self.hasher = ContentHasher(rules.digests)
        self.collector: Collector | None = None  # takes contents
        inlining = rules.inlining
        self._has_nfs4_acls = inlining is not None and inlining.asks
        self.matched: set[int] = set()  # selection patterns seen to match
        self.matched_only: set[int] = set()  # those of what is walked
        self._drop_start = rules.drop_xattrs.start()
        # Where none is to be recorded only ACLs are asked for, for what they take from a mode: on NFS each answer takes
        # a request (GETACL, LISTXATTRS), but none where the mount has no ACLs (NFS 4, or the option noacl)
        self.list_xattrs: Callable[[bytes, Sequence[bytes]], list[list[str]]] = list_xattrs
        if b"*" in rules.drop_xattrs.sources:
            self.list_xattrs = list_acls if has_acls(rules.root_fd) else no_xattrs

    def row_once_more(self, prefix: bytes, name: bytes, listing: Listing, limit: int) -> list[object]:
        """Looks at a name and reads its entry; a second time if it changed meanwhile. `limit`: see `row`."""

        def read() -> list[object]:
            (seen,), (xattr_names,) = look(prefix, [name]), self.list_xattrs(prefix, [name])
            return self.row(prefix, name, seen, xattr_names, listing, limit)

        return twice(read)

    def check_place(self, path: bytes) -> None:
        """Raises Unfaithful for what cannot be redirected to from a layer, whatever it is."""
        if len(path) > PATH_LIMIT:
            raise Unfaithful(path, f"its path is longer than {PATH_LIMIT} bytes: the kernel would not follow it")
        if path in self.rules.mount_points:
            raise Unfaithful(path, MOUNT_POINT)

    def row(
        self,
        prefix: bytes,
        name: bytes,
        seen: os.stat_result,
        xattr_names: list[str],
        listing: Listing,
        limit: int = NOT_HERE,
    ) -> list[object]:
        """The entry of anything but a directory, ready to be packed (formats/manifest.md section 3.1).

        `limit`: bytes that a file may have whose content is taken; NOT_HERE: it is in a closed directory.
        """
        mode, uid, gid = seen.st_mode, seen.st_uid, seen.st_gid
        why = self.rules.owner_problem(seen)
        if why is not None:
            raise Unfaithful(prefix + name, why)
        sec, nsec = divmod(seen.st_mtime_ns, NS)
        row: list[object] = [name, mode, uid, gid, sec, nsec]
        file_type = stat.S_IFMT(mode)
        content = b""
        if file_type == stat.S_IFREG:
            row.append(seen.st_size)
            if 0 < seen.st_size <= limit:
                content, digests = self._content(prefix, name, seen)
                row += digests
            else:
                row += self._digests(prefix, name, seen) if self.hasher.enabled else _NO_DIGESTS
        elif file_type == stat.S_IFLNK:
            row.append(readlink(prefix, name))
        elif file_type in (stat.S_IFCHR, stat.S_IFBLK):
            device = os.major(seen.st_rdev), os.minor(seen.st_rdev)
            if file_type == stat.S_IFCHR and device == (0, 0):
                raise Unfaithful(prefix + name, "is an overlayfs whiteout: it hides a name instead of showing one")
            row += device
        xattrs: list[bytes] = []
        if xattr_names:
            row[1], xattrs = self._read_xattrs(prefix, name, mode, xattr_names, listing.tally)
            if xattrs:
                row.append(xattrs)
            (again,) = look(prefix, [name])
            if not same(again, seen):
                raise Changed(prefix + name)
        if file_type == stat.S_IFREG and self.collector is not None and limit != NOT_HERE:
            self._take(prefix, row, xattrs, content)
        if seen.st_nlink > 1:
            listing.links.append(linked_name(seen, row, self.rules.device))
        if file_type == stat.S_IFREG:
            listing.tally.bytes += seen.st_size
        elif file_type == stat.S_IFLNK:
            listing.tally.symlinks += 1
        else:
            listing.tally.others += 1
        return row

    def _take(self, prefix: bytes, row: list[object], xattrs: list[bytes], content: bytes) -> None:
        """Takes the content of a file that has not changed while it was read, if everybody may read it. If not, none
        is taken for it that something else has. Empty `content`: it is not to be taken.
        """
        name, mode, size, digest = row[0], row[1], row[6], row[7]
        assert type(name) is bytes and type(mode) is int and type(size) is int and type(digest) is bytes
        inlining = self.rules.inlining
        assert inlining is not None and self.collector is not None
        if not 0 < size <= CONTENT_SIZE_MAX or not inlining.wants(mode, xattrs):
            return
        if not self.allows_everybody(prefix, name, Access.READ):
            self.collector.close(prefix + name)
        elif content:
            started, worked = time.perf_counter(), time.thread_time()
            self.collector.add(digest, content)
            # The rest is waiting for others, and for the parent to take what there is: more lanes would only wait too
            note_wait(time.perf_counter() - started - (time.thread_time() - worked))

    def keep(self, prefix: bytes, rows: Iterable[Row], inline: Inline | None) -> None:
        """Files that have not changed since the base: nor have their ACLs, but what the base does not know of them, or
        has closed, is asked for. Raises Unfaithful, Changed.
        """
        inlining = self.rules.inlining
        if inline is None or inlining is None or not inlining.asks or self.collector is None:
            return
        if inline.known and not inlining.closed:
            return
        for row in rows:
            mode, path = row[MODE], prefix + row[NAME]
            if not stat.S_ISREG(mode) or not 0 < row[SIZE] <= CONTENT_SIZE_MAX:
                continue
            if inline.known and path not in inlining.closed:
                continue
            xattrs = row[XATTRS] if len(row) > XATTRS else ()
            if inlining.wants(mode, xattrs) and not self.allows_everybody(prefix, row[NAME], Access.READ):
                self.collector.close(path)

    def allows_everybody(self, prefix: bytes, name: bytes, wanted: Access) -> bool:
        """Whether an NFSv4 ACL, if there is one, allows everybody what the mode does. Raises Unfaithful, Changed."""
        if not self._has_nfs4_acls:
            return True
        try:
            return allows_everybody(os.getxattr(name, NFS4_ACL, follow_symlinks=False), wanted)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return True
            raise failure(prefix + (b"" if name == b"." else name), error) from None

    def _digests(self, prefix: bytes, name: bytes, seen: os.stat_result) -> Digests:
        if not seen.st_size:
            return self.hasher.of_nothing
        size, digests = self._read(prefix, name, seen, lambda fd: self.hasher.digest(fd, seen.st_size))
        if size != seen.st_size:
            raise Changed(prefix + name)
        return digests

    def _content(self, prefix: bytes, name: bytes, seen: os.stat_result) -> tuple[bytes, Digests]:
        content, digests = self._read(prefix, name, seen, lambda fd: self.hasher.read(fd, seen.st_size))
        if len(content) != seen.st_size:
            raise Changed(prefix + name)
        return content, digests

    def _read(self, prefix: bytes, name: bytes, seen: os.stat_result, read: Callable[[int], _T]) -> _T:
        """What comes of reading a file, which did not change meanwhile. Raises Unfaithful, Changed."""
        try:
            fd = self.rules.open_content(name)
            try:
                found = read(fd)
                after = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise failure(prefix + name, error) from None
        if not same(after, seen):
            raise Changed(prefix + name)
        return found

    def describe(self, path: bytes, own: os.stat_result, kind: DirectoryKind, tally: Tally) -> Own:
        """The directory's own entry, for the working directory."""
        why = self.rules.owner_problem(own)
        if why is not None:
            raise Unfaithful(path, why)
        (xattr_names,) = self.list_xattrs(path, [b"."])
        mode, xattrs = self._read_xattrs(path, b"", own.st_mode, xattr_names, tally)
        fields = [path.rpartition(b"/")[2], mode, own.st_uid, own.st_gid, *divmod(own.st_mtime_ns, NS)]
        return make_own(fields, xattrs, kind)

    def _read_xattrs(
        self, prefix: bytes, name: bytes, mode: int, xattr_names: list[str], tally: Tally
    ) -> tuple[int, list[bytes]]:
        """Names and values in turn, ascending by name, and the mode to record with them.

        An empty `name` is the directory at `prefix`. A mode whose ACL is not recorded allows nobody more than that.
        """
        flat: list[bytes] = []
        size = 0
        for xattr in sorted(map(os.fsencode, xattr_names)):
            if xattr in NFS4_ACL_XATTRS:
                tally.nfs4_acl += xattr == b"system.nfs4_acl"
                continue
            if xattr in ACL_SHADOWS:
                continue
            if self.rules.drop_xattrs.advance(self._drop_start, xattr)[1]:
                tally.dropped_xattrs += 1
                if xattr == ACCESS_ACL:
                    try:
                        mode = mode_without_acl(mode, self._read_xattr(prefix, name, xattr))
                    except ValueError as problem:
                        raise Unfaithful(prefix + name, f"has {problem}, and a mode that may stand for more") from None
                continue
            impossible = xattr_problem(xattr)
            if impossible:
                why = f"has the xattr {printable(xattr)}, which cannot be carried: {impossible}"
                raise Unfaithful(prefix + name, why)
            value = self._read_xattr(prefix, name, xattr)
            flat += (xattr, value)
            size += len(xattr) + len(value)
        if size > _XATTRS_MAX:
            raise Unfaithful(prefix + name, f"has {size} bytes of xattrs, more than a manifest carries")
        return mode, flat

    def _read_xattr(self, prefix: bytes, name: bytes, xattr: bytes) -> bytes:
        try:
            return os.getxattr(name or b".", xattr, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ERANGE):
                raise Changed(prefix + name) from None
            raise failure(prefix + name, error) from None


def twice(read: Callable[[], _T]) -> _T:
    """What `read` returns; when it finds a change, what it returns the second time."""
    try:
        return read()
    except Changed:
        pass
    try:
        return read()
    except Changed as change:
        raise Unfaithful(change.path, "changed while it was read, twice") from None
