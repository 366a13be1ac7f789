"""The fixed tables of a manifest file: header, rows of the frame, object and content tables, footer.

The layout is that of formats/manifest.md section 2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError

MAGIC: Final = b"\x89MKM\r\n\x1a\n"
END_MAGIC: Final = MAGIC[::-1]
VERSION: Final = 1
FRAME_TARGET: Final = 256 << 10  # bytes a writer puts in a frame before it closes it; a longer object has its own
FRAME_SIZE_MAX: Final = 4 << 20  # bytes, decompressed
CONTENT_SIZE_MAX: Final = FRAME_SIZE_MAX  # bytes of a file whose content is in the manifest: a frame holds all of it
HAS_CONTENTS: Final = 1  # compat flag: there is a content table
FRAME_COMPRESSED_MAX: Final = FRAME_SIZE_MAX + (64 << 10)  # bytes in the file: what zstd makes of incompressible ones

HEADER = struct.Struct("<8sIIII8s")
FRAME_ROW = struct.Struct("<QII")
OBJECT_ROW = struct.Struct("<32sIII")
CONTENT_ROW = struct.Struct("<32sIII")
CONTENT_TRAILER = struct.Struct("<QII")
FOOTER = struct.Struct("<QIIQQ32sIIIIII8s")


class FrameRow(NamedTuple):
    """Where a frame is in the file."""

    offset: int
    compressed: int  # bytes in the file
    size: int  # bytes, decompressed


class ContentTrailer(NamedTuple):
    """What follows the content table."""

    rows: int
    first_frame: int  # number of the first frame that holds contents; it and all after it hold nothing else


class Location(NamedTuple):
    """Where an object or record is: in which frame, at which offset of its decompressed bytes."""

    frame: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Footer:
    """The last 96 bytes: where everything else is."""

    frame_table: int  # offset in the file
    frames: int
    object_table: int  # offset in the file
    objects: int
    manifest_id: ObjectId
    info: Location
    facts: Location | None

    def encode(self) -> bytes:
        """The footer's bytes."""
        facts = self.facts or Location(0, 0, 0)
        return FOOTER.pack(
            self.frame_table,
            self.frames,
            0,
            self.object_table,
            self.objects,
            self.manifest_id,
            *self.info,
            *facts,
            END_MAGIC,
        )


def encode_header(*, contents: bool = False) -> bytes:
    """The header's bytes."""
    return HEADER.pack(MAGIC, VERSION, HAS_CONTENTS if contents else 0, 0, 0, bytes(8))


def check_header(data: bytes) -> int:
    """The compat flags, from the first 32 bytes of a file. Raises FormatError unless the rest can be read."""
    if len(data) < HEADER.size or data[:8] != MAGIC:
        _fail("header", "this is not a mkmeta manifest (wrong magic)")
    _, version, compat, _ro_compat, incompat, reserved = HEADER.unpack(data)
    if version != VERSION:
        _fail("header", f"version {version}, this mkmeta reads version {VERSION}")
    if incompat:
        _fail("header", f"incompat flags {incompat:#x} of a newer mkmeta")
    if any(reserved):
        _fail("header", "reserved bytes are not zero")
    return int(compat)


def decode_content_trailer(data: bytes, footer: Footer) -> ContentTrailer:
    """The 16 bytes before the frame table, checked against the footer."""
    rows, first_frame, zero = CONTENT_TRAILER.unpack(data)
    if zero:
        _fail("content table", "reserved bytes are not zero")
    if rows * CONTENT_ROW.size > footer.frame_table - HEADER.size - CONTENT_TRAILER.size:
        _fail("content table", "begins before the file's frames")
    if first_frame > footer.frames:
        _fail("content table", f"its first frame is {first_frame} of {footer.frames}")
    return ContentTrailer(rows, first_frame)


def decode_footer(data: bytes, file_size: int) -> Footer:
    """The footer from the last 96 bytes of a file, checked against the size of the file."""
    if len(data) != FOOTER.size or data[-8:] != END_MAGIC:
        _fail("footer", "missing: the file was cut or not completely written")
    frame_table, frames, zero, object_table, objects, manifest_id, *refs, _ = FOOTER.unpack(data)
    if zero:
        _fail("footer", "reserved bytes are not zero")
    if frame_table < HEADER.size or object_table != frame_table + frames * FRAME_ROW.size:
        _fail("footer", "the frame table has no valid place")
    if object_table + objects * OBJECT_ROW.size + FOOTER.size != file_size:
        _fail("footer", "the tables do not fill the file")
    info, facts = Location(*refs[:3]), Location(*refs[3:])
    if facts.length == 0 and (facts.frame or facts.offset):
        _fail("footer", "bad reference to facts")
    return Footer(
        frame_table=frame_table,
        frames=frames,
        object_table=object_table,
        objects=objects,
        manifest_id=ObjectId(manifest_id),
        info=info,
        facts=facts if facts.length else None,
    )


def decode_frame_row(data: bytes, number: int, frame_table: int) -> FrameRow:
    """A row of the frame table, checked to lie between header and frame table."""
    row = FrameRow(*FRAME_ROW.unpack(data))
    if row.offset < HEADER.size or row.offset + row.compressed > frame_table:
        _fail(f"frame {number}", "lies outside the file's frames")
    if row.size > FRAME_SIZE_MAX or row.compressed > FRAME_COMPRESSED_MAX:
        _fail(f"frame {number}", f"{row.size} bytes ({row.compressed} in the file), more than the limit")
    return row


def _fail(where: str, reason: str) -> NoReturn:
    raise FormatError(f"{where}: {reason}")
