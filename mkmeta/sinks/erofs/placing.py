"""Where each node of an image goes: its form, its xattrs, its place (formats/erofs.md sections 4 to 6)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from mkmeta.codec.erofs import (
    BLOCK,
    COMPACT,
    EXTENDED,
    INODES_OFFSET,
    SHARED_MAX,
    SLOT,
    XATTR_HEADER,
)
from mkmeta.errors import BuildError
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.sinks.erofs.collecting import Collection, DirectoryRecord
from mkmeta.sinks.erofs.nodes import DIRECTORY, SYMLINK, TYPE_MASK, Row
from mkmeta.sinks.erofs.sharing import SharedXattrs

_NIDS: Final = 2**32
_SMALL: Final = 65535  # of a compact inode: nlink, uid, gid
_SIZE: Final = 2**32 - 1  # of a compact inode
_SHARED_ID: Final = 4  # bytes
_NODE, _OTHER = b"\0\0", b"\0\1"  # behind a key: the node that has it, a further name of it


class Placed(NamedTuple):
    """A node in its place."""

    row: Row
    directory: DirectoryRecord | None  # what it is, if that is what it is
    parent: DirectoryRecord  # it is in; the root is in itself
    parent_index: int  # of that, among the directories
    at: int  # bytes from the beginning of the image
    extended: bool
    shared: list[int]  # of its xattrs: places in the shared area, divided by 4
    inline: list[bytes] | tuple[bytes, ...]
    end: int  # of inode and xattrs
    blocks: int
    tail: int


class Placing:
    """The nodes in their places, in node order."""

    def __init__(
        self, root: Row, collection: Collection, shared: SharedXattrs, oldest: tuple[int, int], *, exact: bool
    ) -> None:
        """`oldest`: the mtime of compact inodes. `exact`: do as mkcomposefs with arrays that fit nowhere."""
        self._root = root
        self._collection = collection
        self._shared = shared
        self._oldest = oldest
        self._exact = exact
        self.end = INODES_OFFSET  # of the last inode met

    def __iter__(self) -> Iterator[Placed]:
        self.end = INODES_OFFSET
        directories = self._collection.directories()
        top = next(directories)
        yield self._place(self._root, top, top, 0)
        for index, parent in enumerate(self._collection.directories()):
            for rows in self._collection.rows(parent):
                for row in rows:
                    is_directory = row[0] & TYPE_MASK == DIRECTORY
                    yield self._place(row, next(directories) if is_directory else None, parent, index)

    def _place(self, row: Row, directory: DirectoryRecord | None, parent: DirectoryRecord, index: int) -> Placed:
        mode, nlink, uid, gid, seconds, nanoseconds, size, _, _, blocks, tail, _, _, _, xattrs, entries, _ = row
        if directory is not None:
            nlink = 2 + directory.directories
            blocks, tail = directory.blocks, directory.tail
            size = blocks * BLOCK + tail
        extended = (
            (seconds, nanoseconds) != self._oldest or nlink > _SMALL or uid > _SMALL or gid > _SMALL or size > _SIZE
        )
        shared: list[int] = []
        inline: list[bytes] | tuple[bytes, ...] = entries
        if entries and self._shared.size:
            inline = []
            for entry in entries:
                place = self._shared.find(entry) if len(shared) < SHARED_MAX else -1
                if place < 0:
                    inline.append(entry)
                else:
                    shared.append(place)
            xattrs = XATTR_HEADER + _SHARED_ID * len(shared) + sum(map(len, inline))
        fixed = (EXTENDED.size if extended else COMPACT.size) + xattrs
        at = -(-self.end // SLOT) * SLOT
        if mode & TYPE_MASK == SYMLINK:
            total = fixed + tail
            crosses = at // BLOCK != (at + total - 1) // BLOCK
            if total >= BLOCK:
                blocks, tail = 1, 0
            if crosses:
                at = -(-at // BLOCK) * BLOCK
        elif (room := BLOCK - (at + fixed) % BLOCK) < tail:
            later = at + -(-room // SLOT) * SLOT
            if tail <= BLOCK - (later + fixed) % BLOCK:
                at = later
            else:
                at = -(-at // BLOCK) * BLOCK
                if self._exact:
                    blocks, tail = blocks + 1, 0
        end = at + fixed
        self.end = end + tail
        return Placed(row, directory, parent, index, at, extended, shared, inline, end, blocks, tail)


class Places:
    """What has to be known of all nodes before the first is written."""

    def __init__(self, placing: Placing, collection: Collection) -> None:
        """Raises BuildError when there are too many."""
        self.nids = array("I")  # of each node
        self.directories = array("I")  # of each directory: the number of the node it is
        self.blocks = 0  # of data
        self.linked: array[int]  # of each further name, in node order of directories: the number of the node
        with ExternalSorter() as keys:
            self._meet(placing, keys)
            links = 0
            for directory in collection.directories():
                if directory.links:
                    for names in collection.names(directory):
                        for key in names.keys:
                            keys.add(key + _OTHER + links.to_bytes(4, "big"))
                            links += 1
            self.linked = array("I", bytes(4 * links))
            number = 0
            for record in keys:
                value = int.from_bytes(record[-4:], "big")
                if record[-6:-4] == _NODE:
                    number = value
                else:
                    self.linked[value] = number
        self.inodes_end = -(-placing.end // SLOT) * SLOT

    def _meet(self, placing: Placing, keys: ExternalSorter) -> None:
        nids, directories, blocks = self.nids, self.directories, 0
        for node in placing:
            if node.at >= SLOT * _NIDS:
                raise BuildError("the image would be too large: it has room for 2^32 inodes of 32 bytes")
            row = node.row
            if node.directory is not None:
                directories.append(len(nids))
            if row[16]:
                keys.add(row[16] + _NODE + len(nids).to_bytes(4, "big"))
            nids.append(node.at // SLOT)
            blocks += node.blocks
        self.blocks = blocks
