"""msgpack with types: the only place that uses the library directly.

One failure, PackingError, for whatever the library raises on hostile bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import msgpack

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


def unpack(data: bytes | memoryview) -> object:
    """The one value `data` consists of. Raises PackingError.

    For bytes of our own making: nested arrays of hostile bytes may claim far more memory than they fill.
    """
    try:
        value: object = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
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


def unpack_sequence(data: memoryview, *, max_bin_len: int, max_array_len: int) -> Iterator[object]:
    """The values `data` consists of, one after the other, without maps and extension types. Raises PackingError."""
    unpacker = _sequence_unpacker(data, max_bin_len, max_array_len)
    try:
        while unpacker.tell() < len(data):
            yield unpacker.unpack()
    except _FAILURES as error:
        raise _packing_error(error) from None


def unpack_elements(data: memoryview, count: int, *, max_bin_len: int, max_array_len: int) -> list[object]:
    """The `count` values `data` consists of, all at once; otherwise like `unpack_sequence`."""
    unpacker = _sequence_unpacker(data, max_bin_len, max_array_len)
    try:
        elements = list(islice(unpacker, count))
    except _FAILURES as error:
        raise _packing_error(error) from None
    if len(elements) != count or unpacker.tell() != len(data):
        raise PackingError("another number of elements than it says")
    return elements


def _sequence_unpacker(data: memoryview, max_bin_len: int, max_array_len: int) -> Any:
    unpacker = msgpack.Unpacker(
        raw=False,
        max_buffer_size=max(len(data), 1),
        max_str_len=64,
        max_bin_len=max_bin_len,
        max_array_len=max_array_len,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(data)
    return unpacker


def _packing_error(error: Exception) -> PackingError:
    return PackingError("ends early" if isinstance(error, msgpack.OutOfData) else str(error) or "malformed")


_FAILURES = (ValueError, TypeError, OverflowError, msgpack.UnpackException)
