"""Whether everything in a manifest file is as formats/manifest.md demands: what readers do before they trust one, and
writers before they let one appear.

The expanded tree is read, by several processes where it is large. Memory is that of the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from mkmeta.codec.container import Location
from mkmeta.codec.facts import COUNT_MAX, PageFacts
from mkmeta.codec.objects import Examined, element_count, examine_page, is_divided
from mkmeta.errors import FormatError
from mkmeta.manifest.content_walk import visit_files, zeros
from mkmeta.manifest.contents import Contents, check_apart
from mkmeta.manifest.cursor import Cursor, Page, check_facts, directory_at, facts_of, without_xattrs
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import PATH_LIMIT, Counts, Directory, DirectoryKind
from mkmeta.workers import WorkerPool, messages

_PLACE = struct.Struct(">III")  # of a content: sorts as bytes do
_ALONE: Final = 20_000  # entries that are read faster than other processes are started
_SHARE: Final = 5_000  # entries that are given to a process at once
_COUNTED: Final = Counts._fields[: Counts._fields.index("hidden")]  # what the tree itself tells


class Below(NamedTuple):
    """A directory in one that is examined."""

    path: bytes
    directory: Directory
    facts: Location | None


@dataclass(slots=True, eq=False)
class _Level:
    """A large directory, of which the parts are examined by others."""

    examination: Examination
    above: _Level | None
    batch: list[Below] = field(default_factory=list)
    entries: int = 0  # in the batch


def check_all(reader: ManifestReader, *, jobs: int = 1) -> None:
    """Reads everything that can be read, contents of files too; raises FormatError at the first flaw."""
    check(reader, jobs=jobs)
    check_contents(reader)
    if reader.contents is not None:
        _check_owners(reader, reader.contents)


def check(reader: ManifestReader, *, jobs: int = 1, adopted: int = 0) -> None:
    """Reads the tree and all that is beside it but contents; raises FormatError at the first flaw.

    `adopted`: directories whose objects are in so many first frames are taken for valid, with what is below them.
    """
    reader.file.check_tables()
    root = Below(b"", reader.root.directory, reader.facts_place)
    if jobs > 1 and root.directory.entries > _ALONE:
        counted = _examine_together(reader, root, jobs, adopted)
    else:
        counted = examine(reader, root, adopted)
    if counted is not None:
        _compare("info record", reader.info.counts, counted)
    _ = reader.info
    reader.check_links()


def check_contents(reader: ManifestReader, frames: Collection[int] | None = None) -> None:
    """Compares contents with their names, and with their places, in some frames or in all.

    Raises FormatError, MkmetaError.
    """
    contents = reader.contents
    if contents is None:
        return
    with ExternalSorter() as places:
        for name, *place in contents.table:
            if frames is None or place[0] in frames:
                places.add(_PLACE.pack(*place) + name)
        before = Location(0, 0, 0)
        for record in places:
            name, here = record[_PLACE.size :], Location(*_PLACE.unpack_from(record))
            contents.checked(name, here)
            check_apart(before, here, name)
            before = here


def _check_owners(reader: ManifestReader, contents: Contents) -> None:
    """Raises FormatError unless each content is a file's."""
    marks = zeros(len(contents))

    def take(digest: bytes, size: int) -> None:
        number = contents.find_bytes(digest, size)
        if number >= 0:
            marks[number] = 1

    visit_files(reader, take, public=False)
    number = next((number for number, mark in enumerate(marks) if not mark), -1)
    if number >= 0:
        name, *_ = contents.table.row(number)
        raise FormatError(f"content {name.hex()[:16]}: no file has it, with this size")


def examine(reader: ManifestReader, top: Below, adopted: int = 0) -> Counts | None:
    """Reads a directory and all below it. What there is, as facts count it; None where facts are missing."""
    stack = [Examination(reader, top)]
    while True:
        level = stack[-1]
        below = next(level, None)
        if below is not None:
            known = _adopted(reader, below, adopted)
            if known is None:
                known = _examine_leaf(reader, below)
            if known is None:
                stack.append(Examination(reader, below))
            else:
                level.add(known)
            continue
        stack.pop()
        counts = level.finish()
        if not stack:
            return counts
        stack[-1].add(counts)


def _adopted(reader: ManifestReader, below: Below, adopted: int) -> Counts | None:
    """What a directory that was taken over as it was holds; None: it was not."""
    if not adopted or below.facts is None or not reader.is_adopted(below.directory, adopted):
        return None
    return reader.counts(below.facts, below.path)


def _examine_leaf(reader: ManifestReader, below: Below) -> Counts | None:
    """The same for a directory of one page without directories, as most are; None: it is another, or has no facts."""
    directory, place, path = below.directory, below.facts, below.path
    if place is None:
        return None
    where = directory_at(path)
    data = reader.object_of(directory.children, where)
    if is_divided(data) or element_count(data) != directory.entries:
        return None
    found = examine_page(data, where, below=directory.kind, digests=reader.root.digests)
    if found.directories:
        return None
    _check_paths(found, path)
    facts = reader.facts(place, path, pages=1, entries=found.entries)
    (page,) = facts.pages
    assert isinstance(page, PageFacts)
    check_facts(page, set(), path)
    opaque = directory.kind is DirectoryKind.OPAQUE
    counts = found.counts._replace(dirs=int(opaque), skeleton=int(not opaque), linked=len(page.linked))
    _compare_facts(path, facts.counts, counts)
    return counts


def _check_paths(found: Examined, path: bytes) -> None:
    if found.longest > PATH_LIMIT - (len(path) + 1 if path else 0):
        raise FormatError(f"{directory_at(path)}: a path is longer than {PATH_LIMIT} bytes")


def _examine_together(reader: ManifestReader, top: Below, jobs: int, adopted: int) -> Counts | None:
    """The same, with worker processes for what is below large directories."""
    levels = [_Level(Examination(reader, top), None)]
    stack = list(levels)
    outstanding: dict[int, list[_Level]] = {}
    with WorkerPool(jobs, lambda pipe: _work(pipe, reader, adopted)) as pool:
        idle = list(pool.workers)

        def give(level: _Level) -> None:
            if not idle:
                collect()
            worker = idle.pop()
            worker.send(level.batch)
            outstanding.setdefault(id(worker), []).append(level)
            level.batch, level.entries = [], 0

        def collect() -> None:
            for worker in pool.ready():
                reply: Counts | FormatError | None = worker.receive()
                if isinstance(reply, FormatError):
                    raise reply
                outstanding[id(worker)].pop().examination.add(reply)
                idle.append(worker)

        while stack:
            level = stack[-1]
            below = next(level.examination, None)
            if below is None:
                if level.batch:
                    give(level)
                stack.pop()
            elif (known := _adopted(reader, below, adopted)) is not None:
                level.examination.add(known)
            elif below.directory.entries > _SHARE:
                levels.append(_Level(Examination(reader, below), level))
                stack.append(levels[-1])
            else:
                level.batch.append(below)
                level.entries += below.directory.entries + 1
                if level.entries >= _SHARE:
                    give(level)
        while len(idle) < jobs:
            collect()
    counts = None
    for level in reversed(levels):
        counts = level.examination.finish()
        if level.above is not None:
            level.above.examination.add(counts)
    return counts


def _work(pipe: Connection, reader: ManifestReader, adopted: int) -> None:
    """What a worker process runs: answers a list of directories with their counts, or with what is wrong."""
    for batch in messages(pipe):
        total: Counts | None = Counts()
        try:
            for below in batch:
                counts = examine(reader, below, adopted)
                total = total.plus(counts) if total is not None and counts is not None else None
        except FormatError as error:
            pipe.send(error)
        else:
            pipe.send(total)


def _compare_facts(path: bytes, said: Counts, counted: Counts) -> None:
    if said[: len(_COUNTED)] != counted[: len(_COUNTED)]:  # or a count is more than can be said
        _compare(facts_of(path), said._asdict(), counted)


def _compare(where: str, said: Mapping[str, int], counted: Counts) -> None:
    for name in _COUNTED:
        count = min(getattr(counted, name), COUNT_MAX)
        if said.get(name, count) != count:
            raise FormatError(f"{where}: says {said[name]} {name}, there are {count}")


class Examination(Cursor[Below]):
    """Examines a directory page by page, and gives the directories in it. Raises FormatError."""

    __slots__ = ("_counted", "_counts", "_facts")

    def __init__(self, reader: ManifestReader, top: Below) -> None:
        super().__init__(reader, top.directory, top.path)
        self._facts = top.facts
        opaque = top.directory.kind is DirectoryKind.OPAQUE
        self._counts = Counts(dirs=opaque, skeleton=not opaque) if top.facts is not None else None
        self._counted = -1  # the last page that is in them: pages may be read more than once

    def add(self, counts: Counts | None) -> None:
        """What is below a directory in it."""
        self._counts = self._counts.plus(counts) if self._counts is not None and counts is not None else None

    def finish(self) -> Counts | None:
        """What there is, when all was examined. Raises FormatError when facts say something else."""
        counts = self._counts
        if self._facts is not None and counts is not None:
            _compare_facts(self._path, self._reader.counts(self._facts, self._path), counts)
        return counts

    def _read(self, page: Page, pages: int) -> tuple[list[Below], bytes, bytes]:
        reader, path = self._reader, self._path
        where = directory_at(path)
        data = reader.page_bytes(page, path)
        found = examine_page(data, where, below=self._directory.kind, digests=reader.root.digests)
        _check_paths(found, path)
        total = found.entries + sum(node.entries for _, (_, node) in found.directories)
        reader.check_page(page, found.first, total, where)
        places: Iterator[Location | None] = repeat(None)
        if self._facts is not None:
            facts = reader.facts_of_page(self._facts, path, self._number, pages, found.entries)
            check_facts(facts, {position for position, _ in found.directories}, path)
            places = iter(facts.children)
            if self._counts is not None and self._counted < self._number:
                self._counts = self._counts.plus(found.counts._replace(linked=len(facts.linked)))
        self._counted = max(self._counted, self._number)
        prefix = path + b"/" if path else b""
        below = [Below(prefix + name, without_xattrs(node), next(places)) for _, (name, node) in found.directories]
        return below, found.first, found.last
