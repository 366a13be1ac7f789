"""Files that appear complete or not at all: written under another name, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

_BUFFER_SIZE: Final = 1 << 20  # bytes


@contextlib.contextmanager
def replacing(name: bytes, temporary: bytes, *, dir_fd: int) -> Iterator[BinaryIO]:
    """A new file, whose content is at `name` once the block ends well, durably; if not, what was there still is.

    Mode 0666 less the umask. Until then it is called `temporary`, which must not exist; a killed process leaves it.
    Raises OSError.
    """
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dir_fd)
    try:
        with open(fd, "w+b", buffering=_BUFFER_SIZE) as stream:
            yield stream
            stream.flush()
            os.fsync(fd)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):  # there is something more important to say
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    os.fsync(dir_fd)
