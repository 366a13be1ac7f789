"""Removing a directory tree of any depth, following no link and leaving no filesystem."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from itertools import count

from mkmeta.linux.names import listable
from mkmeta.linux.syscalls import open_beneath

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # the tree itself may use any name
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def remove_tree(name: bytes, *, dir_fd: int, fd: int | None = None, removed: Callable[[], None] = lambda: None) -> None:
    """Removes the directory `name` in `dir_fd` with everything in it. Raises OSError at what cannot be removed.

    With `fd`, only if it is the directory open as that: whoever may write to `dir_fd` can put any other at its name.

    Calls `removed` after each entry that is gone; what it raises ends the removal, which another call continues.

    Neither recurses nor builds paths: a directory found in a directory is first moved up to the top of the tree. So a
    tree deeper than PATH_MAX goes like any other. Several processes may remove the same tree.
    """
    top = _open(name, dir_fd)
    try:
        if fd is not None and not os.path.samestat(os.fstat(fd), os.fstat(top)):
            raise FileExistsError(errno.EEXIST, "somebody put another directory in its place", name)
        numbers = count()
        left = True
        while left:
            left = False
            with os.scandir(listable(top)) as entries:
                for entry in entries:
                    left = True
                    entry_name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        with contextlib.suppress(FileNotFoundError):
                            _empty(entry_name, top, numbers, removed)
                            os.rmdir(entry_name, dir_fd=top)
                    else:
                        _unlink(entry_name, top)
                    removed()
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)


def _empty(name: bytes, top: int, numbers: count[int], removed: Callable[[], None]) -> None:
    fd = _open(name, top)
    try:
        with os.scandir(listable(fd)) as entries:
            for entry in entries:
                entry_name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    _move_up(entry_name, fd, top, numbers)
                else:
                    _unlink(entry_name, fd)
                    removed()
    finally:
        os.close(fd)


def _move_up(name: bytes, fd: int, top: int, numbers: count[int]) -> None:
    os.close(_open(name, fd))  # an ordinary user must be able to write to a directory to move it
    while True:
        try:
            os.rename(name, b".mkmeta-%d-%d" % (os.getpid(), next(numbers)), src_dir_fd=fd, dst_dir_fd=top)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return


def _open(name: bytes, dir_fd: int) -> int:
    """Opens a directory, and makes it one that its owner may change when only root could."""
    if os.geteuid() != 0:
        fd = open_beneath(name, os.O_PATH | os.O_DIRECTORY, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
    return open_beneath(name, _OPEN_DIRECTORY, dir_fd=dir_fd)


def _unlink(name: bytes, dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)
