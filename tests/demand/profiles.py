"""Profiles for tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mkmeta.demand.profile import Header, ProfileMount, Row, Source, write_profile

DAY_NS = 86_400 * 10**9
LONG_AGO = 1_500_000_000


def make_profile(
    path: Path, point: str, rows: Iterable[Row], *, source: Source = Source.STRACE, ended_ns: int = 0
) -> Path:
    """Writes a profile of one mount."""
    with path.open("wb") as stream:
        header = Header(source=source, mounts=(ProfileMount(point=os.fsencode(point)),), ended_ns=ended_ns)
        write_profile(stream, header, rows)
    return path


def misses(path: str, count: int, writes: int = 0) -> Row:
    """A row of a directory whose names were asked for once each."""
    return Row(os.fsencode(path), count, first_misses=count, writes=writes)


def age(top: Path) -> None:
    """All directories have not changed for years."""
    for directory, _, _ in os.walk(top, topdown=False):
        os.utime(directory, (LONG_AGO, LONG_AGO))
