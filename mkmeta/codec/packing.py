"""msgpack with types: the only place that uses the library directly.

One failure, PackingError, for whatever the library raises on hostile bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

import msgpack

_SHORT_ARRAY: Final = 64  # elements: twice as many as the fields of an entry and all xattrs that are ever seen
_DEPTH: Final = 2  # of long arrays: an entry, and its xattrs
_LONG_ARRAYS: Final = (0xDC, 0xDD)  # first bytes

_T = TypeVar("_T")
_packer = msgpack.Packer(use_bin_type=True)


class PackingError(ValueError):
    """Bytes that are not the msgpack that was asked for."""


def pack(value: object) -> bytes:
    """The shortest msgpack encoding of lists, dicts, int, bytes, str and None."""
    packed: bytes = _packer.pack(value)
    return packed


def array_header(count: int) -> bytes:
    """The header of an array of `count` elements."""
    header: bytes = _packer.pack_array_header(count)
    return header


def unpack(data: bytes | memoryview, *, longest: int = -1) -> object:
    """The one value `data` consists of, in which no array has more elements than `longest`. Raises PackingError.

    Hostile bytes take some 64 times their size, and 8 bytes for each element of a thousand arrays in one another.
    """
    try:
        value: object = msgpack.unpackb(data, raw=False, max_array_len=longest, max_map_len=0, max_ext_len=0)
    except _FAILURES as error:
        raise _packing_error(error) from None
    return value


class RecordUnpacker:
    """Reads a record value by value, so that no length it claims allocates more than is there. Raises PackingError.

    Values are scalars, or arrays of at most three; what is longer is entered with `array` or `map`.
    """

    def __init__(self, data: bytes) -> None:
        self._size = len(data)
        self._unpacker = msgpack.Unpacker(
            raw=False, max_buffer_size=max(len(data), 1), max_array_len=3, max_map_len=0, max_ext_len=0
        )
        self._unpacker.feed(data)

    def array(self) -> int:
        """Enters an array and returns its length."""
        length: int = self._call(self._unpacker.read_array_header)
        return length

    def map(self) -> int:
        """Enters a map and returns the number of its pairs."""
        pairs: int = self._call(self._unpacker.read_map_header)
        return pairs

    def value(self) -> object:
        """The next value."""
        value: object = self._call(self._unpacker.unpack)
        return value

    def values(self, count: int) -> list[object]:
        """The next `count` values."""
        values = self._call(lambda: list(islice(self._unpacker, count)))
        if len(values) != count:
            raise PackingError("ends early")
        return values

    def skip(self) -> None:
        """Passes over the next value, whatever it is."""
        self._call(self._unpacker.skip)

    def end(self) -> None:
        """Nothing may follow."""
        if self._unpacker.tell() != self._size:
            raise PackingError("bytes after the value")

    def _call(self, method: Callable[[], _T]) -> _T:
        try:
            return method()
        except _FAILURES as error:
            raise _packing_error(error) from None


def element_ends(data: memoryview | bytes | bytearray) -> Iterator[int]:
    """Where each of the values that `data` consists of ends. For bytes of our own making, or decoded before."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    end = 0
    while end < len(data):
        unpacker.skip()
        end = unpacker.tell()
        yield end


def unpack_elements(data: memoryview, count: int, *, max_bin_len: int, max_array_len: int) -> list[object]:
    """The `count` values `data` consists of, without maps and extension types. Raises PackingError.

    Arrays of more than 64 elements may only be values themselves, or elements of such. The library takes memory for
    what arrays claim, and for a thousand in one another at once: it never sees a longer one.
    """
    try:
        return _unpack_elements(data, count, max_bin_len, lambda unpacker: list(islice(unpacker, count)))
    except PackingError:
        return _unpack_elements(
            data,
            count,
            max_bin_len,
            lambda unpacker: [_element(unpacker, data, _DEPTH, max_array_len) for _ in range(count)],
        )


def _unpack_elements(
    data: memoryview, count: int, max_bin_len: int, take: Callable[[Any], list[object]]
) -> list[object]:
    unpacker = msgpack.Unpacker(
        raw=False,
        max_buffer_size=max(len(data), 1),
        max_str_len=64,
        max_bin_len=max_bin_len,
        max_array_len=_SHORT_ARRAY,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(data)
    try:
        elements = take(unpacker)
    except _FAILURES as error:
        raise _packing_error(error) from None
    if len(elements) != count or unpacker.tell() != len(data):
        raise PackingError("another number of elements than it says")
    return elements


def _element(unpacker: Any, data: memoryview, depth: int, max_array_len: int) -> object:
    """The next value; one that is an array, element by element, down to a depth."""
    at = unpacker.tell()
    if not depth or at == len(data) or not (0x90 <= data[at] <= 0x9F or data[at] in _LONG_ARRAYS):
        return unpacker.unpack()
    length = unpacker.read_array_header()
    if length > max_array_len:
        raise PackingError(f"an array of {length} elements")
    return [_element(unpacker, data, depth - 1, max_array_len) for _ in range(length)]


def _packing_error(error: Exception) -> PackingError:
    cut = isinstance(error, msgpack.OutOfData) or "incomplete input" in str(error)
    return PackingError("ends early" if cut else str(error) or "malformed")


_FAILURES = (ValueError, TypeError, OverflowError, msgpack.UnpackException)
