"""The info record: where a manifest comes from (formats/manifest.md section 5). Not part of the ID."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mkmeta.codec.packing import PackingError, pack, unpack
from mkmeta.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a scan says of itself. Advisory: only the ID vouches for the tree."""

    root: bytes  # absolute path that was scanned
    created: int  # ns since the epoch, start of the scan
    tool: str  # name and version of the writer
    select: tuple[bytes, ...] = ()
    hide: tuple[bytes, ...] = ()
    left_out: tuple[tuple[bytes, str], ...] = ()  # (path, reason)
    counts: dict[str, int] = field(default_factory=dict)


def encode_info(info: Info) -> bytes:
    """The record's bytes."""
    return pack(
        {
            "root": info.root,
            "created": info.created,
            "tool": info.tool,
            "select": list(info.select),
            "hide": list(info.hide),
            "left_out": [list(item) for item in info.left_out],
            "counts": {name: min(count, 2**64 - 1) for name, count in info.counts.items()},
        }
    )


def decode_info(data: bytes) -> Info:
    """The record. Raises FormatError when a key it shows has the wrong type."""
    try:
        raw = unpack(data)
    except PackingError as error:
        raise FormatError(f"info record: not valid msgpack: {error}") from None
    if type(raw) is not dict:
        raise FormatError("info record: not a map")
    return Info(
        root=_typed(raw, "root", bytes),
        created=_typed(raw, "created", int),
        tool=_typed(raw, "tool", str),
        select=_byte_strings(raw, "select"),
        hide=_byte_strings(raw, "hide"),
        left_out=tuple(_left_out(item) for item in _typed(raw, "left_out", list)),
        counts=_counts(_typed(raw, "counts", dict)),
    )


def _typed(raw: dict[object, object], key: str, kind: type) -> Any:
    value = raw.get(key)
    if type(value) is not kind:
        raise FormatError(f"info record: {key!r} is not {kind.__name__}")
    return value


def _byte_strings(raw: dict[object, object], key: str) -> tuple[bytes, ...]:
    values = _typed(raw, key, list)
    if not all(type(value) is bytes for value in values):
        raise FormatError(f"info record: {key!r} holds something that is not bytes")
    return tuple(values)


def _left_out(item: object) -> tuple[bytes, str]:
    match item:
        case [bytes(path), str(reason)]:
            return path, reason
    raise FormatError("info record: bad row in 'left_out'")


def _counts(counts: dict[object, object]) -> dict[str, int]:
    result = {}
    for name, count in counts.items():
        if type(name) is not str or type(count) is not int:
            raise FormatError("info record: bad count")
        result[name] = count
    return result
