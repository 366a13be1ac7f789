"""File handles: name_to_handle_at(2) and open_by_handle_at(2).

A handle is made from what the kernel has in memory: no server, no FUSE daemon is asked. That of a file on overlayfs has
the handle of the real file inside (fs/overlayfs/overlayfs.h, struct ovl_fb), unless a layer of it has no handles.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from dataclasses import dataclass
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_AT_EMPTY_PATH: Final = 0x1000  # linux/fcntl.h
_AT_HANDLE_FID: Final = 0x200  # Linux 6.5: a handle that need not be good for opening
_MAX_HANDLE_SZ: Final = 128
_OVL_FILEID_V0: Final = 0xFB  # struct ovl_fb as it is
_OVL_FILEID_V1: Final = 0xF8  # behind three bytes
_OVL_FH_MAGIC: Final = 0xFB
_OVL_FB_SIZE: Final = 21  # version, magic, len, flags, type, uuid[16]; then the real handle
_FILEID_INO64_GEN: Final = 0x81  # of a filesystem that has no handles of its own; FUSE's too, which has
_DEPTH_MAX: Final = 4  # overlays on top of each other: two, FILESYSTEM_MAX_STACK_DEPTH


class _FileHandle(ctypes.Structure):
    """struct file_handle of fcntl.h."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE_SZ),
    )


@dataclass(frozen=True, slots=True)
class Handle:
    """What a filesystem calls a file."""

    type: int
    data: bytes
    made_up: bool = False  # by the kernel, of inode number and generation: the filesystem makes none

    @property
    def is_overlay(self) -> bool | None:
        """Whether the file is on overlayfs; None: it may be, on a filesystem or an overlay that has no handles."""
        return None if self.made_up else self.type in (_OVL_FILEID_V0, _OVL_FILEID_V1)

    @property
    def inode(self) -> int | None:
        """The inode number, where that is what the handle is made of."""
        return int.from_bytes(self.data[:8], sys.byteorder) if self.made_up else None

    def real(self) -> Handle | None:
        """Of a file on overlayfs: the handle of the real file below all overlays. None when it does not say."""
        found: Handle = self
        for _ in range(_DEPTH_MAX):
            if found.type not in (_OVL_FILEID_V0, _OVL_FILEID_V1):
                return found if found.is_overlay is False and found is not self else None
            inside = found.data[3 if found.type == _OVL_FILEID_V1 else 0 :]
            if len(inside) <= _OVL_FB_SIZE or inside[1] != _OVL_FH_MAGIC or not _OVL_FB_SIZE < inside[2] <= len(inside):
                return None
            found = Handle(inside[4], inside[_OVL_FB_SIZE : inside[2]])
        return None


def handle_of(fd: int) -> Handle:
    """The handle of what is open as `fd`, O_PATH too.

    Raises OSError: EINVAL before Linux 6.5; EOVERFLOW, EOPNOTSUPP where the filesystem makes none.
    """
    handle = _name_to_handle(fd, _AT_HANDLE_FID)
    if handle.type != _FILEID_INO64_GEN:
        return handle
    try:
        return _name_to_handle(fd, 0)  # one that is good for opening, which only a filesystem itself makes
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return Handle(handle.type, handle.data, made_up=True)


def _name_to_handle(fd: int, flags: int) -> Handle:
    raw = _FileHandle(_MAX_HANDLE_SZ, 0)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", ctypes.byref(raw), ctypes.byref(mount), ctypes.c_int(_AT_EMPTY_PATH | flags)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Handle(raw.handle_type, bytes(raw.f_handle)[: raw.handle_bytes])


def open_by_handle(mount_fd: int, handle: Handle) -> int:
    """Opens, O_PATH, the file with a handle, on the filesystem that `mount_fd` is on.

    Raises OSError: ESTALE when there is none; EPERM without CAP_DAC_READ_SEARCH.
    """
    if len(handle.data) > _MAX_HANDLE_SZ:
        raise ValueError("a handle has at most 128 bytes")
    raw = _FileHandle(len(handle.data), handle.type)
    ctypes.memmove(raw.f_handle, handle.data, len(handle.data))
    fd: int = _libc.open_by_handle_at(mount_fd, ctypes.byref(raw), ctypes.c_int(os.O_PATH | os.O_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
