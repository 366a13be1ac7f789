"""statx(2), for the attributes that came with a listing: AT_STATX_DONT_SYNC asks no file server for them."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)

_AT_SYMLINK_NOFOLLOW: Final = 0x100  # linux/fcntl.h
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_BASIC_STATS: Final = 0x7FF  # linux/stat.h
_SIZE: Final = 256  # bytes of struct statx
_MODE: Final = struct.Struct("=H")  # at 28
_INODE: Final = struct.Struct("=Q")  # at 32
_TIME: Final = struct.Struct("=qI")  # stx_ctime is at 96
_NS: Final = 10**9


class Seen(NamedTuple):
    """What is known of a name."""

    mode: int
    inode: int
    change_time_ns: int


def known_of(name: bytes, dir_fd: int) -> Seen:
    """What this host knows of a name in an open directory, without asking anybody if that can be. Raises OSError."""
    buffer = ctypes.create_string_buffer(_SIZE)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(dir_fd, name, flags, _STATX_BASIC_STATS, buffer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    seconds, nanoseconds = _TIME.unpack_from(buffer, 96)
    return Seen(_MODE.unpack_from(buffer, 28)[0], _INODE.unpack_from(buffer, 32)[0], seconds * _NS + nanoseconds)
