"""Digests of a file's content: one pass of reading for all that are wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import Final

from blake3 import blake3

from mkmeta.digest import VERITY_BLOCK_SIZE, ContentDigest, VerityDigest, VerityHasher, verity_digest
from mkmeta.model import DigestName

_BUFFER_SIZE: Final = 64 * VERITY_BLOCK_SIZE  # bytes read at once: fits the second-level cache with room to spare

_one_at_a_time = threading.Lock()  # threads that hash by turns are slowed down less than by fighting for the GIL

Digests = tuple[ContentDigest | None, VerityDigest | None]


class ContentHasher:
    """Hashes the content of open files. One per thread: it owns a buffer."""

    def __init__(self, wanted: Collection[DigestName]) -> None:
        self.blake3 = DigestName.BLAKE3 in wanted
        self.verity = DigestName.VERITY in wanted
        self.enabled = self.blake3 or self.verity
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self.of_nothing: Digests = (
            ContentDigest(blake3().digest()) if self.blake3 else None,
            verity_digest(b"") if self.verity else None,
        )

    def digest(self, fd: int) -> tuple[int, Digests]:
        """How many bytes the file had and their digests. Raises OSError as read(2) does."""
        content = blake3() if self.blake3 else None
        verity = VerityHasher() if self.verity else None
        total = 0
        while filled := self._fill(fd):
            piece = self._buffer[:filled]
            total += filled
            with _one_at_a_time:
                if content is not None:
                    content.update(piece)
                if verity is not None:
                    verity.update(piece)
            if filled < _BUFFER_SIZE:
                break
        return total, (
            ContentDigest(content.digest()) if content is not None else None,
            verity.digest() if verity is not None else None,
        )

    def _fill(self, fd: int) -> int:
        """Reads until the buffer is full or the file ends: only the last piece may end inside a block."""
        filled = 0
        while filled < _BUFFER_SIZE:
            count = os.readv(fd, [self._buffer[filled:]])
            if not count:
                break
            filled += count
        return filled
