"""Where each node of an image goes: its form, its xattrs, its place (formats/erofs.md sections 4 to 6).

For that the heads of nodes are enough, but where they may share xattrs or have further names.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from mkmeta.codec.erofs import BLOCK, COMPACT, EXTENDED, INODES_OFFSET, SLOT, XATTR_HEADER
from mkmeta.errors import BuildError
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.sinks.erofs.collecting import Collection, DirectoryRecord
from mkmeta.sinks.erofs.nodes import DIRECTORY, SYMLINK, TYPE_MASK, Body, Head, Row
from mkmeta.sinks.erofs.sharing import SharedXattrs

_NIDS: Final = 2**32
_SMALL: Final = 65535  # of a compact inode: nlink, uid, gid
_SIZE: Final = 2**32 - 1  # of a compact inode
_SHARED_ID: Final = 4  # bytes
_NODE, _OTHER = b"\0\0", b"\0\1"  # behind a key: the node that has it, a further name of it
_NUMBER_BYTES: Final = 4
_SLOT_MASK: Final = SLOT - 1

Time = tuple[int, int]  # seconds, nanoseconds


class Milestone(NamedTuple):
    """What there is before a directory, in the order of writing: from here on, others may go on."""

    parent: int  # place of the directory in the order of directories: in it is what comes next
    number: int  # of the first node in it
    end: int  # of the node before
    directories: int  # met among the nodes
    children: int  # number of the first node in the directory that is met next
    links: int  # further names of inodes in those met
    blocks: int  # of data


class Tree(NamedTuple):
    """The nodes, and what is known of all of them."""

    root: Row
    collection: Collection
    shared: SharedXattrs
    oldest: Time  # mtime of compact inodes
    exact: bool  # do as mkcomposefs with arrays that fit nowhere


def settle(at: int, fixed: int, tail: int, *, is_link: bool, exact: bool) -> tuple[int, int, int]:
    """Where an inode that would begin at `at` begins, its data blocks more than planned, and bytes of its tail.

    `fixed`: bytes of inode and xattrs. Where an inode is already, it stays.
    """
    if is_link:
        total = fixed + tail
        if at // BLOCK != (at + total - 1) // BLOCK:
            at = -(-at // BLOCK) * BLOCK
        return (at, 1, 0) if total >= BLOCK else (at, 0, tail)
    room = BLOCK - (at + fixed) % BLOCK
    if room < tail:
        later = at + -(-room // SLOT) * SLOT
        if tail <= BLOCK - (later + fixed) % BLOCK:
            return later, 0, tail
        at = -(-at // BLOCK) * BLOCK
        if exact:
            return at, 1, 0
    return at, 0, tail


def is_small(head: Head, nlink: int, size: int) -> bool:
    """Whether a compact inode has room for the numbers; `nlink` and `size` of a directory are not in its head."""
    return nlink <= _SMALL and head[2] <= _SMALL and head[3] <= _SMALL and size <= _SIZE


class Places:
    """Where all nodes go."""

    def __init__(self, tree: Tree, parts: int) -> None:
        """`parts`: how many parts the nodes are to be divided into. Raises BuildError when there are too many nodes."""
        self.nids = array("I")  # of each node
        self.directories = array("I")  # of each directory: the number of the node it is
        self.contents = array("Q")  # of each content in blocks, by number: where the first block is, from 1; 0: nowhere
        self.linked = array("I")  # of each further name, in the order of directories: the number of the node
        self.milestones = [Milestone(0, 0, INODES_OFFSET, 0, 1, 0, 0)]  # between parts, and before and after all
        self._tree = tree
        nodes = 1 + sum(record.nodes for record in tree.collection.directories())
        enough = -(-nodes // parts)
        with ExternalSorter() as keys:
            try:
                last = self._measure(enough, keys)
            except OverflowError:
                raise BuildError("the image would be too large: it has room for 2^32 inodes of 32 bytes") from None
            self._link(keys)
        self.milestones.append(last)
        self.blocks = last.blocks
        self.inodes_end = -(-last.end // SLOT) * SLOT

    def _measure(self, enough: int, keys: ExternalSorter) -> Milestone:
        """Meets all nodes, in order. Returns what there is before the end. Raises OverflowError."""
        tree = self._tree
        collection, shared = tree.collection, tree.shared
        below = collection.directories()
        mark = self.milestones[0]
        root = tree.root
        mark = self._meet(mark, [root[0]], [root[1]], below, keys)
        index = -1
        for index, parent in enumerate(collection.directories()):
            if len(self.nids) >= len(self.milestones) * enough:
                self.milestones.append(mark._replace(parent=index))
            needed = parent.keys or (shared.size and shared.may_be_in(parent))
            bodies = collection.bodies(parent) if needed else None
            for heads in collection.heads(parent):
                mark = self._meet(mark, heads, next(bodies) if bodies else None, below, keys)
        return mark._replace(parent=index + 1)

    def _meet(
        self,
        mark: Milestone,
        heads: list[Head],
        bodies: list[Body] | None,
        below: Iterator[DirectoryRecord],
        keys: ExternalSorter,
    ) -> Milestone:
        """Gives some nodes their places, behind `mark`. Returns what there is before the next."""
        _, number, end, directories, children, links, blocks = mark
        seconds, nanoseconds = self._tree.oldest
        exact, shared = self._tree.exact, self._tree.shared
        append = self.nids.append
        for place, head in enumerate(heads):
            mode, nlink, _, _, mtime, mtime_ns, size, data, more, tail, xattrs = head
            if bodies is not None:
                entries, key = bodies[place][4:]
                if key:
                    keys.add(key + _NODE + number.to_bytes(_NUMBER_BYTES, "big"))
                if entries and shared.size:
                    ids, inline = shared.divide(entries)
                    xattrs = XATTR_HEADER + _SHARED_ID * len(ids) + sum(map(len, inline))
            kind = mode & TYPE_MASK
            if kind == DIRECTORY:
                record = next(below)
                self.directories.append(number)
                directories += 1
                children += record.nodes
                links += record.links
                more, tail = record.blocks, record.tail
                nlink, size = 2 + record.directories, more * BLOCK + tail
            elif data > 0 and more and not self._is_first(data, blocks):
                more = 0
            if mtime_ns == nanoseconds and mtime == seconds and is_small(head, nlink, size):
                fixed = COMPACT.size + xattrs
            else:
                fixed = EXTENDED.size + xattrs
            at = end + _SLOT_MASK & ~_SLOT_MASK
            end = at + fixed
            if tail:
                if kind == SYMLINK or BLOCK - end % BLOCK < tail:
                    at, added, tail = settle(at, fixed, tail, is_link=kind == SYMLINK, exact=exact)
                    end = at + fixed
                    more += added
                end += tail
            append(at // SLOT)
            number += 1
            blocks += more
        return Milestone(0, number, end, directories, children, links, blocks)

    def _is_first(self, data: int, block: int) -> bool:
        """Whether a content is not yet in blocks; from `block` on, it is from now on."""
        contents = self.contents
        if data > len(contents):
            contents.frombytes(bytes(contents.itemsize * (data + data // 8 - len(contents))))
        if contents[data - 1]:
            return False
        contents[data - 1] = block + 1
        return True

    def _link(self, keys: ExternalSorter) -> None:
        """Finds out which nodes further names name."""
        count = 0
        collection = self._tree.collection
        for directory in collection.directories():
            if directory.links:
                for names in collection.names(directory):
                    for key in names.keys:
                        keys.add(key + _OTHER + count.to_bytes(_NUMBER_BYTES, "big"))
                        count += 1
        self.linked = array("I", bytes(self.linked.itemsize * count))
        node = 0
        for record in keys:
            number = int.from_bytes(record[-_NUMBER_BYTES:], "big")
            if record[-_NUMBER_BYTES - len(_NODE) : -_NUMBER_BYTES] == _NODE:
                node = number
            else:
                self.linked[number] = node
