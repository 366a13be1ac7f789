"""Writing a manifest file: objects and records in, frames and tables out, in one pass.

The layout is that of formats/manifest.md section 2.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import BinaryIO, Final, Self

import zstandard

from mkmeta.codec.container import (
    CONTENT_TRAILER,
    FRAME_ROW,
    FRAME_TARGET,
    OBJECT_ROW,
    Footer,
    FrameRow,
    Location,
    encode_header,
)
from mkmeta.codec.info import INFO_SIZE_MAX, ROWS_MAX, Info, encode_info
from mkmeta.codec.objects import (
    OBJECT_SIZE_MAX,
    PAGE_BYTES,
    encode_link_index,
    encode_link_row,
    encode_page,
    encode_root,
)
from mkmeta.digest import DIGEST_SIZE, ObjectId, ObjectKind
from mkmeta.errors import FormatError, MkmetaError
from mkmeta.manifest.check import check, check_contents
from mkmeta.manifest.content_walk import INSIDE_BYTES, INSIDE_FILES, Totals
from mkmeta.manifest.content_writer import ContentFrame, ContentWriter
from mkmeta.manifest.object_file import ids_in
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import LinkRow, PrimaryRow, Root

COMPRESSION_LEVEL: Final = 3  # digests do not compress: higher levels cost time and save next to nothing
_FAULT: Final = "this is a fault of mkmeta, or of the disk: please report it"
_RECENT_SLOTS = 1 << 16  # objects remembered to store equal directories once; a forgotten one is stored again


class ManifestWriter:
    """Writes a manifest to a binary stream. Memory: one open frame of each sort, and the recent IDs.

    Without contents it never seeks in the stream. With contents that must be a file that can be read back and cut:
    tables are written for the time it takes to see which contents files have, and taken away again.

    Objects are added children first; `finish` writes the root, the tables and the footer. A context manager: leaving it
    without `finish` leaves a stream that no reader accepts.
    """

    def __init__(self, stream: BinaryIO, contents: ContentWriter | None = None) -> None:
        """`contents`: what is to collect contents of files; None: there are none."""
        self._stream = stream
        self._contents = contents
        self._position = 0
        self._frames: list[FrameRow] = []
        self._adopted = 0  # frames
        self._donor: ManifestReader | None = None  # whose object table is read again when the own one is written
        self._table = ExternalSorter()
        self._recent = bytearray(_RECENT_SLOTS * DIGEST_SIZE)
        self._compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
        self._objects = _OpenFrame(self)  # apart from the records: each sort compresses best with its own
        self._records = _OpenFrame(self)
        self.write(encode_header(contents=contents is not None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._table.__exit__(*args)
        if self._contents is not None:
            self._contents.__exit__(*args)

    def adopt(self, reader: ManifestReader, *, unread: bool = False) -> None:
        """Takes over all objects and records of another manifest, compressed as it is; places in it are places here.

        Only as the first thing a writer does, which needs the other until `finish`: then its table is read once more.
        Raises FormatError when it is damaged. `unread`: whoever refers to an object in it has read that.
        """
        assert not self._frames
        for data, size in reader.file.raw_frames() if unread else reader.file.frames():
            self._frames.append(FrameRow(self._position, len(data), size))
            self.write(data)
        self._adopted = len(self._frames)
        self._donor = reader
        for part in reader.file.table_parts():
            for object_id in ids_in(part):
                self._is_recent(object_id)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._position

    @property
    def size(self) -> int:
        """Of them, those of objects and records."""
        return self._position - (self._contents.frame_bytes if self._contents is not None else 0)

    def add(self, kind: ObjectKind, data: bytes) -> ObjectId:
        """Stores an object and returns its ID."""
        object_id = kind.id_of(data)
        self.add_named(object_id, data)
        return object_id

    def add_named(self, object_id: ObjectId, data: bytes) -> None:
        """Stores an object whose ID the caller has computed. Equal objects are stored once as far as memory allows."""
        if len(data) > OBJECT_SIZE_MAX:
            raise MkmetaError(f"an object of {len(data)} bytes, more than the limit of {OBJECT_SIZE_MAX}")
        if not self._is_recent(object_id) or self._is_damaged(object_id, data):
            self._table.add(OBJECT_ROW.pack(object_id, *self._objects.add(data)))

    def _is_recent(self, object_id: bytes) -> bool:
        """Whether an object is remembered; it is from now on."""
        start = int.from_bytes(object_id[:4], "little") % _RECENT_SLOTS * DIGEST_SIZE
        if self._recent[start : start + DIGEST_SIZE] == object_id:
            return True
        self._recent[start : start + DIGEST_SIZE] = object_id
        return False

    def _is_damaged(self, object_id: ObjectId, data: bytes) -> bool:
        """Whether what was taken over has other bytes than these under their ID."""
        return self._donor is not None and self._donor.file.has(object_id, data) is False

    def add_contents(self, frame: ContentFrame) -> None:
        """Stores contents of files. Those that no file turns out to have will not be found."""
        assert self._contents is not None
        self._contents.add(self, frame)

    def add_facts(self, data: bytes) -> Location:
        """Stores a facts record and returns its place."""
        return self._records.add(data)

    def add_links(self, rows: Iterable[PrimaryRow | LinkRow]) -> ObjectId | None:
        """Stores link pages and their index, and returns the ID of that; None when there are no rows."""
        pages: list[ObjectId] = []
        page = bytearray()
        count = 0
        for row in rows:
            packed = encode_link_row(row)
            if count and len(page) + len(packed) > PAGE_BYTES:
                pages.append(self.add(ObjectKind.LINK_PAGE, encode_page(count, page)))
                page, count = bytearray(), 0
            page += packed
            count += 1
        if count:
            pages.append(self.add(ObjectKind.LINK_PAGE, encode_page(count, page)))
        return self.add(ObjectKind.LINK_INDEX, encode_link_index(pages)) if pages else None

    def finish(self, root: Root, info: Info, facts: Location | None) -> ObjectId:
        """Writes everything that is still missing and returns the manifest ID."""
        manifest_id = self.add(ObjectKind.ROOT, encode_root(root))
        if self._contents is not None:
            self._objects.close()
            self._records.close()
            totals = self._choose(self._contents, manifest_id)
            self._contents.copy(self)
            counts = info.counts | {INSIDE_FILES: totals.files, INSIDE_BYTES: totals.size}
            info = dataclasses.replace(info, counts=counts, closed=self._contents.told)
        info_place = self._records.add(_encoded(info))
        self._objects.close()
        self._records.close()
        if self._contents is not None:
            self._contents.write_table(self, len(self._frames))
            self._frames += self._contents.frames
        self._write_tables(manifest_id, info_place, facts)
        return manifest_id

    def _choose(self, contents: ContentWriter, manifest_id: ObjectId) -> Totals:
        """Has the tree, which is complete, looked through for files with contents: by a reader, for which it gets
        tables, that are taken away again.
        """
        end = self._position
        self.write(CONTENT_TRAILER.pack(0, len(self._frames), 0))
        self._write_tables(manifest_id, Location(0, 0, 0), None)
        self._stream.flush()
        with ManifestReader(os.dup(self._stream.fileno())) as tree:
            totals = contents.choose(tree)
        self._stream.seek(end)
        self._stream.truncate()
        self._position = end
        return totals

    def _write_tables(self, manifest_id: ObjectId, info: Location, facts: Location | None) -> None:
        frame_table = self._position
        for row in self._frames:
            self.write(FRAME_ROW.pack(*row))
        object_table = self._position
        for rows in self._object_rows():
            self.write(rows)
        objects = (self._position - object_table) // OBJECT_ROW.size
        footer = Footer(
            frame_table=frame_table,
            frames=len(self._frames),
            object_table=object_table,
            objects=objects,
            manifest_id=manifest_id,
            info=info,
            facts=facts,
        )
        self.write(footer.encode())

    def _object_rows(self) -> Iterator[bytes]:
        """The object table, some rows at a time. Where an object was taken over and is stored as well, that counts."""
        own = (next(rows) for _, rows in groupby(self._table, key=_id_of))
        row = next(own, None)
        for part in self._donor.file.table_parts() if self._donor is not None else ():
            ids = ids_in(part)
            among: dict[bytes, bytes] = {}
            while row is not None and _id_of(row) <= ids[-1]:
                among[_id_of(row)] = row
                row = next(own, None)
            if among:
                rows = {
                    part[at : at + DIGEST_SIZE]: part[at : at + OBJECT_ROW.size]
                    for at in range(0, len(part), OBJECT_ROW.size)
                }
                rows |= among
                part = b"".join(rows[name] for name in sorted(rows))
            yield part
        while row is not None:
            yield row
            row = next(own, None)

    def check(self, *, jobs: int = 1) -> None:
        """Reads back what was written, once it is finished, by the rules of readers. What was taken over was
        read then, or by whoever refers to it (`adopt`), and is not read again. Raises MkmetaError.
        """
        self._stream.flush()
        with ManifestReader(os.dup(self._stream.fileno())) as reader:
            try:
                check(reader, jobs=jobs, adopted=self._adopted)
                if self._contents is not None:
                    check_contents(reader, self._contents.packed)
            except FormatError as error:
                base = "is what it builds on valid (mkmeta show --check)? If so, " if self._donor is not None else ""
                hint = f"nothing was put in place; {base}{_FAULT}"
                raise MkmetaError(f"what was written is not a valid manifest: {error}", hint=hint) from None

    def reserve_frame(self) -> int:
        """The number of a frame that `write_frame` will be called for."""
        self._frames.append(FrameRow(0, 0, 0))
        return len(self._frames) - 1

    def write_frame(self, number: int, data: bytes) -> None:
        """Compresses and writes a frame."""
        compressed = self._compressor.compress(data)
        self._frames[number] = FrameRow(self._position, len(compressed), len(data))
        self.write(compressed)

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._position += len(data)


class _OpenFrame:
    """A frame that is being filled; its number is known from its first byte on."""

    def __init__(self, writer: ManifestWriter) -> None:
        self._writer = writer
        self._pieces: list[bytes] = []
        self._size = 0
        self._number = -1

    def add(self, data: bytes) -> Location:
        if self._size and self._size + len(data) > FRAME_TARGET:
            self.close()
        if not self._pieces:
            self._number = self._writer.reserve_frame()
        place = Location(self._number, self._size, len(data))
        self._pieces.append(data)
        self._size += len(data)
        return place

    def close(self) -> None:
        if self._pieces:
            self._writer.write_frame(self._number, b"".join(self._pieces))
            self._pieces = []
            self._size = 0


def _id_of(row: bytes) -> bytes:
    """The ID in a row of the object table."""
    return row[:DIGEST_SIZE]


def _encoded(info: Info) -> bytes:
    """An info record. Raises MkmetaError when it is too long."""
    data = encode_info(info)
    longest = max(map(len, (info.select, info.hide, info.drop_xattrs, info.left_out, info.inline, info.closed or ())))
    if len(data) > INFO_SIZE_MAX or longest > ROWS_MAX:
        raise MkmetaError("too many patterns and left-out subtrees to record", hint="select fewer subtrees")
    return data
