"""The xattrs of an image that occur more than once, and the area they are in (formats/erofs.md section 5).

Exact, in memory that does not grow with their number but for some twenty bytes each: hashes say which may occur again,
only those are compared, in a sort on disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Final

from mkmeta.codec.erofs import SHARED_MAX, decode_xattr, encode_xattr, xattr_name
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.sinks.erofs.collecting import Collection, DirectoryRecord
from mkmeta.sinks.erofs.nodes import Body
from mkmeta.sinks.erofs.spool import Spool

_BUCKETS: Final = 64  # that hashes are divided into; those of one are compared at once
_HASHES_HELD: Final = 1 << 21  # in all buckets, before they go to disk
_MARK_BITS: Final = 22
_MARKS: Final = 1 << _MARK_BITS  # bytes that a hash may fall on: set, it may be one of several
_RECENT: Final = 4096  # entries whose place is remembered
_INVERSE: Final = bytes(range(255, -1, -1))


class _Table:
    """Places of entries, found by their hashes: open addressing, linear probing."""

    def __init__(self) -> None:
        self.places = array("I")  # of each entry, divided by 4, and where the last one ends
        self._hashes = array("q")
        self._slots = array("I", [0])  # number of an entry, from 1; 0: none

    def append(self, place: int, number: int) -> None:
        self.places.append(place >> 2)
        self._hashes.append(number)

    def complete(self, size: int) -> None:
        """Nothing is appended any more; the entries take so many bytes."""
        self.places.append(size >> 2)
        mask = (1 << (2 * len(self._hashes)).bit_length()) - 1
        self._slots = slots = array("I", bytes(4 * (mask + 1)))
        for entry, number in enumerate(self._hashes, 1):
            slot = number >> _MARK_BITS & mask
            while slots[slot]:
                slot = slot + 1 & mask
            slots[slot] = entry
        del self._hashes

    def probe(self, number: int) -> Iterator[tuple[int, int]]:
        """Where an entry of this hash may begin and end, divided by 4."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = number >> _MARK_BITS & mask
        while entry := slots[slot]:
            yield self.places[entry - 1], self.places[entry]
            slot = slot + 1 & mask


class SharedXattrs:
    """Where the shared xattrs are, and which directories have nodes that may have some."""

    def __init__(self, area: Spool, marks: bytearray, table: _Table, chunks: list[bytearray]) -> None:
        self.size = area.size
        self._area = area
        self._marks = marks
        self._table = table
        self._chunks = chunks
        self._recent: dict[bytes, int] = {}

    def may_be_in(self, directory: DirectoryRecord) -> bool:
        """Whether a node in a directory may have a shared xattr."""
        return 1 in self._chunks[directory.part][directory.chunk : directory.chunk + directory.chunks]

    def divide(self, entries: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
        """Of the xattrs of a node: places of shared ones in the area, divided by 4, and the others. Raises OSError."""
        shared: list[int] = []
        inline = []
        marks = self._marks
        for entry in entries:
            number = hash(entry)
            if marks[number & _MARKS - 1] and len(shared) < SHARED_MAX:
                place = self._recent.get(entry)
                if place is None:
                    place = self._find(entry, number)
                if place >= 0:
                    shared.append(place)
                    continue
            inline.append(entry)
        return shared, inline

    def _find(self, entry: bytes, number: int) -> int:
        place = -1
        for start, end in self._table.probe(number):
            if 4 * (end - start) == len(entry) and self._area.read(4 * start, len(entry)) == entry:
                place = start
                break
        if len(self._recent) >= _RECENT:
            self._recent.clear()
        self._recent[entry] = place
        return place

    def area(self, piece: int) -> Iterator[bytes]:
        """The shared area, in pieces of so many bytes."""
        for at in range(0, self.size, piece):
            yield self._area.read(at, piece)


def find_shared(collection: Collection, root: Body, area: Spool, spool: Spool) -> SharedXattrs:
    """Writes the shared xattrs of all nodes to `area`; `spool` takes what does not fit in memory.

    Raises MkmetaError when there is no room for temporary files.
    """
    marks = bytearray(_MARKS)
    table = _Table()
    chunks = [bytearray() for _ in collection.parts]
    marked = _mark(marks, _repeated(chain([list(map(hash, root[4]))], collection.hashes()), spool))
    with ExternalSorter() as candidates:
        if marked:
            found = _Candidates(candidates, marks)
            found.add([root])
            for part, flags in zip(collection.parts, chunks, strict=True):
                for bodies in collection.marked_bodies(part, marks, _MARKS - 1):
                    flags.append(bodies is not None)
                    found.add(bodies or ())
        for key, group in groupby(candidates):
            if len(list(islice(group, 2))) > 1:
                entry = _entry_of(key)
                table.append(area.append(entry), hash(entry))
    area.flush()
    table.complete(area.size)
    return SharedXattrs(area, marks, table, chunks)


class _Candidates:
    """Takes the xattrs whose hashes are marked, but for many of those that are on every second node."""

    def __init__(self, sorter: ExternalSorter, marks: bytearray) -> None:
        self._sorter = sorter
        self._marks = marks
        self._seen: dict[bytes, int] = {}  # how often, of some

    def add(self, bodies: Iterable[Body]) -> None:
        """Those of some nodes. Raises MkmetaError."""
        marks, seen = self._marks, self._seen
        for body in bodies:
            for entry in body[4]:
                if marks[hash(entry) & _MARKS - 1]:
                    times = seen.get(entry, 0)
                    if times < 2:  # twice is enough
                        if len(seen) >= _RECENT:
                            seen.clear()
                        seen[entry] = times + 1
                        self._sorter.add(_sort_key(entry))


def _mark(marks: bytearray, repeated: Iterator[int]) -> bool:
    """Whether there was one."""
    number = None
    for number in repeated:
        marks[number & _MARKS - 1] = 1
    return number is not None


def _repeated(hashes: Iterable[Sequence[int]], spool: Spool) -> Iterator[int]:
    """Those that occur more than once. Raises OSError."""
    buckets = [array("q") for _ in range(_BUCKETS)]
    written: list[list[tuple[int, int]]] = [[] for _ in buckets]
    appends = [bucket.append for bucket in buckets]
    held = 0
    for some in hashes:
        for number in some:
            appends[number & _BUCKETS - 1](number)
        held += len(some)
        if held >= _HASHES_HELD:
            for bucket, places in zip(buckets, written, strict=True):
                data = bucket.tobytes()
                places.append((spool.append(data), len(data)))
                del bucket[:]
            held = 0
    spool.flush()
    for bucket, places in zip(buckets, written, strict=True):
        for at, size in places:
            bucket.frombytes(spool.read(at, size))
        seen = set(bucket)
        if len(seen) < len(bucket):
            for number in bucket:
                if number in seen:
                    seen.remove(number)
                else:
                    yield number
        del bucket[:]


def _sort_key(entry: bytes) -> bytes:
    """Names descending, then longer values first, then values descending."""
    name, value = decode_xattr(entry)
    return (name + b"\0" + len(value).to_bytes(2, "big") + value).translate(_INVERSE)


def _entry_of(key: bytes) -> bytes:
    name, _, rest = key.translate(_INVERSE).partition(b"\0")
    return encode_xattr(xattr_name(name), rest[2:])
