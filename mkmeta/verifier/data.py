"""The data of recorded files: read and hashed, or measured where the volume's filesystem keeps fs-verity digests."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from mkmeta.linux.verity import measure_verity
from mkmeta.model import DigestName, RegularFile
from mkmeta.scanner.hashing import ContentHasher
from mkmeta.scanner.looking import open_content
from mkmeta.sinks.directory.inspection import Mismatch

_SCALE: Final = 2**64


@dataclass(frozen=True, slots=True)
class Sample:
    """Which files are checked: a share of all, chosen by their paths, so that every host chooses the same ones.

    What a smaller share chooses, a larger one of the same seed chooses too.
    """

    share: float = 1.0  # 0 to 1
    seed: bytes = b""

    def __contains__(self, path: bytes) -> bool:
        if self.share >= 1:
            return True
        digest = blake3(self.seed + b"\0" + path).digest(8)
        return int.from_bytes(digest, "big") < self.share * _SCALE


class DataChecker:
    """Compares the content of files with recorded digests. For one process: it owns a buffer."""

    def __init__(self, recorded: Collection[DigestName], sample: Sample) -> None:
        """`recorded`: what the manifest has for every file, at least one."""
        self._hasher = ContentHasher(recorded)
        self.sample = sample

    def differences(self, name: bytes, node: RegularFile, counts: Counter[str]) -> Iterator[Mismatch]:
        """How the content of a file of the working directory differs. Raises OSError.

        Counts it as `measured`, when the kernel's own digest was the recorded one, or as `read`, with its `bytes`.
        """
        fd = open_content(name)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                yield Mismatch("type", "was replaced by something that is no file")
                return
            measured = measure_verity(fd) if node.verity is not None else None
            if measured is not None and measured == node.verity:
                counts["measured"] += 1
                return
            size, (content, verity) = self._hasher.digest(fd, node.size)
        finally:
            os.close(fd)
        counts["read"] += 1
        counts["bytes"] += size
        found = False
        if size != node.size:
            found = True
            yield Mismatch("size", f"has {size} bytes of data instead of {node.size}")
        elif (content, verity) != (node.blake3, node.verity):
            found = True
            yield from _digest_differences(node, content, verity)
        if measured is not None and not found:
            yield Mismatch(
                "verity",
                f"has the fs-verity digest {measured.hex()} instead of {_hex(node.verity)}, although its data is as "
                "recorded: it was enabled with other parameters, and mounts with verity= cannot open it",
            )


def _digest_differences(node: RegularFile, content: bytes | None, verity: bytes | None) -> Iterator[Mismatch]:
    for kind, found, recorded in (("BLAKE3", content, node.blake3), ("fs-verity digest", verity, node.verity)):
        if found != recorded:
            yield Mismatch("digest", f"other data: its {kind} is {_hex(found)} instead of {_hex(recorded)}")


def _hex(digest: bytes | None) -> str:
    return digest.hex() if digest else "none"
