"""A scan worker: takes tasks (directories, large files), reads them, sends back what it found.

Each worker is a process; inside it, threads called lanes hide the latency of a network filesystem. There are as many
lanes as the filesystem is slow: one while it answers from memory, where more would only fight for the GIL.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Collection, Sequence
from multiprocessing.connection import Connection
from typing import IO, Any, Final

from mkmeta.linux.schedstat import WaitClock
from mkmeta.linux.syscalls import CLONE_FS, unshare
from mkmeta.manifest.content_writer import ContentFrame
from mkmeta.scanner.directory import DirectoryReader
from mkmeta.scanner.governor import LANES_MAX, Governor
from mkmeta.scanner.inlining import Collector
from mkmeta.scanner.performing import OUTBOX_BYTES, perform, weight
from mkmeta.scanner.records import ScanRules
from mkmeta.scanner.sharing import FEW, Shared
from mkmeta.scanner.tasks import Report, Result, Task, plain
from mkmeta.scanner.turns import note_wait, waited
from mkmeta.workers import messages, send_file

_WORTH_TELLING: Final = 0.005  # seconds of a lane: asking for its times is no more than a thousandth of that
_PATIENCE: Final = 0.2  # seconds a lane waits for something to do: another takes as long to start as a few tasks


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
        self._sending = threading.Lock()  # apart from the other: taking tasks must never wait for the parent to read
        self._lock = threading.Lock()  # guards everything below
        self._call = threading.Condition(self._lock)  # there is something to do
        self._tasks: deque[Task] = deque()
        self._running = 0  # lanes
        self._idle = 0  # of them, those that wait for something to do
        self._readers: list[DirectoryReader] = []  # of lanes that ended, for those that follow
        self._governor = Governor()
        self._shared: list[Shared] = []  # what any lane can take part in
        self._lanes_allowed = LANES_MAX
        self._outbox: list[Result] = []
        self._outbox_bytes = 0
        self._matched: set[int] = set()
        self._matched_only: set[int] = set()
        self.collector = Collector(rules.inlining, self._send_contents) if rules.inlining is not None else None

    def take(self, tasks: list[tuple[Any, ...]]) -> None:
        """Queues tasks, which are plain, and sees to it that lanes are running."""
        queued = list(map(Task.of, tasks))
        with self._lock:
            self._tasks.extend(queued)
            self._call_lanes()

    def end(self) -> None:
        """There are no more tasks; those that were are done, or of no interest."""
        if self.collector is not None:
            self.collector.flush()
        with self._sending:
            self._connection.send(Report([], 0, set(), set(), 1, is_last=True))

    def _send_contents(self, frame: ContentFrame | None, closed: Collection[bytes]) -> None:
        report = Report([], 0, set(), set(), self._governor.lanes, contents=frame, closed=closed)
        with self._sending:
            self._connection.send(report)

    def invite(self, shared: Shared) -> None:
        """Lets other lanes take part in something."""
        with self._lock:
            self._shared.append(shared)
            self._call_lanes()

    def dismiss(self, shared: Shared) -> None:
        """There is nothing left of it to take."""
        with self._lock:
            self._shared.remove(shared)

    def _call_lanes(self) -> None:
        """Wakes lanes, and starts others, as far as there is something for them to do. Holds the lock."""
        turns = sum(-(-shared.left // FEW) for shared in self._shared)
        wanted = min(self._governor.lanes, self._lanes_allowed, max(len(self._tasks) + turns, 1))
        self._call.notify(max(wanted - self._busy(), 0))
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
        with self._lock:
            reader = self._readers.pop() if self._readers else DirectoryReader(self._rules)
        with WaitClock() as clock:
            _Lane(self, reader, clock).run()

    def next(self, reader: DirectoryReader) -> Task | Shared | None:
        """What a lane should do; None: end, for there has been nothing to do, or for more lanes than one like it.

        Then its reader is for the next one that begins.
        """
        while True:
            with self._lock:
                if self._busy() > self._governor.lanes:
                    self._end(reader)
                    return None
                for shared in self._shared:
                    if shared.left:
                        return shared
                if self._tasks:
                    return self._tasks.popleft()
                report = self._report()
                if report is None and not self._wait():
                    self._end(reader)
                    return None
            if report is not None:
                self._send(report, ())

    def _end(self, reader: DirectoryReader) -> None:
        """A lane ends. Holds the lock."""
        reader.company = None  # workers look for no reference cycles
        self._readers.append(reader)
        self._running -= 1

    def _wait(self) -> bool:
        """Waits for something to do. Whether there may be something. Holds the lock."""
        self._idle += 1
        called = self._call.wait(_PATIENCE)
        self._idle -= 1
        return called or bool(self._tasks)

    def _busy(self) -> int:
        return self._running - self._idle

    def count(self, passed: float, worked: float, delayed: float, *, crowded: bool) -> None:
        """Takes note of what a lane did with its time."""
        with self._lock:
            self._governor.count(passed, worked, delayed, crowded=crowded)
            if self._busy() < min(self._governor.lanes, self._lanes_allowed):
                self._call_lanes()

    def is_several(self) -> bool:
        """Whether a lane has others beside it."""
        return self._busy() > 1

    def is_superfluous(self) -> bool:
        """Whether there are too many lanes."""
        return self._busy() > self._governor.lanes

    def add_result(self, reader: DirectoryReader, result: Result, files: Sequence[IO[bytes]]) -> bool:
        """Takes what became of a task, and the files that belong to it. Whether something was sent."""
        with self._lock:
            self._matched |= reader.matched
            self._matched_only |= reader.matched_only
            self._outbox.append(result)
            self._outbox_bytes += weight(result)
            report = self._report(len(files)) if self._outbox_bytes >= OUTBOX_BYTES or files else None
        if report is not None:
            self._send(report, files)
        return report is not None

    def _report(self, files: int = 0) -> Report | None:
        """Takes what is in the outbox; so many files are sent after it. Holds the lock."""
        if not self._outbox:
            return None
        results, self._outbox, self._outbox_bytes = self._outbox, [], 0
        matched, matched_only = set(self._matched), set(self._matched_only)
        return Report(list(map(plain, results)), files, matched, matched_only, self._governor.lanes)

    def _send(self, report: Report, files: Sequence[IO[bytes]]) -> None:
        with self._sending:
            self._connection.send(report)
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
        reader.collector = crew.collector
        reader.company = self  # until it ends

    def run(self) -> None:
        """Does what there is to do, until there is nothing, or fewer lanes are wanted."""
        while True:
            started = time.perf_counter()
            work = self._crew.next(self._reader)
            note_wait(time.perf_counter() - started)
            if work is None:
                return
            if isinstance(work, Shared):
                self._take_turns(work, helping=True)
                continue
            result, files = perform(self._reader, work)
            self._measure()
            if self._crew.add_result(self._reader, result, files):  # the parent may have been waited for
                self._start_anew()

    def share(self, shared: Shared) -> None:
        """Takes turns, and lets other lanes do so."""
        self._crew.invite(shared)
        self._take_turns(shared)
        while not shared.is_over:  # others are too far ahead of one
            shared.wait_for_a_turn()
            self._start_anew()
            self._take_turns(shared)
        self._crew.dismiss(shared)
        self._measure(always=True)
        try:
            shared.wait()
        finally:
            self._start_anew()

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
            passed = now.passed - before.passed - waited()
            crowded = self._crew.is_several() and self._clock.is_crowded()
            self._crew.count(passed, now.worked - before.worked, now.delayed - before.delayed, crowded=crowded)
            self._before = self._clock.read()

    def _start_anew(self) -> None:
        """What was done since it was told last says nothing."""
        self._before = self._clock.read()
        waited()
