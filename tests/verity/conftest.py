"""Fixtures for tests on a filesystem whose files can have fs-verity: an ext4 of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.host.hosts import Host, host_in


@pytest.fixture
def ext4(mount: Mount, tmp_path: Path) -> Path:
    """Where an ext4 that has fs-verity is mounted."""
    image = tmp_path / "ext4"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    # Blocks as large as those of the Merkle tree, which mkfs would make smaller on so small a filesystem
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "verity", image], check=True)
    return mount("ext4", "loop", image)


@pytest.fixture
def host(ext4: Path) -> Iterator[Host]:
    """A host with one release and one generation, all on that filesystem; no file has fs-verity yet."""
    yield from host_in(ext4 / "host")
