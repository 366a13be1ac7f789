"""What a scan would select, found by its own readers without reading any content, and what that comes to.

The directories above the subtrees are read as a scan reads them. What the subtrees hold is counted until the time is
up; what is left then is estimated by walks at random (Knuth, "Estimating the efficiency of backtrack programs", 1975):
down from one of the directories not yet read, each time into one of those below with the same chance. What is found on
the way, times the number of choices there were, is right on average; the spread of many such walks says how far it may
be off.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mkmeta.errors import NothingSelectedError, ScanError, reason
from mkmeta.linux.descriptors import same_directory
from mkmeta.linux.mountinfo import mount_points_below
from mkmeta.linux.ownership import strangers
from mkmeta.model import Counts, DirectoryKind
from mkmeta.pattern import Patterns, State
from mkmeta.scanner.directory import DirectoryReader, Reading
from mkmeta.scanner.gathering import Runs
from mkmeta.scanner.options import ScanOptions, check_patterns
from mkmeta.scanner.records import Child, Listing, ScanRules, Unfaithful

_WALKS_LEAST: Final = 30  # before their spread says anything
_SEED: Final = 0  # the same walks each time


class _Directory(NamedTuple):
    """A directory to be read."""

    path: bytes
    kind: DirectoryKind
    select: State
    hide: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is selected comes to: exactly, or about."""

    entries: int
    dirs: int
    files: int
    bytes: int
    error: float  # of the entries: a share that two of three estimates stay below; 0: all of it was counted
    seconds: float  # in which `looked` entries were looked at
    looked: int


@dataclass(slots=True)
class Preview:
    """What a scan would find."""

    subtrees: int = 0
    others: int = 0  # entries that are selected by themselves, and are no directories
    skeleton: int = 0  # directories above, the root included
    left_out: list[tuple[bytes, str]] = field(default_factory=list)  # what was met
    unmatched: tuple[bytes, ...] = ()
    unmatched_hide: tuple[bytes, ...] = ()  # as far as was looked
    content: Content | None = None


def preview(options: ScanOptions, tell: Callable[[bytes], None], *, seconds: float | None) -> Preview:
    """Looks at what is selected; `tell` is called with the path of each subtree. Changes nothing.

    With `seconds`, what the subtrees hold is counted that long at least, or estimated. Raises what `scan` raises for
    patterns and a root, and NothingSelectedError.
    """
    root = os.path.realpath(options.root)
    check_patterns(options, root)
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ScanError(f"cannot be scanned: {reason(error)}", path=options.root, hint="name a directory") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, root_fd)
        stack.enter_context(same_directory())  # readers have one of their own
        rules = ScanRules(
            root_fd=root_fd,
            device=os.fstat(root_fd).st_dev,
            select=Patterns(options.select or (b"*",)),
            hide=Patterns(options.hide),
            drop_xattrs=Patterns(options.drop_xattrs),
            digests=(),
            mount_points=mount_points_below(root),
            open_content=options.open_content,
            strangers=strangers(),
        )
        return _Preview(rules).run(root, tell, seconds)


class _Preview:
    def __init__(self, rules: ScanRules) -> None:
        self._rules = rules
        self._reader = DirectoryReader(rules)
        self._found = Preview()
        self._tops: list[_Directory] = []
        self._counts = Counts()  # of what is selected and is no directory, and of what was counted in the subtrees
        self._looked = 0
        self._above: set[bytes] = set()  # directories with something selected below

    def run(self, root: bytes, tell: Callable[[bytes], None], seconds: float | None) -> Preview:
        found, rules = self._found, self._rules
        stack = [_Directory(b"", DirectoryKind.MERGE, rules.select.start(), rules.hide.start())]
        while stack:
            directory = stack.pop()
            below = self._read(directory)
            if below is None:
                if not directory.path:
                    raise ScanError(found.left_out[-1][1], path=root)
                continue
            counts, children = below
            others = counts.files + counts.symlinks + counts.others
            found.others += others
            if others or any(child.kind is DirectoryKind.OPAQUE for child in children):
                self._note_above(directory.path)
            self._counts = self._counts.plus(counts)
            stack += (child for child in reversed(children) if child.kind is DirectoryKind.MERGE)
            for child in children:
                if child.kind is DirectoryKind.OPAQUE:
                    found.subtrees += 1
                    self._tops.append(child)
                    tell(child.path)
        found.skeleton = len(self._above)
        if not found.subtrees and not found.others:
            hint = "check the patterns against ROOT; they are relative to it, and links are not followed"
            raise NothingSelectedError("no pattern matched anything", path=root, hint=hint)
        if seconds is not None:
            found.content = self._weigh(seconds)
        matched = self._reader.matched
        select, hide = rules.select.sources, rules.hide.sources
        is_all = found.content is not None and not found.content.error
        within = set() if is_all else {number for top in self._tops for number, _ in top.select}  # may match there
        found.unmatched = tuple(pattern for number, pattern in enumerate(select) if number not in matched | within)
        if is_all:
            found.unmatched_hide = tuple(pattern for number, pattern in enumerate(hide) if ~number not in matched)
        return found

    def _note_above(self, path: bytes) -> None:
        while path not in self._above:
            self._above.add(path)
            path = path.rpartition(b"/")[0]

    def _read(self, directory: _Directory) -> tuple[Counts, list[_Directory]] | None:
        """What is in a directory, and the directories below; None where that would be left out."""
        counts, children = Counts(), []
        try:
            for listing in self._listings(directory):
                counts = counts.plus(listing.counts())
                self._found.left_out += listing.left_out
                for child in listing.children:
                    below = self._below(directory, child)
                    if child.kind is not None:
                        children.append(below)
                    else:
                        counts = counts._replace(files=counts.files + 1, bytes=counts.bytes + self._size(below.path))
        except Unfaithful as problem:
            self._found.left_out.append((problem.path, problem.why))
            return None
        self._looked += 1 + counts.files + counts.symlinks + counts.others
        return counts, children

    def _listings(self, directory: _Directory) -> Iterator[Listing]:
        reading = self._reader.read_directory(directory.path, directory.kind, directory.select, directory.hide)
        assert isinstance(reading, Reading)  # there is no base
        yield from Runs(reading.runs)
        yield reading.listing

    def _below(self, directory: _Directory, child: Child) -> _Directory:
        path = directory.path + b"/" + child.name if directory.path else child.name
        return _Directory(path, child.kind or DirectoryKind.MERGE, child.select, child.hide)

    def _size(self, path: bytes) -> int:
        """Of a large file, in bytes."""
        with contextlib.suppress(OSError):  # gone meanwhile
            return os.stat(path, dir_fd=self._rules.root_fd, follow_symlinks=False).st_size
        return 0

    def _weigh(self, seconds: float) -> Content:
        """Counts what the subtrees hold, for half of the time; then walks at random through what is left."""
        began = time.monotonic()
        looked = self._looked
        chance = random.Random(_SEED)
        ahead = list(self._tops)
        chance.shuffle(ahead)
        dirs = 0
        while ahead and time.monotonic() < began + seconds / 2:
            below = self._read(ahead.pop())
            if below is not None:
                dirs += 1
                self._counts = self._counts.plus(below[0])
                ahead += below[1]
        sums = [0.0, 0.0, 0.0, 0.0]  # entries, dirs, files, bytes
        squares = 0.0  # of entries
        walks = 0
        cache: dict[bytes, tuple[Counts, list[_Directory]] | None] = {}
        while ahead and (walks < _WALKS_LEAST or time.monotonic() < began + seconds):
            walk = self._walk(ahead, chance, cache)
            walks += 1
            squares += walk[0] ** 2
            sums = [total + value for total, value in zip(sums, walk, strict=True)]
        entries, more_dirs, files, size = (total / walks for total in sums) if walks else (0.0, 0.0, 0.0, 0.0)
        counted = self._counts
        known = dirs + counted.files + counted.symlinks + counted.others
        spread = math.sqrt(max(squares / walks - entries**2, 0.0) / walks) if walks else 0.0
        total_entries = round(known + entries)
        return Content(
            entries=total_entries,
            dirs=round(dirs + more_dirs),
            files=round(counted.files + files),
            bytes=round(counted.bytes + size),
            error=max(spread / max(total_entries, 1), 0.001) if walks else 0.0,
            seconds=time.monotonic() - began,
            looked=self._looked - looked,
        )

    def _walk(
        self,
        ahead: list[_Directory],
        chance: random.Random,
        cache: dict[bytes, tuple[Counts, list[_Directory]] | None],
    ) -> tuple[float, float, float, float]:
        """Entries, directories, files and bytes that one walk makes of all that is ahead."""
        weight = float(len(ahead))
        directory = chance.choice(ahead)
        entries = dirs = files = size = 0.0
        while True:
            if directory.path not in cache:
                cache[directory.path] = self._read(directory)
            below = cache[directory.path]
            if below is None:
                break
            counts, children = below
            dirs += weight
            files += weight * counts.files
            size += weight * counts.bytes
            entries += weight * (1 + counts.files + counts.symlinks + counts.others)
            if not children:
                break
            weight *= len(children)
            directory = chance.choice(children)
        return entries, dirs, files, size
