"""The digests in a manifest are those the kernel finds, around every border of blocks and tree levels."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mkmeta.digest import VERITY_BLOCK_SIZE as BLOCK
from mkmeta.digest import VERITY_HASHES_PER_BLOCK as HASHES
from mkmeta.linux.verity import measure_verity
from mkmeta.model import DigestName, RegularFile
from tests.scanner.helpers import scan_tree

pytestmark = [pytest.mark.verity, pytest.mark.needs("fs-verity")]

ONE_LEVEL, TWO_LEVELS = HASHES * BLOCK, HASHES * HASHES * BLOCK  # the most bytes with so many levels: 512 KiB, 64 MiB
BORDERS = (BLOCK, ONE_LEVEL, TWO_LEVELS)
SIZES = sorted({0, 1, 2 * BLOCK, *(border + step for border in BORDERS for step in (-1, 0, 1))})


def make(path: Path, size: int) -> None:
    """A file of zeros, but for its first and last byte: of each level, the first and the last hash are its own."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in {0, size - 1} if size else ():
            file.seek(offset)
            file.write(b"%d" % (1 + offset % 9))
    assert path.stat().st_size == size


def test_manifest_fsverity_utils_and_kernel_agree(ext4: Path) -> None:
    volume = ext4 / "volume"
    volume.mkdir()
    paths = [volume / str(size) for size in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        make(path, size)
    recorded = {
        name: node.verity.hex()
        for name, node in scan_tree(volume, "*", digests=tuple(DigestName)).nodes().items()
        if isinstance(node, RegularFile) and node.verity
    }

    computed = subprocess.run(["fsverity", "digest", "--compact", *paths], check=True, capture_output=True, text=True)
    measured = []
    for path in paths:
        subprocess.run(["fsverity", "enable", path], check=True)
        with path.open("rb") as file:
            digest = measure_verity(file.fileno())
        measured.append(digest.hex() if digest else "none")
    assert measured == computed.stdout.split()
    assert measured == [recorded[b"%d" % size] for size in SIZES]
    assert len(set(measured)) == len(SIZES)
