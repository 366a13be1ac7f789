"""Facts of a directory: what makes the next scan fast and is true only here (formats/manifest.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import sub

from mkmeta.codec.container import Location
from mkmeta.codec.packing import PackingError, RecordUnpacker, pack
from mkmeta.errors import FormatError

_MODULUS = 2**64
_HALF = 2**63


@dataclass(frozen=True, slots=True)
class Facts:
    """Per entry of one directory, in entry order."""

    inodes: list[int]
    change_times: list[int]  # ns since the epoch, modulo 2**64 as a signed integer
    children: list[Location | None]  # of the entries that are directories; None: nothing known


def encode_columns(inodes: Sequence[int], change_times: Sequence[int]) -> bytes:
    """The first two of a record's three arrays: what is known before the children are."""
    return _pack_differences(inodes) + _pack_differences(change_times)


def encode_facts(columns: bytes, children: Iterable[Location | None]) -> bytes:
    """A facts record from `encode_columns` and the places of the children's facts."""
    return b"\x93" + columns + pack(list(children))


def decode_facts(data: bytes, where: str, *, entries: int) -> Facts:
    """The facts record of a directory with this many entries. Raises FormatError on anything else.

    A record that claims more is refused before memory is taken for it: compressed, a lie costs next to nothing.
    """
    try:
        record = RecordUnpacker(data)
        if record.array() != 3:
            raise FormatError(f"{where}: not three arrays")
        columns = []
        for _ in range(3):
            length = record.array()
            if length > entries:
                raise FormatError(f"{where}: {length} elements for {entries} entries")
            columns.append(record.values(length))
        record.end()
    except PackingError as error:
        raise FormatError(f"{where}: not valid msgpack: {error}") from None
    inodes, change_times, children = _integers(columns[0], where), _integers(columns[1], where), columns[2]
    if not len(inodes) == len(change_times) == entries:
        raise FormatError(f"{where}: {len(inodes)} inode numbers, {len(change_times)} times for {entries} entries")
    return Facts(
        inodes=_unsigned(_sums(inodes)),
        change_times=_sums(change_times),
        children=[_location(child, where) for child in children],
    )


def _integers(column: list[object], where: str) -> list[int]:
    integers: list[int] = column  # type: ignore[assignment]  # which is looked into next
    if set(map(type, column)) - {int} or max(integers, default=0) >= _HALF:
        raise FormatError(f"{where}: a difference is not a signed 64-bit integer")
    return integers


def _location(value: object, where: str) -> Location | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != 3 or not all(type(n) is int and 0 <= n < 2**32 for n in value):
        raise FormatError(f"{where}: bad place of a child")
    return Location(*value)


def _signed(value: int) -> int:
    return (value + _HALF) % _MODULUS - _HALF


def _pack_differences(values: Sequence[int]) -> bytes:
    differences = [*values[:1], *map(sub, values[1:], values)]
    if min(differences, default=0) < -_HALF or max(differences, default=0) >= _HALF:
        differences = [_signed(difference) for difference in differences]  # inode numbers are unsigned
    return pack(differences)


def _unsigned(values: list[int]) -> list[int]:
    return values if min(values, default=0) >= 0 else [value % _MODULUS for value in values]


def _sums(differences: Sequence[int]) -> list[int]:
    values = list(accumulate(differences))
    if not values or (min(values) >= -_HALF and max(values) < _HALF):
        return values
    return list(accumulate(differences, lambda total, difference: _signed(total + difference)))
