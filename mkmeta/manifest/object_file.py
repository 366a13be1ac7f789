"""A manifest file as a store of bytes: objects by ID, records and contents by place. What they mean is said elsewhere.

Footer first, then the frames that hold what is asked for, nothing else (formats/manifest.md section 2). The file may be
hostile: methods return what was asked for or raise FormatError, and memory is bounded by the limits of section 4.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from operator import lt
from typing import BinaryIO, Final

import zstandard

from mkmeta.codec.container import (
    CONTENT_ROW,
    CONTENT_TRAILER,
    FOOTER,
    FRAME_ROW,
    FRAME_SIZE_MAX,
    HAS_CONTENTS,
    HEADER,
    OBJECT_ROW,
    Footer,
    FrameRow,
    Location,
    check_header,
    decode_content_trailer,
    decode_footer,
    decode_frame_row,
)
from mkmeta.codec.objects import OBJECT_SIZE_MAX
from mkmeta.digest import DIGEST_SIZE, ObjectId, ObjectKind
from mkmeta.errors import FormatError
from mkmeta.manifest.content_table import ContentTable
from mkmeta.manifest.sorter import ExternalSorter

_FRAME_CACHE_BYTES: Final = 4 << 20  # decompressed; a tree is written almost in the order it is read
_TABLE_ROWS = 128  # rows of the object table read at once
_GUESSES = 8  # until what is left of the object table is halved: two or three are enough
_TABLE_CACHE = 512  # such reads kept: 2.75 MiB
_COPY_BYTES: Final = 1 << 20
_PLACES_BYTES: Final = 4 << 20  # of places in memory while frames are looked through
_PLACE = struct.Struct(">III")  # of an object: frame, offset, length; sorts as bytes do


def ids_in(part: bytes) -> list[bytes]:
    """The IDs in rows of an object table."""
    return [part[start : start + DIGEST_SIZE] for start in range(0, len(part), OBJECT_ROW.size)]


class ObjectFile:
    """An open manifest file; owns the file descriptor it is given."""

    def __init__(self, fd: int) -> None:
        """Checks header and footer. Raises FormatError, and OSError when the file cannot be read."""
        self._fd = fd
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._frames_held = 0
        self._table_part = lru_cache(maxsize=_TABLE_CACHE)(self._read_table_part)
        self._recent: tuple[ObjectKind, ObjectId, bytes] = (ObjectKind.ROOT, ObjectId(b""), b"")
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=FRAME_SIZE_MAX)
        size = os.fstat(fd).st_size
        flags = check_header(os.pread(fd, HEADER.size, 0))
        if size < HEADER.size + FOOTER.size:
            raise FormatError("footer: missing: the file was cut or not completely written")
        self.footer: Footer = decode_footer(os.pread(fd, FOOTER.size, size - FOOTER.size), size)
        self._parts = -(-self.footer.objects // _TABLE_ROWS)  # of the object table
        self.object_frames = self.footer.frames  # those after them hold contents
        self.content_table: ContentTable | None = None
        if flags & HAS_CONTENTS:
            self.content_table, self.object_frames = self._find_contents()

    def _find_contents(self) -> tuple[ContentTable, int]:
        """The content table, and the first frame of contents."""
        start = self.footer.frame_table - CONTENT_TRAILER.size
        if start < HEADER.size:
            raise FormatError("content table: there is none, and the header has its flag")
        trailer = decode_content_trailer(self._pread(CONTENT_TRAILER.size, start, "content table"), self.footer)
        return ContentTable(self._fd, start - trailer.rows * CONTENT_ROW.size, trailer.rows), trailer.first_frame

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    @property
    def objects(self) -> int:
        """How many rows the object table has."""
        return self.footer.objects

    def object(self, kind: ObjectKind, object_id: ObjectId, where: str) -> bytes:
        """The bytes of an object, with the ID checked; `where` names it in errors. Raises FormatError."""
        if self._recent[:2] == (kind, object_id):  # a directory is asked for its pages, and then for the only one
            return self._recent[2]
        data = self.record(self._place_of(object_id, where), where)
        if kind.id_of(data) != object_id:
            raise FormatError(f"{where}: object {object_id.hex()[:16]} is damaged: its bytes have another digest")
        self._recent = (kind, object_id, data)
        return data

    def frame_of(self, object_id: ObjectId, where: str) -> int:
        """The frame that an object is in. Raises FormatError."""
        return self._place_of(object_id, where).frame

    def object_number(self, object_id: ObjectId, where: str) -> int:
        """The number of an object's row in the object table. Raises FormatError."""
        number, at = self._find_row(object_id, where)
        return number * _TABLE_ROWS + at // OBJECT_ROW.size

    def record(self, place: Location, where: str) -> bytes:
        """The bytes of an object or record at a place. Raises FormatError."""
        if self.object_frames <= place.frame < self.footer.frames:
            raise FormatError(f"{where}: in frame {place.frame}, which is for contents")
        return self._at(place, where)

    def content(self, place: Location, where: str) -> bytes:
        """What is at a place in a content frame. Raises FormatError."""
        return self._at(place, where)

    @property
    def size(self) -> int:
        """Bytes of the file that hold objects and records, whether the tree needs them or not."""
        table = self.content_table
        if table is None:
            return self.footer.frame_table
        frames = sum(self._frame_row(number).compressed for number in range(self.object_frames, self.footer.frames))
        return self.footer.frame_table - frames - table.rows * CONTENT_ROW.size - CONTENT_TRAILER.size

    def raw_frame(self, number: int) -> tuple[bytes, int]:
        """A frame as it is in the file, compressed, and its size. Raises FormatError."""
        row = self._frame_row(number)
        return self._pread(row.compressed, row.offset, f"frame {number}"), row.size

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """Every frame of objects as `raw_frame`, when all objects in it have been found undamaged.

        Raises FormatError at the first that is not, or not where the object table says.
        """
        with ExternalSorter(_PLACES_BYTES) as places:
            for part in self.table_parts():
                for object_id, *place_of in OBJECT_ROW.iter_unpack(part):
                    places.add(_PLACE.pack(*place_of) + object_id)
            rows = iter(places)
            place = next(rows, None)
            for number in range(self.object_frames):
                data = self._read_frame(number, f"frame {number}")
                while place is not None and _PLACE.unpack_from(place)[0] == number:
                    _, offset, length = _PLACE.unpack_from(place)
                    content, object_id = data[offset : offset + length], place[_PLACE.size :]
                    if len(content) != length or not any(kind.id_of(content) == object_id for kind in ObjectKind):
                        raise FormatError(f"frame {number}: object {object_id.hex()[:16]} is damaged")
                    place = next(rows, None)
                yield self.raw_frame(number)
            if place is not None:
                raise FormatError("object table: names a frame that does not exist")

    def raw_frames(self) -> Iterator[tuple[bytes, int]]:
        """Every frame of objects as `raw_frame`; nothing is said of what is in it. Raises FormatError."""
        return map(self.raw_frame, range(self.object_frames))

    def has(self, object_id: ObjectId, data: bytes) -> bool | None:
        """Whether an object is there with these bytes; None: it is not there at all."""
        try:
            self._find_row(object_id, "")
        except FormatError:
            return None
        try:
            return self.record(self._place_of(object_id, ""), "") == data
        except FormatError:
            return False

    def table_parts(self) -> Iterator[bytes]:
        """The object table, some rows at a time. Raises FormatError unless they ascend."""
        previous = b""
        for number in range(self._parts):
            part = self._read_table_part(number)
            ids = [previous, *ids_in(part)]
            if not all(map(lt, ids, ids[1:])):
                raise FormatError("object table: not sorted")
            previous = ids[-1]
            yield part

    def copy_to(self, out: BinaryIO) -> None:
        """Writes the bytes of the file, unchecked. Raises OSError."""
        offset = 0
        while data := os.pread(self._fd, _COPY_BYTES, offset):
            out.write(data)
            offset += len(data)

    def check_tables(self) -> None:
        """Every row of the frame table, and the order of the object table as a whole."""
        for number in range(self.footer.frames):
            self._frame_row(number)
        for _ in self.table_parts():
            pass
        previous = b""
        for name, *_ in self.content_table or ():
            if name <= previous:
                raise FormatError("content table: not sorted")
            previous = name

    # --- below: from IDs to places, from places to bytes ---

    def _place_of(self, object_id: ObjectId, where: str) -> Location:
        """Where an object is."""
        number, at = self._find_row(object_id, where)
        _, frame, offset, length = OBJECT_ROW.unpack_from(self._table_part(number), at)
        if length > OBJECT_SIZE_MAX:
            raise FormatError(f"{where}: object of {length} bytes, more than the limit of {OBJECT_SIZE_MAX}")
        return Location(frame, offset, length)

    def _find_row(self, object_id: ObjectId, where: str) -> tuple[int, int]:
        """The part of the object table that has an object's row, and where in it.

        IDs are spread evenly: how far one is from the first of a part says how many parts away its own is. Where that
        does not lead to it, as in a table that somebody made up, what is left is halved.
        """
        low, high = 0, self._parts
        wanted = int.from_bytes(object_id[:8], "big")
        number, guesses = wanted * high >> 64, 0
        while low < high:
            part = self._table_part(number)
            if object_id < part[:DIGEST_SIZE]:
                high = number
            elif object_id <= part[-OBJECT_ROW.size : DIGEST_SIZE - OBJECT_ROW.size]:
                at = part.find(object_id)
                while at > 0 and at % OBJECT_ROW.size:
                    at = part.find(object_id, at + 1)
                if at < 0:
                    break
                return number, at
            else:
                low = number + 1
            guesses += 1
            if guesses < _GUESSES:
                off = wanted - int.from_bytes(part[:8], "big")
                number = min(max(number + (off * self._parts >> 64), low), high - 1)
            else:
                number = (low + high) // 2
        raise FormatError(f"{where}: object {object_id.hex()[:16]} is not in the file")

    def _read_table_part(self, number: int) -> bytes:
        rows = min(_TABLE_ROWS, self.footer.objects - number * _TABLE_ROWS)
        offset = self.footer.object_table + number * _TABLE_ROWS * OBJECT_ROW.size
        return self._pread(rows * OBJECT_ROW.size, offset, "object table")

    def _at(self, place: Location, where: str) -> bytes:
        """The bytes at a place, from the cached frame if there is one."""
        frame = self._frames.get(place.frame)
        if frame is None:
            frame = self._read_frame(place.frame, where)
            self._frames[place.frame] = frame
            self._frames_held += len(frame)
            while self._frames_held > _FRAME_CACHE_BYTES and len(self._frames) > 1:
                self._frames_held -= len(self._frames.popitem(last=False)[1])
        else:
            self._frames.move_to_end(place.frame)
        if place.offset + place.length > len(frame):
            raise FormatError(f"{where}: reaches beyond the end of frame {place.frame}")
        return frame[place.offset : place.offset + place.length]

    def _read_frame(self, number: int, where: str) -> bytes:
        if number >= self.footer.frames:
            raise FormatError(f"{where}: frame {number} does not exist")
        row = self._frame_row(number)
        data = self._pread(row.compressed, row.offset, f"frame {number}")
        try:
            parameters = zstandard.get_frame_parameters(data)
            if parameters.content_size != row.size:
                raise FormatError(f"frame {number}: says it has another size than the frame table")
            if parameters.window_size > FRAME_SIZE_MAX:
                raise FormatError(f"frame {number}: has a window of more than {FRAME_SIZE_MAX} bytes")
            if parameters.dict_id or not parameters.has_checksum:
                raise FormatError(f"frame {number}: has a dictionary or no checksum")
            decompressed = self._decompressor.decompress(data, max_output_size=row.size or 1, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"frame {number}: damaged: {error}") from None
        if len(decompressed) != row.size:
            raise FormatError(f"frame {number}: {len(decompressed)} bytes instead of {row.size}")
        return decompressed

    def _frame_row(self, number: int) -> FrameRow:
        data = self._pread(FRAME_ROW.size, self.footer.frame_table + number * FRAME_ROW.size, "frame table")
        return decode_frame_row(data, number, self.footer.frame_table)

    def _pread(self, size: int, offset: int, where: str) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise FormatError(f"{where}: the file ends too early")
        return data
