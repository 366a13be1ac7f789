"""Facts of a directory: what makes the next scan fast and is true only here (formats/manifest.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain, islice
from operator import sub
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from mkmeta.codec.container import Location
from mkmeta.codec.packing import PackingError, RecordUnpacker, array_header, pack, unpack
from mkmeta.errors import FormatError
from mkmeta.model import STORED_COUNTS, Counts

FACTS_SIZE_MAX: Final = 512 << 10  # bytes of one record: a page has 20,000 entries at most, each takes some 20

_MODULUS = 2**64
_HALF = 2**63
_NLINK_MAX = 2**32 - 1
_COUNTS_MAX = 64  # a later mkmeta may count more
_INTEGERS = frozenset({int})
_SHORTEST = 4  # the longest array in facts of a page without entries
COUNT_MAX: Final = 2**64 - 1  # stands for any greater number too: sizes of sparse files add up to more


NO_LINKS: Final[Mapping[int, int]] = MappingProxyType({})


class PageFacts(NamedTuple):
    """Per entry of one page, in entry order."""

    inodes: list[int]
    change_times: list[int]  # ns since the epoch, modulo 2**64 as a signed integer
    children: Sequence[Location | None] = ()  # of the entries that are directories; None: unknown
    linked: Mapping[int, int] = NO_LINKS  # number in the page: names of the inode, where several


class Facts(NamedTuple):
    """Of a directory."""

    counts: Counts
    pages: list[PageFacts] | list[Location]  # those of its only page, or the places of several


def encode_page_facts(facts: PageFacts) -> bytes:
    """The facts of a page."""
    linked: list[int] = []
    before = 0
    for position, nlink in facts.linked.items():
        linked += (position - before, nlink)
        before = position
    return b"".join(
        (
            _ARRAY_OF_FOUR,
            _pack_differences(facts.inodes),
            _pack_differences(facts.change_times),
            pack(facts.children) if facts.children else _EMPTY_ARRAY,
            pack(linked) if linked else _EMPTY_ARRAY,
        )
    )


def encode_facts(counts: Iterable[int], pages: bytes | Sequence[Location]) -> bytes:
    """A facts record: `pages` are the facts of an only page, or the places of several."""
    stored = list(islice(counts, STORED_COUNTS))
    if max(stored) > COUNT_MAX:
        stored = [min(count, COUNT_MAX) for count in stored]
    packed = array_header(1) + pages if isinstance(pages, bytes) else pack(list(pages))
    return array_header(2) + pack(stored) + packed


def decode_facts(data: bytes, where: str, *, pages: int, entries: int) -> Facts:
    """The facts record of a directory with so many pages, the first of which has so many entries.

    Raises FormatError on anything else.
    """
    record = _unpacked(data, where, max(_COUNTS_MAX, pages, 2 * entries))
    if type(record) is not list or len(record) != 2:
        raise FormatError(f"{where}: not two arrays")
    counts, found = record
    if type(found) is not list or len(found) != pages:
        raise FormatError(f"{where}: not {pages} pages")
    if pages == 1:
        return Facts(_counts(counts, where), [_page(found[0], where, entries)])
    places = [_location(value, where) for value in found]
    there = [place for place in places if place is not None]
    if len(there) != pages:
        raise FormatError(f"{where}: bad place of a page")
    return Facts(_counts(counts, where), there)


def glance_at_facts(data: bytes) -> tuple[list[int], list[int], Sequence[Location | None]]:
    """Inode numbers, change times and children of a directory with one page, for who compares them with what is there
    now: only what is not compared is checked. Raises FormatError, ValueError and TypeError on anything else.
    """
    record: Any = unpack(data)
    _, ((inodes, change_times, children, linked),) = record
    if type(linked) is not list or linked:
        _linked(_integers(linked, ""), "", len(inodes))
    return list(accumulate(inodes)), list(accumulate(change_times)), _locations(children, "")


def decode_page_facts(data: bytes, where: str, *, entries: int) -> PageFacts:
    """The record of one of several pages, which has so many entries."""
    return _page(_unpacked(data, where, max(_SHORTEST, 2 * entries)), where, entries)


def decode_counts(data: bytes, where: str) -> Counts:
    """The counts alone, of a directory whose pages are of no interest and are not looked at."""
    try:
        record = RecordUnpacker(data)
        if record.array() != 2:
            raise FormatError(f"{where}: not two arrays")
        length = record.array()
        return _counts(record.values(length) if length <= _COUNTS_MAX else None, where)
    except PackingError as error:
        raise FormatError(f"{where}: not valid msgpack: {error}") from None


def _unpacked(data: bytes, where: str, longest: int) -> object:
    try:
        return unpack(data, longest=longest)
    except PackingError as error:
        raise FormatError(f"{where}: not valid msgpack: {error}") from None


def _counts(counts: object, where: str) -> Counts:
    if type(counts) is not list or not STORED_COUNTS <= len(counts) <= _COUNTS_MAX:
        raise FormatError(f"{where}: no array of counts")
    if set(map(type, counts)) != _INTEGERS or min(counts) < 0:  # msgpack has none above 2**64 - 1
        raise FormatError(f"{where}: a count is not an unsigned 64-bit integer")
    return Counts(*counts[:STORED_COUNTS])


def _page(page: object, where: str, entries: int) -> PageFacts:
    if type(page) is not list or len(page) != 4 or set(map(type, page)) != {list}:
        raise FormatError(f"{where}: not four arrays")
    inodes, change_times, children, linked = page
    if not len(inodes) == len(change_times) == entries:
        raise FormatError(f"{where}: {len(inodes)} inode numbers, {len(change_times)} times for {entries} entries")
    return PageFacts(
        _unsigned(_sums(_integers(inodes, where))),
        _sums(_integers(change_times, where)),
        _locations(children, where),
        _linked(_integers(linked, where), where, entries) if linked else NO_LINKS,
    )


def _linked(column: list[int], where: str, entries: int) -> dict[int, int]:
    positions, nlinks = list(accumulate(column[::2])), column[1::2]
    if (
        len(positions) != len(nlinks)
        or min(column[2::2], default=1) < 1
        or not 0 <= positions[0] <= positions[-1] < entries
        or not 2 <= min(nlinks) <= max(nlinks) <= _NLINK_MAX
    ):
        raise FormatError(f"{where}: bad numbers of names")
    return dict(zip(positions, nlinks, strict=True))


def _integers(column: list[object], where: str) -> list[int]:
    integers: list[int] = column  # type: ignore[assignment]  # which is looked into next
    if integers and (set(map(type, column)) != _INTEGERS or max(integers) >= _HALF):
        raise FormatError(f"{where}: a difference is not a signed 64-bit integer")
    return integers


def _locations(values: list[Any], where: str) -> list[Location | None]:
    """Places; one by one it takes four times as long."""
    try:
        numbers = list(chain.from_iterable(values))
        are_places = set(map(type, values)) == {list} and set(map(len, values)) == {3}
        if are_places and set(map(type, numbers)) == _INTEGERS and 0 <= min(numbers) <= max(numbers) < 2**32:
            return list(map(Location._make, values))
    except TypeError:  # there is a nil among them
        pass
    return [_location(value, where) for value in values]


def _location(value: object, where: str) -> Location | None:
    if value is None:
        return None
    if type(value) is not list or len(value) != 3 or not all(type(n) is int and 0 <= n < 2**32 for n in value):
        raise FormatError(f"{where}: bad place")
    return Location(*value)


def _signed(value: int) -> int:
    return (value + _HALF) % _MODULUS - _HALF


def _pack_differences(values: Sequence[int]) -> bytes:
    differences = [*values[:1], *map(sub, values[1:], values)]
    if min(differences, default=0) < -_HALF or max(differences, default=0) >= _HALF:
        differences = [_signed(difference) for difference in differences]  # inode numbers are unsigned
    return pack(differences)


def _unsigned(values: list[int]) -> list[int]:
    return values if not values or min(values) >= 0 else [value % _MODULUS for value in values]


def _sums(differences: Sequence[int]) -> list[int]:
    values = list(accumulate(differences))
    if not values or (min(values) >= -_HALF and max(values) < _HALF):
        return values
    return list(accumulate(differences, lambda total, difference: _signed(total + difference)))


_ARRAY_OF_FOUR = array_header(4)
_EMPTY_ARRAY = array_header(0)
