"""A scan worker: takes tasks (directories, large files), reads them, sends back what it found.

Each worker is a process; inside it, threads called lanes hide the latency of a network filesystem. There are as many
lanes as the filesystem is slow: one while it answers from memory, where more would only fight for the GIL.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.objects import PAGE_BYTES, encode_page
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError
from mkmeta.linux.schedstat import WaitClock
from mkmeta.linux.syscalls import CLONE_FS, unshare
from mkmeta.model import DirectoryKind
from mkmeta.pattern import State
from mkmeta.scanner.base import BaseDirectory
from mkmeta.scanner.governor import LANES_MAX, Governor
from mkmeta.scanner.listing import DirectoryReader
from mkmeta.scanner.records import Child, ScanRules, Unfaithful
from mkmeta.trees.writer import LinkedName
from mkmeta.workers import messages

_SAME_BYTES: Final = 128  # about, of a result that says there is nothing new
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


class Partial(NamedTuple):
    """Anything else that could be read; fields as in Listing."""

    task: int
    kind: DirectoryKind | None
    entries: int
    pieces: list[bytes]
    children: list[Child]
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
    fatal: bool = False  # the scan cannot go on


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

    def results(self) -> Iterator[Result]:
        """The results as what they are."""
        yield from map(Complete._make, self.complete)
        yield from map(Same._make, self.same)
        yield from map(Partial._make, self.partial)
        yield from map(Problem._make, self.problems)


def run_worker(connection: Connection, rules: ScanRules) -> None:
    """The life of a worker process: until the parent closes the pipe."""
    crew = _Crew(connection, rules)
    for tasks in messages(connection):
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
        self._lanes_allowed = LANES_MAX
        self._outbox: list[Result] = []
        self._outbox_bytes = 0
        self._matched: set[int] = set()
        self._matched_only: set[int] = set()

    def take(self, tasks: list[Task]) -> None:
        """Queues tasks and sees to it that lanes are running."""
        for task in tasks:
            self._tasks.put(task)
        self._start_lanes()

    def _start_lanes(self) -> None:
        with self._lock:
            while self._running < min(self._governor.lanes, self._lanes_allowed, max(self._tasks.qsize(), 1)):
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
            self._run(DirectoryReader(self._rules), clock)

    def _run(self, reader: DirectoryReader, clock: WaitClock) -> None:
        """Performs tasks until there are none, or fewer lanes are wanted."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                with self._lock:
                    done = self._tasks.empty()
                    report = self._report() if done else None
                    self._running -= done
                self._send(report)
                if done:
                    return
                continue
            alone = self._running == 1 and self._governor.looking
            before = clock.read() if alone else (0.0, 0.0)
            result = _perform(reader, task)
            with self._lock:
                if alone and self._running == 1:
                    after = clock.read()
                    self._governor.count(after[0] - before[0], after[1] - before[1])
                self._matched |= reader.matched
                self._matched_only |= reader.matched_only
                self._outbox.append(result)
                self._outbox_bytes += _weight(result)
                report = self._report() if self._outbox_bytes >= _OUTBOX_BYTES else None
                wanted = self._governor.lanes
                superfluous = self._running > wanted
                self._running -= superfluous
            self._send(report)
            if superfluous:
                return
            if self._running < wanted:
                self._start_lanes()

    def _report(self) -> Report | None:
        """Takes what is in the outbox."""
        if not self._outbox:
            return None
        kinds = (Complete, Same, Partial, Problem)
        complete, same, partial, problems = ([tuple(r) for r in self._outbox if type(r) is kind] for kind in kinds)
        self._outbox = []
        self._outbox_bytes = 0
        matched, matched_only = set(self._matched), set(self._matched_only)
        return Report(complete, same, partial, problems, matched, matched_only, self._governor.lanes)

    def _send(self, report: Report | None) -> None:
        if report is not None:
            with self._sending:
                self._connection.send(report)


def _perform(reader: DirectoryReader, task: Task) -> Result:
    try:
        if task.kind is None:
            listing = reader.read_file(task.path)
        else:
            listing = reader.read_directory(task.path, task.kind, task.select, task.hide, task.base, task.only)
    except Unfaithful as problem:
        return Problem(task.number, problem.path, problem.why, problem.errno)
    except FormatError as damage:
        return Problem(task.number, task.path, str(damage), None, fatal=True)
    counts = listing.counts()
    kind = DirectoryKind.MERGE if task.only is not None else task.kind  # of what is on the way only a part is looked at
    body = listing.pieces[0] if listing.pieces else b""
    if listing.children or kind is not DirectoryKind.OPAQUE or len(body) > PAGE_BYTES:
        return Partial(
            task=task.number,
            kind=kind,
            entries=listing.entries,
            pieces=listing.pieces,
            children=listing.children,
            inodes=listing.inodes,
            change_times=listing.change_times,
            linked=listing.linked,
            links=listing.links,
            left_out=listing.left_out,
            gone=listing.gone,
            same=listing.same,
            head=listing.head,
            tail=listing.tail,
            counts=counts,
        )
    counts = counts._replace(dirs=1)
    if listing.same and reader.adopted:
        return Same(task.number, listing.head, listing.tail, listing.links, counts)
    data = encode_page(listing.entries, body)
    facts = encode_page_facts(PageFacts(listing.inodes, listing.change_times, [], listing.linked))
    return Complete(
        task=task.number,
        object_id=ObjectKind.DIRECTORY.id_of(data),
        data=data,
        facts=encode_facts(counts, facts),
        entries=listing.entries,
        head=listing.head,
        tail=listing.tail,
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
