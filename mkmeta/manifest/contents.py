"""The contents of files that are in a manifest: found by digest, read, compared with it (formats/manifest.md 2.6)."""

from __future__ import annotations

from functools import cached_property

from blake3 import blake3

from mkmeta.codec.container import CONTENT_SIZE_MAX, Location
from mkmeta.digest import verity_digest
from mkmeta.errors import FormatError, printable
from mkmeta.manifest.content_table import ContentTable
from mkmeta.manifest.object_file import ObjectFile
from mkmeta.model import NO_CONTENT, DigestName, RegularFile


def check_apart(before: Location, place: Location, name: bytes) -> None:
    """Raises FormatError when a content overlaps the one that is before it, by place: what a manifest holds would be
    more than its frames.
    """
    if place.frame == before.frame and place.offset < before.offset + before.length:
        raise FormatError(f"content {name.hex()[:16]}: begins in another, in frame {place.frame}")


class Contents:
    """The contents of an open manifest."""

    def __init__(self, file: ObjectFile, table: ContentTable, named_by: DigestName) -> None:
        self._file = file
        self.table = table
        self._is_blake3 = named_by is DigestName.BLAKE3

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
            return NO_CONTENT
        return self.find_bytes(name, file.size)

    def find_bytes(self, digest: bytes, size: int) -> int:
        """The same for the digest that names it and the size of a file that has content."""
        number = self.table.find(digest)
        if number == NO_CONTENT or self.table.row(number)[3] != size:
            return NO_CONTENT
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
        return self._file.raw_frame(number)

    def _checked(self, name: bytes, place: Location, where: str) -> bytes:
        if place.frame < self._file.object_frames:
            raise FormatError(f"{where}: in frame {place.frame}, which is for objects")
        if not 0 < place.length <= CONTENT_SIZE_MAX:
            raise FormatError(f"{where}: {place.length} bytes, a content has 1 to {CONTENT_SIZE_MAX}")
        data = self._file.content(place, where)
        if (blake3(data).digest() if self._is_blake3 else verity_digest(data)) != name:
            raise FormatError(f"{where}: is damaged: its bytes have another digest")
        return data
