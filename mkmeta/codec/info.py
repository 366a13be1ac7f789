"""The info record: where a manifest comes from (formats/manifest.md section 5). Not part of the ID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from mkmeta.codec.facts import COUNT_MAX
from mkmeta.codec.packing import PackingError, RecordUnpacker, pack
from mkmeta.errors import FormatError, legible
from mkmeta.model import HardLinks

INFO_SIZE_MAX: Final = 4 << 20  # bytes
ROWS_MAX: Final = 65_536  # of each array: what a row costs a reader is some 50 times its bytes
_COUNTS_MAX: Final = 4096
_ROOT_MAX: Final = 4095  # bytes; PATH_MAX less its NUL

_OPTIONAL: Final = frozenset({"drop_xattrs", "inline", "inline_all", "closed", "hard_links"})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a scan says of itself. Advisory: only the ID vouches for the tree."""

    root: bytes  # absolute path that was scanned
    created: int  # ns since the epoch, start of the scan
    tool: str  # name and version of the writer
    select: tuple[bytes, ...] = ()
    hide: tuple[bytes, ...] = ()
    drop_xattrs: tuple[bytes, ...] = ()  # optional in the record
    inline: tuple[tuple[bytes, int], ...] = ()  # (pattern, bytes), optional in the record
    inline_all: bool = False  # optional in the record
    closed: tuple[bytes, ...] | None = None  # paths; None: not in the record, for nobody asked
    hard_links: HardLinks = HardLinks.SUBTREE  # optional in the record
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
            **({"drop_xattrs": list(info.drop_xattrs)} if info.drop_xattrs else {}),
            **({"inline": [list(item) for item in info.inline]} if info.inline else {}),
            **({"inline_all": 1} if info.inline_all else {}),
            **({"closed": list(info.closed)} if info.closed is not None else {}),
            **({"hard_links": str(info.hard_links)} if info.hard_links is not HardLinks.SUBTREE else {}),
            "left_out": [list(item) for item in info.left_out],
            "counts": {name: min(count, COUNT_MAX) for name, count in info.counts.items()},
        }
    )


def decode_info(data: bytes) -> Info:
    """The record. Raises FormatError when a known key is missing or has the wrong type; ignores unknown keys."""
    fields: dict[str, Any] = {}
    seen = set()
    try:
        record = RecordUnpacker(data)
        for _ in range(record.map()):
            key = _typed(record.value(), str, "key")
            if key in seen:
                raise FormatError(f"info record: '{legible(key)}' occurs twice")
            seen.add(key)
            if key in _READERS:
                fields[key] = _READERS[key](record, key)
            else:
                record.skip()
        record.end()
    except PackingError as error:
        raise FormatError(f"info record: not valid msgpack: {error}") from None
    for key in _READERS.keys() - _OPTIONAL:
        if key not in fields:
            raise FormatError(f"info record: {key!r} is missing")
    return Info(**fields)


def _scalar(kind: type[_T]) -> Callable[[RecordUnpacker, str], _T]:
    return lambda record, key: _typed(record.value(), kind, key)


def _root(record: RecordUnpacker, key: str) -> bytes:
    root = _typed(record.value(), bytes, key)
    if not 1 <= len(root) <= _ROOT_MAX or root[:1] != b"/" or 0 in root:
        raise FormatError(f"info record: {key!r} is no absolute path of at most {_ROOT_MAX} bytes")
    return root


def _hard_links(record: RecordUnpacker, key: str) -> HardLinks:
    value = _typed(record.value(), str, key)
    if value not in list(HardLinks):
        raise FormatError(f"info record: {key!r} is '{legible(value)}', which this mkmeta does not know")
    return HardLinks(value)


def _rows(record: RecordUnpacker, key: str) -> list[object]:
    count = record.array()
    if count > ROWS_MAX:
        raise FormatError(f"info record: {key!r} has {count} elements, more than {ROWS_MAX}")
    return record.values(count)


def _byte_strings(record: RecordUnpacker, key: str) -> tuple[bytes, ...]:
    return tuple(_typed(value, bytes, key) for value in _rows(record, key))


def _left_out(record: RecordUnpacker, key: str) -> tuple[tuple[bytes, str], ...]:
    rows = []
    for row in _rows(record, key):
        match row:
            case [bytes(path), str(reason)]:
                rows.append((path, reason))
            case _:
                raise FormatError(f"info record: bad row in {key!r}")
    return tuple(rows)


def _inline(record: RecordUnpacker, key: str) -> tuple[tuple[bytes, int], ...]:
    rows = []
    for row in _rows(record, key):
        match row:
            case [bytes(pattern), int(size)] if type(size) is int and size >= 0:
                rows.append((pattern, size))
            case _:
                raise FormatError(f"info record: bad row in {key!r}")
    return tuple(rows)


def _inline_all(record: RecordUnpacker, key: str) -> bool:
    if _typed(record.value(), int, key) != 1:
        raise FormatError(f"info record: {key!r} is not 1")
    return True


def _counts(record: RecordUnpacker, key: str) -> dict[str, int]:
    pairs = record.map()
    if pairs > _COUNTS_MAX:
        raise FormatError(f"info record: {key!r} has {pairs} pairs, more than {_COUNTS_MAX}")
    return {_typed(record.value(), str, key): _typed(record.value(), int, key) for _ in range(pairs)}


def _typed(value: object, kind: type[_T], key: str) -> _T:
    if type(value) is not kind:
        raise FormatError(f"info record: {key!r} is not {kind.__name__}")
    return value


_READERS: dict[str, Callable[[RecordUnpacker, str], object]] = {
    "root": _root,
    "created": _scalar(int),
    "tool": _scalar(str),
    "select": _byte_strings,
    "hide": _byte_strings,
    "drop_xattrs": _byte_strings,
    "inline": _inline,
    "inline_all": _inline_all,
    "closed": _byte_strings,
    "hard_links": _hard_links,
    "left_out": _left_out,
    "counts": _counts,
}
