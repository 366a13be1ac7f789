"""Writing an image: inodes and shared xattrs in one stream, data blocks in another, then what the file begins with.

Nodes have been placed before (formats/erofs.md sections 1 to 6); nothing is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from mkmeta.codec.erofs import (
    BLOCK,
    CHUNK_BASED,
    COMPACT,
    DIRECTORY_TYPE,
    DIRENT,
    EXTENDED,
    FLAT_INLINE,
    FLAT_PLAIN,
    HOLE,
    INODES_OFFSET,
    SUPERBLOCK_OFFSET,
    encode_entries,
    encode_superblock,
    encode_xattrs,
    inode_format,
)
from mkmeta.digest import VerityDigest, VerityHasher
from mkmeta.errors import BuildError
from mkmeta.sinks.erofs.collecting import LINK, PARENT, SELF, Collection, DirectoryRecord, Names
from mkmeta.sinks.erofs.nodes import REGULAR, SYMLINK, TYPE_MASK
from mkmeta.sinks.erofs.placing import Placed, Places, Placing
from mkmeta.sinks.erofs.sharing import SharedXattrs

_PIECE: Final = 1 << 20  # bytes written, or read, at once; a multiple of the block
_BLOCKS_MAX: Final = 2**32
_ID: Final = 4  # bytes that places of shared xattrs count
_SELF, _PARENT = DIRECTORY_TYPE | SELF, DIRECTORY_TYPE | PARENT
_PLAIN_TYPES: Final = bytes(number & 0x1F for number in range(256))  # without flags


class Image:
    """An image whose nodes have their places."""

    def __init__(self, collection: Collection, placing: Placing, places: Places, shared: SharedXattrs) -> None:
        """Raises BuildError when it has too many blocks."""
        self._collection = collection
        self._placing = placing
        self._places = places
        self._shared = shared
        self._data_at = _up(places.inodes_end + shared.size)
        self._blocks = self._data_at // BLOCK + places.blocks
        if self._blocks >= _BLOCKS_MAX:
            raise BuildError("the image would be too large: it has room for 2^32 blocks of 4,096 bytes")
        self._first_id = places.inodes_end % BLOCK // _ID
        self.size = self._blocks * BLOCK

    def write(self, fd: int, header: bytes, oldest: tuple[int, int]) -> None:
        """Writes it to an empty file. Raises OSError, MkmetaError."""
        inodes, data = _Stream(fd, INODES_OFFSET), _Stream(fd, self._data_at)
        child = 1
        self._link = 0  # further names met
        for number, node in enumerate(self._placing):
            block = data.at // BLOCK
            tail = b""
            if node.directory is not None:
                tail = self._directory(node, node.directory, number, child, data)
                child += node.directory.nodes
            elif node.blocks or node.tail:
                tail = self._data(node, data)
            inodes.skip(node.at - inodes.at)
            inodes.append(self._inode(node, number, block if node.blocks else None))
            if tail:
                inodes.append(tail)
            assert (inodes.at, data.at) == (node.end + node.tail, (block + node.blocks) * BLOCK)
        inodes.skip(self._places.inodes_end - inodes.at)
        for piece in self._shared.area(_PIECE):
            inodes.append(piece)
        inodes.flush()
        data.flush()
        os.ftruncate(fd, self.size)  # an image may end with zeros that nobody has written
        begin = header.ljust(SUPERBLOCK_OFFSET, b"\0") + encode_superblock(
            root_nid=self._places.nids[0],
            inodes=len(self._places.nids),
            seconds=oldest[0],
            nanoseconds=oldest[1],
            blocks=self._blocks,
            xattr_block=self._places.inodes_end // BLOCK,
        )
        _write(fd, begin, 0)

    def _inode(self, node: Placed, number: int, block: int | None) -> bytes:
        """An inode with its xattrs."""
        mode, nlink, uid, gid, seconds, nanoseconds, size, unit, chunks, *_ = row = node.row
        kind = mode & TYPE_MASK
        if node.directory is not None:
            nlink, size = 2 + node.directory.directories, node.blocks * BLOCK + node.tail
        elif kind not in (REGULAR, SYMLINK):
            size = 0
        layout = CHUNK_BASED if chunks else FLAT_INLINE if node.tail else FLAT_PLAIN
        if block is not None:  # mkcomposefs writes the chunk format over its number
            unit = block & 0xFFFF0000 | unit if chunks else block
        xattrs = b""
        if node.inline or node.shared:
            xattrs = encode_xattrs(row[13], [place + self._first_id for place in node.shared], node.inline)
        count = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
        if node.extended:
            return (
                EXTENDED.pack(
                    inode_format(layout, extended=True), count, mode, 0, size, unit, number, uid, gid, seconds,
                    nanoseconds, nlink,
                )
                + xattrs
            )  # fmt: skip
        return (
            COMPACT.pack(inode_format(layout, extended=False), count, mode, nlink, size, 0, unit, number, uid, gid, 0)
            + xattrs
        )

    def _data(self, node: Placed, data: _Stream) -> bytes:
        """Writes the data blocks of what is no directory. Returns its tail."""
        row = node.row
        if row[8]:
            if node.blocks:
                data.append(b"\xff" * BLOCK)
            return HOLE * (node.tail // len(HOLE))
        if row[0] & TYPE_MASK == SYMLINK:
            if not node.blocks:
                return row[11]
            data.append(row[11].ljust(BLOCK, b"\0"))
            return b""
        part, at, size = node.parent.part, row[12], row[6]
        whole = size - node.tail
        for start in range(0, whole, _PIECE):
            data.append(self._collection.content(part, at + start, min(_PIECE, whole - start)))
        data.skip(_up(whole) - whole)
        return self._collection.content(part, at + whole, node.tail)

    def _directory(self, node: Placed, directory: DirectoryRecord, number: int, child: int, data: _Stream) -> bytes:
        """Writes the blocks of a directory whose first child has the number `child`. Returns its tail."""
        contents = self._contents(directory, number, self._places.directories[node.parent_index], child)
        last = next(contents)
        for content in contents:
            data.append(last.ljust(BLOCK, b"\0"))
            last = content
        if node.tail:
            return last
        data.append(last.ljust(BLOCK, b"\0"))
        return b""

    def _contents(self, directory: DirectoryRecord, number: int, parent: int, child: int) -> Iterator[bytes]:
        """The blocks of a directory, not filled up."""
        names: list[bytes] = []
        nids: list[int] = []
        types = bytearray()
        used = 0
        for found in self._collection.names(directory):
            there = self._nids(found, number, parent, child)
            child += len(there) - len(found.keys) - found.types.count(_SELF) - found.types.count(_PARENT)
            plain = found.types.translate(_PLAIN_TYPES)
            size = DIRENT * len(found.names) + sum(map(len, found.names))
            if used + size <= BLOCK:
                names += found.names
                nids += there
                types += plain
                used += size
                continue
            for name, nid, kind in zip(found.names, there, plain, strict=True):
                size = DIRENT + len(name)
                if used + size > BLOCK:
                    yield encode_entries(names, nids, types)
                    names, nids, types, used = [], [], bytearray(), 0
                names.append(name)
                nids.append(nid)
                types.append(kind)
                used += size
        yield encode_entries(names, nids, types)

    def _nids(self, found: Names, number: int, parent: int, child: int) -> list[int]:
        """Of each name of a directory, the first of which that is no link has the number `child`."""
        places = self._places
        types = found.types
        odd = {types.find(_SELF): number, types.find(_PARENT): parent}
        odd.pop(-1, None)
        if found.keys:
            links = (place for place, kind in enumerate(types) if kind & LINK)
            odd |= {place: places.linked[self._link + count] for count, place in enumerate(links)}
            self._link += len(found.keys)
        nids = places.nids[child : child + len(types) - len(odd)].tolist()
        for place in sorted(odd):
            nids.insert(place, places.nids[odd[place]])
        return nids


class _Stream:
    """Writes to a part of a file, in large pieces."""

    def __init__(self, fd: int, at: int) -> None:
        self.at = at  # where the next byte goes
        self._fd = fd
        self._parts: list[bytes] = []
        self._held = 0

    def append(self, data: bytes) -> None:
        """Raises OSError."""
        self._parts.append(data)
        self.at += len(data)
        self._held += len(data)
        if self._held >= _PIECE:
            self.flush()

    def skip(self, size: int) -> None:
        """Leaves some zeros."""
        if size:
            self.append(bytes(size))

    def flush(self) -> None:
        """Raises OSError."""
        _write(self._fd, b"".join(self._parts), self.at - self._held)
        self._parts, self._held = [], 0


def image_digest(fd: int, size: int) -> VerityDigest:
    """The fs-verity digest of the first `size` bytes of a file. Raises OSError."""
    hasher = VerityHasher()
    for at in range(0, size, _PIECE):
        hasher.update(memoryview(os.pread(fd, min(_PIECE, size - at), at)))
    return hasher.digest()


def _write(fd: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, at)
        rest, at = rest[done:], at + done


def _up(size: int) -> int:
    """Up to a block."""
    return -(-size // BLOCK) * BLOCK
