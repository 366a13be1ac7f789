"""fs-verity as linux/fsverity.h has it: asking for the digest the kernel checks a file's data against."""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Final

_FS_IOC_MEASURE_VERITY: Final = 0xC0046686  # _IOWR('f', 134, struct fsverity_digest); the same on every architecture
_FS_IOC_ENABLE_VERITY: Final = 0x40806685  # _IOW('f', 133, struct fsverity_enable_arg)
# struct fsverity_enable_arg: version, hash_algorithm, block_size, salt_size (u32 each), salt_ptr (u64), sig_size, a
# reserved u32, sig_ptr (u64), reserved u64[11]
_ENABLE = struct.Struct("=4IQ2IQ88x")
_SHA256: Final = 1  # FS_VERITY_HASH_ALG_SHA256
_BLOCK: Final = 4096
_HEADER = struct.Struct("=HH")  # struct fsverity_digest: digest_algorithm, digest_size; the digest follows
_DIGEST_MAX: Final = 64  # bytes of the largest, a SHA-512
_NONE = (
    errno.ENODATA,  # the file has no fs-verity
    errno.ENOTTY,  # its filesystem has none, as NFS, xfs, tmpfs and overlayfs
    errno.EOPNOTSUPP,  # its filesystem has it, and it is switched off there or in the kernel
)


def enable_verity(fd: int) -> bool:
    """FS_IOC_ENABLE_VERITY: has the kernel check all reading of a file, which nobody can write to from now on.

    SHA-256, blocks of 4,096 bytes, no salt. `fd` is open for reading, and nobody has it open for writing. False where
    the filesystem has no fs-verity, or not for this file. Raises OSError for anything else the kernel says.
    """
    try:
        fcntl.ioctl(fd, _FS_IOC_ENABLE_VERITY, _ENABLE.pack(1, _SHA256, _BLOCK, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in (*_NONE, errno.EINVAL, errno.EACCES, errno.EPERM):
            return False
        raise
    return True


def measure_verity(fd: int) -> bytes | None:
    """FS_IOC_MEASURE_VERITY: the fs-verity digest of an open regular file, raw; None when it has none.

    The ioctl takes struct fsverity_digest, and wants to know how much room there is behind it:

        offset  size  field             before      after
        0       2     digest_algorithm  -           1 = SHA-256, 2 = SHA-512
        2       2     digest_size       64          32 or 64
        4       ...   digest                        raw bytes

    Raises OSError for anything else the kernel says.
    """
    buffer = bytearray(_HEADER.pack(0, _DIGEST_MAX) + bytes(_DIGEST_MAX))
    try:
        fcntl.ioctl(fd, _FS_IOC_MEASURE_VERITY, buffer)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    _algorithm, size = _HEADER.unpack_from(buffer)
    return bytes(buffer[_HEADER.size : _HEADER.size + size])
