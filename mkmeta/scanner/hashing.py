"""Digests of a file's content: one pass of reading for all that are wanted."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import Final

from blake3 import blake3

from mkmeta.digest import (
    VERITY_BLOCK_SIZE,
    VERITY_HASHES_PER_BLOCK,
    ContentDigest,
    VerityDigest,
    VerityHasher,
    verity_digest,
    verity_digest_of_blocks,
)
from mkmeta.model import DigestName
from mkmeta.scanner.turns import Turns

_BLOCKS: Final = VERITY_HASHES_PER_BLOCK  # read at once: files up to this size, most of all, have one level of hashes
_BUFFER_SIZE: Final = _BLOCKS * VERITY_BLOCK_SIZE  # bytes

_STAT_BLOCK: Final = 512  # bytes, unit of st_blocks
_ZEROS: Final = memoryview(bytes(4 << 20))

_one_at_a_time = Turns()  # threads that hash by turns are slowed down less than by fighting for the GIL

Digests = tuple[ContentDigest | None, VerityDigest | None]


class ContentHasher:
    """Hashes the content of open files. One per thread: it owns a buffer."""

    def __init__(self, wanted: Collection[DigestName]) -> None:
        self.blake3 = DigestName.BLAKE3 in wanted
        self.verity = DigestName.VERITY in wanted
        self.enabled = self.blake3 or self.verity
        self._buffer = memoryview(bytearray(_BUFFER_SIZE if self.enabled else 0))
        self._blocks = [
            self._buffer[start : start + VERITY_BLOCK_SIZE] for start in range(0, len(self._buffer), VERITY_BLOCK_SIZE)
        ]
        self.of_nothing: Digests = (
            ContentDigest(blake3().digest()) if self.blake3 else None,
            verity_digest(b"") if self.verity else None,
        )

    def digest(self, fd: int, size: int) -> tuple[int, Digests]:
        """How many bytes the file had and their digests; `size`, not 0, is what it should have.

        Raises OSError as read(2) does.
        """
        filled = os.readv(fd, (self._buffer,))
        if filled == size < _BUFFER_SIZE:  # all there: no need to ask whether there is more, its times would tell
            with _one_at_a_time:
                return size, self._digest_buffer(size)
        return self._digest_long(fd, filled)

    def read(self, fd: int, size: int) -> tuple[bytes, Digests]:
        """The content and its digests; `size`, not 0, is what it should have, and little.

        Of a file that has another size, what is returned is longer or shorter. Raises OSError as read(2) does.
        """
        filled = os.readv(fd, (self._buffer,))
        if filled == size < _BUFFER_SIZE:
            with _one_at_a_time:
                return bytes(self._buffer[:size]), self._digest_buffer(size)
        data = bytearray(self._buffer[:filled])
        while len(data) <= size and (piece := os.pread(fd, size + 1 - len(data), len(data))):
            data += piece
        with _one_at_a_time:
            content = ContentDigest(blake3(data).digest()) if self.blake3 else None
            return bytes(data), (content, verity_digest(memoryview(data)) if self.verity else None)

    def _digest_buffer(self, size: int) -> Digests:
        """The digests of the first `size` bytes of the buffer."""
        content = ContentDigest(blake3(self._buffer[:size]).digest()) if self.blake3 else None
        if not self.verity:
            return content, None
        blocks, tail = divmod(size, VERITY_BLOCK_SIZE)
        if tail:
            self._blocks[blocks][tail:] = bytes(VERITY_BLOCK_SIZE - tail)
            blocks += 1
        return content, verity_digest_of_blocks(self._blocks[:blocks], size)

    def _digest_long(self, fd: int, filled: int) -> tuple[int, Digests]:
        """The digests of a file of any size, of which `filled` bytes are in the buffer. What is a hole is not read."""
        content = blake3() if self.blake3 else None
        verity = VerityHasher() if self.verity else None
        status = os.fstat(fd)
        sparse = status.st_blocks * _STAT_BLOCK < status.st_size
        total = 0
        while filled := self._fill(fd, total, filled):
            piece = self._buffer[:filled]
            with _one_at_a_time:
                if content is not None:
                    content.update(piece)
                if verity is not None:
                    verity.update(piece)
            total += filled
            if filled < _BUFFER_SIZE:
                break
            filled = 0
            if sparse:
                total += self._skip_hole(fd, total, content, verity)
        return total, (
            ContentDigest(content.digest()) if content is not None else None,
            verity.digest() if verity is not None else None,
        )

    def _skip_hole(self, fd: int, start: int, content: blake3 | None, verity: VerityHasher | None) -> int:
        """Hashes the zeros of a hole that begins at `start`, as far as it has whole buffers. Returns how many."""
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data any more
                return 0  # a filesystem that does not tell: it is read
            data = os.lseek(fd, 0, os.SEEK_END)
        zeros = (data - start) // _BUFFER_SIZE * _BUFFER_SIZE
        if zeros and verity is not None:
            verity.update_zeros(zeros)
        if content is not None:  # knows no short cut: each piece is hashed with its place
            for at in range(0, zeros, len(_ZEROS)):
                content.update(_ZEROS[: min(len(_ZEROS), zeros - at)])
        return max(zeros, 0)

    def _fill(self, fd: int, start: int, filled: int) -> int:
        """Reads from `start` on until the buffer is full or the file ends: only the last piece ends inside a block."""
        while filled < _BUFFER_SIZE:
            count = os.preadv(fd, (self._buffer[filled:],), start + filled)
            if not count:
                break
            filled += count
        return filled
