"""Manifest files put together freely, with none of the writer's care: valid where the caller says nothing else.

A `Draft` collects objects, as msgpack values or as bytes; `Parts` is the file taken apart, to be changed anywhere
before it is put together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import zstandard
from blake3 import blake3

from mkmeta.codec.container import (
    CONTENT_ROW,
    CONTENT_TRAILER,
    END_MAGIC,
    FOOTER,
    FRAME_ROW,
    FRAME_SIZE_MAX,
    HEADER,
    MAGIC,
    OBJECT_ROW,
)
from mkmeta.codec.info import encode_info
from mkmeta.codec.packing import pack
from mkmeta.digest import ObjectKind
from mkmeta.model import STORED_COUNTS, Counts
from tests.vectors.trees import INFO, PAGE_BYTES

Value = Any  # anything msgpack can hold: the invalid is what these files are about

ZSTD_MAGIC = bytes.fromhex("28b52ffd")


@dataclass
class Parts:
    """The parts of a file; `encode` computes only what `footer` does not say."""

    header: list[Value] = field(default_factory=lambda: [MAGIC, 1, 0, 0, 0, bytes(8)])
    frames: list[bytes] = field(default_factory=list)  # compressed
    sizes: list[int] = field(default_factory=list)  # decompressed lengths
    frame_rows: dict[int, list[int]] = field(default_factory=dict)  # rows that are not what `frames` and `sizes` give
    object_rows: list[list[Value]] = field(default_factory=list)  # ID, frame, offset, length
    contents: list[list[Value]] | None = None  # rows: name, frame, offset, length; None: no table
    trailer: dict[str, Value] = field(default_factory=dict)
    footer: dict[str, Value] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The file."""
        data = HEADER.pack(*self.header)
        rows = []
        for number, frame in enumerate(self.frames):
            rows.append(self.frame_rows.get(number, [len(data), len(frame), self.sizes[number]]))
            data += frame
        if self.contents is not None:
            data += b"".join(CONTENT_ROW.pack(*row) for row in self.contents)
            first = min((row[1] for row in self.contents), default=len(rows))
            data += CONTENT_TRAILER.pack(
                *({"rows": len(self.contents), "first": first, "zero": 0} | self.trailer).values()
            )
        frame_table = len(data)
        data += b"".join(FRAME_ROW.pack(*row) for row in rows)
        object_table = len(data)
        data += b"".join(OBJECT_ROW.pack(*row) for row in self.object_rows)
        footer: dict[str, Value] = {
            "frame_table": frame_table,
            "frames": len(rows),
            "zero": 0,
            "object_table": object_table,
            "objects": len(self.object_rows),
            "id": bytes(32),
            "info": (1, 0, self.sizes[1]),
            "facts": (0, 0, 0),
            "magic": END_MAGIC,
        } | self.footer
        places = (*footer.pop("info"), *footer.pop("facts"))
        *values, magic = footer.values()
        return data + FOOTER.pack(*values, *places, magic)


class Draft:
    """The objects and records of a manifest to be. Objects are in frame 0 and behind, info in 1, facts in 2."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.facts = [bytearray()]  # by frame, from frame 2 on

    def add(self, kind: ObjectKind, content: Value, object_id: bytes | None = None) -> bytes:
        """Adds an object, a value or bytes, under its ID or another one, and returns that."""
        data = content if isinstance(content, bytes) else pack(content)
        name = object_id or kind.id_of(data)
        self.objects[name] = data
        return name

    def directory(self, *entries: Value) -> bytes:
        """Adds a directory."""
        return self.add(ObjectKind.DIRECTORY, list(entries))

    def folder(self, name: bytes, *entries: Value, kind: int = 1, count: int | None = None) -> list[Value]:
        """Adds a directory and returns an entry for it, with the true count of entries or another one."""
        true = total(entries) if count is None else count
        return entry(name, 0o040755, self.directory(*entries), true, kind)

    def links(self, *pages: Value) -> bytes:
        """Adds link pages and their index."""
        return self.add(ObjectKind.LINK_INDEX, [self.add(ObjectKind.LINK_PAGE, page) for page in pages])

    def linked(self, rows: list[Value]) -> bytes:
        """Adds valid rows, divided into pages, and their index."""
        pages: list[list[Value]] = []
        size = 0
        for row in rows:
            size += len(pack(row))
            if not pages or size > PAGE_BYTES:
                pages.append([])
                size = len(pack(row))
            pages[-1].append(row)
        return self.links(*pages)

    def add_facts(self, content: Value) -> list[int]:
        """Adds a facts record, or that of a page, and returns its place."""
        data = content if isinstance(content, bytes) else pack(content)
        if self.facts[-1] and len(self.facts[-1]) + len(data) > FRAME_SIZE_MAX:
            self.facts.append(bytearray())
        self.facts[-1] += data
        return [1 + len(self.facts), len(self.facts[-1]) - len(data), len(data)]

    def finish(
        self,
        *entries: Value,
        links: Value = None,
        count: int | None = None,
        root: dict[int, Value] | None = None,
        top: bytes | None = None,
        root_object: Value = None,
        info: Value = None,
        facts: Value = None,
    ) -> Parts:
        """The file of a root with these entries; `root` replaces elements of the root object by number."""
        directory = self.directory(*entries) if top is None else top
        elements = [0o040755, 0, 0, 0, 0, [], directory, total(entries) if count is None else count, links, []]
        for number, value in (root or {}).items():
            elements[number] = value
        root_id = self.add(ObjectKind.ROOT, elements if root_object is None else root_object)
        parts = Parts(footer={"id": root_id})
        record = encode_info(INFO) if info is None else info if isinstance(info, bytes) else pack(info)
        others = [record, *(self.facts if self.facts[0] else [])]
        contents = [bytearray()]
        for name, data in self.objects.items():
            if contents[-1] and len(contents[-1]) + len(data) > FRAME_SIZE_MAX:
                contents.append(bytearray())
            frame = len(contents) - 1 + (len(others) if len(contents) > 1 else 0)
            parts.object_rows.append([name, frame, len(contents[-1]), len(data)])
            contents[-1] += data
        parts.object_rows.sort()
        for content in (contents[0], *others, *contents[1:]):
            parts.frames.append(compress(bytes(content)))
            parts.sizes.append(len(content))
        if facts is not None:
            parts.footer["facts"] = tuple(facts)
        return parts


def add_contents(parts: Parts, *frames: list[bytes]) -> None:
    """Adds contents, each list in a frame, with valid rows."""
    parts.header[2] |= 1
    rows = parts.contents = []
    for contents in frames:
        at = 0
        for content in contents:
            rows.append([blake3(content).digest(), len(parts.frames), at, len(content)])
            at += len(content)
        data = b"".join(contents)
        parts.frames.append(compress(data))
        parts.sizes.append(len(data))
    rows.sort()


def holding(name: bytes, content: bytes) -> list[Value]:
    """A file with the BLAKE3 of its content."""
    return entry(name, 0o100644, len(content), blake3(content).digest(), None)


def compress(data: bytes) -> bytes:
    """A frame as the format wants it."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def handmade_frame(
    data: bytes, *, size: int | None, checksum: bool = True, dictionary: int = 0, zeros: int = 0, window: int = 0
) -> bytes:
    """A zstd frame of one stored block, then `zeros` times 128 KiB of zeros; `size` is what it claims to hold.

    `window` is 2 to the power of that many bytes; 0: none is stated, unless there is no size.
    """
    descriptor = (0x04 if checksum else 0) | (0x01 if dictionary else 0) | (0xC0 if size is not None else 0)
    if size is None:
        window = window or 21
    elif not window:
        descriptor |= 0x20  # a single segment: the size is the window
    frame = ZSTD_MAGIC + bytes([descriptor])
    if window:
        frame += bytes([window - 10 << 3])
    if dictionary:
        frame += bytes([dictionary])
    if size is not None:
        frame += size.to_bytes(8, "little")
    frame += (len(data) << 3 | (zeros == 0)).to_bytes(3, "little") + data
    for number in range(zeros):
        frame += (128 << 10 << 3 | 1 << 1 | (number == zeros - 1)).to_bytes(3, "little") + b"\0"
    return frame + (_checksum(data, zeros) if checksum else b"")


def _checksum(data: bytes, zeros: int) -> bytes:
    """What ends a zstd frame of this content, made without ever holding it: half a GiB is too much for some guests."""
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    pieces = [stream.compress(data), *(stream.compress(bytes(128 << 10)) for _ in range(zeros)), stream.flush()]
    return b"".join(pieces)[-4:]


def entry(name: Value, mode: Value, *fields: Value) -> list[Value]:
    """An entry with dull common fields."""
    return [name, mode, 0, 0, 0, 0, *fields]


def file(name: Value = b"f", *more: Value, size: Value = 3) -> list[Value]:
    """A regular file without digests."""
    return entry(name, 0o100644, size, None, None, *more)


def sized(name: bytes, size: int) -> list[Value]:
    """A file whose entry takes so many bytes, nearly all of them zeros in xattrs."""
    xattrs: list[Value] = []
    row = file(name, xattrs)
    while (left := size - len(pack(row))) > 66_000:
        xattrs += [b"user.%02d" % len(xattrs), bytes(60_000)]
    for length in range(left, max(left - 20, -1), -1):
        filled = [*xattrs, b"user.%02d" % len(xattrs), bytes(length)]
        if len(pack(file(name, filled))) == size:
            return file(name, filled)
    raise ValueError(f"no entry takes {size} bytes")


def facts(*page: Value, pages: Value = None, **counts: int) -> list[Value]:
    """A facts record of one page, which has these columns, or of several; counts are 0 unless they are named."""
    return [list(Counts(**counts)[:STORED_COUNTS]), [list(page)] if pages is None else pages]


def total(entries: tuple[Value, ...]) -> int:
    """The entries in a directory and below it, as far as they are what they should be."""
    below = [row[7] for row in entries if isinstance(row, list) and len(row) >= 9 and isinstance(row[6], bytes)]
    return len(entries) + sum(count for count in below if isinstance(count, int) and 0 <= count < 2**32)
