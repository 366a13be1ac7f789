"""The nodes of an image in temporary files: written by several processes, a directory at a time, read in node order.

A process appends to files of its own: names, which are read when a directory's data is written; heads and bodies of the
nodes in it; contents; hashes of xattrs; and one record for each directory, which says where the rest is.
"""

from __future__ import annotations

import contextlib
import marshal
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from mkmeta.codec.erofs import BLOCK, DIRECTORY_TYPE, DIRENT, DOTS
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import tree_order
from mkmeta.sinks.erofs.nodes import Body, Head, Row, last_block
from mkmeta.sinks.erofs.spool import BUFFER_BYTES, Spool

# Flags of a type in the names of a directory: whose nid the entry has
SELF, PARENT, LINK = 0x20, 0x40, 0x80
_DOT_TYPES: Final = (DIRECTORY_TYPE | SELF, DIRECTORY_TYPE | PARENT)

_CHUNK_NAMES: Final = 1000  # entries of a directory held at once
_CHUNK_BYTES: Final = 256 << 10  # of their xattrs, about
_MARSHAL: Final = 2  # the last version that does not look for equal objects, which costs more than it saves
_RECORD = struct.Struct("<BQQQQQQIIQIIIIHqI")
_DEPTH_BYTES: Final = 2
_NO_TIME: Final = (2**63 - 1, 2**32 - 1)


class DirectoryRecord(NamedTuple):
    """What is known of a directory when everything in it was seen."""

    part: int  # whose files
    names_at: int
    names_size: int
    heads_at: int
    heads_size: int
    bodies_at: int
    bodies_size: int
    chunk: int  # number of its first chunk of nodes, in its part
    chunks: int
    nodes: int  # in it, further names of inodes left out
    directories: int  # among them
    links: int  # further names of inodes
    keys: int  # nodes that have further names
    blocks: int  # of its data
    tail: int  # bytes of its data
    seconds: int  # smallest mtime of a node in it
    nanoseconds: int


class Names(NamedTuple):
    """Some entries of a directory, `.` and `..` among them, ascending."""

    names: list[bytes]
    types: bytes  # each with the flags above
    keys: list[bytes]  # of the nodes that links name


class Part:
    """The files of one process."""

    def __init__(self, spool: Callable[[], Spool]) -> None:
        """`spool` makes one. Raises MkmetaError when there is no room for temporary files."""
        self._spools = [spool() for _ in range(6)]
        self.names, self.heads, self.bodies, self.contents, self.hashes, self.records = self._spools

    def flush(self) -> None:
        """Writes what this process still holds. Raises MkmetaError."""
        for spool in self._spools:
            spool.flush()


class Collector:
    """Takes the nodes of one directory after the other, in one process."""

    def __init__(self, number: int, part: Part) -> None:
        """`number`: of the part."""
        self._number = number
        self._part = part
        self._names: list[bytes] = []
        self._types = bytearray()
        self._keys: list[bytes] = []
        self._heads: list[Head] = []
        self._bodies: list[Body] = []
        self._held = 0
        self._chunks = 0
        self._reset()

    def _reset(self) -> None:
        part = self._part
        self._names_at, self._heads_at, self._bodies_at = part.names.size, part.heads.size, part.bodies.size
        self._first_chunk = self._chunks
        self._nodes = self._directories = self._links = self._primaries = 0
        self._blocks = self._used = 0
        self._time = _NO_TIME
        self._dots = list(zip(DOTS, _DOT_TYPES, strict=True))

    def content(self, data: bytes) -> int:
        """Keeps the content of a file. Returns what its row says of it. Raises MkmetaError."""
        return self._part.contents.append(data)

    def add(self, name: bytes, kind: int, row: Row) -> None:
        """A node in the directory, after those of smaller names; `kind` is the type that its entry says."""
        self._names.append(name)
        self._types.append(kind)
        head, body = row
        self._heads.append(head)
        self._bodies.append(body)
        self._held += head[10]
        if body[5]:
            self._primaries += 1
        if len(self._names) >= _CHUNK_NAMES or self._held >= _CHUNK_BYTES:
            self._flush()

    def add_link(self, name: bytes, kind: int, key: bytes) -> None:
        """A further name of the node whose row has this key."""
        self._names.append(name)
        self._types.append(kind | LINK)
        self._keys.append(key)
        self._held += len(key)
        if len(self._names) >= _CHUNK_NAMES or self._held >= _CHUNK_BYTES:
            self._flush()

    def end(self, path: bytes) -> None:
        """The directory at `path` is complete. Raises MkmetaError when there is no room for temporary files."""
        self._flush(last=True)
        more, tail = last_block(self._used)
        part = self._part
        record = DirectoryRecord(
            part=self._number,
            names_at=self._names_at,
            names_size=part.names.size - self._names_at,
            heads_at=self._heads_at,
            heads_size=part.heads.size - self._heads_at,
            bodies_at=self._bodies_at,
            bodies_size=part.bodies.size - self._bodies_at,
            chunk=self._first_chunk,
            chunks=self._chunks - self._first_chunk,
            nodes=self._nodes,
            directories=self._directories,
            links=self._links,
            keys=self._primaries,
            blocks=self._blocks + more,
            tail=tail,
            seconds=self._time[0],
            nanoseconds=self._time[1],
        )
        part.records.append_piece(node_order(path) + b"\0" + _RECORD.pack(*record))
        self._reset()

    def settle(self) -> None:
        """Lets another process read what was collected, whenever this one ends. Raises MkmetaError."""
        self._part.flush()

    def _flush(self, *, last: bool = False) -> None:
        names, types, heads, part = self._names, self._types, self._heads, self._part
        while self._dots and (last or (names and names[-1] > self._dots[0][0])):
            name, kind = self._dots.pop(0)
            place = bisect_left(names, name)
            names.insert(place, name)
            types.insert(place, kind)
        self._pack(names)
        self._nodes += len(heads)
        self._directories += types.count(DIRECTORY_TYPE)
        self._links += len(self._keys)
        if names:
            part.names.append_piece(marshal.dumps((names, bytes(types), self._keys), _MARSHAL))
        if heads:
            self._chunks += 1
            self._time = min(self._time, min([head[4:6] for head in heads]))
            hashes = array("q")
            for body in self._bodies:
                hashes.extend(map(hash, body[4]))
            part.hashes.append_piece(hashes.tobytes())
            part.heads.append_piece(marshal.dumps(heads, _MARSHAL))
            part.bodies.append_piece(marshal.dumps(self._bodies, _MARSHAL))
        self._names, self._types, self._keys = [], bytearray(), []
        self._heads, self._bodies, self._held = [], [], 0

    def _pack(self, names: list[bytes]) -> None:
        """Distributes entries to the directory's blocks."""
        needed = DIRENT * len(names) + sum(map(len, names))
        if self._used + needed <= BLOCK:
            self._used += needed
            return
        used = self._used
        for name in names:
            needed = DIRENT + len(name)
            if used + needed > BLOCK:
                self._blocks += 1
                used = 0
            used += needed
        self._used = used


class Collection:
    """What several collectors left. A context manager, which removes it."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._spools = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spools.close()

    def spool(self) -> Spool:
        """One more file, removed with the others. Raises MkmetaError."""
        spool = Spool()
        self._spools.callback(spool.close)
        return spool

    def part(self) -> Part:
        """Files for one more process; to be called before that exists. Raises MkmetaError."""
        part = Part(self.spool)
        self.parts.append(part)
        return part

    def complete(self) -> None:
        """Puts the directories into their order; nothing is collected any more. Raises MkmetaError."""
        with ExternalSorter() as records:
            for part in self.parts:
                part.flush()
                for record in part.records.pieces():
                    records.add(record)
            self._order = self.spool()
            for record in records:
                self._order.append(record[-_RECORD.size :])
            self._order.flush()

    def directories(self, start: int = 0) -> Iterator[DirectoryRecord]:
        """All directories, in node order, from one on."""
        at, size = start * _RECORD.size, BUFFER_BYTES // _RECORD.size * _RECORD.size
        while data := self._order.read(at, size):
            at += len(data)
            yield from map(DirectoryRecord._make, _RECORD.iter_unpack(data))

    def heads(self, directory: DirectoryRecord) -> Iterator[list[Head]]:
        """Of the nodes in a directory."""
        for data in self.parts[directory.part].heads.pieces(directory.heads_at, directory.heads_size):
            yield marshal.loads(data)

    def bodies(self, directory: DirectoryRecord) -> Iterator[list[Body]]:
        """Of the same nodes, in the same pieces."""
        for data in self.parts[directory.part].bodies.pieces(directory.bodies_at, directory.bodies_size):
            yield marshal.loads(data)

    def names(self, directory: DirectoryRecord) -> Iterator[Names]:
        """What is in a directory."""
        for data in self.parts[directory.part].names.pieces(directory.names_at, directory.names_size):
            yield Names(*marshal.loads(data))

    def content(self, part: int, at: int, size: int) -> bytes:
        """A piece of the content of a file."""
        return self.parts[part].contents.read(at, size)

    def hashes(self) -> Iterator[Sequence[int]]:
        """Hashes of the xattrs of all nodes, a chunk at a time."""
        for part in self.parts:
            for data in part.hashes.pieces():
                yield array("q", data)

    def all_bodies(self) -> Iterator[list[Body]]:
        """Of all nodes, in any order."""
        for part in self.parts:
            for data in part.bodies.pieces():
                yield marshal.loads(data)

    def marked_bodies(self, part: Part, marks: bytearray, mask: int) -> Iterator[list[Body] | None]:
        """Bodies of each chunk that has xattrs with hashes that are marked; None for the other chunks."""
        for data, bodies in zip(part.hashes.pieces(), part.bodies.pieces(), strict=True):
            is_marked = 1 in bytes([marks[number & mask] for number in array("q", data)])
            yield marshal.loads(bodies) if is_marked else None


def node_order(path: bytes) -> bytes:
    """A key that sorts paths in node order."""
    if not path:
        return bytes(_DEPTH_BYTES)
    return (path.count(b"/") + 1).to_bytes(_DEPTH_BYTES, "big") + tree_order(path)
