"""Descriptors and their one owner; the working directory, which is that of whoever calls."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """A descriptor that is closed at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def itself(directory_fd: int) -> bytes:
    """A name of an open directory for calls that want one, as those for xattrs do where it was opened with O_PATH."""
    return b"/proc/self/fd/%d/." % directory_fd


@contextlib.contextmanager
def same_directory() -> Iterator[None]:
    """The working directory after the block is the one before it, whatever is done within, wherever that is by then.

    No call of this package leaves its caller's process in another one: on a volume it would keep that from being
    unmounted, and what the caller then says of relative paths would be of others. Raises OSError.
    """
    with closing(os.open(b".", os.O_PATH | os.O_CLOEXEC)) as here:
        try:
            yield
        finally:
            os.fchdir(here)
