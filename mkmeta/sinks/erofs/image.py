"""Writing an image: inodes and shared xattrs in one stream, data blocks in another, then what the file begins with.

Nodes have been placed before (formats/erofs.md sections 1 to 6); nothing is decided here.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from multiprocessing.connection import Connection
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
    SLOT,
    SUPERBLOCK_OFFSET,
    XATTR_HEADER,
    encode_entries,
    encode_superblock,
    encode_xattrs,
    inode_format,
)
from mkmeta.digest import VerityDigest, VerityHasher
from mkmeta.errors import BuildError, MkmetaError
from mkmeta.sinks.erofs.collecting import LINK, PARENT, SELF, DirectoryRecord, Names
from mkmeta.sinks.erofs.nodes import DIRECTORY, HOLES, NO_DATA, REGULAR, SYMLINK, TYPE_MASK, Body, Head
from mkmeta.sinks.erofs.placing import Milestone, Places, Tree, is_small, settle
from mkmeta.workers import WorkerPool, messages

_PIECE: Final = 1 << 20  # bytes written, or read, at once; a multiple of the block
_BLOCKS_MAX: Final = 2**32
_ID: Final = 4  # bytes that places of shared xattrs count
_SELF, _PARENT = DIRECTORY_TYPE | SELF, DIRECTORY_TYPE | PARENT
_PLAIN_TYPES: Final = bytes(number & 0x1F for number in range(256))  # without flags


class Image:
    """An image whose nodes have their places."""

    def __init__(self, tree: Tree, places: Places) -> None:
        """Raises BuildError when it has too many blocks."""
        self._tree = tree
        self._places = places
        self._data_at = _up(places.inodes_end + tree.shared.size)
        self._first_id = places.inodes_end % BLOCK // _ID
        self._link = 0  # further names met
        # fsck.erofs reads the header of xattrs behind every inode, that of one without any too
        read = _up(places.inodes_end + XATTR_HEADER)
        blocks = max(self._data_at // BLOCK + places.blocks, read // BLOCK)
        if blocks >= _BLOCKS_MAX:
            raise BuildError("the image would be too large: it has room for 2^32 blocks of 4,096 bytes")
        self.size = blocks * BLOCK

    def write(self, fd: int, header: bytes) -> None:
        """Writes it to an empty file, a process for each part of the nodes. Raises OSError, MkmetaError."""
        parts = list(pairwise(self._places.milestones))
        if len(parts) == 1:
            self._write_part(fd, *parts[0])
        else:
            with WorkerPool(len(parts), lambda pipe: self._work(pipe, fd)) as pool:
                for worker, part in zip(pool.workers, parts, strict=True):
                    worker.send(part)
                for worker in pool.workers:
                    problem: Exception | None = worker.receive()
                    if problem is not None:
                        raise problem
        area = _Stream(fd, self._places.inodes_end)
        for piece in self._tree.shared.area(_PIECE):
            area.append(piece)
        area.flush()
        os.ftruncate(fd, self.size)  # an image may end with zeros that nobody has written
        seconds, nanoseconds = self._tree.oldest
        begin = header.ljust(SUPERBLOCK_OFFSET, b"\0") + encode_superblock(
            root_nid=self._places.nids[0],
            inodes=len(self._places.nids),
            seconds=seconds,
            nanoseconds=nanoseconds,
            blocks=self.size // BLOCK,
            xattr_block=self._places.inodes_end // BLOCK,
        )
        _write(fd, begin, 0)

    def _work(self, pipe: Connection, fd: int) -> None:
        """What a worker process runs: answers each part with None, or with the exception that ended it."""
        for start, stop in messages(pipe):
            try:
                self._write_part(fd, start, stop)
                pipe.send(None)
            except (MkmetaError, OSError) as error:
                pipe.send(error)
            except Exception:
                pipe.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))

    def _write_part(self, fd: int, start: Milestone, stop: Milestone) -> None:
        """Writes the nodes between two milestones, and their data."""
        tree, nids = self._tree, self._places.nids
        (seconds, nanoseconds), shared, exact = tree.oldest, tree.shared, tree.exact
        inodes = _Stream(fd, start.end)
        data = _Stream(fd, self._data_at + start.blocks * BLOCK)
        child, self._link = start.children, start.links
        below = tree.collection.directories(start.directories)
        number = start.number
        for index, parent, heads, bodies in self._chunks(start, stop):
            shares = shared.size and (not number or shared.may_be_in(parent))
            for head, body in zip(heads, bodies, strict=True):
                mode, nlink, _, _, mtime, mtime_ns, size, source, blocks, tail, _ = head
                unit, target, content, name_filter, entries, _ = body
                kind = mode & TYPE_MASK
                if kind == DIRECTORY:
                    record = next(below)
                    nlink, blocks, tail = 2 + record.directories, record.blocks, record.tail
                    size = blocks * BLOCK + tail
                extended = mtime_ns != nanoseconds or mtime != seconds or not is_small(head, nlink, size)
                xattrs = b""
                if entries:
                    ids: list[int] = []
                    inline: Sequence[bytes] = entries
                    if shares:
                        ids, inline = shared.divide(entries)
                    xattrs = encode_xattrs(name_filter, [place + self._first_id for place in ids], inline)
                fixed = (EXTENDED.size if extended else COMPACT.size) + len(xattrs)
                at = nids[number] * SLOT
                if kind == SYMLINK or BLOCK - (at + fixed) % BLOCK < tail:
                    _, more, tail = settle(at, fixed, tail, is_link=kind == SYMLINK, exact=exact)
                    blocks += more
                is_array = source == HOLES
                is_written = True
                if blocks:  # of an array, mkcomposefs writes the chunk format over its number
                    block = data.at // BLOCK
                    unit = block & 0xFFFF0000 | unit if is_array else block
                    if source > 0:  # equal contents are in the blocks of the first
                        unit = self._data_at // BLOCK + self._places.contents[source - 1] - 1
                        is_written = unit == block
                end = b""
                if kind == DIRECTORY:
                    end = self._directory(record, number, self._places.directories[index], child, data, tail=tail)
                    child += record.nodes
                    size = blocks * BLOCK + tail
                elif is_array:
                    if blocks:
                        data.append(b"\xff" * BLOCK)
                    end = HOLE * (tail // len(HOLE))
                elif kind == SYMLINK:
                    end = target if tail else b""
                    if blocks:
                        data.append(target.ljust(BLOCK, b"\0"))
                elif kind != REGULAR:
                    size = 0
                elif size and source != NO_DATA:
                    end = self._content(parent.part, content, size, tail, data if is_written else None)
                inode = self._inode(head, nlink, size, unit, number, len(xattrs), tail, extended=extended)
                inodes.append(bytes(at - inodes.at) + inode + xattrs + end)
                assert inodes.at == at + fixed + tail
                number += 1
        assert (inodes.at, data.at) == (stop.end, self._data_at + stop.blocks * BLOCK)
        inodes.flush()
        data.flush()

    def _chunks(
        self, start: Milestone, stop: Milestone
    ) -> Iterator[tuple[int, DirectoryRecord, list[Head], list[Body]]]:
        """The nodes between two milestones: in which directory, by its place in the order; the root is in itself."""
        collection = self._tree.collection
        if not start.number:
            head, body = self._tree.root
            yield 0, next(collection.directories()), [head], [body]
        parents = islice(collection.directories(start.parent), stop.parent - start.parent)
        for index, parent in enumerate(parents, start.parent):
            for heads, bodies in zip(collection.heads(parent), collection.bodies(parent), strict=True):
                yield index, parent, heads, bodies

    def _inode(
        self, head: Head, nlink: int, size: int, unit: int, number: int, xattrs: int, tail: int, *, extended: bool
    ) -> bytes:
        """An inode, without its xattrs."""
        mode, _, uid, gid, seconds, nanoseconds, _, source, *_ = head
        layout = inode_format(
            CHUNK_BASED if source == HOLES else FLAT_INLINE if tail else FLAT_PLAIN, extended=extended
        )
        count = (xattrs - XATTR_HEADER) // 4 + 1 if xattrs else 0
        if extended:
            return EXTENDED.pack(layout, count, mode, 0, size, unit, number, uid, gid, seconds, nanoseconds, nlink)
        return COMPACT.pack(layout, count, mode, nlink, size, 0, unit, number, uid, gid, 0)

    def _content(self, part: int, at: int, size: int, tail: int, data: _Stream | None) -> bytes:
        """Writes the data blocks of a file with content; None: another file's are its own. Returns its tail."""
        whole = size - tail
        if data is not None:
            for start in range(0, whole, _PIECE):
                data.append(self._tree.collection.content(part, at + start, min(_PIECE, whole - start)))
            data.skip(_up(whole) - whole)
        return self._tree.collection.content(part, at + whole, tail)

    def _directory(
        self, directory: DirectoryRecord, number: int, parent: int, child: int, data: _Stream, *, tail: int
    ) -> bytes:
        """Writes the blocks of a directory whose first child has the number `child`. Returns its tail."""
        contents = self._contents(directory, number, parent, child)
        last = next(contents)
        for content in contents:
            data.append(last.ljust(BLOCK, b"\0"))
            last = content
        if tail:
            return last
        data.append(last.ljust(BLOCK, b"\0"))
        return b""

    def _contents(self, directory: DirectoryRecord, number: int, parent: int, child: int) -> Iterator[bytes]:
        """The blocks of a directory, not filled up."""
        names: list[bytes] = []
        nids: list[int] = []
        types = bytearray()
        used = 0
        for found in self._tree.collection.names(directory):
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
