"""How many requests a profile's programs send with a layer and without: by kind, for a client with empty caches.

Measured (docs/figures.md; tests/nfs/test_demand.py), and the same for NFS 3 and 4.2 but for opens:

    way         a LOOKUP for each directory found on the volume, but in one that was listed, which tells of it; an
                ACCESS for each in which something is asked
    misses      one for each name that is not there; none in a directory that is recorded completely
    stats       one LOOKUP for each name, but in a directory that was listed before; none in a complete one, but in
                `merge`, where the volume is asked too for files whose content is not held: of which files attributes
                were asked for, no profile says. Of those that are opened then, it is with NFS 4 the same LOOKUP
    listings    one READDIR for each directory, and a GETATTR each time it was known before; without an overlay, NFS 4
                asks once more when it is asked for itself after that; none for a complete one
    opens       two for each file (OPEN and CLOSE; NFS 3 has LOOKUP and ACCESS, and a GETATTR each time it is opened
                again, but in `nested`), and through an overlay a LOOKUP on NFS 4
    reads       one for each MiB of it

A file whose content the layer holds costs nothing. What is asked again within the cache's time costs nothing either,
so first calls alone count. In `data-only` mounts what is not recorded is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from mkmeta.demand.reading import (
    CHECKED,
    FIRST_MISSES,
    FIRST_OPENS,
    FIRST_STATS,
    KNOWN_LISTINGS,
    LISTED_STATS,
    LISTINGS,
    OPENED_STATS,
    Demand,
)
from mkmeta.demand.shape import ManifestShape
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, RegularFile
from mkmeta.mounts.profile import Profile

PLAIN: Final = "plain"
KINDS: Final = ("misses", "stats", "listings", "opens", "reads", "way")
PROFILES: Final = (Profile.NESTED, Profile.MERGE, Profile.DATA_ONLY)
_READ_BYTES: Final = 1 << 20  # the usual rsize


class _Served(Enum):
    COMPLETE = auto()  # recorded completely
    SKELETON = auto()
    THROUGH = auto()  # not recorded, below the skeleton


@dataclass(slots=True)
class Requests:
    """What a server hears, in one kind of mount."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    found: set[bytes] = field(default_factory=set)  # directories looked up on the volume
    asked: set[bytes] = field(default_factory=set)  # directories in which something is
    listed: set[bytes] = field(default_factory=set)  # directories whose listing tells of those in them

    def add(self, kind: str, count: int, directory: bytes) -> None:
        """So many requests for names in a directory on the volume, and what the way there takes."""
        if not count:
            return
        self.counts[kind] += count
        at = directory
        while at not in self.asked:
            self.asked.add(at)
            if not at:
                break
            self.found.add(at)
            at = at.rpartition(b"/")[0]

    def look_up(self, directory: bytes) -> None:
        """A directory is looked up on the volume, and nothing in it."""
        while directory and directory not in self.found:
            self.found.add(directory)
            directory = directory.rpartition(b"/")[0]
            self.asked.add(directory)

    def total(self) -> dict[str, int]:
        """By kind."""
        told = sum(path.rpartition(b"/")[0] in self.listed for path in self.found)
        return {**self.counts, "way": len(self.found) - told + len(self.asked)}


@dataclass(slots=True)
class Prediction:
    """Requests by mount and kind, over all profiles, and the misses that stay."""

    requests: dict[str, dict[str, int]]
    stay: dict[bytes, int]  # misses, by directory

    def gain(self, profile: str, kind: str | None = None) -> float:
        """The share of requests that a profile saves, of one kind or of all."""
        before, after = (sum(self.requests[one][k] for k in ([kind] if kind else KINDS)) for one in (PLAIN, profile))
        return (before - after) / before if before else 0.0  # 1 of 10 is as much as 10 %: 1 - 9 / 10 is less


class Predictor:
    """Adds up profiles, each of a client of its own."""

    def __init__(self, reader: ManifestReader, *, nfs: str = "4.2", inline: int = 0) -> None:
        """`inline`: files up to so many bytes are held as well, beside those whose content the manifest has."""
        self._reader = reader
        self._shape = ManifestShape(reader)
        self._inline = inline
        self._nfs3 = nfs == "3"
        self.prediction = Prediction({name: dict.fromkeys(KINDS, 0) for name in (PLAIN, *PROFILES)}, {})

    def add(self, demand: Demand) -> None:
        """Adds what one client asked for. Raises FormatError."""
        mounts = {name: Requests() for name in (PLAIN, *PROFILES)}
        missing: set[tuple[bytes, bytes]] = set()
        opens = {path: counts[FIRST_OPENS] for path, counts in demand.directories.items()}
        opened: dict[bytes, list[bool]] = {}  # by directory: of each file, whether its content is held
        for path, count in demand.files.items():
            parent = path.rpartition(b"/")[0]
            opens[parent] = max(opens.get(parent, 0) - 1, 0)
            if count:
                opened.setdefault(parent, []).append(self._file(mounts, path, count))
        for path, counts in demand.directories.items():
            served, directory, name = self._place(path)
            misses = counts[FIRST_MISSES]
            if name is not None and served is not _Served.THROUGH:
                misses = int(bool(misses) and (directory, name) not in missing)
                missing.add((directory, name))
            self._misses(mounts, served, directory, misses)
            if name is None or served is _Served.THROUGH:
                stats = self._merged_stats(directory, counts, opened.get(path, [])) if served is _Served.COMPLETE else 0
                self._found(mounts, served, directory, counts, opens[path], stats)
        for mount, requests in mounts.items():
            for kind, count in requests.total().items():
                self.prediction.requests[mount][kind] += count

    def _place(self, path: bytes) -> tuple[_Served, bytes, bytes | None]:
        """How a directory is served, where it is, and what of the way to it is recorded as not there."""
        place = self._shape.place(path)
        if place is None:
            return _Served.THROUGH, path, None
        node = self._reader.find(place.path)
        assert isinstance(node, Directory)
        opaque = node.kind is DirectoryKind.OPAQUE
        if place.missing is not None and not opaque:
            return _Served.THROUGH, path, None
        return (_Served.COMPLETE if opaque else _Served.SKELETON), place.path, place.missing

    def _misses(self, mounts: Mapping[str, Requests], served: _Served, directory: bytes, count: int) -> None:
        if not count:
            return
        for name, requests in mounts.items():
            if name == PLAIN or (served is not _Served.COMPLETE and name != Profile.DATA_ONLY):
                requests.add("misses", count, directory)
            elif name != Profile.DATA_ONLY:
                self._way(requests, directory)
        if served is not _Served.COMPLETE:
            self.prediction.stay[directory] = self.prediction.stay.get(directory, 0) + count

    def _found(
        self,
        mounts: Mapping[str, Requests],
        served: _Served,
        directory: bytes,
        counts: list[int],
        opens: int,
        merged_stats: int,
    ) -> None:
        listings = min(counts[LISTINGS], 1) + counts[KNOWN_LISTINGS]
        for name, requests in mounts.items():
            if name == Profile.DATA_ONLY and served is not _Served.COMPLETE:
                continue
            asks = name == PLAIN or served is not _Served.COMPLETE
            stats = counts[FIRST_STATS] - counts[LISTED_STATS]
            if not asks:
                stats = merged_stats if name == Profile.MERGE else 0
            requests.add("stats", stats, directory)
            if asks and counts[LISTINGS]:
                requests.add("listings", listings, directory)
                requests.listed.add(directory)
                if name == PLAIN and not self._nfs3:
                    requests.add("listings", min(counts[CHECKED], 1), directory)
            requests.add("opens", opens * self._opens(name, 1), directory)
            requests.add("reads", opens, directory)
            if not asks and name != Profile.DATA_ONLY and any(counts):
                self._way(requests, directory)

    def _merged_stats(self, directory: bytes, counts: list[int], opened: list[bool]) -> int:
        """The names in a complete directory that `merge` asks the volume for, but for those it does to open them.

        `opened`: of each file that is, whether its content is held.
        """
        both = counts[OPENED_STATS]
        others = counts[FIRST_STATS] - both
        alone = round(others * self._asked_share(directory)) if others else 0
        return alone + (round(both * opened.count(False) / len(opened)) if both and opened and self._nfs3 else 0)

    def _opens(self, mount: str, times: int) -> int:
        """The requests for a file that is opened so many times."""
        if self._nfs3:
            return 2 if mount == Profile.NESTED else 1 + times
        return 2 if mount == PLAIN else 3

    def _file(self, mounts: Mapping[str, Requests], path: bytes, times: int) -> bool:
        """Adds a file that is opened so many times; whether its content is held."""
        parent, _, name = path.rpartition(b"/")
        served, directory, missing = self._place(parent)
        if missing is not None:
            return False
        node = (
            self._reader.find(directory + b"/" + name if directory else name) if served is not _Served.THROUGH else None
        )
        held = isinstance(node, RegularFile) and self._is_held(node)
        reads = -(-node.size // _READ_BYTES) if isinstance(node, RegularFile) else 1
        for mount, requests in mounts.items():
            if mount == PLAIN or not held:
                requests.add("opens", self._opens(mount, times), directory)
                requests.add("reads", reads, directory)
            elif mount != Profile.DATA_ONLY:
                self._way(requests, directory)
        return held

    def _asked_share(self, directory: bytes) -> float:
        """The share of files in a complete directory whose content is not held: `merge` asks the volume for these."""
        if self._reader.contents is None and not self._inline:
            return 1.0
        node = self._reader.find(directory)
        assert isinstance(node, Directory)
        held = [self._is_held(one) for _, one in self._reader.entries(node, directory) if isinstance(one, RegularFile)]
        return 1 - sum(held) / len(held) if held else 0.0

    def _is_held(self, node: RegularFile) -> bool:
        contents = self._reader.contents
        return not node.size or node.size <= self._inline or (contents is not None and contents.find(node) >= 0)

    def _way(self, requests: Requests, directory: bytes) -> None:
        """The directories of the skeleton above a complete one, which an overlay looks up on the volume as well."""
        while directory:
            node = self._reader.find(directory)
            if isinstance(node, Directory) and node.kind is DirectoryKind.MERGE:
                requests.look_up(directory)
                return
            directory = directory.rpartition(b"/")[0]
