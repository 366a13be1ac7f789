"""Doing one task: a directory is read and, as long as that takes next to no time, what is below it as well.

Whatever a task brings costs a message, and the parent what is done with it: where memory answers that is more than
reading. So directories found in one are read at once, within a moment; where a server is waited for the moment is over
by then, and each is a task for others. What is recorded is the same, however far it goes. A directory that is in all as
the base has it, with all below it, comes back as that: neither it nor anything below it is put together again.
"""

from __future__ import annotations

import time
from typing import IO, Final

from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.objects import PAGE_BYTES, encode_page
from mkmeta.digest import ObjectKind
from mkmeta.errors import FormatError, MkmetaError
from mkmeta.model import DirectoryKind
from mkmeta.scanner.base import of_base
from mkmeta.scanner.directory import DirectoryReader, Reading, Unchanged
from mkmeta.scanner.records import Child, Unfaithful
from mkmeta.scanner.tasks import NO_FILE, Complete, Partial, Problem, Result, Same, Task
from mkmeta.trees.writer import LinkedName

MOMENT: Final = 0.005  # seconds from the start of a task within which further directories are begun
_LEVELS: Final = 16  # below the directory of a task


def perform(reader: DirectoryReader, task: Task) -> tuple[Result, list[IO[bytes]]]:
    """What became of a task, and the files that `Partial.runs` and `Same.runs` are numbers of."""
    files: list[IO[bytes]] = []
    try:
        return _perform(reader, task, time.perf_counter() + MOMENT, _LEVELS, files), files
    except BaseException:
        for file in files:
            file.close()
        raise


def _perform(reader: DirectoryReader, task: Task, deadline: float, levels: int, files: list[IO[bytes]]) -> Result:
    try:
        reading = _read(reader, task)
    except Unfaithful as problem:
        return Problem(task.number, problem.path, problem.why, problem.errno)
    except FormatError as damage:
        return Problem(task.number, task.path, "", None, of_base(damage, task.path))
    except MkmetaError as error:
        return Problem(task.number, task.path, "", None, error)
    if isinstance(reading, Unchanged):
        return Same(task.number, None, [(b"", reading.links)] if reading.links else [])
    result = _result(reader, task, reading, files)
    if isinstance(result, Partial) and result.children and result.runs == NO_FILE and levels:
        _read_below(reader, task, result, deadline, levels, files)
        return _whole(reader, task, result) or result
    return result


def _read(reader: DirectoryReader, task: Task) -> Reading | Unchanged:
    """Raises Unfaithful, FormatError when the base is damaged, and other MkmetaErrors."""
    if task.kind is None:
        return reader.read_file(task.path)
    try:
        return reader.read_directory(task.path, task.kind, *task[3:])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        if task.base is not None and reader.rules.base is not None:
            reader.rules.base.check(task.base, task.path)
        raise


def _read_below(
    reader: DirectoryReader, task: Task, listing: Partial, deadline: float, levels: int, files: list[IO[bytes]]
) -> None:
    """Reads directories in one that was read, as many as there is time for."""
    prefix = task.path + b"/" if task.path else b""
    children: list[Child] = listing.children
    for number, child in enumerate(children):
        if time.perf_counter() >= deadline:
            return
        if child.kind is None:
            continue
        path = prefix + child.name
        below = Task(0, path, child.kind, child.select, child.hide, child.base, child.only, child.inline)
        found = _perform(reader, below, deadline, levels - 1, files)
        listing.found[number] = found
        if isinstance(found, Problem):  # the volume may be gone: that is for the parent to see at once
            return


def _whole(reader: DirectoryReader, task: Task, listing: Partial) -> Same | None:
    """A directory that is, with all below it, what the base has; None: something is not, or was not looked at."""
    if not _is_as_in_base(reader, task, listing.kind, same=listing.same) or len(listing.found) < len(listing.children):
        return None
    links: list[tuple[bytes, list[LinkedName]]] = [(b"", listing.links)] if listing.links else []
    for number, child in enumerate(listing.children):
        found = listing.found[number]
        if not isinstance(found, Same) or found.runs != NO_FILE or found.own not in (None, child.base.own):
            return None
        links += ((child.name + b"/" + below if below else child.name, names) for below, names in found.links)
    return Same(task.number, listing.own, links)


def _is_as_in_base(reader: DirectoryReader, task: Task, kind: DirectoryKind | None, *, same: bool) -> bool:
    """Whether a directory of a subtree, whose entries are those of the base, need not be written again. Facts of one
    that the base has as a merge directory would count it as such.
    """
    base, before = reader.rules.base, task.base
    if base is None or before is None or not base.adopted:
        return False
    return same and kind is DirectoryKind.OPAQUE and before.kind is kind


def _result(reader: DirectoryReader, task: Task, reading: Reading, files: list[IO[bytes]]) -> Result:
    listing, counts = reading.listing, reading.listing.counts()
    kind = DirectoryKind.MERGE if task.only is not None else task.kind  # of what is on the way only a part is looked at
    runs = NO_FILE
    if reading.runs is not None:
        runs = len(files)
        files.append(reading.runs)
    own = (reading.own.head, reading.own.tail) if reading.own is not None else None
    body = listing.pieces[0] if listing.pieces else b""
    is_leaf = kind is DirectoryKind.OPAQUE and not reading.has_children
    if is_leaf and _is_as_in_base(reader, task, kind, same=listing.same):
        links = [(b"", listing.links)] if listing.links else []
        return Same(task.number, own, links, runs)
    if not is_leaf or runs != NO_FILE or len(body) > PAGE_BYTES:
        return Partial(
            task=task.number,
            kind=kind,
            runs=runs,
            pieces=listing.pieces,
            children=listing.children,
            found={},
            inodes=listing.inodes,
            change_times=listing.change_times,
            linked=listing.linked,
            links=listing.links,
            left_out=listing.left_out,
            gone=listing.gone,
            same=listing.same,
            own=own,
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
        own=own,
        links=listing.links,
        counts=counts,
    )


def weight(result: Result) -> int:
    """About how many bytes a result is, to send."""
    match result:
        case Complete():
            return len(result.data)
        case Same():
            return _SAME_BYTES
        case Partial():
            return sum(map(len, result.pieces)) + sum(map(weight, result.found.values()))
        case Problem():  # sent at once: it may be the end of the scan, and each task of a dead volume waits for long
            return OUTBOX_BYTES


_SAME_BYTES: Final = 128  # about, of a result that says there is nothing new
OUTBOX_BYTES: Final = 32 << 10  # results sent at once: a few messages per handful of tasks
