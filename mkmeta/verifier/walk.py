"""Walking a recorded tree with several processes, each directory beside what it is compared with."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

from mkmeta.errors import MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Entry
from mkmeta.verifier.findings import Finding, Side
from mkmeta.workers import WorkerPool, messages

Progress = Callable[[int], None]  # entries done since the last call


class Task(NamedTuple):
    """A recorded directory to be compared."""

    path: bytes
    directory: Directory
    subtree: bytes | None  # the subtree it is in; None: it is a part of the skeleton

    def below(self, name: bytes) -> bytes:
        """The path of an entry."""
        return self.path + b"/" + name if self.path else name


class Visitor(Protocol):
    """Compares directories, in one process, which it may change the working directory of."""

    counts: Counter[str]  # what it did, for the summary; taken and emptied now and then

    def visit(self, task: Task, entries: list[Entry], report: Reporter) -> Collection[bytes]:
        """Compares what is in a directory with its entries. Returns the names of directories it can be called for."""


class Reporter:
    """Takes the findings of a visit."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.findings: list[Finding] = []

    def add(self, task: Task, name: bytes, what: str, message: str, *, side: Side | None = None) -> None:
        """A finding about an entry; an empty name: about the directory itself."""
        path = task.below(name) if name else task.path
        self.findings.append(Finding(side or self.side, path, what, message, task.subtree or path))


class _Done(NamedTuple):
    """What a worker has compared, and the directories it leaves to others."""

    entries: int
    findings: list[Finding]
    counts: Counter[str]
    below: list[Task]


def walk(
    reader: ManifestReader,
    side: Side,
    make_visitor: Callable[[], Visitor],
    *,
    jobs: int,
    batch: int,
    report: Callable[[Finding], None],
    progress: Progress,
) -> Counter[str]:
    """Has every directory of a manifest visited, parents first, a message to a process being about `batch` entries.

    Returns what the visitors counted. Raises FormatError, and whatever else visitors raise.
    """
    counts: Counter[str] = Counter()
    stack = [Task(b"", reader.root.directory, None)]
    with WorkerPool(jobs, lambda pipe: _work(pipe, reader, side, make_visitor(), batch)) as pool:
        idle = list(pool.workers)
        while stack or len(idle) < jobs:
            while stack and idle:
                idle.pop().send(_take_batch(stack, batch))
            for worker in pool.ready():
                reply: _Done | Exception = worker.receive()
                if isinstance(reply, Exception):
                    raise reply
                idle.append(worker)
                stack += reply.below
                counts += reply.counts
                for finding in reply.findings:
                    report(finding)
                progress(reply.entries)
    return counts


def _take_batch(stack: list[Task], batch: int) -> list[Task]:
    """Takes directories off the stack, until they and what is below them are enough for a message."""
    taken: list[Task] = []
    entries = 0
    while stack and (not taken or entries + stack[-1].directory.entries < batch):
        taken.append(stack.pop())
        entries += 1 + taken[-1].directory.entries
    return taken[::-1]


def _work(pipe: Connection, reader: ManifestReader, side: Side, visitor: Visitor, batch: int) -> None:
    """What a worker process runs: answers each list of tasks with a _Done, or with the exception that ended it."""
    for tasks in messages(pipe):
        try:
            pipe.send(_visit(tasks, reader, side, visitor, batch))
        except MkmetaError as error:
            pipe.send(error)
        except Exception:
            pipe.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def _visit(stack: list[Task], reader: ManifestReader, side: Side, visitor: Visitor, batch: int) -> _Done:
    """Works through the tasks, and through everything below those that are not worth splitting."""
    reporter = Reporter(side)
    left: list[Task] = []
    entries = 0
    while stack:
        task = stack.pop()
        recorded = reader.directory(task.directory, task.path)
        there = visitor.visit(task, recorded, reporter)
        entries += len(recorded)
        below = []
        for name, node in reversed(recorded):
            if not isinstance(node, Directory):
                continue
            if name in there:
                path = task.below(name)
                subtree = None if node.kind is DirectoryKind.MERGE else task.subtree or path
                below.append(Task(path, node, subtree))
            else:
                entries += node.entries  # nothing to compare them with
        if task.directory.entries > batch:
            left += below
        else:
            stack += below
    counts, visitor.counts = visitor.counts, Counter()
    return _Done(entries, reporter.findings, counts, left)
