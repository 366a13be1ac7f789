"""Facts of a directory: what makes the next scan fast and is true only here (formats/manifest.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mkmeta.codec.container import Location
from mkmeta.codec.packing import PackingError, pack, unpack
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
    return pack(_differences(inodes)) + pack(_differences(change_times))


def encode_facts(columns: bytes, children: Iterable[Location | None]) -> bytes:
    """A facts record from `encode_columns` and the places of the children's facts."""
    return b"\x93" + columns + pack(list(children))


def decode_facts(data: bytes, where: str) -> Facts:
    """A facts record. Raises FormatError on anything else."""
    try:
        fields = unpack(data)
    except PackingError as error:
        raise FormatError(f"{where}: not valid msgpack: {error}") from None
    if type(fields) is not list or len(fields) != 3 or not all(type(field) is list for field in fields):
        raise FormatError(f"{where}: not three arrays")
    inodes, change_times, children = fields
    if len(inodes) != len(change_times) or not all(type(n) is int for n in (*inodes, *change_times)):
        raise FormatError(f"{where}: bad columns")
    return Facts(
        inodes=[value % _MODULUS for value in _sums(inodes)],
        change_times=_sums(change_times),
        children=[_location(child, where) for child in children],
    )


def _location(value: object, where: str) -> Location | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != 3 or not all(type(n) is int and 0 <= n < 2**32 for n in value):
        raise FormatError(f"{where}: bad place of a child")
    return Location(*value)


def _signed(value: int) -> int:
    return (value + _HALF) % _MODULUS - _HALF


def _differences(values: Sequence[int]) -> list[int]:
    previous = 0
    differences = []
    for value in values:
        differences.append(_signed(value - previous))
        previous = value
    return differences


def _sums(differences: Iterable[int]) -> list[int]:
    total = 0
    values = []
    for difference in differences:
        total = _signed(total + difference)
        values.append(total)
    return values
