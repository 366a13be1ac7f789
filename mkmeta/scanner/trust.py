"""What a change time is worth: whether a filesystem sets it itself, at every change, so that nobody can set it back.

Images made in one piece have none of their own: squashfs, EROFS and the like show the modification time, and number
inodes by their place. Of another image in the same place all may be as before, but for what is in the files.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from mkmeta.linux.filesystem import BTRFS, filesystem_magic


class Trust(Enum):
    """How far change times prove that nothing changed."""

    FULL = auto()
    DISTINCT = auto()  # where they are not the modification time in whole seconds: they may be those of an image
    NONE = auto()


# linux/magic.h, and fs/*/ of those that are not there
_IMAGES: Final = frozenset(
    {
        0x73717368,  # squashfs
        0xE0F5E1E2,  # EROFS
        0x28CD3D45,  # cramfs
        0x453DCD28,  # the same, of the other byte order
        0x7275,  # romfs
        0x9660,  # ISO 9660
        0x15013346,  # UDF
        0x4D44,  # FAT, which has no change time
        0x2011BAB0,  # exFAT
    }
)
_OWN_CLOCK: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        BTRFS,
        0x01021994,  # tmpfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
        0x0BD00BD0,  # Lustre
        0x00C36400,  # Ceph
        0x47504653,  # GPFS
    }
)


def trust_in(fd: int) -> Trust:
    """How far the change times of the filesystem that `fd` is on are trusted. Raises OSError.

    One that is reached over a network, through FUSE or an overlay may be an image behind that.
    """
    magic = filesystem_magic(fd)
    if magic in _IMAGES:
        return Trust.NONE
    return Trust.FULL if magic in _OWN_CLOCK else Trust.DISTINCT
