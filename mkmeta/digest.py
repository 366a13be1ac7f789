"""The kinds of digest mkmeta knows, each its own type, and the functions that compute them from bytes.

Nothing here does I/O. Sources: formats/manifest.md section 3 for object IDs; the kernel's
Documentation/filesystems/fsverity.rst for the fs-verity digest (Merkle tree and `fsverity_descriptor`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from enum import Enum
from typing import NewType

from blake3 import blake3

ContentDigest = NewType("ContentDigest", bytes)  # BLAKE3 of a file's content, 32 bytes
VerityDigest = NewType("VerityDigest", bytes)  # fs-verity file digest, SHA-256, 32 bytes: what the kernel checks
ObjectId = NewType("ObjectId", bytes)  # BLAKE3 of an object's canonical bytes, 32 bytes: its name

DIGEST_SIZE = 32  # bytes, of each of the three

VERITY_BLOCK_SIZE = 4096  # bytes; FORMAT: the only block size overlayfs layers are verified with everywhere
VERITY_HASHES_PER_BLOCK = VERITY_BLOCK_SIZE // DIGEST_SIZE
# struct fsverity_descriptor (include/uapi/linux/fsverity.h): version, hash_algorithm, log_blocksize, salt_size,
# reserved, data_size, root_hash[64], salt[32], reserved[144]
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")
_SHA256 = 1  # FS_VERITY_HASH_ALG_SHA256


_ZERO_BLOCK_HASH = hashlib.sha256(bytes(VERITY_BLOCK_SIZE)).digest()


class ObjectKind(Enum):
    """What an object is; the value separates the ID spaces (formats/manifest.md section 3)."""

    DIRECTORY = "mkmeta 2026 manifest v1 directory"
    DIRECTORY_PAGE = "mkmeta 2026 manifest v1 directory page"
    ROOT = "mkmeta 2026 manifest v1 root"
    LINK_PAGE = "mkmeta 2026 manifest v1 link page"
    LINK_INDEX = "mkmeta 2026 manifest v1 link index"

    def id_of(self, data: bytes) -> ObjectId:
        """The ID of an object of this kind with these bytes."""
        return ObjectId(blake3(data, derive_key_context=self.value).digest())


class VerityHasher:
    """Computes the fs-verity digest of content that arrives in pieces.

    Pieces are whole blocks, but for the last. Memory: one hash block per level of the Merkle tree.
    """

    __slots__ = ("_levels", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._levels: list[bytearray] = [bytearray()]  # pending hashes, leaf level first; each below one block

    def update(self, piece: memoryview) -> None:
        """Adds content. Every piece but the last must be a multiple of VERITY_BLOCK_SIZE."""
        sha256 = hashlib.sha256
        size = len(piece)
        self._size += size
        tail = size % VERITY_BLOCK_SIZE
        blocks = [
            sha256(piece[start : start + VERITY_BLOCK_SIZE]).digest()
            for start in range(0, size - tail, VERITY_BLOCK_SIZE)
        ]
        if tail:
            blocks.append(sha256(bytes(piece[size - tail :]).ljust(VERITY_BLOCK_SIZE, b"\0")).digest())
        leaves = self._levels[0]
        leaves += b"".join(blocks)
        if len(leaves) > VERITY_BLOCK_SIZE:
            self._fold(0)

    def update_zeros(self, size: int) -> None:
        """Adds so many zero bytes, a multiple of VERITY_BLOCK_SIZE. Takes as long as there are levels of hashes."""
        self._size += size
        self._add_alike(0, _ZERO_BLOCK_HASH, size // VERITY_BLOCK_SIZE)

    def _add_alike(self, level: int, block_hash: bytes, count: int) -> None:
        """Adds the same hash many times to a level."""
        if len(self._levels) == level:
            self._levels.append(bytearray())
        pending = self._levels[level]
        room = -len(pending) // DIGEST_SIZE % VERITY_HASHES_PER_BLOCK
        first = min(room, count)
        pending += block_hash * first
        blocks = max((count - first - 1) // VERITY_HASHES_PER_BLOCK, 0)
        if blocks:  # something follows at this level, so that all that is pending can go up
            pending += block_hash  # which _fold leaves where it is
            self._fold(level)
            del pending[:]
            self._add_alike(level + 1, hashlib.sha256(block_hash * VERITY_HASHES_PER_BLOCK).digest(), blocks)
        pending += block_hash * (count - first - blocks * VERITY_HASHES_PER_BLOCK)
        if len(pending) > VERITY_BLOCK_SIZE:
            self._fold(level)

    def _fold(self, level: int) -> None:
        """Hashes the full blocks of a level into the next one, keeping the last block, which may be the only one."""
        pending = self._levels[level]
        whole = (len(pending) - 1) // VERITY_BLOCK_SIZE * VERITY_BLOCK_SIZE
        if not whole:
            return
        if len(self._levels) == level + 1:
            self._levels.append(bytearray())
        sha256 = hashlib.sha256
        for start in range(0, whole, VERITY_BLOCK_SIZE):
            self._levels[level + 1] += sha256(pending[start : start + VERITY_BLOCK_SIZE]).digest()
        del pending[:whole]
        self._fold(level + 1)

    def digest(self) -> VerityDigest:
        """The fs-verity digest of everything seen. Ends the hasher's use."""
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > DIGEST_SIZE:
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            block = self._levels[level].ljust(VERITY_BLOCK_SIZE, b"\0")
            self._levels[level + 1] += hashlib.sha256(block).digest()
            level += 1
            self._fold(level)
        return _descriptor_digest(bytes(self._levels[level]) if self._size else bytes(DIGEST_SIZE), self._size)


def verity_digest_of_blocks(blocks: Sequence[memoryview], size: int) -> VerityDigest:
    """The fs-verity digest of `size` bytes in 1 to 128 whole blocks, the last filled up with zeros.

    One level of hashes: what VerityHasher would say, in less time for a small file.
    """
    sha256 = hashlib.sha256
    hashes = b"".join([sha256(block).digest() for block in blocks])
    if len(blocks) > 1:
        hashes = sha256(hashes.ljust(VERITY_BLOCK_SIZE, b"\0")).digest()
    return _descriptor_digest(hashes, size)


def _descriptor_digest(root_hash: bytes, size: int) -> VerityDigest:
    log_block_size = VERITY_BLOCK_SIZE.bit_length() - 1
    descriptor = _DESCRIPTOR.pack(1, _SHA256, log_block_size, 0, 0, size, root_hash, b"")
    return VerityDigest(hashlib.sha256(descriptor).digest())


def verity_digest(content: bytes | memoryview) -> VerityDigest:
    """The fs-verity digest of content that is in memory."""
    hasher = VerityHasher()
    hasher.update(memoryview(content))
    return hasher.digest()
