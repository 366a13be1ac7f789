"""Looking at an image as a file: whether it is one, and its digest."""

from __future__ import annotations

import os
import stat
from typing import Final

from mkmeta.codec.erofs import MAGIC, SUPERBLOCK_OFFSET
from mkmeta.digest import VerityDigest, VerityHasher
from mkmeta.linux.descriptors import closing
from mkmeta.linux.verity import measure_verity

_MAGIC: Final = MAGIC.to_bytes(4, "little")
_PIECE: Final = 1 << 20  # bytes read at once; a multiple of fs-verity's block


def is_image(path: bytes) -> bool:
    """Whether a file that looks like an image, or a link to one, is at a path. Raises OSError, not for none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
            return os.pread(fd, len(_MAGIC), SUPERBLOCK_OFFSET) == _MAGIC
    except (FileNotFoundError, NotADirectoryError):
        return False


def image_digest(path: bytes) -> tuple[VerityDigest, bool]:
    """The fs-verity digest of an image, and whether the kernel checks all reading against it. Raises OSError.

    Where the file has no fs-verity, all of it is read.
    """
    with closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        measured = measure_verity(fd)
        if measured is not None:
            return VerityDigest(measured), True
        hasher = VerityHasher()
        buffer = memoryview(bytearray(_PIECE))
        with open(fd, "rb", buffering=0, closefd=False) as file:
            size = 0
            while count := file.readinto(buffer[size:]):
                size += count
                if size == _PIECE:
                    hasher.update(buffer)
                    size = 0
            if size:
                hasher.update(buffer[:size])
        return hasher.digest(), False
