"""Profiles put together: what was asked of each directory of one volume.

A row's place on the volume is its path below its mount point. Where the mount point is above the volume's root here
(`/` in what was imported without --root), the rest of the way is taken off, and rows elsewhere are not the volume's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from mkmeta.demand.profile import (
    PATH_ROOM,
    PATHS_MAX,
    Header,
    ProfileError,
    ProfileReader,
    Row,
    open_profile,
    room_of,
)

MISSES, STATS, OPENS, LISTINGS, WRITES, FIRST_MISSES, FIRST_STATS, FIRST_OPENS = range(8)  # of counts, as in Row
KNOWN_LISTINGS, LISTED_STATS, OPENED_STATS, CHECKED = range(8, 12)


@dataclass(slots=True)
class Demand:
    """What was asked, by directory relative to the root, and by opened file."""

    directories: dict[bytes, list[int]] = field(default_factory=dict)
    files: dict[bytes, int] = field(default_factory=dict)  # opens
    headers: list[Header] = field(default_factory=list)
    elsewhere: int = 0  # misses, not on the volume
    room: int = PATH_ROOM

    @property
    def lost(self) -> Counter[str]:
        """What observers could not count, by reason."""
        return sum((Counter(header.lost) for header in self.headers), Counter())

    @property
    def ended_ns(self) -> int:
        """When the last profile ended, ns since the epoch; 0: none says."""
        return max((header.ended_ns for header in self.headers), default=0)

    def total(self, kind: int) -> int:
        """The sum over all directories."""
        return sum(counts[kind] for counts in self.directories.values())

    def add(self, row: Row, path: bytes, name: bytes) -> None:
        """Adds a row. Raises ProfileError when they are too many."""
        known: dict[bytes, list[int]] | dict[bytes, int] = self.files if row.is_file else self.directories
        if path not in known:
            self.room -= room_of(path)
            if len(self.directories) + len(self.files) >= PATHS_MAX or self.room < 0:
                raise ProfileError(f"more than {PATHS_MAX} paths, or deeper ones, with those before", path=name)
        if row.is_file:
            self.files[path] = self.files.get(path, 0) + row.first_opens
            return
        counts = self.directories.get(path)
        if counts is None:
            self.directories[path] = list(row[1:13])
        else:
            for place, count in enumerate(row[1:13]):
                counts[place] += count


def read_profiles(files: Sequence[bytes], root: bytes | None, stdin: BinaryIO | None = None) -> Demand:
    """Reads profiles, for a volume whose root is here at `root`, an absolute path. Raises ProfileError."""
    demand = Demand()
    for file in files:
        given = stdin if file == b"-" else None  # which stays open: it is the caller's
        with contextlib.nullcontext(given) if given is not None else open_profile(file) as stream:
            add_profile(demand, ProfileReader(stream, file), root, file)
    return demand


def add_profile(demand: Demand, reader: ProfileReader, root: bytes | None, name: bytes) -> None:
    """Adds a profile to what is known. Raises ProfileError."""
    demand.headers.append(reader.header)
    places = [_place(mount.point, root) for mount in reader.header.mounts]
    for row in reader.rows():
        path = places[row.mount](row.path)
        if path is None:
            demand.elsewhere += row.misses
        else:
            demand.add(row, path, name)


def _place(point: bytes, root: bytes | None) -> Callable[[bytes], bytes | None]:
    """Where on the volume a path below a mount point is."""
    above = point.rstrip(b"/") + b"/"
    whole = (root or b"").rstrip(b"/") + b"/"
    if root is None or not whole.startswith(above) or whole == above:
        return lambda path: path
    way = whole[len(above) :]

    def inside(path: bytes) -> bytes | None:
        if path.startswith(way):
            return path[len(way) :]
        return b"" if path + b"/" == way else None

    return inside
