"""Questions to the filesystem about names in the working directory, and what its errors mean for a scan."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Final

from mkmeta.errors import reason
from mkmeta.model import SYMLINK_TARGET_MAX
from mkmeta.scanner.records import Changed, Tally, Unfaithful

SNAPSHOT_NAME: Final = b".snapshot"  # how filers show older states of a directory
# Names the NFS client gives to files deleted while open: ".nfs", file ID, counter (fs/nfs/unlink.c, nfs_sillyrename)
SILLY_RENAMED = re.compile(rb"\.nfs[0-9a-f]{16,}")
# The kernel's answers when a name went away between listing and looking
_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP})


def open_content(name: bytes) -> int:
    """Opens a file of the working directory for hashing. Not blocking: it may have become a fifo."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


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


def listdir(fd: int, path: bytes) -> set[bytes]:
    """The names in an open directory: opening it once more would be one more question to a file server."""
    try:
        return set(map(os.fsencode, os.listdir(fd)))
    except OSError as error:
        raise failure(path, error) from None


def look(prefix: bytes, names: list[bytes]) -> list[os.stat_result]:
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


def list_xattrs(prefix: bytes, names: list[bytes]) -> list[list[str]]:
    """The names of the xattrs of names in the working directory; none where the filesystem knows none."""
    try:
        return [os.listxattr(name, follow_symlinks=False) for name in names]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return [list_xattrs(prefix, [name])[0] for name in names] if len(names) > 1 else [[]]
        raise failure(prefix + (b"" if error.filename == b"." else error.filename), error) from None


def no_xattrs(_prefix: bytes, names: list[bytes]) -> list[list[str]]:
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


def is_transient(prefix: bytes, name: bytes, tally: Tally) -> bool:
    """Whether a name is one of those that server and client make up and take away."""
    if name == SNAPSHOT_NAME:
        (seen,) = look(prefix, [name])
        if stat.S_ISDIR(seen.st_mode):
            tally.snapshots += 1
            return True
    if SILLY_RENAMED.fullmatch(name):
        tally.silly_renamed += 1
        return True
    return False
