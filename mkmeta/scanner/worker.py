"""A scan worker: takes tasks (directories, large files), reads them, sends back what it found.

Each worker is a process; inside it, threads called lanes hide the latency of a network filesystem. There are as many
lanes as the filesystem is slow: one while it answers from memory, where more would only fight for the GIL.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import IO, Any, Final, NamedTuple

from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.objects import PAGE_BYTES, encode_page
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError, MkmetaError
from mkmeta.linux.schedstat import WaitClock
from mkmeta.linux.syscalls import CLONE_FS, unshare
from mkmeta.manifest.content_writer import ContentFrame
from mkmeta.model import DirectoryKind
from mkmeta.pattern import State
from mkmeta.scanner.base import BaseDirectory
from mkmeta.scanner.directory import DirectoryReader, Reading
from mkmeta.scanner.governor import LANES_MAX, Governor
from mkmeta.scanner.inlining import Collector, Inline
from mkmeta.scanner.records import Child, ScanRules, Unfaithful
from mkmeta.scanner.sharing import FEW, Shared
from mkmeta.trees.writer import LinkedName
from mkmeta.workers import messages, send_file

_SAME_BYTES: Final = 128  # about, of a result that says there is nothing new
_WORTH_TELLING: Final = 0.005  # seconds of a lane: asking for its times is no more than a thousandth of that
_OUTBOX_BYTES: Final = 32 << 10  # results sent at once: a few messages per handful of tasks


class Task(NamedTuple):
    """What a worker is asked to read."""

    number: int
    path: bytes
    kind: DirectoryKind | None  # None: a large file
    select: State
    hide: State
    base: BaseDirectory | None
    only: State | None  # None: everything in it is walked
    inline: Inline | None  # None: no content is taken

    def plain(self) -> tuple[Any, ...]:
        """As `BaseDirectory.plain`."""
        *common, base, only, inline = self
        return *common, base.plain() if base is not None else None, only, inline

    @classmethod
    def of(cls, plain: tuple[Any, ...]) -> Task:
        """What became plain."""
        task = cls._make(plain)
        return task if task.base is None else task._replace(base=BaseDirectory.of(task.base))


class Complete(NamedTuple):
    """An opaque directory without children: its object is ready."""

    task: int
    object_id: ObjectId
    data: bytes
    facts: bytes
    entries: int
    head: bytes
    tail: bytes
    links: list[LinkedName]
    counts: tuple[int, ...]  # fields of Counts, itself included


class Same(NamedTuple):
    """An opaque directory without children which is, but perhaps for its own attributes, what the base has."""

    task: int
    head: bytes
    tail: bytes
    links: list[LinkedName]
    counts: tuple[int, ...]  # fields of Counts, itself included
    has_runs: bool  # before what `links` and `counts` are of


class Partial(NamedTuple):
    """Anything else that could be read; fields as in Listing."""

    task: int
    kind: DirectoryKind | None
    has_runs: bool  # before these entries; they come in a file, which follows the report (mkmeta.scanner.gathering)
    pieces: list[bytes]
    children: list[Any]  # of Child; plain while they travel
    inodes: list[int]
    change_times: list[int]
    linked: dict[int, int]
    links: list[LinkedName]
    left_out: list[tuple[bytes, str]]
    gone: list[bytes]
    same: bool
    head: bytes
    tail: bytes
    counts: tuple[int, ...]  # fields of Counts


class Problem(NamedTuple):
    """Something that cannot be recorded."""

    task: int
    path: bytes
    why: str
    errno: int | None
    fatal: MkmetaError | None = None  # why the scan cannot go on


Result = Complete | Same | Partial | Problem


class Report(NamedTuple):
    """One message of a worker. The results are plain tuples, which are several times as fast to send."""

    complete: list[tuple[Any, ...]]
    same: list[tuple[Any, ...]]
    partial: list[tuple[Any, ...]]
    problems: list[tuple[Any, ...]]
    matched: set[int]  # patterns, all seen so far
    matched_only: set[int]
    lanes: int
    contents: ContentFrame | None = None  # what was taken; such a report has nothing else
    closed: Collection[bytes] = ()  # paths of files and directories that not everybody may read
    is_last: bool = False  # the answer to None instead of tasks: all that was taken has come

    def results(self) -> Iterator[Result]:
        """The results as what they are, in the order in which files follow."""
        yield from map(Complete._make, self.complete)
        yield from map(Same._make, self.same)
        for values in self.partial:
            partial = Partial._make(values)
            yield partial._replace(children=list(map(Child.of, partial.children)))
        yield from map(Problem._make, self.problems)


def run_worker(connection: Connection, rules: ScanRules) -> None:
    """The life of a worker process: until the parent closes the pipe."""
    crew = _Crew(connection, rules)
    for tasks in messages(connection):
        if tasks is None:
            crew.end()
        else:
            crew.take(tasks)


class _Crew:
    """The lanes of a worker, what they have to do, and what they have done."""

    def __init__(self, connection: Connection, rules: ScanRules) -> None:
        self._connection = connection
        self._rules = rules
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        self._sending = threading.Lock()  # apart from the other: taking tasks must never wait for the parent to read
        self._lock = threading.Lock()  # guards everything below
        self._running = 0
        self._governor = Governor()
        self._shared: list[Shared] = []  # what any lane can take part in
        self._lanes_allowed = LANES_MAX
        self._outbox: list[tuple[Result, IO[bytes] | None]] = []  # with runs of directories that have many names
        self._outbox_bytes = 0
        self._matched: set[int] = set()
        self._matched_only: set[int] = set()
        self.collector = Collector(rules.inlining, self._send_contents) if rules.inlining is not None else None

    def take(self, tasks: list[tuple[Any, ...]]) -> None:
        """Queues tasks, which are plain, and sees to it that lanes are running."""
        for task in tasks:
            self._tasks.put(Task.of(task))
        self._start_lanes()

    def end(self) -> None:
        """There are no more tasks; those that were are done, or of no interest."""
        if self.collector is not None:
            self.collector.flush()
        with self._sending:
            self._connection.send(Report([], [], [], [], set(), set(), 1, is_last=True))

    def _send_contents(self, frame: ContentFrame | None, closed: Collection[bytes]) -> None:
        report = Report([], [], [], [], set(), set(), self._governor.lanes, contents=frame, closed=closed)
        with self._sending:
            self._connection.send(report)

    def invite(self, shared: Shared) -> None:
        """Lets other lanes take part in something."""
        with self._lock:
            self._shared.append(shared)
        self._start_lanes()

    def dismiss(self, shared: Shared) -> None:
        """There is nothing left of it to take."""
        with self._lock:
            self._shared.remove(shared)

    def _start_lanes(self) -> None:
        with self._lock:
            turns = sum(-(-shared.left // FEW) for shared in self._shared)
            wanted = min(self._governor.lanes, self._lanes_allowed, max(self._tasks.qsize() + turns, 1))
            while self._running < wanted:
                self._running += 1
                threading.Thread(target=self._lane, daemon=True).start()

    def _lane(self) -> None:
        try:
            self._work()
        except BrokenPipeError:  # the parent is gone
            os._exit(os.EX_OK)
        except BaseException:
            # A lane that ended silently would leave its parent waiting: end the process, which the parent notices.
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

    def _work(self) -> None:
        try:
            unshare(CLONE_FS)  # a working directory of its own
        except OSError:  # a container's seccomp filter: then this process has one lane, and one working directory
            with self._lock:
                self._lanes_allowed = 1
                if self._running > 1:
                    self._running -= 1
                    return
        with WaitClock() as clock:
            _Lane(self, DirectoryReader(self._rules), clock).run()

    def next(self) -> Task | Shared | None:
        """What a lane should do; None: end, for there is nothing to do, or for more lanes than one like it."""
        while True:
            if self._running > self._governor.lanes:
                with self._lock:
                    superfluous = self._running > self._governor.lanes
                    self._running -= superfluous
                if superfluous:
                    return None
            if self._shared:
                with self._lock:
                    for shared in self._shared:
                        if shared.left:
                            return shared
            with contextlib.suppress(Empty):
                return self._tasks.get_nowait()
            with self._lock:
                done = self._tasks.empty() and not any(shared.left for shared in self._shared)
                report = self._report() if done else None
                self._running -= done
            self._send(report)
            if done:
                return None

    def count(self, passed: float, worked: float, delayed: float, *, crowded: bool) -> None:
        """Takes note of what a lane did with its time."""
        with self._lock:
            self._governor.count(passed, worked, delayed, crowded=crowded)
            more = self._running < min(self._governor.lanes, self._lanes_allowed)
        if more:
            self._start_lanes()

    def is_several(self) -> bool:
        """Whether a lane has others beside it."""
        return self._running > 1

    def is_superfluous(self) -> bool:
        """Whether there are too many lanes."""
        return self._running > self._governor.lanes

    def add_result(self, reader: DirectoryReader, result: Result, runs: IO[bytes] | None) -> bool:
        """Takes what became of a task. Whether something was sent."""
        with self._lock:
            self._matched |= reader.matched
            self._matched_only |= reader.matched_only
            self._outbox.append((result, runs))
            self._outbox_bytes += _weight(result)
            report = self._report() if self._outbox_bytes >= _OUTBOX_BYTES or runs else None
        self._send(report)
        return report is not None

    def _report(self) -> tuple[Report, list[IO[bytes]]] | None:
        """Takes what is in the outbox."""
        if not self._outbox:
            return None
        kinds = (Complete, Same, Partial, Problem)
        by_kind = [[pair for pair in self._outbox if type(pair[0]) is kind] for kind in kinds]
        self._outbox = []
        self._outbox_bytes = 0
        files = [runs for pairs in by_kind for _, runs in pairs if runs is not None]
        complete, same, partial, problems = ([tuple(result) for result, _ in pairs] for pairs in by_kind)
        matched, matched_only = set(self._matched), set(self._matched_only)
        return Report(complete, same, partial, problems, matched, matched_only, self._governor.lanes), files

    def _send(self, report: tuple[Report, list[IO[bytes]]] | None) -> None:
        if report is not None:
            message, files = report
            with self._sending:
                self._connection.send(message)
                for file in files:
                    with file:
                        send_file(self._connection, file)


class _Lane:
    """One thread of a worker, and what it did with its time."""

    def __init__(self, crew: _Crew, reader: DirectoryReader, clock: WaitClock) -> None:
        self._crew = crew
        self._reader = reader
        self._clock = clock
        self._before = clock.read()
        reader.company = self
        reader.collector = crew.collector

    def run(self) -> None:
        """Does what there is to do, until there is nothing, or fewer lanes are wanted."""
        while (work := self._crew.next()) is not None:
            if isinstance(work, Shared):
                self._take_turns(work, helping=True)
                continue
            result, runs = _perform(self._reader, work)
            self._measure()
            if self._crew.add_result(self._reader, result, runs):  # the parent may have been waited for
                self._before = self._clock.read()

    def share(self, shared: Shared) -> None:
        """Takes turns, and lets other lanes do so."""
        self._crew.invite(shared)
        self._take_turns(shared)
        while not shared.is_over:  # others are too far ahead of one
            shared.wait_for_a_turn()
            self._before = self._clock.read()
            self._take_turns(shared)
        self._crew.dismiss(shared)
        self._measure(always=True)
        try:
            shared.wait()
        finally:
            self._before = self._clock.read()

    def _take_turns(self, shared: Shared, *, helping: bool = False) -> None:
        is_inside = not helping
        while not (helping and self._crew.is_superfluous()) and (turn := shared.claim(self._reader.pace.names)):
            shared.perform(self._reader, turn, enter=not is_inside)
            is_inside = True
            self._measure()

    def _measure(self, *, always: bool = False) -> None:
        """Tells how time was spent since it was told last, if that is worth telling."""
        if always or time.perf_counter() - self._before.passed >= _WORTH_TELLING:
            now, before = self._clock.read(), self._before
            passed = now.passed - before.passed - self._reader.hasher.queued
            self._reader.hasher.queued = 0.0
            crowded = self._crew.is_several() and self._clock.is_crowded()
            self._crew.count(passed, now.worked - before.worked, now.delayed - before.delayed, crowded=crowded)
            self._before = self._clock.read()


def _perform(reader: DirectoryReader, task: Task) -> tuple[Result, IO[bytes] | None]:
    """What became of a task, and the file with the runs that come before."""
    try:
        if task.kind is None:
            reading = reader.read_file(task.path)
        else:
            reading = reader.read_directory(task.path, task.kind, *task[3:])
    except Unfaithful as problem:
        return Problem(task.number, problem.path, problem.why, problem.errno), None
    except FormatError as damage:
        fatal = FormatError(str(damage), path=task.path, hint="scan without --base")
        return Problem(task.number, task.path, "", None, fatal), None
    except MkmetaError as error:
        return Problem(task.number, task.path, "", None, error), None
    return _result(reader, task, reading), reading.runs


def _result(reader: DirectoryReader, task: Task, reading: Reading) -> Result:
    listing, counts = reading.listing, reading.listing.counts()
    kind = DirectoryKind.MERGE if task.only is not None else task.kind  # of what is on the way only a part is looked at
    has_runs = reading.runs is not None
    body = listing.pieces[0] if listing.pieces else b""
    is_leaf = kind is DirectoryKind.OPAQUE and not reading.has_children
    adopted = reader.rules.base is not None and reader.rules.base.adopted
    if is_leaf and listing.same and adopted:
        return Same(task.number, *reading.own, listing.links, counts._replace(dirs=1), has_runs)
    if not is_leaf or has_runs or len(body) > PAGE_BYTES:
        return Partial(
            task=task.number,
            kind=kind,
            has_runs=has_runs,
            pieces=listing.pieces,
            children=[child.plain() for child in listing.children],
            inodes=listing.inodes,
            change_times=listing.change_times,
            linked=listing.linked,
            links=listing.links,
            left_out=listing.left_out,
            gone=listing.gone,
            same=listing.same,
            head=reading.own.head,
            tail=reading.own.tail,
            counts=counts,
        )
    counts = counts._replace(dirs=1)
    data = encode_page(listing.entries, body)
    facts = encode_page_facts(PageFacts(listing.inodes, listing.change_times, [], listing.linked))
    return Complete(
        task=task.number,
        object_id=ObjectKind.DIRECTORY.id_of(data),
        data=data,
        facts=encode_facts(counts, facts),
        entries=listing.entries,
        head=reading.own.head,
        tail=reading.own.tail,
        links=listing.links,
        counts=counts,
    )


def _weight(result: Result) -> int:
    match result:
        case Complete():
            return len(result.data)
        case Same():
            return _SAME_BYTES
        case Partial():
            return sum(map(len, result.pieces))
        case Problem():  # sent at once: it may be the end of the scan, and each task of a dead volume waits for long
            return _OUTBOX_BYTES
