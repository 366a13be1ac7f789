"""What the kernel says of the filesystem behind a descriptor."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from mkmeta.linux.mountinfo import mount_behind, mounts

_libc = ctypes.CDLL(None, use_errno=True)

_OVERLAYFS_SUPER_MAGIC = 0x794C7630  # linux/magic.h
BTRFS: Final = 0x9123683E  # as `filesystem_magic` says
_MAGIC_BITS = 0xFFFFFFFF  # f_type is a signed long, and some numbers have their 32nd bit set
_STATFS_LONGS = 64  # more than struct statfs has on any architecture; its first field, f_type, is a long


def filesystem_type(fd: int) -> str:
    """The type as in /proc/filesystems: `ext4`, `xfs`, `nfs4`; "this filesystem" where /proc does not tell."""
    try:
        return mount_behind(fd, mounts()).fstype.decode(errors="replace")
    except OSError:
        return "this filesystem"


def is_overlay(fd: int) -> bool:
    """Whether what is open as `fd` is on overlayfs, mounted somewhere or not."""
    return filesystem_magic(fd) == _OVERLAYFS_SUPER_MAGIC


def filesystem_magic(fd: int) -> int:
    """f_type of fstatfs(2): one of the numbers in linux/magic.h, whatever the filesystem is called. Raises OSError."""
    buffer = (ctypes.c_long * _STATFS_LONGS)()
    if _libc.fstatfs(fd, buffer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer[0] & _MAGIC_BITS
