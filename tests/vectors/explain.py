"""A manifest file in annotated hex, complete: what formats/manifest.md section 9 refers to.

Meant for the small: it knows the forms of msgpack that a small manifest has, and stops at any other.
"""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from mkmeta.codec.container import FOOTER, FRAME_ROW, HEADER, OBJECT_ROW
from mkmeta.digest import ObjectId, ObjectKind

_WIDTH = 16  # bytes of a line of hex without a note
_HEADER = (
    (8, "magic"),
    (4, "version"),
    (4, "compat flags"),
    (4, "ro_compat flags"),
    (4, "incompat flags"),
    (8, "zero"),
)
_FRAME_ROW = ((8, "offset"), (4, "compressed length"), (4, "decompressed length"))
_OBJECT_ROW = ((32, "ID"), (4, "frame"), (4, "offset"), (4, "length"))
_FOOTER = (
    (8, "offset of the frame table"),
    (4, "F"),
    (4, "zero"),
    (8, "offset of the object table"),
    (8, "N"),
    (32, "manifest ID"),
    (4, "info: frame"),
    (4, "info: offset"),
    (4, "info: length"),
    (4, "facts: frame"),
    (4, "facts: offset"),
    (4, "facts: length"),
    (8, "magic"),
)


def explain(data: bytes) -> str:
    """Every byte of the file, then every byte of its decompressed frames."""
    footer = FOOTER.unpack(data[-FOOTER.size :])
    frame_table, frames, _, object_table, objects = footer[:5]
    lines = ["Offsets and lengths are decimal. Compressed bytes may differ with another zstd.", "", "Header"]
    lines += _fields(data, 0, _HEADER)
    rows = [FRAME_ROW.unpack_from(data, frame_table + number * FRAME_ROW.size) for number in range(frames)]
    for number, (offset, compressed, _) in sorted(enumerate(rows), key=lambda item: item[1][0]):
        lines += ["", f"Frame {number}, compressed"]
        lines += _plain(data[offset : offset + compressed], offset)
    for number in range(frames):
        lines += ["", f"Frame table, row {number}"]
        lines += _fields(data, frame_table + number * FRAME_ROW.size, _FRAME_ROW)
    places: dict[tuple[int, int], str] = {}
    for number in range(objects):
        start = object_table + number * OBJECT_ROW.size
        lines += ["", f"Object table, row {number}"]
        lines += _fields(data, start, _OBJECT_ROW)
        object_id, frame, offset, length = OBJECT_ROW.unpack_from(data, start)
        content = zstandard.decompress(_frame(data, rows[frame]))[offset : offset + length]
        places[frame, offset] = f"{_kind(ObjectId(object_id), content)} {object_id.hex()}, {length} bytes"
    places[footer[6], footer[7]] = f"info record, {footer[8]} bytes"
    lines += ["", "Footer"]
    lines += _fields(data, len(data) - FOOTER.size, _FOOTER)
    for number, row in enumerate(rows):
        content = zstandard.decompress(_frame(data, row))
        starts = sorted(offset for frame, offset in places if frame == number)
        for start, end in zip(starts, [*starts[1:], len(content)], strict=True):
            lines += ["", f"Frame {number}, decompressed: {places[number, start]}"]
            lines += _values(content[start:end], start)
    assert HEADER.size == sum(size for size, _ in _HEADER)
    return "\n".join(lines) + "\n"


def _frame(data: bytes, row: tuple[int, int, int]) -> bytes:
    return data[row[0] : row[0] + row[1]]


def _kind(object_id: ObjectId, content: bytes) -> str:
    return next(kind for kind in ObjectKind if kind.id_of(content) == object_id).name.lower().replace("_", " ")


def _line(offset: int, raw: bytes, note: str = "") -> str:
    return f"{offset:6}  {raw.hex(' '):<{3 * _WIDTH}} {note}".rstrip()


def _fields(data: bytes, offset: int, fields: tuple[tuple[int, str], ...]) -> Iterator[str]:
    for size, name in fields:
        raw = data[offset : offset + size]
        value = f" {int.from_bytes(raw, 'little')}" if size <= 8 and name not in ("magic", "zero") else ""
        yield from _noted(raw, offset, name + value)
        offset += size


def _plain(raw: bytes, offset: int) -> Iterator[str]:
    for start in range(0, len(raw), _WIDTH):
        yield _line(offset + start, raw[start : start + _WIDTH])


def _noted(raw: bytes, offset: int, note: str) -> Iterator[str]:
    yield _line(offset, raw[:_WIDTH], note)
    yield from _plain(raw[_WIDTH:], offset + _WIDTH)


def _values(data: bytes, offset: int) -> Iterator[str]:
    """One msgpack value a line, indented by its depth."""
    at = 0
    left: list[int] = []  # values still to come in each open array or map
    while at < len(data):
        size, members, note = _value(data[at:])
        yield from _noted(data[at : at + size], offset + at, "  " * len(left) + note)
        at += size
        if left:
            left[-1] -= 1
        if members:
            left.append(members)
        while left and not left[-1]:
            left.pop()


def _value(data: bytes) -> tuple[int, int, str]:
    """Bytes of the next value without its members, number of members, and what it is."""
    first = data[0]
    if first <= 0x7F:
        return 1, 0, str(first)
    if first <= 0x8F:
        return 1, 2 * (first & 15), f"map of {first & 15}"
    if first <= 0x9F:
        return 1, first & 15, f"array of {first & 15}"
    if first <= 0xBF:
        return 1 + (first & 31), 0, f'text "{data[1 : 1 + (first & 31)].decode()}"'
    if first == 0xC0:
        return 1, 0, "nil"
    if first == 0xC4:
        raw = data[2 : 2 + data[1]]
        return 2 + data[1], 0, f"bytes {raw.decode()!r}" if raw.isascii() else f"{len(raw)} bytes"
    if 0xCC <= first <= 0xCF:
        size = 1 << (first - 0xCC)
        value = int.from_bytes(data[1 : 1 + size], "big")
        return 1 + size, 0, f"{value} = 0o{value:o}" if size == 2 else str(value)
    raise ValueError(f"explain does not know msgpack {first:#x}")
