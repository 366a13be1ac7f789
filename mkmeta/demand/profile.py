"""Profiles on disk (formats/profile.md): written aside and renamed, read as what a stranger has sent.

A reader holds one row at a time. What a profile says is checked row by row; anything else raises ProfileError, which
names file and line.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, Final, NamedTuple

from mkmeta.errors import MkmetaError, path_fields, reason
from mkmeta.model import PATH_LIMIT

VERSION: Final = 1
LINE_MAX: Final = 64 << 10  # bytes: two of the longest paths, escaped, and all numbers
HEADER_MAX: Final = 1 << 20  # bytes: totals of all mounts
ROWS_MAX: Final = 4_000_000
PATHS_MAX: Final = 1_000_000
PATH_ROOM: Final = 1 << 30  # bytes that all paths may take, each with all above it
ROW_BYTES_MAX: Final = 4 << 30  # bytes of paths in all rows
FILES_MAX: Final = 100_000  # what a writer counts
MOUNTS_MAX: Final = 64
COUNT_MAX: Final = 2**63 - 1
_TEXT_MAX: Final = 255
_NAMES_MAX: Final = 256  # keys of `lost`, operations of `totals`
_MAGIC: Final = "mkmeta_profile"


class ProfileError(MkmetaError):
    """A file that is not a valid profile."""


class Source(StrEnum):
    """Where rows come from."""

    STRACE = "strace"
    LD_DEBUG = "ld-debug"
    BPFTRACE = "bpftrace"
    ENV = "env"
    NFS = "nfs"
    MOUNTSTATS = "mountstats"


class Row(NamedTuple):
    """A directory, and what was asked of it; or a file that was opened, of which `opens` alone counts."""

    path: bytes
    misses: int = 0
    stats: int = 0
    opens: int = 0
    listings: int = 0
    writes: int = 0
    first_misses: int = 0
    first_stats: int = 0
    first_opens: int = 0
    known_listings: int = 0
    listed_stats: int = 0
    opened_stats: int = 0
    checked: int = 0
    mount: int = 0
    is_file: bool = False


COUNTS: Final = Row._fields[1:13]
_FIRST: Final = {"first_misses": "misses", "first_stats": "stats", "first_opens": "opens"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileMount:
    """A mount that was observed."""

    point: bytes
    totals: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by operation: sent, failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What holds for a whole profile."""

    source: Source
    mounts: tuple[ProfileMount, ...]
    host: str = ""
    kernel: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    outside: int = 0


def write_profile(stream: BinaryIO, header: Header, rows: Iterable[Row]) -> int:
    """Writes a profile, and returns how many rows it has. Raises OSError."""
    head = {
        _MAGIC: VERSION,
        "source": str(header.source),
        "host": header.host[:_TEXT_MAX],
        "kernel": header.kernel[:_TEXT_MAX],
        "started_ns": header.started_ns,
        "ended_ns": header.ended_ns,
        "mounts": [
            {
                **path_fields(mount.point, "point"),
                **({"totals": {name: list(pair) for name, pair in mount.totals.items()}} if mount.totals else {}),
            }
            for mount in header.mounts
        ],
        "lost": {name: count for name, count in header.lost.items() if count},
        "outside": header.outside,
    }
    _put(stream, head)
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - the last one is the number of rows
        _put(stream, _fields(row))
    _put(stream, {"rows": count})
    return count


def _put(stream: BinaryIO, record: Mapping[str, object]) -> None:
    stream.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")


def _fields(row: Row) -> dict[str, object]:
    record: dict[str, object] = dict(path_fields(row.path, "file" if row.is_file else "path"))
    if row.mount:
        record["mount"] = row.mount
    if row.is_file:
        return {**record, "opens": row.opens}
    for name, count in zip(COUNTS, row[1:13], strict=True):
        whole = _FIRST.get(name)
        if (count != getattr(row, whole)) if whole else count:
            record[name] = count
    return record


class ProfileReader:
    """A profile being read: `header` at once, then its rows, once."""

    def __init__(self, stream: BinaryIO, name: bytes) -> None:
        """Reads the header. Raises ProfileError."""
        self._stream = stream
        self._name = name
        self._number = 0
        record = self._record()
        if record is None or _MAGIC not in record:
            raise self._error("is not a profile", hint="mkmeta observe writes them (formats/profile.md)")
        if record[_MAGIC] != VERSION or type(record[_MAGIC]) is not int:
            raise self._error("is a profile of another version", hint="use the mkmeta that wrote it, or a later one")
        self.header = self._header(record)

    def rows(self) -> Iterator[Row]:
        """The rows, each checked. Raises ProfileError at the first that is wrong, and when the end is missing."""
        mounts = len(self.header.mounts)
        count = path_bytes = 0
        for line in iter(lambda: self._stream.readline(LINE_MAX + 1), b""):
            self._number += 1
            record = self._parse(line)
            if "rows" in record:
                if record["rows"] != count:
                    raise self._error(f"says it has {record['rows']!r:.20} rows, and has {count}")
                if self._stream.read(1):
                    raise self._error("goes on after its end", hint="give profiles one by one, not put together")
                return
            count += 1  # noqa: SIM113 - the end is no row
            row = self._row(record, mounts)
            path_bytes += len(row.path)
            if count > ROWS_MAX or path_bytes > ROW_BYTES_MAX:
                raise self._error(f"has more than {ROWS_MAX} rows, or more in them than any observer writes")
            yield row
        raise self._error("has no end: it was cut", hint="copy it again, aside, and rename it when it is complete")

    def _row(self, record: dict[str, Any], mounts: int) -> Row:
        is_file = "file" in record
        key = "file" if is_file else "path"
        if is_file and "path" in record:
            raise self._error("a row with both 'path' and 'file'")
        path = self._path(record, key)
        mount = record.get("mount", 0)
        if type(mount) is not int or not 0 <= mount < mounts:
            raise self._error("a row of a mount that the header does not name")
        get = record.get
        misses, stats, opens = get("misses", 0), get("stats", 0), get("opens", 0)
        values = (
            *(misses, stats, opens, get("listings", 0), get("writes", 0)),
            *(get("first_misses", misses), get("first_stats", stats), get("first_opens", opens)),
            *(get("known_listings", 0), get("listed_stats", 0), get("opened_stats", 0), get("checked", 0)),
        )
        for value in values:
            if type(value) is not int or not 0 <= value <= COUNT_MAX:
                raise self._error("a count that is not an integer from 0 to 2^63 - 1")
        if values[5] > misses or values[6] > stats or values[7] > opens:
            raise self._error("more first calls than calls")
        if values[8] > values[3] or max(values[9:11]) > values[6]:
            raise self._error("more calls of a kind than calls")
        return Row(path, *values, mount, is_file)

    def _path(self, record: Mapping[str, Any], key: str) -> bytes:
        path = self._bytes(record, key)
        if len(path) > PATH_LIMIT or b"\0" in path:
            raise self._error(f"a path longer than {PATH_LIMIT} bytes, or with a NUL")
        if path and not is_plain(path):
            raise self._error("a path with an empty name, '.' or '..', or an absolute one")
        return path

    def _bytes(self, record: Mapping[str, Any], key: str) -> bytes:
        encoded, text = record.get(f"{key}_b64"), record.get(key)
        try:
            if encoded is not None:
                return base64.b64decode(encoded, validate=True)
            if type(text) is str:
                return text.encode()
        except (ValueError, TypeError, binascii.Error):  # no base64, no str; a lone surrogate
            pass
        raise self._error(f"has no '{key}', or one that is neither text nor base64")

    def _header(self, record: dict[str, Any]) -> Header:
        source = record.get("source")
        if source not in list(Source):
            raise self._error("is from a source that this mkmeta does not know")
        mounts = record.get("mounts")
        if type(mounts) is not list or not 1 <= len(mounts) <= MOUNTS_MAX:
            raise self._error(f"names no mounts, or more than {MOUNTS_MAX}")
        texts = [record.get(key, "") for key in ("host", "kernel")]
        if any(type(text) is not str or len(text) > _TEXT_MAX for text in texts):
            raise self._error(f"'host' or 'kernel' is no text of at most {_TEXT_MAX} characters")
        numbers = [record.get(key, 0) for key in ("started_ns", "ended_ns", "outside")]
        if any(type(number) is not int or not 0 <= number <= COUNT_MAX for number in numbers):
            raise self._error("a time or count that is not an integer from 0 to 2^63 - 1")
        return Header(
            source=Source(source),
            mounts=tuple(self._mount(mount) for mount in mounts),
            host=texts[0],
            kernel=texts[1],
            started_ns=numbers[0],
            ended_ns=numbers[1],
            lost=self._table(record.get("lost", {}), self._count),
            outside=numbers[2],
        )

    def _mount(self, record: object) -> ProfileMount:
        if type(record) is not dict:
            raise self._error("a mount that is no object")
        point = self._bytes(record, "point")
        if point[:1] != b"/" or len(point) > PATH_LIMIT or (point != b"/" and not is_plain(point[1:])):
            raise self._error("a mount point that is no plain absolute path")
        return ProfileMount(point=point, totals=self._table(record.get("totals", {}), self._pair))

    def _table(self, value: object, check: Callable[[object], Any]) -> dict[str, Any]:
        if type(value) is not dict or len(value) > _NAMES_MAX or any(len(name) > _TEXT_MAX for name in value):
            raise self._error(f"'lost' or 'totals' is no object of at most {_NAMES_MAX} numbers")
        return {name: check(number) for name, number in value.items()}

    def _count(self, value: object) -> int:
        if type(value) is not int or not 0 <= value <= COUNT_MAX:
            raise self._error("a count that is not an integer from 0 to 2^63 - 1")
        return value

    def _pair(self, value: object) -> tuple[int, int]:
        if type(value) is not list or len(value) != 2:
            raise self._error("a total that is no pair of numbers")
        return self._count(value[0]), self._count(value[1])

    def _record(self) -> dict[str, Any] | None:
        line = self._stream.readline(HEADER_MAX + 1)
        self._number += 1
        return self._parse(line, HEADER_MAX) if line else None

    def _parse(self, line: bytes, most: int = LINE_MAX) -> dict[str, Any]:
        if len(line) > most or not line.endswith(b"\n"):
            raise self._error(f"a line that does not end, or is longer than {most} bytes")
        try:
            record = json.loads(line, parse_constant=_refuse, parse_float=_refuse)
        except (ValueError, RecursionError):
            raise self._error("not a line of JSON") from None
        if type(record) is not dict:
            raise self._error("not a JSON object")
        return record

    def _error(self, message: str, hint: str | None = None) -> ProfileError:
        where = f"line {self._number}: " if self._number > 1 else ""
        return ProfileError(where + message, path=self._name, hint=hint)


def room_of(path: bytes) -> int:
    """What a path takes of PATH_ROOM: readers keep the directories above it too, each by its whole path."""
    return len(path) * (path.count(b"/") + 2) // 2


def is_plain(path: bytes) -> bool:
    """Whether a relative path has no name that could be left out, and none that leads up."""
    padded = b"/%b/" % path
    return b"//" not in padded and b"/./" not in padded and b"/../" not in padded


def open_profile(path: bytes) -> BinaryIO:
    """The file of a profile. Raises ProfileError when it cannot be opened."""
    try:
        return open(path, "rb", buffering=1 << 20)
    except OSError as error:
        hint = "name a profile, as mkmeta observe writes them"
        raise ProfileError(reason(error), path=path, hint=hint) from None


def _refuse(text: str) -> float:
    raise ValueError(text)
