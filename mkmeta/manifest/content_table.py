"""The content table of a manifest: where each content is, found by its name (formats/manifest.md 2.6).

Memory: of each content the first eight bytes of its name, up to a million of them; of more, those of every so manieth.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from mkmeta.codec.container import CONTENT_ROW
from mkmeta.errors import FormatError
from mkmeta.model import NO_CONTENT

_KEYS_MAX: Final = 1 << 20
_KEY_BYTES: Final = 8
_PIECE_ROWS: Final = 4096


class ContentTable:
    """The rows of a content table: some bytes of a file."""

    def __init__(self, fd: int, offset: int, rows: int) -> None:
        """`fd` stays the caller's."""
        self._fd = fd
        self._offset = offset
        self.rows = rows
        self._step = -(-rows // _KEYS_MAX) or 1

    def __iter__(self) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, frame, offset and length of all, unchecked. Raises FormatError when the file ends early."""
        for first in range(0, self.rows, _PIECE_ROWS):
            yield from CONTENT_ROW.iter_unpack(self._read(first, min(_PIECE_ROWS, self.rows - first)))

    def row(self, number: int) -> tuple[bytes, int, int, int]:
        """One of them."""
        name, frame, offset, length = CONTENT_ROW.unpack(self._read(number, 1))
        return name, frame, offset, length

    def find(self, name: bytes) -> int:
        """The number of the row with a name, or NO_CONTENT. In a table that is not sorted, one may be missed."""
        key = int.from_bytes(name[:_KEY_BYTES], "big")
        keys, step = self._keys, self._step
        place = bisect_left(keys, key)
        if step > 1:
            place = max(place - 1, 0)
        elif place == len(keys) or keys[place] != key:
            return NO_CONTENT
        while place < len(keys) and keys[place] <= key:
            first = place * step
            data = self._read(first, min(step, self.rows - first))
            at = data.find(name)
            while at > 0 and at % CONTENT_ROW.size:
                at = data.find(name, at + 1)
            if at >= 0:
                return first + at // CONTENT_ROW.size
            place += 1
        return NO_CONTENT

    @cached_property
    def _keys(self) -> array[int]:
        keys = array("Q")
        step = self._step
        if step > _PIECE_ROWS:
            keys.extend(int.from_bytes(self._read(first, 1)[:_KEY_BYTES], "big") for first in range(0, self.rows, step))
            return keys
        rows = _PIECE_ROWS // step * step
        for first in range(0, self.rows, rows):
            data = self._read(first, min(rows, self.rows - first))
            width = CONTENT_ROW.size * step
            keys.extend(int.from_bytes(data[start : start + _KEY_BYTES], "big") for start in range(0, len(data), width))
        return keys

    def _read(self, first: int, count: int) -> bytes:
        size = count * CONTENT_ROW.size
        data = os.pread(self._fd, size, self._offset + first * CONTENT_ROW.size)
        if len(data) != size:
            raise FormatError("content table: the file ends too early")
        return data
