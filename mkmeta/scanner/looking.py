"""Questions to the filesystem about names in the working directory, and what its errors mean for a scan."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Sequence
from operator import eq
from typing import Final

from mkmeta.errors import reason
from mkmeta.linux.names import list_names
from mkmeta.model import SYMLINK_TARGET_MAX
from mkmeta.scanner.records import Changed, Tally, Unfaithful

_CONTENT: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LEASE_WAITS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, *[1] * 45)  # seconds: the kernel gives 45 (lease-break-time)
_ACCESS_ACL: Final = "system.posix_acl_access"
_SNAPSHOT_NAME: Final = b".snapshot"  # how filers show older states of a directory
# Names the NFS client gives to files deleted while open: ".nfs", file ID, counter, in 16 and 8 digits (fs/nfs/unlink.c,
# nfs_sillyrename)
_SILLY_RENAMED: Final = re.compile(rb"\.nfs[0-9a-f]{24}")
# The kernel's answers when a name went away between listing and looking
_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP})


def open_content(name: bytes) -> int:
    """Opens a file of the working directory for hashing. Not blocking: it may have become a fifo.

    Somebody may hold a lease on it (fcntl(2), F_SETLEASE). The first attempt tells the holder, who is given some time.
    """
    for wait in _LEASE_WAITS:
        try:
            return os.open(name, _CONTENT)
        except BlockingIOError:
            time.sleep(wait)
    return os.open(name, _CONTENT)


def same(seen: os.stat_result, before: os.stat_result) -> bool:
    """Whether two looks at a name, or at what it named, found the same inode with nothing done to it in between."""
    return (
        seen.st_ctime_ns == before.st_ctime_ns
        and seen.st_mtime_ns == before.st_mtime_ns
        and seen.st_size == before.st_size
        and seen.st_ino == before.st_ino
    )


def fstat(fd: int, path: bytes) -> os.stat_result:
    """What fstat(2) says of an open directory: a file server may be asked, and not answer."""
    try:
        return os.fstat(fd)
    except OSError as error:
        raise failure(path, error) from None


def change_directory(fd: int, path: bytes) -> None:
    """Makes an open directory the working directory of this thread."""
    try:
        os.fchdir(fd)
    except OSError as error:
        raise failure(path, error) from None


def listdir(fd: int, path: bytes) -> list[bytes]:
    """The names in an open directory, ascending: opening it once more would be one more question to a file server."""
    try:
        names = list_names(fd)
    except OSError as error:
        raise failure(path, error) from None
    names.sort()
    if any(map(eq, names, names[1:])):  # some file servers say a name twice
        return list(dict.fromkeys(names))
    return names


def look(prefix: bytes, names: Sequence[bytes]) -> list[os.stat_result]:
    """What lstat(2) says of names in the working directory, which is at `prefix`."""
    try:
        return [os.lstat(name) for name in names]
    except OSError as error:
        raise failure(prefix + error.filename, error) from None


def look_if_there(prefix: bytes, name: bytes) -> os.stat_result | None:
    """What lstat(2) says of a name in the working directory; None when there is no such name.

    A server that has lost the name's file handle is asked twice. Raises Unfaithful.
    """
    try:
        return os.lstat(name)
    except FileNotFoundError:
        return None
    except OSError:
        pass
    try:
        return os.lstat(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unfaithful(prefix + name, f"cannot be read: {reason(error)}", error=error) from None


def list_xattrs(prefix: bytes, names: Sequence[bytes]) -> list[list[str]]:
    """The names of the xattrs of names in the working directory; none where the filesystem knows none."""
    try:
        return [os.listxattr(name, follow_symlinks=False) for name in names]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return [list_xattrs(prefix, [name])[0] for name in names] if len(names) > 1 else [[]]
        raise failure(prefix + (b"" if error.filename == b"." else error.filename), error) from None


def has_acls(fd: int, name: str = _ACCESS_ACL) -> bool:
    """Whether the filesystem that an open directory is on may have POSIX ACLs, or others of this name.

    Another error is met again later.
    """
    try:
        os.getxattr(fd, name)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def list_acls(prefix: bytes, names: Sequence[bytes]) -> list[list[str]]:
    """Like `list_xattrs`, of access ACLs alone. Raises Unfaithful, Changed."""
    found: list[list[str]] = []
    for name in names:
        try:
            os.getxattr(name, _ACCESS_ACL, follow_symlinks=False)
            found.append([_ACCESS_ACL])
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):  # a symbolic link has none
                raise failure(prefix + (b"" if name == b"." else name), error) from None
            found.append([])
    return found


def no_xattrs(_prefix: bytes, names: Sequence[bytes]) -> list[list[str]]:
    return [[]] * len(names)


def readlink(prefix: bytes, name: bytes) -> bytes:
    try:
        target = os.readlink(name)
    except OSError as error:
        raise failure(prefix + name, error) from None
    if not 1 <= len(target) <= SYMLINK_TARGET_MAX:
        raise Unfaithful(prefix + name, f"is a symlink with a target of {len(target)} bytes")
    return target


def failure(path: bytes, error: OSError) -> Exception:
    """What to raise for an error of the filesystem."""
    if error.errno in _GONE:
        return Changed(path)
    return Unfaithful(path, f"cannot be read: {reason(error)}", error=error)


def is_made_up(name: bytes, *, is_directory: bool) -> bool:
    """Whether a name is one of those that server and client make up and take away: some directories, some files."""
    return name == _SNAPSHOT_NAME if is_directory else _SILLY_RENAMED.fullmatch(name) is not None


def is_transient(prefix: bytes, name: bytes, tally: Tally) -> bool:
    """Whether what is at a name is such, which is counted. Raises Unfaithful, Changed."""
    if not any(is_made_up(name, is_directory=either) for either in (True, False)):
        return False
    (seen,) = look(prefix, [name])
    is_directory = stat.S_ISDIR(seen.st_mode)
    if not is_made_up(name, is_directory=is_directory):
        return False
    tally.snapshots += is_directory
    tally.silly_renamed += not is_directory
    return True
