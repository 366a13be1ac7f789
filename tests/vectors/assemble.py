"""Manifest files put together freely, with none of the writer's care: valid where the caller says nothing else.

A `Draft` collects objects, as msgpack values or as bytes; `Parts` is the file taken apart, to be changed anywhere
before it is put together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import zstandard

from mkmeta.codec.container import END_MAGIC, FOOTER, FRAME_ROW, HEADER, MAGIC, OBJECT_ROW
from mkmeta.codec.info import encode_info
from mkmeta.codec.packing import pack
from mkmeta.digest import ObjectKind
from tests.vectors.trees import INFO

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
    footer: dict[str, Value] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The file."""
        data = HEADER.pack(*self.header)
        rows = []
        for number, frame in enumerate(self.frames):
            rows.append(self.frame_rows.get(number, [len(data), len(frame), self.sizes[number]]))
            data += frame
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
    """The objects and records of a manifest to be. All objects go into frame 0, info and facts into frame 1."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.facts: list[bytes] = []

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

    def add_facts(self, content: Value) -> list[int]:
        """Adds a facts record and returns its place; the info record comes first in the frame."""
        self.facts.append(content if isinstance(content, bytes) else pack(content))
        before = sum(map(len, self.facts[:-1]))
        return [2, before, len(self.facts[-1])]

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
        content = b""
        for name, data in self.objects.items():
            parts.object_rows.append([name, 0, len(content), len(data)])
            content += data
        parts.object_rows.sort()
        record = encode_info(INFO) if info is None else info if isinstance(info, bytes) else pack(info)
        for data in (content, record, *([b"".join(self.facts)] if self.facts else [])):
            parts.frames.append(compress(data))
            parts.sizes.append(len(data))
        if facts is not None:
            parts.footer["facts"] = tuple(facts)
        return parts


def compress(data: bytes) -> bytes:
    """A frame as the format wants it."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def handmade_frame(
    data: bytes, *, size: int | None, checksum: bool = True, dictionary: int = 0, zeros: int = 0
) -> bytes:
    """A zstd frame of one stored block, then `zeros` times 128 KiB of zeros; `size` is what it claims to hold."""
    descriptor = (0x04 if checksum else 0) | (0x01 if dictionary else 0) | (0xE0 if size is not None else 0)
    frame = ZSTD_MAGIC + bytes([descriptor])
    if size is None:
        frame += b"\x58"  # a window of 2 MiB; with a content size there is no window
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


def total(entries: tuple[Value, ...]) -> int:
    """The entries in a directory and below it, as far as they are what they should be."""
    below = [row[7] for row in entries if isinstance(row, list) and len(row) >= 9 and isinstance(row[6], bytes)]
    return len(entries) + sum(count for count in below if isinstance(count, int) and 0 <= count < 2**32)
