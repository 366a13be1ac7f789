"""msgpack with types: the only place that uses the library directly.

One failure, PackingError, for whatever the library raises on hostile bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

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
    """The one value `data` consists of. Raises PackingError."""
    try:
        value: object = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except _FAILURES as error:
        raise PackingError(str(error) or type(error).__name__) from None
    return value


def unpack_sequence(data: memoryview, *, max_bin_len: int, max_array_len: int) -> Iterator[object]:
    """The values `data` consists of, one after the other, without maps and extension types. Raises PackingError."""
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
    try:
        while unpacker.tell() < len(data):
            yield unpacker.unpack()
    except _FAILURES as error:
        detail = "ends early" if isinstance(error, msgpack.OutOfData) else str(error)
        raise PackingError(detail or type(error).__name__) from None


_FAILURES = (ValueError, TypeError, OverflowError, msgpack.UnpackException)
