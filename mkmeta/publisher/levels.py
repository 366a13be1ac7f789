"""One look at the growable levels of a volume: what is new, what is gone, what changed that should not have.

The manifest is all there is to compare with, so that nothing is lost with a process that dies. Directories of the
skeleton are listed, and the attributes taken that came with the listing: the root and those in it always, deeper ones
if what is selected may be below a directory in them, or they have others of the skeleton, or may have changed since
they were recorded; and those that are not recorded, but may lead to what is selected. On NFS a listing is three
requests: READDIR, ACCESS, GETATTR.

A look can be at a part: some levels are listed, and of those below them such as were moved there.

Of directories that are not recorded, with `**` there are as many as the volume has. One in which nothing is selected,
and that has no directory in it which could lead on, stays so until a name comes into it; then its change time is
another. Such ones are remembered (`Barren`) and not listed again. Who remembers nothing lists more, and finds the same.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from mkmeta.codec.container import Location
from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.names import list_names
from mkmeta.linux.statx import Seen, known_of
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, type_name
from mkmeta.pattern import Patterns, State
from mkmeta.publisher.release import RETIRED
from mkmeta.scanner.base import TRUST_MARGIN
from mkmeta.scanner.looking import is_made_up

REQUESTS_PER_LISTING: Final = 3
BARREN_MAX: Final = 500_000  # directories that are remembered, of some 70 bytes each, twice while a look goes on
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Barren:
    """Directories that are not recorded and in which there is nothing to find: path, inode and change time of each.

    Of these three a hash is kept, of 64 bits, in which Python's secret has part. It is for one set of rules: others
    forget all. Bounded by BARREN_MAX; those beyond are listed each time.
    """

    def __init__(self) -> None:
        self._rules: object = None
        self._before: set[int] = set()
        self._now: set[int] = set()

    def begin(self, rules: object) -> None:
        """A look at everything begins, by these rules; what it does not meet is forgotten."""
        self._before = self._now if rules == self._rules else set()
        self._rules, self._now = rules, set()

    def has(self, path: bytes, seen: Seen) -> bool:
        """Whether this is one, and unchanged since."""
        if hash((path, seen)) not in self._before:
            return False
        self.add(path, seen)
        return True

    def add(self, path: bytes, seen: Seen) -> None:
        """This is one."""
        if len(self._now) < BARREN_MAX:
            self._now.add(hash((path, seen)))


@dataclass
class Looked:
    """What a look found. Paths are relative to the volume."""

    new: list[bytes] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)
    changed: list[tuple[bytes, str]] = field(default_factory=list)  # what was published, and what happened to it
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    listed: int = 0  # directories
    last_change_ns: int = 0  # of a directory in which names came or went, by the server's clock
    recorded_at_top: int = 0
    levels: set[bytes] = field(default_factory=set)  # of a look at some only: those it was at


class Part(NamedTuple):
    """Levels in which names came or went since all was looked at. What came elsewhere, below them too, is not asked."""

    levels: frozenset[bytes]  # paths
    moved: frozenset[bytes]  # those of them into which directories were moved: what is below these came unheard
    since_ns: int  # when the last look at everything began, by the clock of the volume


class _Reach(IntEnum):
    """What is listed below a level; each has all of the one before."""

    NOTHING = 0
    MOVED = 1  # what was moved there, and all below that
    ALL = 2  # what may have something new in it


class _Level(NamedTuple):
    path: bytes
    directory: Directory | None  # None: nothing in it is recorded
    facts: Location | None
    state: State
    reach: _Reach = _Reach.ALL
    seen: Seen | None = None  # of one that is not recorded: what came with the listing above it


def look_at_levels(
    volume_fd: int,
    reader: ManifestReader,
    *,
    part: Part | None = None,
    skip: bytes | None = None,
    max_rate: float | None = None,
    barren: Barren | None = None,
) -> Looked:
    """Looks at the volume, open as `volume_fd`, beside a manifest; `skip` is a path that is nobody's release.

    `part`: what is looked at; None: all. `max_rate`: requests per second. `barren` is what earlier looks at the same
    volume remember. Raises FormatError, and MkmetaError when the root cannot be listed.
    """
    if barren is None or part is not None:  # what is remembered is of looks at everything
        barren = Barren()
    return _Look(volume_fd, reader, part, skip, max_rate, barren).run()


class _Look:
    def __init__(
        self,
        volume_fd: int,
        reader: ManifestReader,
        part: Part | None,
        skip: bytes | None,
        max_rate: float | None,
        barren: Barren,
    ) -> None:
        self._fd = volume_fd
        self._reader = reader
        self._part = part
        self._skip = skip
        self._max_rate = max_rate
        self._barren = barren
        self._select = Patterns(reader.info.select or (b"*",))
        self._hide = Patterns(reader.info.hide)
        self._left_out = tuple(path for path, _ in reader.info.left_out)
        self._retired = {path for path, why in reader.info.left_out if why == RETIRED}
        self._trusted_before = reader.info.created - TRUST_MARGIN
        self._settled_before = time.time_ns() - TRUST_MARGIN
        self._found = Looked()

    def run(self) -> Looked:
        started = time.monotonic()
        if self._part is None:
            self._barren.begin((self._select.sources, self._hide.sources, self._retired, self._skip))
            todo = [self._top()]
        else:
            self._found.levels |= self._part.levels
            todo = [
                level for path in sorted(self._part.levels) if (level := self._level_at(path, self._part)) is not None
            ]
        done: dict[bytes, _Reach] = {}  # of a part, one may be below another
        while todo:
            level = todo.pop()
            if self._part is not None:
                if level.path in done and done[level.path] >= level.reach:
                    continue
                done[level.path] = level.reach
                self._found.levels.add(level.path)
            try:
                todo += self._list(level)
            except OSError as error:
                if not level.path:
                    raise MkmetaError(f"the volume cannot be listed: {reason(error)}", path=b"/") from None
                if not isinstance(error, FileNotFoundError):  # gone since: the next look sees it
                    self._found.unreadable.append((level.path, reason(error)))
            if self._max_rate:
                due = self._found.listed * REQUESTS_PER_LISTING / self._max_rate
                time.sleep(max(0.0, due - (time.monotonic() - started)))
        for path in self._left_out:  # retired, or never recorded: when it is gone, that is to be forgotten
            if self._is_missing(path):
                self._found.gone.append(path)
        self._found.changed = list(dict.fromkeys(self._found.changed))
        return self._found

    def _top(self) -> _Level:
        return _Level(b"", self._reader.root.directory, self._reader.facts_place, self._select.start())

    def _level_at(self, path: bytes, part: Part) -> _Level | None:
        """The level at a path, or the one above it in which what it is in is a name; None: nobody's business."""
        level = self._top()._replace(reach=_Reach.MOVED if path in part.moved else _Reach.NOTHING)
        for name in path.split(b"/") if path else ():
            below = os.path.join(level.path, name)
            state, matched = self._select.advance(level.state, name)
            entry = next((entry for entry in self._recorded(level) if entry.name >= name), None)
            if entry is None or entry.name != name:
                if below == self._skip or not self._is_new(below, name, is_directory=True):
                    return None
                if matched:
                    return level
                if not state:
                    return None
                level = _Level(below, None, None, state, level.reach)
            elif isinstance(entry.node, Directory) and entry.node.kind is DirectoryKind.MERGE:
                level = _Level(below, entry.node, entry.facts, state, level.reach)
            else:
                return level
        return level

    def _list(self, level: _Level) -> list[_Level]:
        """Compares a directory with what is recorded in it. Returns those in it that are to be listed as well."""
        fd = open_beneath(level.path, _DIRECTORY, dir_fd=self._fd)
        try:
            self._found.listed += 1
            names = sorted(list_names(fd))
            own = known_of(b".", fd)  # came with the listing: no question more
            self._found.last_change_ns = max(self._found.last_change_ns, own.change_time_ns)
            return self._compare(level, names, lambda name: known_of(name, fd))
        finally:
            os.close(fd)

    def _compare(self, level: _Level, names: list[bytes], look: Callable[[bytes], Seen]) -> list[_Level]:
        below: list[_Level] = []
        found_before, leads_on = len(self._found.new), False
        recorded = {entry.name: entry for entry in self._recorded(level)}
        if not level.path:
            self._found.recorded_at_top = len(recorded)
        for name in names:
            path = level.path + b"/" + name if level.path else name
            entry = recorded.pop(name, None)
            if path == self._skip:
                continue
            try:
                seen = look(name)
            except FileNotFoundError:  # gone since: the next look sees it
                continue
            state, matched = self._select.advance(level.state, name)
            is_directory = stat.S_ISDIR(seen.mode)
            matched = self._select.fitting(matched, is_directory=is_directory)
            if entry is None:
                if not self._is_new(path, name, is_directory=is_directory):
                    continue
                if matched:
                    self._found.new.append(path)
                elif state and is_directory:  # nothing in it was selected; now there may be something
                    deeper = _Level(path, None, None, state, seen=seen)
                    if self._is_worth_listing(level, deeper, seen):
                        below.append(deeper)
                    leads_on = True
            elif isinstance(entry.node, Directory) and entry.node.kind is DirectoryKind.MERGE and is_directory:
                deeper = _Level(path, entry.node, entry.facts, state)
                if level.reach is _Reach.ALL:
                    is_due = not level.path or self._may_have_changed(entry, seen) or self._goes_on(deeper)
                else:
                    is_due = level.reach is _Reach.MOVED and entry.inode != seen.inode
                if is_due:
                    below.append(deeper)
            else:
                self._check(path, entry, seen)
        for name in recorded:
            self._found.gone.append(level.path + b"/" + name if level.path else name)
        is_settled = level.seen is not None and level.seen.change_time_ns < self._settled_before
        if level.seen is not None and is_settled and not leads_on and len(self._found.new) == found_before:
            self._barren.add(level.path, level.seen)
        return below

    def _is_worth_listing(self, above: _Level, level: _Level, seen: Seen) -> bool:
        """Whether there may be something new in or below a directory that is not recorded."""
        if self._part is None:
            return not self._barren.has(level.path, seen)
        if above.reach is _Reach.MOVED:  # which sets the change time of what is moved
            return seen.change_time_ns >= self._part.since_ns - TRUST_MARGIN
        return above.reach is _Reach.ALL

    def _recorded(self, level: _Level) -> Iterator[Recorded]:
        if level.directory is None:
            return iter(())
        return self._reader.recorded(level.directory, level.path, level.facts)

    def _goes_on(self, level: _Level) -> bool:
        """Whether something may be new below a directory in it, or there are others of the skeleton."""
        if self._select.is_deep(level.state):
            return True
        for entry in self._recorded(level):
            if isinstance(entry.node, Directory) and entry.node.kind is DirectoryKind.MERGE:
                return True
        return False

    def _may_have_changed(self, entry: Recorded, seen: Seen) -> bool:
        return (entry.inode, entry.change_time) != (seen.inode, seen.change_time_ns) or (
            entry.change_time >= self._trusted_before
        )

    def _is_new(self, path: bytes, name: bytes, *, is_directory: bool) -> bool:
        """Whether what is not recorded should be, by its name, and unless it is retired."""
        if is_made_up(name, is_directory=is_directory):
            return False
        if self._hide.first_match(path, is_directory=is_directory) is not None:
            return False
        names = path.split(b"/") if self._retired else []
        return not any(b"/".join(names[:depth]) in self._retired for depth in range(1, len(names) + 1))

    def _check(self, path: bytes, entry: Recorded, seen: Seen) -> None:
        """Something that nobody should change any more."""
        if stat.S_IFMT(seen.mode) != stat.S_IFMT(entry.node.mode):
            was, now = type_name(entry.node.mode), type_name(seen.mode)
            self._found.changed.append((path, f"is a {now}, was a {was}"))
        elif entry.inode and entry.inode != seen.inode:
            self._found.changed.append((path, "was replaced"))
        elif entry.inode and entry.change_time != seen.change_time_ns:
            self._found.changed.append((path, "was changed after it was published"))

    def _is_missing(self, path: bytes) -> bool:
        try:
            os.close(open_beneath(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False


def shown(rows: list[tuple[bytes, str]]) -> list[str]:
    """Rows for people."""
    return [f"{printable(path)}: {text}" for path, text in rows]
