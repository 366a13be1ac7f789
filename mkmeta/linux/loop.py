"""Loop devices, read-only ones for a file that the kernel cannot mount as it is: linux/loop.h.

A device is gone when the last mount of it is, and the last descriptor: LO_FLAGS_AUTOCLEAR. So nothing is left of one
whose maker was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from typing import Final

_CONTROL: Final = "/dev/loop-control"
_LOOP_SET_FD: Final = 0x4C00
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_CONFIGURE: Final = 0x4C0A  # Linux 5.8
_LOOP_CTL_GET_FREE: Final = 0x4C82
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16  # LO_FLAGS_*
# struct loop_info64: lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit (u64 each); lo_number, lo_encrypt_type,
# lo_encrypt_key_size, lo_flags (u32 each); lo_file_name[64], lo_crypt_name[64], lo_encrypt_key[32], lo_init[2]
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=II{_INFO.size}s8Q")  # struct loop_config: fd, block_size, info, reserved
_NAME_MAX: Final = 63  # bytes of the file's name that a device keeps; sysfs has all of it
_BLOCK: Final = 4096  # bytes; what direct I/O to any disk is good for
_ATTEMPTS: Final = 64  # at a free device, which others want too
_DEVICE = re.compile(rb"/dev/loop([0-9]{1,7})")


def attach(path: bytes) -> tuple[bytes, int]:
    """Makes a file a block device. Returns its path, and a descriptor to be closed once the device is mounted.

    Raises OSError: ENOENT where there is no loop driver, EACCES or EPERM where it is not ours to use.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                device = b"/dev/loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _configure(fd, file, path)
                    return device, fd
                except OSError as error:
                    os.close(fd)
                    if error.errno != errno.EBUSY:  # somebody else was faster
                        raise OSError(error.errno, error.strerror, device) from None
                except BaseException:
                    os.close(fd)
                    raise
        finally:
            os.close(control)
    finally:
        os.close(file)
    raise OSError(errno.EBUSY, "no loop device stays free long enough", path)


def backing_file(device: bytes) -> bytes | None:
    """The path of the file behind a loop device, with ` (deleted)` behind it if it is; None: it is no such device.

    Empty where that is not told. As sysfs has it, from the root of the one who looks: nobody but the kernel is asked.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        return None
    try:
        with open(b"/sys/block/loop%b/loop/backing_file" % match[1], "rb") as file:
            return file.read().removesuffix(b"\n")
    except OSError:
        return b""


def _configure(fd: int, file: int, path: bytes) -> None:
    for block_size, flags in ((_BLOCK, _DIRECT_IO), (0, 0)):
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR | flags, path[:_NAME_MAX], b"", b"", 0, 0)
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, _CONFIG.pack(file, block_size, info, *[0] * 8))
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):  # no direct I/O there; before Linux 5.8
                raise
    fcntl.ioctl(fd, _LOOP_SET_FD, file)  # read-only, as the file is open
    try:
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, info)
    except BaseException:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
        raise
