"""Counts by directory while something is observed, in bounded memory; in the end, the rows of a profile.

Whether a name was asked for before is kept as one bit of 2**28, found by its CRC: of N names, about N**2 / 2**29 are
taken for known ones wrongly (of 100,000 some 20, in a hundred thousand; of ten million, 2 %).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final
from zlib import crc32

from mkmeta.demand.profile import COUNT_MAX, FILES_MAX, PATH_ROOM, PATHS_MAX, Row, room_of
from mkmeta.model import PATH_LIMIT

MISS, STAT, OPEN, LISTING, WRITE = range(5)  # places of counts, as in Row
_FIRST: Final = 5  # first_misses is so far behind misses
_KNOWN_LISTING, _LISTED_STAT, _OPENED_STAT, _CHECKED = range(8, 12)
_IN_LISTED: Final = 5  # beside MISS and so on, of a name: it was asked for in a directory that had been listed
_BITS: Final = (1 << 28) - 1


class Tally:
    """Counts calls by absolute path. Paths below none of the mounts are only counted together."""

    def __init__(self, points: Sequence[bytes]) -> None:
        """`points`: absolute paths, plain; of two that lie in each other, the deeper one counts."""
        self.points = tuple(points)
        self.lost: Counter[str] = Counter()
        self.outside = 0
        self._prefixes = tuple(point.rstrip(b"/") + b"/" for point in self.points)
        self._counts: dict[bytes, list[int]] = {}
        self._files: dict[bytes, int] = {}
        self._room = PATH_ROOM
        self._seen = bytearray((_BITS + 1) >> 3)
        self._settled = False

    def add(self, path: bytes, kind: int, times: int = 1) -> None:
        """A miss, a stat or an open of an absolute path."""
        if b"/." in path or b"//" in path or path[-1:] == b"/":
            path = normal(path)
        if not path.startswith(self._prefixes):
            self.outside += times
            return
        if not self._is_possible(path, times):
            return
        parent, _, name = path.rpartition(b"/")
        if not name:
            return  # the root itself
        counts = self._counts.get(parent) or self._new(parent)
        if counts is None:
            return
        counts[kind] += times
        bit = crc32(path, kind) & _BITS
        if not self._seen[bit >> 3] & 1 << (bit & 7):
            self._seen[bit >> 3] |= 1 << (bit & 7)
            if kind != STAT:
                counts[kind + _FIRST] += 1
                counts[_OPENED_STAT] += kind == OPEN and self._is_marked(path, STAT)
            elif not self._is_marked(path, OPEN):
                counts[STAT + _FIRST] += 1
                if counts[LISTING]:
                    counts[_LISTED_STAT] += 1
                    self._mark(path, _IN_LISTED)
        if kind == OPEN:
            self._open(path, times)
        elif kind == STAT and (own := self._counts.get(path)) is not None and own[LISTING]:
            own[_CHECKED] = 1

    def add_directory(self, path: bytes, kind: int, times: int = 1) -> None:
        """A listing of a directory at an absolute path, or a write into it."""
        path = normal(path).rstrip(b"/")
        if not (path + b"/").startswith(self._prefixes):
            self.outside += times
            return
        if not self._is_possible(path, times):
            return
        known = path in self._counts or self._is_marked(path, STAT)
        counts = self._counts.get(path) or self._new(path)
        if counts is not None:
            counts[kind] += times
            if kind == LISTING:
                counts[_KNOWN_LISTING] += times - (not known)

    def add_counts(self, directory: bytes, misses: int, stats: int, opens: int) -> None:
        """Calls of which the names are not known: each counts as the first of its name."""
        counts = self._counts.get(directory) or self._new(directory)
        if counts is not None:
            for place, count in ((MISS, misses), (STAT, stats), (OPEN, opens)):
                counts[place] += count
                counts[place + _FIRST] += count

    def rows(self) -> Iterator[Row]:
        """All that was counted, by mount and path; no count is larger than a profile can say. It ends the counting."""
        for path in self._counts if not self._settled else ():
            self._count_once(path)
        self._settled = True
        for path in sorted(self._counts):
            mount, inside = self._place(path)
            counts = self._counts[path]
            for part in (_LISTED_STAT, _OPENED_STAT):  # a bit that is another name's may be wrong by one
                counts[part] = min(max(counts[part], 0), counts[STAT + _FIRST])
            yield Row._make((inside, *(min(count, COUNT_MAX) for count in counts), mount, False))
        for path in sorted(self._files):
            mount, inside = self._place(path)
            opens = min(self._files[path], COUNT_MAX)
            yield Row(inside, opens=opens, first_opens=opens, mount=mount, is_file=True)

    def _count_once(self, path: bytes) -> None:
        """Takes back first calls that a client makes once, on the way to what is in a directory and for itself."""
        counts = self._counts[path]
        if self._is_marked(path, STAT):
            above = self._counts.get(path.rpartition(b"/")[0])
            if above is not None and above[STAT + _FIRST]:
                above[STAT + _FIRST] -= 1
                above[_LISTED_STAT] -= self._is_marked(path, _IN_LISTED)
            return
        at = path if not any(counts[STAT : WRITE + 1]) else b""
        while at and at not in self.points:
            if self._is_marked(at, MISS) and not self._is_marked(at, STAT):
                counts[MISS + _FIRST] = 0
                return
            at = at.rpartition(b"/")[0]

    def _mark(self, path: bytes, kind: int) -> None:
        bit = crc32(path, kind) & _BITS
        self._seen[bit >> 3] |= 1 << (bit & 7)

    def _is_marked(self, path: bytes, kind: int) -> bool:
        bit = crc32(path, kind) & _BITS
        return bool(self._seen[bit >> 3] & 1 << (bit & 7))

    def _place(self, path: bytes) -> tuple[int, bytes]:
        whole = path + b"/"
        length, mount = max((len(p), n) for n, p in enumerate(self._prefixes) if whole.startswith(p))
        return mount, path[length:]

    def _new(self, path: bytes) -> list[int] | None:
        if len(self._counts) >= PATHS_MAX - FILES_MAX or not self._charge(path):
            self.lost["directories"] += 1
            return None
        return self._counts.setdefault(path, [0] * 12)

    def _charge(self, path: bytes) -> bool:
        """Whether there is room for one more path; a path for which there is none takes none."""
        room = self._room - room_of(path)
        if room >= 0:
            self._room = room
        return room >= 0

    def _is_possible(self, path: bytes, times: int) -> bool:
        """Whether a path can be one, and a profile says it; if not, the calls are lost."""
        if len(path) <= PATH_LIMIT and b"\0" not in path:
            return True
        self.lost["paths"] += times
        return False

    def _open(self, path: bytes, times: int) -> None:
        if path in self._files:
            self._files[path] += times
        elif len(self._files) < FILES_MAX and self._charge(path):
            self._files[path] = times
        else:
            self.lost["files"] += times


def normal(path: bytes) -> bytes:
    """An absolute path without `//`, `.` and `..`, by its names alone, and without a slash at its end.

    >>> normal(b"//sw/./bin//../lib/")
    b'/sw/lib'
    """
    plain = os.path.normpath(path)
    return plain[1:] if plain.startswith(b"//") else plain
