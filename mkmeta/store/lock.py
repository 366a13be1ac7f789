"""Locks between processes of one host: flock(2) on files that are never removed (formats/store.md section 2).

The kernel releases one when its process ends, however that ends. The file says who holds it, for the one who waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from mkmeta.errors import LockedError, StoreError, reason

_POLL_FIRST: Final = 0.02  # seconds; doubled until
_POLL_LAST: Final = 0.25  # nobody minds being so late, and no processor notices being asked so rarely
_HOLDER: Final = re.compile(rb"(\d{1,10}) ([a-z-]{1,20})\n")
_MODE: Final = 0o600
_HINTS: Final = {
    errno.EACCES: "locks are for the owner and root: run this as one of them",
    errno.ELOOP: "a lock is no link: see who made it, and remove it",
}
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def held(path: bytes, purpose: str, *, wait: float, note: Callable[[str], None], shared: bool = False) -> Iterator[int]:
    """Holds the lock at `path`, whose file is made when it is missing; `purpose` is the verb, for those who wait.

    Yields when it was last taken or given back, as `changed` told it. Waits up to `wait` seconds, and says whom for
    with one call of `note`. Raises LockedError after that, StoreError when the file cannot be opened, or is somebody
    else's. Processes forked meanwhile do not prolong it.
    """
    fd = _open(path)
    try:
        _take(fd, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait, note)
        try:
            before = os.fstat(fd).st_mtime_ns
            _write_holder(fd, b"%d %b\n" % (os.getpid(), purpose.encode()))
            yield before
        finally:
            _write_holder(fd, b"")
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def changed(path: bytes) -> int:
    """When the lock was last taken or given back, in ns since the epoch, by the clock of its filesystem; 0: never."""
    try:
        return os.lstat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def touched(path: bytes) -> os.stat_result:
    """Touches the lock, whose file is made when it is missing, and returns what it is then: its change time is now, by
    the clock of its filesystem. Holds nothing, waits for nobody. Raises StoreError, OSError.
    """
    fd = _open(path)
    try:
        os.utime(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def _open(path: bytes) -> int:
    """Opens the file, which nobody but its owner and root may: whoever can open it can hold it for ever."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, _MODE)
        fd = _open_existing(path, flags)
    except OSError as error:
        raise StoreError(f"cannot be opened: {reason(error)}", path=path, hint=_HINTS.get(error.errno or 0)) from None
    try:
        _check_private(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_existing(path: bytes, flags: int) -> int:
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        return os.open(path, os.O_RDONLY | flags)  # a read-only filesystem: enough to lock it


def _check_private(fd: int, path: bytes) -> None:
    """Raises StoreError for what somebody else has put there. One of an earlier mkmeta is closed to others."""
    status = os.fstat(fd)
    owners = {0, os.geteuid(), os.stat(os.path.dirname(path) or b".").st_uid}
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners:
        raise StoreError("is not a lock of mkmeta's: somebody else made it", path=path, hint="see who, and remove it")
    if status.st_mode & 0o077:
        with contextlib.suppress(OSError):  # a read-only filesystem, or its owner is another: nobody can be shut out
            os.fchmod(fd, _MODE)


def _take(fd: int, path: bytes, operation: int, wait: float, note: Callable[[str], None]) -> None:
    deadline = time.monotonic() + wait
    pause = _POLL_FIRST
    noted = False
    while not _try(fd, path, operation):
        left = deadline - time.monotonic()
        if left <= 0:
            raise LockedError(
                f"in use by {_holder(fd)}", path=path, hint="try again later, or wait for it longer: --wait SECONDS"
            )
        if pause > _POLL_FIRST and not noted:  # a moment later: now it has written its name, or is gone already
            noted = True
            note(f"waiting for {_holder(fd)}")
        time.sleep(min(pause, left))
        pause = min(2 * pause, _POLL_LAST)


def _try(fd: int, path: bytes, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        hint = "put it on a local filesystem: ext4, xfs, btrfs or tmpfs"
        raise StoreError(f"cannot be locked: {reason(error)}", path=path, hint=hint) from None
    return True


def _write_holder(fd: int, text: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk, or a lock that could only be opened for reading
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)


def _holder(fd: int) -> str:
    """Who has the lock, as far as the file tells: one that was killed leaves its name there."""
    with contextlib.suppress(OSError):
        match = _HOLDER.fullmatch(os.pread(fd, 64, 0))
        if match and os.path.exists(b"/proc/%b" % match[1]):
            return f"process {match[1].decode()} (mkmeta {match[2].decode()})"
    return "another process"
