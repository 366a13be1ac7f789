"""A scan: hands directories to workers, gives what they find to the tree writer.

Directories are taken depth first, so that what is waiting for its children stays small. With `only`, what was scanned
is a part, written apart and then grafted into the base.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import IO, BinaryIO, Final, NamedTuple

from mkmeta import __version__
from mkmeta.codec.container import Location
from mkmeta.codec.info import Info
from mkmeta.errors import LeftOutError, NothingSelectedError, ScanError, reason
from mkmeta.linux.mountinfo import mount_points_below
from mkmeta.linux.ownership import strangers
from mkmeta.linux.temporary import TemporaryFile
from mkmeta.manifest.closed import are_known
from mkmeta.manifest.content_walk import Totals, counted
from mkmeta.manifest.content_writer import ContentWriter
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Counts, DirectoryKind
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
from mkmeta.scanner.counted_before import CountedBefore
from mkmeta.scanner.entry import NFS4_ACL
from mkmeta.scanner.forecast import Forecast
from mkmeta.scanner.gathering import Runs
from mkmeta.scanner.inlining import Inlining, check_rules
from mkmeta.scanner.looking import has_acls
from mkmeta.scanner.options import Observer, OnError, ScanOptions, ScanReport, check_patterns
from mkmeta.scanner.records import Child, Listing, ScanRules
from mkmeta.scanner.tasks import Complete, Partial, Problem, Report, Result, Same, Task, brought, result_of
from mkmeta.scanner.worker import run_worker
from mkmeta.trees.graft import graft
from mkmeta.trees.prune import leave_out
from mkmeta.trees.recorded import Source
from mkmeta.trees.writer import ChildName, LinkedName, Opening, Own, Part, Place, TreeWriter
from mkmeta.workers import Worker, WorkerPool

_TASKS_PER_WORKER: Final = 128  # handed out at once, so that workers have something to do while messages travel
# Errors after which it is asked whether the volume is still there at all
_VOLUME_ERRORS = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ESHUTDOWN}
)
_CHANGED: Final = "has a name of a file that changed during the scan, as another of its names shows"


class _Expected(NamedTuple):
    """What a task was for."""

    place: Place
    base: BaseDirectory | None
    on_the_way: bool  # only a part of it is looked at


def _own(expected: _Expected, found: tuple[bytes, bytes] | None) -> Own:
    """The own entry of the directory that a task was for."""
    if found is not None:
        return Own._make(found)
    assert expected.base is not None
    return expected.base.own


class _Files:
    """The files that came with a report."""

    def __init__(self, files: list[IO[bytes]]) -> None:
        self._files = dict(enumerate(files))

    def take(self, number: int) -> Runs:
        """What is in one of them; nothing in NO_FILE."""
        return Runs(self._files.pop(number, None))

    def close(self) -> None:
        """Nobody wants the others: what they belong to is lost."""
        for file in self._files.values():
            file.close()


class _Rest(NamedTuple):
    """What is still to be taken of a directory with very many names."""

    expected: _Expected
    opening: Opening
    runs: Runs
    last: Partial
    before: CountedBefore


def scan(options: ScanOptions, stream: BinaryIO, observer: Observer | None = None) -> ScanReport:
    """Scans `options.root` and writes its manifest to `stream`, a file that can be read back.

    Raises ScanError (nothing selected, everything left out, the volume went away, or `OnError.FAIL`), UsageError for
    a bad pattern or a base that does not fit, FormatError for one that is damaged, MkmetaError when a worker dies,
    OSError when `stream` cannot be written.
    """
    created = time.time_ns()
    root = os.path.realpath(options.root)
    check_patterns(options, root)
    if options.base is not None:
        check_base(options.base, root)
        check_settings(
            options.base,
            hide=options.hide,
            drop_xattrs=options.drop_xattrs,
            digests=options.digests,
            hard_links=options.hard_links,
        )
        if options.only:
            check_selection(options.base, options.select)
    try:
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ScanError(f"cannot be scanned: {reason(error)}", path=options.root, hint="name a directory") from None
    try:
        device = os.fstat(root_fd).st_dev
        base = None
        if options.base is not None and (options.trust or options.only):
            adopted = not options.only and is_compact(options.base)
            base = Base(options.base, root_fd, adopted=adopted, trust=options.trust)
        inlining = _inlining(options, root_fd)
        rules = ScanRules(
            root_fd=root_fd,
            device=device,
            select=Patterns(options.select or (b"*",)),
            hide=Patterns(options.hide),
            drop_xattrs=Patterns(options.drop_xattrs),
            digests=options.digests,
            mount_points=mount_points_below(root),
            only=Patterns(options.only) if options.only else None,
            base=base,
            inlining=inlining,
            open_content=options.open_content,
            strangers=strangers(),
        )
        if rules.only is None:
            report = _without_changed(_Scan(options, rules, observer).run(root, created, stream), options, stream)
        else:
            with TemporaryFile() as part:
                one = _Scan(options, rules, observer)
                report = _without_changed(one.run(root, created, part), options, part)
                report = _graft(report, one, rules.only, options, part, stream)
        return replace(
            report,
            base_is_from_the_future=base is not None and base.is_from_the_future,
            inside=_inside(stream) if inlining is not None else None,
        )
    finally:
        os.close(root_fd)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a walk of the volume came to."""

    report: ScanReport
    changed: dict[bytes, str]  # subtrees with names that the links show to have changed


class _Scan:
    """One walk of the volume: the parent's side."""

    def __init__(self, options: ScanOptions, rules: ScanRules, observer: Observer | None) -> None:
        self._observer = observer
        self._options = options
        self._rules = rules
        self._todo: list[Task | _Rest] = []  # a stack
        self._expected: dict[int, _Expected] = {}  # by task number
        self._tasks = 0
        self._forecast = Forecast()
        self._lanes: dict[Worker, int] = {}
        self._matched: set[int] = set()
        self.matched_only: set[int] = set()
        self.inlining = rules.inlining
        self.gone: set[bytes] = set()  # paths that `only` leads to, and that are not there
        self.empty: set[bytes] = set()  # directories it leads to with nothing in them
        self._seen = Counts()  # what was read, for progress
        self._unchanged = 0  # entries that are as in the base

    def run(self, root: bytes, created: int, stream: BinaryIO) -> _Found:
        """Reads everything that is selected, and writes the manifest."""
        options, rules = self._options, self._rules
        self._contents = self._content_writer()
        with (
            ManifestWriter(stream, self._contents) as manifest,
            TreeWriter(
                manifest,
                options.hard_links,
                self._observer.subtree if self._observer else None,
                jobs=options.workers,
            ) as self._writer,
        ):
            base = rules.base.root() if rules.base is not None else None
            only = rules.only.start() if rules.only is not None else None
            inline = rules.inlining.start() if rules.inlining is not None else None
            top = Child(b"", DirectoryKind.MERGE, rules.select.start(), rules.hide.start(), 0, base, only, inline)
            self._add_task(self._writer.root, b"", top)
            with WorkerPool(options.workers, lambda connection: run_worker(connection, rules)) as pool:
                self._hand_out(pool)
                if rules.base is not None and rules.base.adopted:  # workers need not inherit what that takes
                    assert options.base is not None
                    manifest.adopt(options.base, unread=True)  # whoever finds something unchanged has read it
                while True:
                    self._hand_out(pool)
                    if self._writer.is_complete:
                        break
                    for worker in pool.ready():
                        self._receive(worker)
                    if self._observer is not None:
                        self._observer.progress(self._seen)
                if rules.inlining is not None:
                    self._collect_contents(pool)
            return self._finish(root, created)

    def _content_writer(self) -> ContentWriter | None:
        """What takes contents. Those of the base that are still a file's come along, but with `only`: then it is the
        base that the rest is put into.
        """
        options = self._options
        if self._rules.inlining is None:
            return None
        contents = ContentWriter(everything=options.inline_all)
        if options.base is not None and options.base.contents is not None and self._rules.only is None:
            contents.donors.append(options.base.contents)
        return contents

    def _collect_contents(self, pool: WorkerPool) -> None:
        """Takes the contents that workers still have."""
        for worker in pool.workers:
            worker.send(None)
        waiting = set(pool.workers)
        while waiting:
            for worker in pool.ready():
                if self._receive(worker):
                    waiting.discard(worker)

    def _finish(self, root: bytes, created: int) -> _Found:
        options, writer = self._options, self._writer
        unmatched = tuple(
            pattern for number, pattern in enumerate(self._rules.select.sources) if number not in self._matched
        )
        hide = () if self._rules.only is not None else self._rules.hide.sources
        unmatched_hide = tuple(pattern for number, pattern in enumerate(hide) if ~number not in self._matched)
        left_out = tuple(sorted(writer.left_out.items()))
        if self._rules.only is None:
            if not writer.entries and not left_out:
                if not options.select:
                    hint = "name the directory that holds the software; is the volume mounted? (findmnt)"
                    raise NothingSelectedError("has nothing in it to record", path=root, hint=hint)
                hint = "check the patterns against ROOT; they are relative to it, and links are not followed"
                raise NothingSelectedError("no pattern matched anything", path=root, hint=hint)
            if not writer.entries:
                path, why = left_out[0]
                raise ScanError(f"{why}; and so nothing selected could be recorded", path=path)
        counts = writer.counts._replace(unchanged=self._unchanged)
        size = writer.manifest.size
        if options.base is not None and self._rules.base is not None and self._rules.base.adopted:
            size = compact_size(options.base)
        info = Info(
            root=root,
            created=created,
            tool=f"mkmeta {__version__}",
            select=options.select,
            hide=options.hide,
            drop_xattrs=options.drop_xattrs,
            inline=options.inline,
            inline_all=options.inline_all,
            hard_links=options.hard_links,
            left_out=left_out,
            counts={**counts._asdict(), COMPACT: size},
        )
        changed = {path: _CHANGED for path in writer.links.stale() if path not in writer.left_out}
        self.empty = writer.empty
        manifest_id = writer.finish(info, options.digests)
        report = ScanReport(
            manifest_id=manifest_id,
            entries=writer.entries,
            counts=counts,
            left_out=left_out,
            unmatched=unmatched,
            unmatched_hide=unmatched_hide,
        )
        return _Found(report, changed)

    def _add_task(self, place: Place, path: bytes, child: Child) -> None:
        self._tasks += 1
        self._expected[self._tasks] = _Expected(place, child.base, child.only is not None)
        self._todo.append(
            Task(self._tasks, path, child.kind, child.select, child.hide, child.base, child.only, child.inline)
        )

    def _hand_out(self, pool: WorkerPool) -> None:
        """Gives tasks to workers that can take some: evenly, the most recent first."""
        for worker in pool.workers:
            needed = 2 * self._lanes.get(worker, 1)
            room = _TASKS_PER_WORKER + needed - worker.tasks
            share = -(-len(self._todo) // len(pool.workers))
            tasks: list[Task] = []
            while self._todo and len(tasks) < min(room, share):
                task = self._todo.pop()
                if isinstance(task, _Rest):
                    self._go_on(task, _Files([]))  # what it brings has come
                    share = max(share, -(-len(self._todo) // len(pool.workers)))
                elif self._expected[task.number].place.is_lost:
                    del self._expected[task.number]
                elif worker.tasks + len(tasks) >= needed and not self._forecast.fits(task.path):
                    self._todo.append(task)
                    break
                else:
                    self._forecast.handed_out(task.number, task.path)
                    tasks.append(task)
            if tasks:
                worker.tasks += len(tasks)
                worker.send([task.plain() for task in tasks])

    def _receive(self, worker: Worker) -> bool:
        """Takes a message. Whether it was the last."""
        report: Report = worker.receive()
        if report.contents is not None:
            self._writer.manifest.add_contents(report.contents)
        if report.closed and self._contents is not None:
            self._contents.closed.update(report.closed)
        worker.tasks -= len(report.results)
        self._lanes[worker] = report.lanes
        self._matched |= report.matched
        self.matched_only |= report.matched_only
        files = _Files([worker.receive_file() for _ in range(report.files)])
        for values in report.results:
            result = result_of(*values)
            self._forecast.came_back(result.task, brought(result))
            self._take_result(self._expected.pop(result.task), result, files)
        files.close()
        return report.is_last

    def _take_result(self, expected: _Expected, result: Result, files: _Files) -> None:
        """Takes what became of a task, or of something that was read along with one."""
        writer, place = self._writer, expected.place
        if place.is_lost:
            return
        match result:
            case Complete():
                own, counts = _own(expected, result.own), self._note(result.counts)
                self._add_links(place, [(b"", result.links)])
                writer.leaf_directory(place, own, result.object_id, result.data, result.facts, result.entries, counts)
            case Same():
                assert expected.base is not None
                self._add_links(place, result.links)
                for run in files.take(result.runs):
                    self._add_links(place, [(b"", run.links)])
                base, own = expected.base, _own(expected, result.own)
                counts = self._unchanged_below(base, place.path)
                writer.as_before(place, own, base.children, base.entries, base.facts, counts)
            case Partial():
                self._take(expected, result, files)
            case Problem():
                self._give_up(place, result)

    def _unchanged_below(self, base: BaseDirectory, path: bytes) -> Counts:
        """What is in a directory that is as in the base, with all below it."""
        assert self._rules.base is not None
        there = self._rules.base.counts(base, path)
        return self._note(there._replace(unchanged=there.files + there.symlinks + there.others))

    def _note(self, found: tuple[int, ...]) -> Counts:
        """What a worker counted; it is added up for progress."""
        counts = Counts._make(found)
        if self._observer is not None:
            self._seen = self._seen.plus(counts)
        self._unchanged += counts.unchanged
        return counts

    def _add_links(self, place: Place, links: list[tuple[bytes, list[LinkedName]]]) -> None:
        """Names in a directory that was given as a whole, and below it."""
        for below, names in links:
            if names:
                assert place.subtree is not None
                path = place.path + b"/" + below if below else place.path
                self._writer.add_links(path, place.subtree.place.path, names)

    def _take(self, expected: _Expected, listing: Partial, files: _Files) -> None:
        """A listing that is no complete directory: a large file, or a directory whose children are to come."""
        writer, place = self._writer, expected.place
        if listing.kind is None:
            nlink = listing.linked.get(0, 1)
            assert place.above is not None
            subtree = place.subtree.place.path if place.subtree is not None else None
            writer.add_links(place.above.path, subtree, listing.links)
            writer.fill(place, listing.pieces[0], 1, None, self._note(listing.counts), nlink=nlink)
            return
        opening = writer.open(place, listing.kind)
        opening.looked_at = expected.on_the_way
        same = expected.base if self._is_adopted and listing.same else None
        before = CountedBefore(self._rules.base, same, listing.kind, place.path)
        self._go_on(_Rest(expected, opening, files.take(listing.runs), listing, before), files)

    def _go_on(self, rest: _Rest, files: _Files) -> None:
        """Takes the next run of a directory; what follows has to wait until its children have been handed out."""
        if rest.opening.place.is_lost:
            rest.runs.close()
            return
        for run in rest.runs:
            place = len(self._todo)
            self._add(rest.opening, run, self._note(run.counts()), {}, files)
            rest.before.subtract(run.counts(), run.children)
            if len(self._todo) > place:
                self._todo.insert(place, rest)
                return
        expected, last = rest.expected, rest.last
        self._add(rest.opening, last, self._note(last.counts), last.found, files)
        rest.before.subtract(last.counts, last.children)
        base = expected.base
        unchanged = base.children if self._is_adopted and last.same and base is not None else None
        self._writer.close(rest.opening, _own(expected, last.own), rest.before.left(), base=unchanged)

    def _add(
        self,
        opening: Opening,
        listing: Listing | Partial,
        counts: Counts,
        found: Mapping[int, Result],
        files: _Files,
    ) -> None:
        """Entries of a directory, and tasks for what is a task of its own, unless that was found already."""
        prefix = opening.path + b"/" if opening.path else b""
        for path, why in listing.left_out:
            self._check_on_error(path, why)
            self._writer.note_left_out(path, path, why)
        self.gone.update(prefix + name for name in listing.gone)
        children = [
            ChildName(child.name, child.kind, child.position, self._facts_of(child)) for child in listing.children
        ]
        part = Part(listing.pieces, children, listing.inodes, listing.change_times, listing.linked)
        places = self._writer.extend(opening, part, counts, listing.links)
        for number in reversed(range(len(places))):  # the first is on top
            place, child = places[number], listing.children[number]
            if number in found:
                self._take_result(_Expected(place, child.base, child.only is not None), found[number], files)
            else:
                self._add_task(place, prefix + child.name, child)

    def _facts_of(self, child: Child) -> Location | None:
        """Those that the base has of a child, if they may hold: they count it as the kind of directory it was."""
        base = child.base
        return base.facts if self._is_adopted and base is not None and base.kind is child.kind else None

    @property
    def _is_adopted(self) -> bool:
        """Whether the new manifest has the objects of the base already."""
        return self._rules.base is not None and self._rules.base.adopted

    def _give_up(self, place: Place, problem: Problem) -> None:
        """Takes out what a problem makes impossible: a subtree, or what is below a skeleton directory."""
        if problem.fatal is not None:
            raise problem.fatal
        self._check_volume(problem)
        if place.above is None:
            raise ScanError(problem.why, path=self._options.root)
        self._check_on_error(problem.path, problem.why)
        self._writer.leave_out(place, problem.path, problem.why)

    def _check_on_error(self, path: bytes, why: str) -> None:
        if self._options.on_error is OnError.FAIL:
            raise LeftOutError(why, path=path, hint="without --on-error fail its subtree would be left out")

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


def _inlining(options: ScanOptions, root_fd: int) -> Inlining | None:
    """The rules for contents; None: none is taken, and those of the base are left. Raises UsageError."""
    check_rules(options.inline, options.digests)
    if not any(size for _, size in options.inline):
        return None
    has_nfs4_acls = has_acls(root_fd, NFS4_ACL)
    return Inlining(options.inline, everything=options.inline_all, base=options.base, has_nfs4_acls=has_nfs4_acls)


def _without_changed(found: _Found, options: ScanOptions, stream: BinaryIO) -> ScanReport:
    """Leaves out what hard links show to have changed during the scan, after it was written."""
    report = found.report
    if not found.changed:
        return report
    if options.on_error is OnError.FAIL:
        path = min(found.changed)
        raise LeftOutError(_CHANGED, path=path, hint="without --on-error fail its subtree would be left out")
    stream.flush()
    with TemporaryFile() as copy, ManifestReader(os.dup(stream.fileno())) as reader:
        info, entries = leave_out(Source(reader, b"what was scanned"), found.changed, copy)
        if not entries and options.base is None:
            raise ScanError(f"{_CHANGED}; and so nothing selected could be recorded", path=min(found.changed))
        copy.seek(0)
        stream.seek(0)
        stream.truncate()
        while data := copy.read(1 << 20):
            stream.write(data)
    stream.flush()
    with ManifestReader(os.dup(stream.fileno())) as reader:
        counts = Counts(**{name: info.counts[name] for name in Counts._fields})
        return replace(report, manifest_id=reader.id, entries=entries, counts=counts, left_out=info.left_out)


def _graft(
    report: ScanReport, one: _Scan, only: Patterns, options: ScanOptions, part: BinaryIO, stream: BinaryIO
) -> ScanReport:
    """Puts what was scanned into the base."""
    assert options.base is not None
    part.flush()
    with ManifestReader(os.dup(part.fileno())) as reader:
        base, new = Source(options.base, b"the base"), Source(reader, b"the part")
        inlining = one.inlining
        asked = inlining is None or not inlining.asks or are_known(options.base.info)
        grafted = graft(base, new, only, stream, gone=one.gone, empty=one.empty, asked=asked)
    matched = one.matched_only | grafted.matched
    unmatched = tuple(pattern for number, pattern in enumerate(only.sources) if number not in matched)
    if len(unmatched) == len(only.sources) and not options.only_nothing:
        hint = "it matches nothing that is selected, neither on the volume nor in the base"
        raise NothingSelectedError("no pattern of --only matched anything", path=unmatched[0], hint=hint)
    counts = grafted.counts._replace(unchanged=report.counts.unchanged)
    return ScanReport(
        manifest_id=grafted.manifest_id,
        entries=grafted.entries,
        counts=counts,
        left_out=grafted.left_out,
        unmatched=unmatched,
    )


def _inside(stream: BinaryIO) -> Totals:
    """What was taken along, as the manifest says that is now complete: subtrees may have been left out of it since."""
    stream.flush()
    with ManifestReader(os.dup(stream.fileno())) as reader:
        return counted(reader.info.counts)
