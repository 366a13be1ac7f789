"""A scan: hands directories to workers, puts their listings together, writes the manifest.

Directories are taken depth first, so that what is waiting for its children stays small; a directory becomes an object
when all below it has. A failure anywhere takes out the whole subtree it is in: its place in the skeleton stays empty.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, Final, Protocol

from mkmeta import __version__
from mkmeta.codec.container import Location
from mkmeta.codec.facts import encode_columns, encode_facts
from mkmeta.codec.info import Info
from mkmeta.codec.packing import array_header, pack, unpack
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError, LeftOutError, NothingSelectedError, ScanError, printable, reason
from mkmeta.linux.mountinfo import mount_points_below
from mkmeta.manifest.links import LinkCollector
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import ENTRIES_MAX, NS, DigestName, Directory, DirectoryKind, Root
from mkmeta.pattern import Patterns
from mkmeta.scanner.base import (
    COMPACT,
    Base,
    BaseDirectory,
    check_base,
    check_selection,
    check_settings,
    compact_size,
    is_compact,
)
from mkmeta.scanner.looking import open_content
from mkmeta.scanner.records import Child, Counts, ScanRules
from mkmeta.scanner.rest import Rest
from mkmeta.scanner.worker import Complete, Partial, Problem, Report, Same, Task, run_worker
from mkmeta.workers import Worker, WorkerPool, available_processors

_TASKS_PER_WORKER: Final = 128  # handed out at once, so that workers have something to do while messages travel
_BIN32 = b"\xc4\x20"  # msgpack header of 32 bytes
# Errors after which it is asked whether the volume is still there at all
_VOLUME_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ESHUTDOWN}
)


_NOTHING: Final = Counts()


class OnError(StrEnum):
    """What to do about a subtree that cannot be recorded."""

    LEAVE_OUT = "leave-out"
    FAIL = "fail"


class Observer(Protocol):
    """Someone who wants to know how a scan goes on."""

    def progress(self, counts: Counts) -> None:
        """Called often: what was read so far."""

    def subtree(self, path: bytes, counts: Counts) -> None:
        """Called when a subtree, or a single entry that was selected, is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What to scan, and how."""

    root: bytes
    select: tuple[bytes, ...] = ()  # empty: everything
    hide: tuple[bytes, ...] = ()
    drop_xattrs: tuple[bytes, ...] = ()
    digests: tuple[DigestName, ...] = (DigestName.BLAKE3, DigestName.VERITY)
    workers: int = field(default_factory=available_processors)
    on_error: OnError = OnError.LEAVE_OUT
    base: ManifestReader | None = None  # an earlier manifest: what is as it says is not read again
    only: tuple[bytes, ...] = ()  # with a base: what is looked at; the rest is taken from it
    trust: bool = True  # with a base: False reads everything that is looked at
    open_content: Callable[[bytes], int] = open_content  # tests put in one that fails


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What a scan found."""

    manifest_id: ObjectId
    entries: int
    counts: Counts
    left_out: tuple[tuple[bytes, str], ...]
    unmatched: tuple[bytes, ...]  # patterns that matched nothing, those of `only` among them


@dataclass(slots=True, eq=False)
class _Subtree:
    """A selected directory or large file, with all below it."""

    number: int
    top: _Place
    counts: Counts = _NOTHING
    failed: bool = False


@dataclass(slots=True, eq=False)
class _Pending:
    """A directory whose listing is here and whose children are not all."""

    place: _Place
    listing: Partial
    entries: list[bytes | None]  # the children's packed entries; None: left out
    facts: list[Location | None]  # of the children that are directories
    waiting: int
    total: int  # entries, all below included


@dataclass(slots=True, eq=False)
class _Place:
    """Where the result of a task belongs."""

    path: bytes
    parent: _Pending | None  # None: the root
    child: int  # number among the parent's children
    subtree: _Subtree | None  # None: a skeleton directory
    base: BaseDirectory | None = None  # what the base has there


def scan(options: ScanOptions, stream: BinaryIO, observer: Observer | None = None) -> ScanReport:
    """Scans `options.root` and writes its manifest to `stream`.

    Raises ScanError (nothing selected, everything left out, the volume went away, or `OnError.FAIL`), UsageError for
    a bad pattern or a base that does not fit, FormatError for one that is damaged, MkmetaError when a worker dies,
    OSError when `stream` cannot be written.
    """
    created = time.time_ns()
    root = os.path.realpath(options.root)
    if options.base is not None:
        check_base(options.base, root)
        check_settings(options.base, hide=options.hide, drop_xattrs=options.drop_xattrs, digests=options.digests)
        if options.only:
            check_selection(options.base, options.select)
    base = None
    if options.base is not None and (options.trust or options.only):
        base = Base(options.base, adopted=bool(options.only) or is_compact(options.base), trust=options.trust)
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ScanError(f"cannot be scanned: {reason(error)}", path=options.root, hint="name a directory") from None
    try:
        rules = ScanRules(
            root_fd=root_fd,
            device=os.fstat(root_fd).st_dev,
            select=Patterns(options.select or (b"*",)),
            hide=Patterns(options.hide),
            drop_xattrs=Patterns(options.drop_xattrs),
            digests=options.digests,
            mount_points=mount_points_below(root),
            only=Patterns(options.only) if options.only else None,
            base=base,
            open_content=options.open_content,
        )
        with ManifestWriter(stream) as writer, LinkCollector() as links:
            if base is not None and base.adopted:
                assert options.base is not None
                writer.adopt(options.base)
            assembly = _Assembly(options, rules, writer, links, observer)
            with WorkerPool(options.workers, lambda connection: run_worker(connection, rules)) as pool:
                assembly.run(pool)
            return assembly.finish(root, created)
    finally:
        os.close(root_fd)


class _Assembly:
    """The parent's side of a scan."""

    def __init__(
        self,
        options: ScanOptions,
        rules: ScanRules,
        writer: ManifestWriter,
        links: LinkCollector,
        observer: Observer | None,
    ) -> None:
        self._observer = observer
        self._options = options
        self._rules = rules
        self._writer = writer
        self._links = links
        self._todo: list[Task] = []  # a stack
        self._places: dict[int, _Place] = {}  # by task number
        self._tasks = 0
        self._subtrees = 0
        self._lanes: dict[Worker, int] = {}
        self._failed: set[int] = set()
        self._left_out: list[tuple[bytes, str]] = []
        self._matched: set[int] = set()
        self._matched_only: set[int] = set()
        self._rest = Rest(options.base, rules.only) if options.base is not None and rules.only is not None else None
        self._counts = _NOTHING  # of what is in the manifest
        self._seen = _NOTHING  # of what was read, for progress
        self._root: Directory | None = None
        self._root_facts: Location | None = None

    def run(self, pool: WorkerPool) -> None:
        """Reads everything that is selected."""
        rules = self._rules
        base = rules.base.root() if rules.base is not None else None
        only = rules.only.start() if rules.only is not None else None
        top = Child(b"", DirectoryKind.MERGE, rules.select.start(), rules.hide.start(), 0, base, only)
        self._add_task(_Place(b"", None, 0, None, base), top)
        while self._root is None:
            self._hand_out(pool)
            for worker in pool.ready():
                self._receive(worker)
            if self._observer is not None:
                self._observer.progress(self._seen)

    def finish(self, root: bytes, created: int) -> ScanReport:
        """Writes what remains: links, root, tables."""
        top = self._root
        assert top is not None
        unmatched = tuple(
            pattern for number, pattern in enumerate(self._rules.select.sources) if number not in self._matched
        )
        info = self._info(root, created)
        left_out = info.left_out
        if self._rest is not None:
            unmatched = self._rest.unmatched(self._matched_only)
        if not top.entries and not left_out:
            hint = "check the patterns against ROOT; they are relative to it, and links are not followed"
            raise NothingSelectedError("no pattern matched anything", path=root, hint=hint)
        if not top.entries:
            path, why = left_out[0]
            raise ScanError(f"{why}; and so nothing selected could be recorded", path=path)
        if top.entries > ENTRIES_MAX:
            raise ScanError(f"{top.entries} entries, more than the limit of {ENTRIES_MAX}", hint="select less")
        links = self._writer.add_links(self._links.rows(self._failed))
        manifest_id = self._writer.finish(
            Root(directory=top, links=links, digests=self._options.digests),
            info,
            self._root_facts,
        )
        return ScanReport(
            manifest_id=manifest_id,
            entries=top.entries,
            counts=Counts(**{name: info.counts[name] for name in Counts._fields}),
            left_out=left_out,
            unmatched=unmatched,
        )

    def _info(self, root: bytes, created: int) -> Info:
        """Where the manifest comes from."""
        options, counts, left_out = self._options, self._counts, self._left_out
        size = self._writer.size
        if self._rest is not None:
            created = min(created, self._rest.created)
            counts = counts.plus(self._rest.counts())
            left_out = left_out + self._rest.left_out()
            self._rest.keep_links(self._links, failed=[path for path, _why in self._left_out])
        if options.base is not None and self._rules.base is not None and self._rules.base.adopted:
            size = compact_size(options.base)
        return Info(
            root=root,
            created=created,
            tool=f"mkmeta {__version__}",
            select=options.select,
            hide=options.hide,
            drop_xattrs=options.drop_xattrs,
            left_out=tuple(sorted(left_out)),
            counts={**counts._asdict(), COMPACT: size},
        )

    def _hand_out(self, pool: WorkerPool) -> None:
        """Gives tasks to workers that can take some: evenly, the most recent first."""
        for worker in pool.workers:
            room = _TASKS_PER_WORKER + 2 * self._lanes.get(worker, 1) - worker.tasks
            share = -(-len(self._todo) // len(pool.workers))
            tasks: list[Task] = []
            while self._todo and len(tasks) < min(room, share):
                task = self._todo.pop()
                subtree = self._places[task.number].subtree
                if subtree is not None and subtree.failed:
                    del self._places[task.number]
                else:
                    tasks.append(task)
            if tasks:
                worker.tasks += len(tasks)
                worker.send(tasks)

    def _receive(self, worker: Worker) -> None:
        report: Report = worker.receive()
        worker.tasks -= len(report.complete) + len(report.same) + len(report.partial) + len(report.problems)
        self._lanes[worker] = report.lanes
        self._matched |= report.matched
        self._matched_only |= report.matched_only
        for result in report.results():
            place = self._places.pop(result.task)
            if place.subtree is not None and place.subtree.failed:
                continue
            match result:
                case Complete():
                    self._note(place, result.counts, result.links)
                    self._writer.add_named(result.object_id, result.data)
                    facts = self._writer.add_facts(encode_facts(result.columns, ()))
                    entry = _entry(result.head, result.object_id, result.entries, result.tail)
                    self._fill(place, entry, result.entries + 1, facts)
                case Same():
                    assert place.base is not None
                    self._note(place, result.counts, result.links)
                    entry = _entry(result.head, place.base.children, place.base.entries, result.tail)
                    self._fill(place, entry, place.base.entries + 1, place.base.facts)
                case Partial():
                    self._note(place, result.counts, result.links, in_parent=result.kind is None)
                    for path, why in result.left_out:
                        self._leave_out(path, path, why)
                    if self._rest is not None and result.along and place.base is not None:
                        self._rest.replace(result.kind, result.replaced, place.path)
                    self._take(place, result)
                case Problem():
                    self._give_up(place, result)

    def _note(
        self, place: _Place, counts: tuple[int, ...], links: list[tuple[int, bytes, bytes]], *, in_parent: bool = False
    ) -> None:
        """Keeps a listing's counts and names of linked inodes; those of a subtree count once it is complete."""
        if self._observer is not None:
            self._seen = self._seen.plus(counts)
        if place.subtree is None:
            self._counts = self._counts.plus(counts)
        else:
            place.subtree.counts = place.subtree.counts.plus(counts)
        if links:
            directory = place.path.rpartition(b"/")[0] if in_parent else place.path
            prefix = directory + b"/" if directory else b""
            subtree = 0 if place.subtree is None else place.subtree.number
            for inode, name, fingerprint in links:
                self._links.add(inode, prefix + name, fingerprint, subtree)

    def _take(self, place: _Place, listing: Partial) -> None:
        """A listing that is no complete directory: a large file, or a directory whose children are to come."""
        if listing.kind is None:
            self._fill(place, listing.pieces[0], 1, None)
            return
        count = len(listing.children)
        pending = _Pending(place, listing, [None] * count, [None] * count, count, listing.entries)
        if not count:
            self._fill(place, *self._assemble(pending))
        prefix = place.path + b"/" if place.path else b""
        kept = [number for number, child in enumerate(listing.children) if child.kept]
        for number in reversed(range(count)):  # the first is on top of the stack
            child = listing.children[number]
            if child.kept:
                continue
            below = _Place(prefix + child.name, pending, number, place.subtree, child.base)
            if below.subtree is None and child.kind is not DirectoryKind.MERGE:
                self._subtrees += 1
                below.subtree = _Subtree(self._subtrees, below)
            self._add_task(below, child)
        for number in kept:
            base = listing.children[number].base
            assert base is not None
            self._fill(_Place(b"", pending, number, place.subtree), base.row, base.entries + 1, base.facts, kept=True)

    def _add_task(self, place: _Place, child: Child) -> None:
        self._tasks += 1
        self._places[self._tasks] = place
        self._todo.append(Task(self._tasks, place.path, child.kind, child.select, child.hide, child.base, child.only))

    def _fill(
        self, place: _Place, entry: bytes | None, total: int, facts: Location | None, *, kept: bool = False
    ) -> None:
        """Puts an entry, None if there is to be none, in its place; and so on upwards while directories complete."""
        while place.parent is not None:
            pending = place.parent
            if kept:
                kept = False
            elif place.subtree is not None and pending.place.subtree is None and entry is not None:
                self._counts = self._counts.plus(place.subtree.counts)
                if self._observer is not None:
                    self._observer.subtree(place.path, place.subtree.counts)
            pending.entries[place.child] = entry
            pending.facts[place.child] = facts
            pending.total += total
            pending.waiting -= 1
            if pending.waiting:
                return
            place = pending.place
            entry, total, facts = self._assemble(pending)
        assert entry is not None
        self._root = _directory(entry)
        self._root_facts = facts

    def _assemble(self, pending: _Pending) -> tuple[bytes | None, int, Location | None]:
        """A directory whose children are all there: its entry, how many entries that makes, its facts."""
        listing = pending.listing
        if listing.kind is DirectoryKind.MERGE:
            if not pending.total and pending.place.parent is not None:
                return None, 0, None
            self._counts = self._counts._replace(skeleton=self._counts.skeleton + 1)
        pieces = [
            array_header(listing.entries + sum(entry is not None for entry in pending.entries)),
            listing.pieces[0],
        ]
        for entry, piece in zip(pending.entries, listing.pieces[1:], strict=True):
            pieces += (entry or b"", piece)
        data = b"".join(pieces)
        object_id = ObjectKind.DIRECTORY.id_of(data)
        base = pending.place.base
        unchanged = (
            base is not None
            and object_id == base.children
            and self._rules.base is not None
            and self._rules.base.adopted
        )
        if not unchanged:
            self._writer.add_named(object_id, data)
        inodes, change_times = listing.inodes, listing.change_times
        if None in pending.entries:
            gaps = {
                child.position for child, entry in zip(listing.children, pending.entries, strict=True) if entry is None
            }
            inodes = [inode for position, inode in enumerate(inodes) if position not in gaps]
            change_times = [time for position, time in enumerate(change_times) if position not in gaps]
        entry = _entry(listing.head, object_id, pending.total, listing.tail)
        if unchanged and base is not None and listing.same and self._same_facts(pending):
            return entry, pending.total + 1, base.facts
        columns = encode_columns(inodes, change_times)
        children = [
            facts
            for child, entry, facts in zip(listing.children, pending.entries, pending.facts, strict=True)
            if child.kind is not None and entry is not None
        ]
        return entry, pending.total + 1, self._writer.add_facts(encode_facts(columns, children))

    def _same_facts(self, pending: _Pending) -> bool:
        """Whether the facts of the directories in a directory are where they were in the base."""
        return all(
            child.base is not None and facts == child.base.facts
            for child, facts in zip(pending.listing.children, pending.facts, strict=True)
        )

    def _give_up(self, place: _Place, problem: Problem) -> None:
        """Takes out what a problem makes impossible: a subtree, or what is below a skeleton directory."""
        if problem.fatal:
            raise FormatError(problem.why, path=problem.path, hint="scan without --base")
        self._check_volume(problem)
        if place.parent is None:
            raise ScanError(problem.why, path=self._options.root)
        if place.subtree is not None:
            place.subtree.failed = True
            self._failed.add(place.subtree.number)
            place = place.subtree.top
        self._leave_out(place.path, problem.path, problem.why)
        self._fill(place, None, 0, None)

    def _leave_out(self, subtree: bytes, path: bytes, why: str) -> None:
        if self._options.on_error is OnError.FAIL:
            raise LeftOutError(why, path=path, hint="without --on-error fail its subtree would be left out")
        self._left_out.append((subtree, why if path == subtree else f"{printable(path)}: {why}"))

    def _check_volume(self, problem: Problem) -> None:
        """Raises ScanError when a problem is that of the whole volume: no use in trying every subtree."""
        if problem.errno in _VOLUME_ERRORS:
            try:
                os.statvfs(self._rules.root_fd)
            except OSError as error:
                hint = "nothing was written; see whether the file server is up"
                raise ScanError(
                    f"does not answer any more: {reason(error)}", path=self._options.root, hint=hint
                ) from None


def _entry(head: bytes, object_id: ObjectId, entries: int, tail: bytes) -> bytes:
    """The packed entry of a directory (formats/manifest.md section 3.1)."""
    return head + _BIN32 + object_id + pack(entries) + tail


def _directory(entry: bytes) -> Directory:
    """The root directory from its packed entry, which has an empty name."""
    fields: Any = unpack(entry)
    _, mode, uid, gid, sec, nsec, children, entries, _, *xattrs = fields
    flat = xattrs[0] if xattrs else []
    return Directory(
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=sec * NS + nsec,
        xattrs=tuple(zip(flat[::2], flat[1::2], strict=True)),
        children=children,
        entries=entries,
        kind=DirectoryKind.MERGE,
    )
