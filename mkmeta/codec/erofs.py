"""Structures of an EROFS image: from numbers and bytes to the bytes on disk (formats/erofs.md, fs/erofs/erofs_fs.h).

Knows how each is laid out, not where it goes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

BLOCK: Final = 4096  # bytes
BLOCK_BITS: Final = 12
SLOT: Final = 32  # bytes; inodes begin at multiples of it
SUPERBLOCK_OFFSET: Final = 1024
INODES_OFFSET: Final = 1152  # of the first: behind the superblock
MAGIC: Final = 0xE0F5E1E2
_COMPAT: Final = 2 | 4  # EROFS_FEATURE_COMPAT_MTIME, EROFS_FEATURE_COMPAT_XATTR_FILTER
_SUPERBLOCK = struct.Struct("<IIIBBHQqIIII32xI2xHHBBIQB23x")
_COMPOSEFS_HEADER = struct.Struct("<IIII")  # struct lcfs_erofs_header_s of libcomposefs
_COMPOSEFS_MAGIC: Final = 0xD078629A

COMPACT = struct.Struct("<HHHHIIIIHHI")  # struct erofs_inode_compact
EXTENDED = struct.Struct("<HHHHQIIIIqII16x")  # struct erofs_inode_extended
FLAT_PLAIN, FLAT_INLINE, CHUNK_BASED = 0, 2, 4  # data layouts
_IS_EXTENDED: Final = 1
DIRENT: Final = 12  # bytes, struct erofs_dirent
DOTS: Final = (b".", b"..")

CHUNK_BITS_MAX: Final = BLOCK_BITS + 31
HOLE: Final = b"\xff\xff\xff\xff"  # the address of a chunk that is none
NO_BLOCK: Final = 0xFFFFFFFF  # in place of the first data block: there is none
NO_BLOCK_SIZE_MAX: Final = 2**43  # bytes of such a file: fsck.erofs 1.5 counts blocks in 32 bits
SIZE_MAX: Final = 2**53  # bytes of a file without content: as many chunks as a block has addresses, each of 2^43

XATTR_HEADER: Final = 12  # bytes, struct erofs_xattr_ibody_header
XATTR_VALUE_MAX: Final = 65535  # bytes; u16
XATTRS_MAX: Final = XATTR_HEADER + 4 * (65535 - 1)  # bytes of a node's; u16 counts them
SHARED_MAX: Final = 128  # ids of a node, as mkcomposefs; u8 counts them
_XATTR_HEADER = struct.Struct("<IB7x")
_XATTR_ENTRY = struct.Struct("<BBH")
_FILTER_SEED: Final = 0x25BBE08F  # EROFS_XATTR_FILTER_SEED
_NAMES_KEPT: Final = 1024  # of xattrs
_PREFIXES: Final = (  # in the order in which mkcomposefs looks; the two of ACLs also begin longer names
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)

TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
DIRECTORY_TYPE: Final = TYPES[stat.S_IFDIR]


class XattrName(NamedTuple):
    """What an image says of the name of an xattr."""

    head: bytes  # length of the rest, number of the prefix
    rest: bytes  # of the name, behind its prefix
    filter_bit: int  # that the name clears


@lru_cache(maxsize=_NAMES_KEPT)
def xattr_name(name: bytes) -> XattrName:
    """The parts of a name of at most 255 bytes."""
    index, rest = next(
        ((index, name[len(prefix) :]) for prefix, index in _PREFIXES if name.startswith(prefix)), (0, name)
    )
    return XattrName(bytes((len(rest), index)), rest, 1 << (xxh32(rest, _FILTER_SEED + index) & 31))


def encode_xattr(name: XattrName, value: bytes) -> bytes:
    """An entry, inline or shared, with what fills it up."""
    head, rest, _ = name
    entry = head + len(value).to_bytes(2, "little") + rest + value
    missing = -len(entry) & 3
    return entry + bytes(missing) if missing else entry


def decode_xattr(entry: bytes) -> tuple[bytes, bytes]:
    """The full name and the value of an entry."""
    length, index, size = _XATTR_ENTRY.unpack_from(entry)
    start = _XATTR_ENTRY.size
    prefix = next((prefix for prefix, number in _PREFIXES if number == index), b"")
    return prefix + entry[start : start + length], entry[start + length : start + length + size]


def encode_xattrs(name_filter: int, shared: Sequence[int], inline: Sequence[bytes]) -> bytes:
    """All xattrs of a node that has some: ids of the shared ones, entries of the others."""
    header = _XATTR_HEADER.pack(name_filter, len(shared))
    if shared:
        header += struct.pack(f"<{len(shared)}I", *shared)
    return header + b"".join(inline)


def encode_superblock(
    *, root_nid: int, inodes: int, seconds: int, nanoseconds: int, blocks: int, xattr_block: int
) -> bytes:
    """The 128 bytes at SUPERBLOCK_OFFSET; the time is that of compact inodes."""
    return _SUPERBLOCK.pack(
        MAGIC, 0, _COMPAT, BLOCK_BITS, 0, root_nid, inodes, seconds, nanoseconds, blocks, 0, xattr_block,
        0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def encode_composefs_header(version: int, *, acls: bool) -> bytes:
    """What a composefs image begins with."""
    return _COMPOSEFS_HEADER.pack(_COMPOSEFS_MAGIC, 1, int(acls), version)


def inode_format(layout: int, *, extended: bool) -> int:
    """i_format."""
    return layout << 1 | (_IS_EXTENDED if extended else 0)


def encode_device(major: int, minor: int) -> int:
    """new_encode_dev() of linux/kdev_t.h."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def chunk_bits(size: int) -> int:
    """The power of two that chunks of a file without content have, so that one is enough where that can be."""
    return min(max(BLOCK_BITS, (size - 1).bit_length()), CHUNK_BITS_MAX)


def encode_entries(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """A block of a directory, not filled up: sorted entries, then their names."""
    count = len(names)
    numbers = [0] * (3 * count)
    numbers[::3] = nids
    offsets = accumulate(map(len, names[:-1]), initial=DIRENT * count)
    numbers[2::3] = [offset | kind << 16 for offset, kind in zip(offsets, types, strict=True)]
    return struct.pack(f"<{3 * count}I", *numbers) + b"".join(names)


_MASK: Final = 0xFFFFFFFF
_PRIMES: Final = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


def xxh32(data: bytes, seed: int) -> int:
    """XXH32 (xxHash's specification, section "XXH32 algorithm description")."""
    one, two, three, four, five = _PRIMES
    length, at = len(data), 0
    if length >= 16:
        lanes = [seed + one + two, seed + two, seed, seed - one]
        while at + 16 <= length:
            for lane, word in enumerate(struct.unpack_from("<4I", data, at)):
                lanes[lane] = _rotate(lanes[lane] + word * two, 13) * one & _MASK
            at += 16
        state = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True))
    else:
        state = seed + five
    state += length
    while at + 4 <= length:
        state = _rotate(state + int.from_bytes(data[at : at + 4], "little") * three, 17) * four
        at += 4
    for byte in data[at:]:
        state = _rotate(state + byte * five, 11) * one
    state &= _MASK
    state = (state ^ state >> 15) * two & _MASK
    state = (state ^ state >> 13) * three & _MASK
    return state ^ state >> 16


def _rotate(value: int, bits: int) -> int:
    value &= _MASK
    return (value << bits | value >> (32 - bits)) & _MASK
