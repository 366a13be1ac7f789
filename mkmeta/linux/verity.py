"""fs-verity as linux/fsverity.h has it: asking for the digest the kernel checks a file's data against."""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Final

_FS_IOC_MEASURE_VERITY: Final = 0xC0046686  # _IOWR('f', 134, struct fsverity_digest); the same on every architecture
_HEADER = struct.Struct("=HH")  # struct fsverity_digest: digest_algorithm, digest_size; the digest follows
_DIGEST_MAX: Final = 64  # bytes of the largest, a SHA-512
_NONE = (
    errno.ENODATA,  # the file has no fs-verity
    errno.ENOTTY,  # its filesystem has none, as NFS, xfs, tmpfs and overlayfs
    errno.EOPNOTSUPP,  # its filesystem has it, and it is switched off there or in the kernel
)


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
