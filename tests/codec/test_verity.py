"""VerityHasher against `fsverity digest` of fsverity-utils, around every border of blocks and tree levels."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.digest import VERITY_BLOCK_SIZE as BLOCK
from mkmeta.digest import VerityHasher, verity_digest

HASHES = BLOCK // 32  # a block of the tree has the hashes of 128 blocks below it
BORDERS = [0, BLOCK, 2 * BLOCK, HASHES * BLOCK, 2 * HASHES * BLOCK, HASHES * HASHES * BLOCK]
SIZES = sorted(
    {
        size
        for border in BORDERS
        for size in (border - BLOCK, border - 1, border, border + 1, border + BLOCK)
        if size >= 0
    }
    | {100, 12_345, 300 * BLOCK + 7}
)


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def fsverity(*files: Path) -> list[str]:
    """The digests fsverity-utils computes."""
    command = ["fsverity", "digest", "--compact", "--hash-alg=sha256", f"--block-size={BLOCK}", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.needs("fsverity")
def test_digests_are_those_of_fsverity_utils(tmp_path: Path) -> None:
    files = []
    for size in SIZES:
        files.append(tmp_path / str(size))
        files[-1].write_bytes(content_of(size))
    assert max(SIZES) > HASHES * HASHES * BLOCK  # three levels
    expected = fsverity(*files)
    assert [verity_digest(content_of(size)).hex() for size in SIZES] == expected
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as stream:
        stream.truncate(HASHES * BLOCK + 1)
    assert fsverity(zeros) == [verity_digest(bytes(HASHES * BLOCK + 1)).hex()]


def test_digests_known_by_heart() -> None:
    """For machines without fsverity-utils; the first is that of the empty file everywhere."""
    assert verity_digest(b"").hex() == "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"
    assert verity_digest(bytes(4097)).hex() == "093756e4ea9683329106d4a16982682ed182c14bf076463a9e7f97305cbac743"


@given(st.sampled_from(SIZES[:-5]), st.lists(st.integers(1, 300), max_size=20))
def test_pieces_do_not_matter(size: int, pieces: list[int]) -> None:
    """Any split at block borders gives the digest of the whole; empty pieces count for nothing."""
    content = memoryview(content_of(size))
    hasher = VerityHasher()
    start = 0
    for blocks in pieces:
        hasher.update(content[start : start + blocks * BLOCK])
        start = min(size, start + blocks * BLOCK)
        if start < size:
            hasher.update(content[:0])
    if start < size:
        hasher.update(content[start:])
    assert hasher.digest() == verity_digest(content)


@pytest.mark.parametrize("seed", range(60))
def test_zeros_are_zeros(seed: int) -> None:
    """However many, wherever they are: as if each had been given."""
    chance = random.Random(seed)
    short, plain = VerityHasher(), VerityHasher()
    for _ in range(chance.randrange(1, 5)):
        size = chance.choice([0, 1, 2, 127, 128, 129, chance.randrange(3_000)]) * BLOCK
        data = chance.randbytes(chance.randrange(1, 300) * BLOCK)
        short.update_zeros(size)
        plain.update(memoryview(bytes(size)))
        if chance.randrange(2):
            short.update(memoryview(data))
            plain.update(memoryview(data))
    if chance.randrange(2):
        short.update(memoryview(b"end"))
        plain.update(memoryview(b"end"))
    assert short.digest() == plain.digest()
