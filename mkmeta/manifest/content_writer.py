"""The contents of a manifest that is being written: new ones in frames that come ready, others from earlier manifests.

What a scan, a merge or a prune puts together is known when the tree is: only then is decided what stays. Of earlier
manifests, the donors, frames are taken as they are if all in them stays. Memory: a frame, and that of the tables.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import zstandard

from mkmeta.codec.container import CONTENT_ROW, CONTENT_TRAILER, FRAME_TARGET, FrameRow, Location
from mkmeta.digest import DIGEST_SIZE
from mkmeta.linux.temporary import TemporaryFile
from mkmeta.manifest.closed import ClosedPaths, closed_in
from mkmeta.manifest.content_table import ContentTable
from mkmeta.manifest.content_walk import Totals, count_inside, visit_files, zeros
from mkmeta.manifest.contents import Contents, check_apart
from mkmeta.manifest.sorter import ExternalSorter

if TYPE_CHECKING:
    from mkmeta.manifest.reader import ManifestReader
    from mkmeta.manifest.writer import ManifestWriter

_PLACED = struct.Struct(">IIIB32s")  # frame, offset, length, whether it stays, name; sorts as bytes do
_FRAME_BYTES: Final = 4
_SLOTS: Final = 1 << 21  # contents remembered, eight bytes each; what a content that was forgotten costs is its bytes
_KEY_BYTES: Final = 8
COMPRESSION_LEVEL: Final = 3  # as for objects; what is read at every start of a program should be read fast


class ContentFrame(NamedTuple):
    """Contents that were compressed together, by whoever read them."""

    data: bytes
    size: int  # bytes, decompressed
    digests: bytes  # of the contents in it, one after the other
    lengths: list[int]  # of the same; they follow each other


class Claims:
    """Remembers which contents were taken, in 16 MiB whatever their number, which processes forked later share.

    One may be forgotten for another, and is then taken once more; never does one pass for another that has not the
    same eight bytes in its digest.
    """

    def __init__(self) -> None:
        self._keys = mmap.mmap(-1, _SLOTS * _KEY_BYTES)

    def claim(self, digest: bytes) -> bool:
        """Whether a content is still to be taken; it is from now on taken, by who asked."""
        place = int.from_bytes(digest[_KEY_BYTES : 2 * _KEY_BYTES], "little") % _SLOTS * _KEY_BYTES
        key = digest[:_KEY_BYTES]
        if self._keys[place : place + _KEY_BYTES] == key:
            return False
        self._keys[place : place + _KEY_BYTES] = key
        return True


class FramePacker:
    """Puts contents into frames."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        self._pieces: list[bytes] = []
        self._digests: list[bytes] = []
        self._size = 0

    def add(self, digest: bytes, data: bytes) -> ContentFrame | None:
        """Adds one. Returns what was there before, when it does not fit."""
        full = self.take() if self._size and self._size + len(data) > FRAME_TARGET else None
        self._pieces.append(data)
        self._digests.append(digest)
        self._size += len(data)
        return full

    def take(self) -> ContentFrame | None:
        """What there is; None: nothing."""
        if not self._pieces:
            return None
        frame = ContentFrame(
            self._compressor.compress(b"".join(self._pieces)),
            self._size,
            b"".join(self._digests),
            list(map(len, self._pieces)),
        )
        self._pieces, self._digests, self._size = [], [], 0
        return frame


class ContentWriter:
    """Collects contents. A context manager."""

    def __init__(self, *, everything: bool = False) -> None:
        """`everything`: also of files that not everybody may read."""
        self.everything = everything
        self.donors: list[Contents] = []
        self.frames: list[FrameRow] = []  # numbered behind those of objects
        self.frame_bytes = 0  # in the file
        self.packed: set[int] = set()  # numbers of those that are not as in a donor
        self._candidates = ExternalSorter()  # rows of new contents, with the number of the frame among these
        self._rows = ExternalSorter()  # of those that stay
        self._marks: list[memoryview] = []  # of each donor, which stay
        self.closed = ClosedPaths()  # where nothing is taken, of new contents nor of donors'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._candidates.__exit__(*error)
        self._rows.__exit__(*error)

    @property
    def told(self) -> tuple[bytes, ...] | None:
        """The closed paths, as the manifest is to tell them; None: they did not matter, and are not known."""
        return None if self.everything else tuple(self.closed)

    def add(self, writer: ManifestWriter, frame: ContentFrame) -> None:
        """Writes a frame."""
        number = self._write(writer, frame.data, frame.size)
        self.packed.add(number)
        _place(self._candidates, number, frame.digests, frame.lengths)

    def choose(self, tree: ManifestReader) -> Totals:
        """Decides what stays, of new contents and of donors', for the files of a tree. Returns how much is inside.

        Raises FormatError, and MkmetaError when there is no room for temporary files.
        """
        with TemporaryFile() as file:
            own = _spooled(_unique(self._candidates), file)
            tables = [own, *(donor.table for donor in self.donors)]
            marks = [zeros(table.rows) for table in tables]

            def take(digest: bytes, size: int) -> None:
                for table, mark in zip(tables, marks, strict=True):
                    number = table.find(digest)
                    if number >= 0 and (mark[number] or table.row(number)[3] == size):
                        mark[number] = 1
                        return

            visit_files(tree, take, public=not self.everything, closed=self.closed)

            def is_inside(digest: bytes, _size: int) -> bool:
                numbers = (table.find(digest) for table in tables)
                return any(number >= 0 and mark[number] for number, mark in zip(numbers, marks, strict=True))

            totals = count_inside(tree, is_inside)
            for (name, frame, offset, length), is_kept in zip(own, marks[0], strict=True):
                if is_kept:
                    self._rows.add(CONTENT_ROW.pack(name, frame, offset, length))
            self._marks = marks[1:]
        return totals

    def copy(self, writer: ManifestWriter) -> None:
        """Writes what stays of donors. Raises FormatError for one that is damaged, MkmetaError."""
        for donor, marks in zip(self.donors, self._marks, strict=True):
            self._copy(writer, donor, marks)

    def write_table(self, writer: ManifestWriter, first_frame: int) -> None:
        """Writes the table: frames of contents are numbered from `first_frame` on."""
        self.packed = {first_frame + number for number in self.packed}
        rows = 0
        for record in self._rows:
            name, frame, offset, length = CONTENT_ROW.unpack(record)
            writer.write(CONTENT_ROW.pack(name, first_frame + frame, offset, length))
            rows += 1
        writer.write(CONTENT_TRAILER.pack(rows, first_frame, 0))

    def _copy(self, writer: ManifestWriter, donor: Contents, marks: memoryview) -> None:
        """Writes what is marked of one: frames that hold nothing else as they are."""
        packer = FramePacker()
        with ExternalSorter() as places:
            for (name, frame, offset, length), mark in zip(donor.table, marks, strict=True):
                places.add(_PLACED.pack(frame, offset, length, mark, name))
            for rows, again in zip(_by_frame(places), _by_frame(places), strict=True):
                filled = _survey(rows)
                number = -1
                for frame, offset, length, mark, name in again:
                    if not mark:
                        continue
                    data = donor.checked(name, Location(frame, offset, length))
                    if filled and number < 0:
                        compressed, size = donor.frame(frame)
                        if size == filled:
                            number = self._write(writer, compressed, size)
                        else:
                            filled = 0
                    if filled:
                        self._rows.add(CONTENT_ROW.pack(name, number, offset, length))
                    else:
                        self._pack(writer, packer.add(name, data))
            self._pack(writer, packer.take())

    def _pack(self, writer: ManifestWriter, frame: ContentFrame | None) -> None:
        if frame is not None:
            number = self._write(writer, frame.data, frame.size)
            self.packed.add(number)
            _place(self._rows, number, frame.digests, frame.lengths)

    def _write(self, writer: ManifestWriter, compressed: bytes, size: int) -> int:
        self.frames.append(FrameRow(writer.position, len(compressed), size))
        self.frame_bytes += len(compressed)
        writer.write(compressed)
        return len(self.frames) - 1


def carry(
    readers: Iterable[ManifestReader], *, everything: bool | None = None, closed: Iterable[bytes] | None = None
) -> ContentWriter | None:
    """What takes over the contents of manifests whose trees go into another; None: they have none.

    `everything`: also of files that not everybody may read; None: if one of them has such. `closed`: paths at which
    nothing is taken; None: those of all the manifests, with and without contents. Raises FormatError.
    """
    readers = list(readers)
    donors = [reader for reader in readers if reader.contents is not None]
    if not donors:
        return None
    if everything is None:
        everything = any(reader.info.inline_all for reader in donors)
    writer = ContentWriter(everything=everything)
    writer.donors += (reader.contents for reader in donors if reader.contents is not None)
    if not everything:
        writer.closed.update(chain.from_iterable(map(closed_in, readers)) if closed is None else closed)
    return writer


def _place(rows: ExternalSorter, number: int, digests: bytes, lengths: Iterable[int]) -> None:
    """Adds the rows of contents that follow each other in a frame."""
    at = 0
    for place, length in enumerate(lengths):
        rows.add(CONTENT_ROW.pack(digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE], number, at, length))
        at += length


_Placed = tuple[int, int, int, int, bytes]


def _by_frame(places: Iterable[bytes]) -> Iterator[Iterator[_Placed]]:
    """The contents of each frame, in turn, by their place in it."""
    for _, group in groupby(places, key=lambda record: record[:_FRAME_BYTES]):
        yield map(_PLACED.unpack, group)


def _survey(rows: Iterable[_Placed]) -> int:
    """How many bytes the contents of a frame fill from its beginning on, with nothing between, if all of them stay;
    else 0. Raises FormatError for such as overlap.
    """
    before = Location(0, 0, 0)
    is_whole = True
    for frame, offset, length, mark, name in rows:
        place = Location(frame, offset, length)
        check_apart(before, place, name)
        is_whole = is_whole and bool(mark) and offset == before.offset + before.length
        before = place
    return before.offset + before.length if is_whole else 0


def _unique(records: Iterable[bytes]) -> Iterator[bytes]:
    """Sorted rows, but for further ones of the same name."""
    before = b""
    for record in records:
        if record[:DIGEST_SIZE] != before:
            before = record[:DIGEST_SIZE]
            yield record


def _spooled(rows: Iterable[bytes], file: TemporaryFile) -> ContentTable:
    """Rows in a temporary file, as a table. Raises MkmetaError."""
    count = 0
    for row in rows:
        file.write(row)
        count += 1
    file.flush()
    return ContentTable(file.fileno(), 0, count)
