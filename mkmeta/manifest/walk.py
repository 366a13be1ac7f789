"""Walking a recorded tree: every directory once, each after the one it is in, by one process or by several.

Memory is bounded whatever the manifest says. A process that walks holds of each directory on its way no more than a
cursor. What it leaves to others it hands back as slices, at most _SLICES of a directory; while more than _WAITING_MAX
of them are waiting, nobody hands anything back.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Protocol

from mkmeta.codec.container import Location
from mkmeta.errors import MkmetaError
from mkmeta.manifest.cursor import Cursor, Place, Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind
from mkmeta.workers import WorkerPool, messages

WORKERS_MAX: Final = 64  # processes; what they share, a filesystem or a server, is the limit long before
_SLICES: Final = 256  # of one directory: enough for so many workers to end at about the same time
_WAITING_MAX: Final = 4096  # slices: 20 MB, if each were of another directory and its path as long as can be
_WIDE: Final = 1000  # entries: a directory with fewer has one page, as a rule
_ITEMS_MAX: Final = 1000  # things to tell that a worker holds back

Progress = Callable[[int], None]  # entries done since the last call


class Branch(NamedTuple):
    """A recorded directory, and where it is."""

    path: bytes  # empty: the root
    directory: Directory
    facts: Location | None  # of what is in it; None: there are none, or they were not asked for
    subtree: bytes | None  # path of the subtree it is in; None: it is a part of the skeleton

    @property
    def name(self) -> bytes:
        """Its last name."""
        return self.path.rpartition(b"/")[2]

    def below(self, name: bytes) -> bytes:
        """The path of an entry."""
        return self.path + b"/" + name if self.path else name


class Report:
    """What a visitor has to tell the process that started the walk."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self.counts: Counter[str] = Counter()  # what was done; `walk` returns the sum of all
        self.items: list[Any] = []
        self.settle: Callable[[], None] = _nothing  # called before each message: what it is about must be there by then
        self._flush = flush

    def tell(self, item: object) -> None:
        """Has `walk` call `receive` with something that can be pickled."""
        self.items.append(item)
        if len(self.items) >= _ITEMS_MAX:
            self._flush()


def _nothing() -> None:
    pass


class Visitor(Protocol):
    """Does what there is to do in each directory. In a worker process, it may change the working directory."""

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Visits a directory; `entries` are those in it, ascending by name. Returns whether to go on below it."""


MakeVisitor = Callable[[Report], Visitor]  # called in the process that visits


class _Slice(NamedTuple):
    """Work for a process: the directories in a part of a directory, and what is below them."""

    parent: Branch | None  # visited already; None: the only directory in it is the root
    start: Place = (0, 0)
    stop: Place | None = None  # None: to the end


class _Reply(NamedTuple):
    """What a worker has done since its last reply."""

    entries: int
    items: list[Any]
    counts: Counter[str]
    left: list[_Slice] | None  # to others, when it is done with what it got; None: it goes on


_WHOLE: Final = _Slice(None)


def walk(
    reader: ManifestReader,
    make_visitor: MakeVisitor,
    *,
    jobs: int,
    batch: int,
    facts: bool = False,
    receive: Callable[[Any], None] = lambda _item: None,
    progress: Progress = lambda _entries: None,
) -> Counter[str]:
    """Has every directory visited by `jobs` worker processes, about `batch` entries being worth a message to one.

    With `facts`, those that the manifest has come with the entries; they take time to read.
    Raises FormatError for a manifest that is not valid, and whatever else visitors raise.
    """
    counts: Counter[str] = Counter()
    waiting = [_WHOLE]
    with WorkerPool(
        jobs, lambda pipe: _work(pipe, _Walker(reader, make_visitor, batch, pipe.send, facts=facts))
    ) as pool:
        idle = list(pool.workers)
        while waiting or len(idle) < jobs:
            while waiting and idle:
                idle.pop().send((waiting.pop(), len(waiting) < _WAITING_MAX))
            for worker in pool.ready():
                reply: _Reply | Exception = worker.receive()
                if isinstance(reply, Exception):
                    raise reply
                if reply.left is not None:
                    idle.append(worker)
                    waiting += reply.left
                _take(reply, counts, receive, progress)
    return counts


def walk_in_order(
    reader: ManifestReader,
    make_visitor: MakeVisitor,
    *,
    facts: bool = False,
    receive: Callable[[Any], None] = lambda _item: None,
    progress: Progress = lambda _entries: None,
) -> Counter[str]:
    """Has every directory visited in tree order, in this process. Raises as `walk` does."""
    counts: Counter[str] = Counter()
    send = partial(_take, counts=counts, receive=receive, progress=progress)
    _Walker(reader, make_visitor, 1, send, facts=facts).run(_WHOLE, split=False)
    return counts


def _take(reply: _Reply, counts: Counter[str], receive: Callable[[Any], None], progress: Progress) -> None:
    counts.update(reply.counts)
    for item in reply.items:
        receive(item)
    progress(reply.entries)


def _work(pipe: Connection, walker: _Walker) -> None:
    """What a worker process runs: answers each slice with replies, or with the exception that ended it."""
    for piece, split in messages(pipe):
        try:
            walker.run(piece, split=split)
        except MkmetaError as error:
            pipe.send(error)
        except Exception:
            pipe.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


class _Walker:
    """Walks slices, in one process."""

    def __init__(
        self,
        reader: ManifestReader,
        make_visitor: MakeVisitor,
        batch: int,
        send: Callable[[_Reply], None],
        *,
        facts: bool = False,
    ) -> None:
        self._reader = reader
        self._facts = reader.facts_place if facts else None  # of the root
        self._batch = batch
        self._send = send
        self._entries = 0  # done since the last reply
        self._report = Report(self._reply)
        self._visitor = make_visitor(self._report)

    def run(self, piece: _Slice, *, split: bool) -> None:
        """Visits the directories in a slice and all below, but with `split` leaves what is below a large one."""
        if piece.parent is None:
            root = self._reader.root.directory
            level = self._visit(Branch(b"", root, self._facts, None))
            if level is None or (split and root.entries > self._batch):
                self._reply([] if level is None else self._slices(level))
                return
        else:
            level = _Branches(self._cursor(piece.parent), piece.parent, piece.start, piece.stop)
        stack = [level]
        while stack:
            branch = next(stack[-1], None)
            self._entries += stack[-1].passed
            stack[-1].passed = 0
            if branch is None:
                stack.pop()
                continue
            level = self._visit(branch)
            if level is None:
                continue
            if split and branch.directory.entries > self._batch:  # so this is one of the slice itself
                rest = piece._replace(start=stack[0].tell())
                self._reply([rest, *self._slices(level)])
                return
            stack.append(level)
            if self._entries >= self._batch:
                self._reply()
        self._reply([])

    def _visit(self, branch: Branch) -> _Branches | None:
        """Has a directory visited. Returns those in it, unless the visitor does not go on below it."""
        slim = branch
        if branch.directory.xattrs:  # which may be large, on every directory of the way
            slim = branch._replace(directory=dataclasses.replace(branch.directory, xattrs=()))
        cursor = self._cursor(slim)
        if branch.directory.entries < _WIDE:
            goes_on = self._visitor.visit(branch, cursor)
        else:  # reading pages once more, only to find no directory in them, is worth avoiding
            watched = _Watched(cursor)
            goes_on = self._visitor.visit(branch, watched) and (watched.directories or next(watched, None) is not None)
        if goes_on:
            return _Branches(cursor, slim)
        self._entries += branch.directory.entries
        return None

    def _reply(self, left: list[_Slice] | None = None) -> None:
        report = self._report
        report.settle()
        self._send(_Reply(self._entries, report.items, Counter(report.counts), left))
        self._entries, report.items = 0, []
        report.counts.clear()

    def _cursor(self, branch: Branch) -> Cursor[Recorded]:
        return self._reader.recorded(branch.directory, branch.path, branch.facts)

    def _slices(self, level: _Branches) -> list[_Slice]:
        """A directory with much below it, cut into parts with about as much below them; the first part comes last."""
        branch = level.parent
        enough = max(self._batch, branch.directory.entries // _SLICES)
        cuts: list[Place | None] = [(0, 0)]
        directories = entries = 0
        for below in level:
            directories += 1
            entries += 1 + below.directory.entries
            if entries >= enough:
                cuts.append(level.tell())
                entries = 0
        if not directories:
            self._entries += level.passed
            return []
        if entries:
            cuts.append(None)
        cuts[-1] = None
        return [_Slice(branch, start, stop) for start, stop in pairwise(cuts) if start is not None][::-1]


class _Watched(Iterator[Recorded]):
    """Entries on their way to a visitor."""

    def __init__(self, entries: Iterator[Recorded]) -> None:
        self.directories = False  # whether there was one
        self._entries = entries

    def __next__(self) -> Recorded:
        entry = next(self._entries)
        if type(entry.node) is Directory:
            self.directories = True
        return entry


class _Branches(Iterator[Branch]):
    """The directories in a part of a directory. Between two of them, it holds none of the entries."""

    def __init__(
        self, cursor: Cursor[Recorded], parent: Branch, start: Place = (0, 0), stop: Place | None = None
    ) -> None:
        cursor.seek(start)
        self.parent = parent
        self.passed = 0  # entries, since somebody set it to 0
        self._cursor = cursor
        self._stop = stop

    def tell(self) -> Place:
        """Where the next entry is."""
        return self._cursor.tell()

    def __next__(self) -> Branch:
        while self._stop is None or self._cursor.tell() < self._stop:
            name, node, _, _, _, facts = next(self._cursor)
            self.passed += 1
            if type(node) is Directory:
                path = self.parent.below(name)
                subtree = None if node.kind is DirectoryKind.MERGE else self.parent.subtree or path
                return Branch(path, node, facts, subtree)
        raise StopIteration
