"""A whole build: from an open manifest to a published layer.

The steps, what each leaves when it is interrupted, and the layer's form are those of formats/upper.md.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from mkmeta.compiler.diagnosis import Diagnosis, Step
from mkmeta.compiler.links import LinkNames, make_links
from mkmeta.compiler.plan import Plan
from mkmeta.compiler.sharing import Base
from mkmeta.compiler.staging import Destination, Staging
from mkmeta.compiler.upper import Spent, UpperWriter
from mkmeta.digest import ObjectId
from mkmeta.errors import BuildError, IdMismatchError, MkmetaError, reason
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.linux.process import ending_signals_held
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory
from mkmeta.workers import WorkerPool, messages

JOBS_MAX: Final = 64  # processes; creating names is bound by the filesystem's journal long before
_BATCH_ENTRIES = 2000  # entries per message to a worker: a fraction of a second, thousands of times a message's cost

Progress = Callable[[int, int], None]  # entries written, entries altogether


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build is asked for."""

    plan: Plan = field(default_factory=Plan)
    swap: bool = False  # exchange with an existing DEST
    discard: bool = False  # with swap: remove the old tree
    expect_id: ObjectId | None = None
    base: bytes | None = None  # a layer to share unchanged files with, by hard links
    jobs: int = 1  # worker processes


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did."""

    manifest_id: ObjectId
    entries: int  # in the tree, without the root
    links: int  # of them, further names of an inode
    old: bytes | None  # name, beside DEST, of the tree that was DEST before
    filesystem: str  # type of the one DEST is on
    spent: Spent
    shares: bool | None  # whether files could be shared with a base; None: there was none
    leftovers: tuple[bytes, ...]  # names beside DEST that a killed build left and that could not be removed
    seconds: float


class _Task(NamedTuple):
    """A directory to be filled and finished; it exists, empty."""

    path: bytes
    directory: Directory


class _Done(NamedTuple):
    """What a worker has done, and the directories it made and leaves to others."""

    entries: int
    spent: Spent
    below: list[_Task]


def build(
    reader: ManifestReader, dest: bytes, options: BuildOptions, progress: Progress = lambda _done, _total: None
) -> BuildResult:
    """Builds the layer of a manifest at `dest`.

    Raises IdMismatchError and FormatError before anything is written, BuildError when the layer cannot be; in each case
    DEST is as it was and what was staged is removed.
    """
    started = time.monotonic()
    check_id(reader, options.expect_id)
    root = reader.root
    reader.check_links()
    destination = Destination.open(dest)
    try:
        destination.check(swap=options.swap, discard=options.discard)
        leftovers = destination.remove_leftovers()
        diagnosis = Diagnosis(destination.parent_fd)
        with LinkNames(reader.links()) as links, contextlib.ExitStack() as stack:
            base = stack.enter_context(Base(options.base, options.plan)) if options.base is not None else None
            if base is None:  # or how many inodes it takes is known in the end only
                _check_room(destination, root.directory.entries - links.count)
            try:
                with ending_signals_held():
                    staging = stack.enter_context(Staging(destination, options.plan.namespace))
            except OSError as error:
                raise diagnosis.explain(error, dest, Step.CREATE) from None
            if base is not None and not base.mark(staging.fd):
                base = None
            spent = _write(reader, staging.fd, options, links, base, progress)
            try:
                old = staging.publish(swap=options.swap, discard=options.discard)
            except OSError as error:
                raise BuildError(f"cannot be put in place: {reason(error)}", path=dest) from None
            filesystem = filesystem_type(staging.fd)
            link_count = links.count
    finally:
        destination.close()
    return BuildResult(
        manifest_id=reader.id,
        entries=root.directory.entries,
        links=link_count,
        old=old,
        filesystem=filesystem,
        spent=spent,
        shares=None if options.base is None else base is not None,
        leftovers=tuple(leftovers),
        seconds=time.monotonic() - started,
    )


def check_id(reader: ManifestReader, expected: ObjectId | None) -> None:
    """Raises IdMismatchError unless the manifest is the expected one, FormatError when its ID is not its own."""
    _ = reader.root  # reading it proves that the file's ID is that of its content
    if expected not in (None, reader.id):
        raise IdMismatchError(f"the manifest's ID is {reader.id.hex()}, not the expected one")


def _check_room(destination: Destination, inodes: int) -> None:
    """Raises BuildError when the filesystem says that so many inodes are not free. Some count none, as btrfs."""
    counts = os.fstatvfs(destination.parent_fd)
    if counts.f_files and counts.f_favail < inodes:
        raise BuildError(
            f"the layer takes {inodes} inodes, its filesystem has {counts.f_favail} free",
            path=destination.path,
            hint="make room, or make a filesystem with more inodes (mkfs.ext4 -N), or use xfs or btrfs",
        )


def _write(
    reader: ManifestReader,
    top: int,
    options: BuildOptions,
    links: LinkNames,
    base: Base | None,
    progress: Progress,
) -> Spent:
    """Writes the whole tree to the directory `top`. Raises BuildError and FormatError."""
    plan = options.plan
    node = plan.root(reader.root, reader.id)
    name, value = node.xattrs[-1]
    try:
        os.setxattr(top, name, value)  # asks the filesystem, before any work, whether it takes overlayfs's xattrs
    except OSError as error:
        raise Diagnosis(top).explain_xattr(error, b"", name, len(value)) from None
    spent = Spent()
    done, total = 0, reader.root.directory.entries
    stack = [_Task(b"", reader.root.directory)]
    with WorkerPool(options.jobs, lambda pipe: _work(pipe, reader, UpperWriter(top, base), plan, links)) as pool:
        idle = list(pool.workers)
        while stack or len(idle) < options.jobs:
            while stack and idle:
                idle.pop().send(_take_batch(stack))
            for worker in pool.ready():
                reply: _Done | Exception = worker.receive()
                if isinstance(reply, Exception):
                    raise reply
                idle.append(worker)
                stack += reply.below
                spent.add(reply.spent)
                done += reply.entries
                progress(done, total)
    make_links(top, reader.links())
    UpperWriter(top).finish(top, b"", node)
    return spent


def _take_batch(stack: list[_Task]) -> list[_Task]:
    """Takes directories off the stack, until they and what is below them are enough for a message."""
    batch: list[_Task] = []
    entries = 0
    while stack and (not batch or entries + stack[-1].directory.entries < _BATCH_ENTRIES):
        batch.append(stack.pop())
        entries += 1 + batch[-1].directory.entries
    return batch[::-1]


def _work(pipe: Connection, reader: ManifestReader, writer: UpperWriter, plan: Plan, links: LinkNames) -> None:
    """What a worker process runs: answers each list of tasks with a _Done, or with the exception that ended it."""
    os.umask(0)
    builder = _Builder(reader, writer, plan, links)
    for tasks in messages(pipe):
        try:
            pipe.send(builder.run(tasks))
        except MkmetaError as error:
            pipe.send(error)
        except Exception:
            pipe.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


class _Builder:
    """Fills and finishes directories."""

    def __init__(self, reader: ManifestReader, writer: UpperWriter, plan: Plan, links: LinkNames) -> None:
        self._reader = reader
        self._plan = plan
        self._links = links
        self._writer = writer

    def run(self, tasks: list[_Task]) -> _Done:
        """Works through the tasks, and through everything below those that are not worth splitting."""
        self._writer.spent = Spent()
        entries = 0
        left: list[_Task] = []
        stack = tasks
        while stack:
            task = stack.pop()
            count, below = self._build_directory(task.path, task.directory)
            entries += count
            if task.directory.entries > _BATCH_ENTRIES:
                left += below
            else:
                stack += below
        return _Done(entries, self._writer.spent, left)

    def _build_directory(self, path: bytes, directory: Directory) -> tuple[int, list[_Task]]:
        """Fills and finishes one directory. Returns the number of its entries, and its directories, last one first."""
        prefix = path + b"/" if path else b""
        entries = self._reader.directory(directory, path)
        here = entries
        if self._links.count:
            here = [entry for entry in entries if prefix + entry.name not in self._links]
        fd = self._writer.fill(path, self._plan.children(path, here))
        try:
            if path:  # the root is finished last of all, by the parent
                self._writer.finish(fd, path, self._plan.directory(path.rpartition(b"/")[2], directory))
        finally:
            os.close(fd)
        below = [_Task(prefix + name, node) for name, node in reversed(entries) if isinstance(node, Directory)]
        return len(entries), below
