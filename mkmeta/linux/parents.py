"""Directories that a path needs and nobody has made yet: one level at most, so that a slip of the pen makes no tree."""

from __future__ import annotations

import os

_MODE = 0o755  # less the umask


def make_directory(path: bytes) -> bool:
    """Makes a directory, durably, where the one that it goes into is there. Returns whether it did. Raises OSError."""
    try:
        os.mkdir(path, _MODE)
    except FileExistsError:
        return False
    fd = os.open(os.path.dirname(path) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return True
