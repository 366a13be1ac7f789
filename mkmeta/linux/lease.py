"""Whether anybody has a file open: asked of the kernel by a lease (fcntl(2), F_SETLEASE), which nobody else can hold.

The kernel grants a write lease only while there is no other open file of the inode (check_conflicting_open in
fs/locks.c): not in any process, in any namespace or in flight, not behind a mapping, and none that the kernel itself
has, as for a loop device or an EROFS mount of a file, however hidden that mount is. While it is held, whoever opens the
file waits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from enum import Enum
from typing import Final

_NONE_HERE: Final = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Use(Enum):
    """What a lease tells of a file."""

    NONE = "nobody has it open"
    OPEN = "it is open somewhere"
    UNKNOWN = "its filesystem, or this user's rights, do not let it be told"


@contextlib.contextmanager
def leased(path: bytes) -> Iterator[Use]:
    """Whether anybody has the regular file at `path` open. While the block runs, nobody else can open it.

    Keep it short. Raises OSError when it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Whoever wants to open it has the kernel send a signal here; the usual one, SIGIO, would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            use = Use.NONE
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EBUSY):
                use = Use.OPEN
            elif error.errno in (*_NONE_HERE, errno.EACCES, errno.EPERM):
                use = Use.UNKNOWN
            else:
                raise
        yield use
    finally:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)  # a child that was forked meanwhile has the file open too
        os.close(fd)
