"""Damaged manifests: checked or refused, nothing else, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.property.mutations import Taken, accepts
from tests.vectors.make_vectors import VECTORS

LARGE = "many-links"
FILES = sorted(path for path in VECTORS.glob("*/manifest.mkm") if path.parent.name != LARGE)


def _fuzz(seed: int, count: int, files: list[str]) -> tuple[int, int]:
    """Accepted and refused, found in a process with little memory."""
    command = [sys.executable, "-m", "tests.property.mutations", str(seed), str(count), *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=VECTORS.parents[1])
    assert result.returncode == 0, result.stderr
    accepted, refused = map(int, result.stdout.split())
    return accepted, refused


def test_mutations_of_the_vectors() -> None:
    accepted, refused = _fuzz(1, 150, [str(path) for path in FILES])
    assert accepted + refused == 150 * len(FILES)
    assert refused > accepted > 0  # a mutation of a time or a size is another valid manifest


def test_mutations_of_many_links() -> None:
    accepted, refused = _fuzz(2, 9, [str(VECTORS / LARGE / "manifest.mkm")])
    assert accepted + refused == 9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_mutations_of_the_vectors() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    accepted, refused = _fuzz(seed, 9000, [str(path) for path in FILES])
    assert accepted and refused


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_taken_apart_and_put_together_they_are_valid(path: Path) -> None:
    """So a refused mutation was refused for the mutation."""
    taken = Taken(path.read_bytes())
    name, content = max(taken.objects.items(), key=lambda item: len(item[1]))
    assert accepts(taken.with_object(name, content))
    assert accepts(taken.with_record(taken.records[0], taken.frames[taken.records[0]]))
