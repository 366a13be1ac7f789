"""A node of an image while it waits in a temporary file: two plain tuples, for there are many; marshal takes no other.

What depends on the rest of the tree is missing: its place, which xattrs it shares, and of a directory what is in it.
The head has all that says how much room it takes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Final

from mkmeta.codec.erofs import (
    BLOCK,
    BLOCK_BITS,
    HOLE,
    NO_BLOCK,
    NO_BLOCK_SIZE_MAX,
    XATTR_HEADER,
    chunk_bits,
    xattr_name,
)

TYPE_MASK: Final = 0o170000  # S_IFMT
REGULAR: Final = stat.S_IFREG
DIRECTORY: Final = stat.S_IFDIR
SYMLINK: Final = stat.S_IFLNK
NO_DATA: Final = -2  # none, though its size is not 0
HOLES: Final = -1  # the same, said by an array of chunks that are none
OWN_DATA: Final = 0  # or it has none
_ACL_HEADS: Final = (b"\0\2", b"\0\3")  # of entries
_TAIL_MAX: Final = BLOCK // 2  # bytes; a longer rest of a file or directory gets a block of its own
_ALL_ABSENT: Final = 0xFFFFFFFF  # the filter of a node without xattrs

Head = tuple[
    int,  # mode
    int,  # nlink; of a directory it is not known yet
    int,  # uid
    int,  # gid
    int,  # mtime: seconds, signed
    int,  # mtime: nanoseconds
    int,  # size
    int,  # what its data is: NO_DATA, HOLES, OWN_DATA, or 1 + the number of a content, whose blocks are shared
    int,  # data blocks
    int,  # bytes of the tail
    int,  # bytes of its xattrs, if none is shared
]
Body = tuple[
    int,  # i_u, where that is no block: device number, chunk format, NO_BLOCK
    bytes,  # target of a symlink
    int,  # where its content is among the collected, if it has any
    int,  # name filter of its xattrs
    tuple[bytes, ...],  # their entries, ascending by name
    bytes,  # a key, if it has several names: what the others say of it
]
Row = tuple[Head, Body]
Xattr = tuple[bytes, bytes]


def xattr_entries(xattrs: Iterable[Xattr]) -> tuple[int, int, tuple[bytes, ...]]:
    """Name filter, size and entries of the xattrs of a node, given ascending by name."""
    bits, size = 0, XATTR_HEADER
    entries: tuple[bytes, ...] = ()
    for full, value in xattrs:  # as encode_xattr, in place: there are two for each file
        head, rest, bit = xattr_name(full)
        bits |= bit
        entry = head + len(value).to_bytes(2, "little") + rest + value
        missing = -len(entry) & 3
        if missing:
            entry += bytes(missing)
        size += len(entry)
        entries += (entry,)
    return _ALL_ABSENT ^ bits, size if entries else 0, entries


def layout_of(mode: int, size: int, *, content: bool, exact: bool) -> tuple[int, int, int, int]:
    """i_u, where that is no block, what its data is, data blocks and bytes of the tail, of what is no directory.

    `exact`: every file without content has an array of chunks, as mkcomposefs does it.
    """
    kind = mode & TYPE_MASK
    if kind != REGULAR or not size:
        return 0, OWN_DATA, 0, size if kind == SYMLINK else 0
    if content:
        blocks, tail = divmod(size, BLOCK)
        return (0, OWN_DATA, blocks + 1, 0) if tail > _TAIL_MAX else (0, OWN_DATA, blocks, tail)
    if size <= NO_BLOCK_SIZE_MAX and not exact:
        return NO_BLOCK, NO_DATA, 0, 0
    if size <= BLOCK:
        return 0, HOLES, 0, len(HOLE)
    bits = chunk_bits(size)
    return bits - BLOCK_BITS, HOLES, 0, len(HOLE) * -(-size >> bits)


def last_block(used: int) -> tuple[int, int]:
    """Of a directory whose last block has so many bytes: blocks it adds, and bytes of the tail."""
    return (1, 0) if used > _TAIL_MAX else (0, used)


def has_acl(body: Body) -> bool:
    """Whether it has an ACL: an xattr whose name is one of the two prefixes, and nothing behind."""
    return any(entry[:2] in _ACL_HEADS for entry in body[4])
