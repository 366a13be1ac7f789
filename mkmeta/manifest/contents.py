"""The contents of files that are in a manifest: found by digest, read and compared with it (formats/manifest.md 2.6).

Memory: of each content the first eight bytes of its name, up to a million of them; of more, those of every so manieth.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from mkmeta.codec.container import CONTENT_ROW, CONTENT_SIZE_MAX, ContentTrailer, Location
from mkmeta.digest import verity_digest
from mkmeta.errors import FormatError, printable
from mkmeta.model import DigestName, RegularFile

if TYPE_CHECKING:
    from mkmeta.manifest.reader import ManifestReader

_KEYS_MAX: Final = 1 << 20
_KEY_BYTES: Final = 8
_PIECE_ROWS: Final = 4096
_ABSENT: Final = -1


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
        """The number of the row with a name; -1: there is none. In a table that is not sorted, one may be missed."""
        key = int.from_bytes(name[:_KEY_BYTES], "big")
        keys, step = self._keys, self._step
        place = bisect_left(keys, key)
        if step > 1:
            place = max(place - 1, 0)
        elif place == len(keys) or keys[place] != key:
            return _ABSENT
        while place < len(keys) and keys[place] <= key:
            first = place * step
            data = self._read(first, min(step, self.rows - first))
            at = data.find(name)
            while at > 0 and at % CONTENT_ROW.size:
                at = data.find(name, at + 1)
            if at >= 0:
                return first + at // CONTENT_ROW.size
            place += 1
        return _ABSENT

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


def check_apart(before: Location, place: Location, name: bytes) -> None:
    """Raises FormatError when a content overlaps the one that is before it, by place: what a manifest holds would be
    more than its frames.
    """
    if place.frame == before.frame and place.offset < before.offset + before.length:
        raise FormatError(f"content {name.hex()[:16]}: begins in another, in frame {place.frame}")


class Contents:
    """The contents of an open manifest."""

    def __init__(self, reader: ManifestReader, table: ContentTable, trailer: ContentTrailer) -> None:
        self._reader = reader
        self.table = table
        self.first_frame = trailer.first_frame

    def __len__(self) -> int:
        """How many there are."""
        return self.table.rows

    @cached_property
    def id(self) -> bytes:
        """What tells these contents from others: the BLAKE3 of all names, in order. No part of the manifest ID."""
        hasher = blake3()
        for name, *_ in self.table:
            hasher.update(name)
        return hasher.digest()

    def prepare(self) -> None:
        """Reads what it takes to find one, so that processes forked from now on have it."""
        self.table.find(b"")

    def find(self, file: RegularFile) -> int:
        """The number of a file's content; -1 if it is not here."""
        name = file.blake3 if self._is_blake3 else file.verity
        if name is None or not 0 < file.size <= CONTENT_SIZE_MAX:
            return _ABSENT
        return self.find_bytes(name, file.size)

    def find_bytes(self, digest: bytes, size: int) -> int:
        """The same for the digest that names it and the size of a file that has content."""
        number = self.table.find(digest)
        if number < 0 or self.table.row(number)[3] != size:
            return _ABSENT
        return number

    def read(self, number: int, path: bytes) -> bytes:
        """A content, compared with its name; `path` is the file that is to have it. Raises FormatError."""
        name, *place = self.table.row(number)
        return self._checked(name, Location(*place), f"content of '{printable(path)}'")

    def checked(self, name: bytes, place: Location) -> bytes:
        """A content, compared with its name, given its place. Raises FormatError."""
        return self._checked(name, place, f"content {name.hex()[:16]}")

    def frame(self, number: int) -> tuple[bytes, int]:
        """A frame as it is in the file, compressed, and its size. Raises FormatError."""
        return self._reader.raw_frame(number)

    @cached_property
    def _is_blake3(self) -> bool:
        """Whether names are BLAKE3, and not fs-verity digests."""
        return DigestName.BLAKE3 in self._reader.root.digests

    def _checked(self, name: bytes, place: Location, where: str) -> bytes:
        if place.frame < self.first_frame:
            raise FormatError(f"{where}: in frame {place.frame}, which is for objects")
        if not 0 < place.length <= CONTENT_SIZE_MAX:
            raise FormatError(f"{where}: {place.length} bytes, a content has 1 to {CONTENT_SIZE_MAX}")
        data = self._reader.content_at(place, where)
        if (blake3(data).digest() if self._is_blake3 else verity_digest(data)) != name:
            raise FormatError(f"{where}: is damaged: its bytes have another digest")
        return data
