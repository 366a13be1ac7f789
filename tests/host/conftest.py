"""Fixtures for tests that mount layers on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.hosts import Host, host_in


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with one release and one generation."""
    yield from host_in(tmp_path / "host")
