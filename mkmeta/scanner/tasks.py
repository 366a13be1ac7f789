"""What a scan asks its workers to read, and what they answer: named tuples, which travel as plain ones.

Plain tuples are several times as fast to send.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError
from mkmeta.manifest.content_writer import ContentFrame
from mkmeta.model import DirectoryKind
from mkmeta.pattern import State
from mkmeta.scanner.base import BaseDirectory
from mkmeta.scanner.inlining import Inline
from mkmeta.scanner.records import Child
from mkmeta.trees.writer import LinkedName

NO_FILE: Final = -1


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
        number, path, kind, select, hide, base, only, inline = plain
        return cls(number, path, kind, select, hide, BaseDirectory.of(base) if base is not None else None, only, inline)


class Complete(NamedTuple):
    """An opaque directory without children: its object is ready."""

    task: int
    object_id: ObjectId
    data: bytes
    facts: bytes
    entries: int
    own: tuple[bytes, bytes] | None  # fields of Own; None: as in the base
    links: list[LinkedName]
    counts: tuple[int, ...]  # fields of Counts, itself included


class Same(NamedTuple):
    """An opaque directory which is, but perhaps for its own attributes, what the base has, with all below it."""

    task: int
    own: tuple[bytes, bytes] | None  # fields of Own; None: as in the base
    links: list[tuple[bytes, list[LinkedName]]]  # names in it, and in directories below: their paths from here
    runs: int = NO_FILE  # a file with what comes before that (`Partial.runs`), of which only the links are of interest


class Partial(NamedTuple):
    """Anything else that could be read; fields as in Listing."""

    task: int
    kind: DirectoryKind | None
    runs: int  # number of a file with what comes before these entries (mkmeta.scanner.gathering), or NO_FILE
    pieces: list[bytes]
    children: list[Any]  # of Child; plain while they travel
    found: dict[int, Any]  # by number of a child, what became of it, if that was read along: a Result
    inodes: list[int]
    change_times: list[int]
    linked: dict[int, int]
    links: list[LinkedName]
    left_out: list[tuple[bytes, str]]
    gone: list[bytes]
    same: bool
    own: tuple[bytes, bytes] | None  # fields of Own; None: as in the base
    counts: tuple[int, ...]  # fields of Counts


class Problem(NamedTuple):
    """Something that cannot be recorded."""

    task: int
    path: bytes
    why: str
    errno: int | None
    fatal: MkmetaError | None = None  # why the scan cannot go on


Result = Complete | Same | Partial | Problem
_KINDS: Final[tuple[type[Any], ...]] = (Complete, Same, Partial, Problem)


def plain(result: Result) -> tuple[int, tuple[Any, ...]]:
    """A result as plain tuples."""
    if isinstance(result, Partial):
        children = [child.plain() for child in result.children]
        found = {number: plain(below) for number, below in result.found.items()}
        result = result._replace(children=children, found=found)
    return _KINDS.index(type(result)), tuple(result)


def result_of(kind: int, values: tuple[Any, ...]) -> Result:
    """What became plain."""
    result: Result = _KINDS[kind]._make(values)
    if isinstance(result, Partial):
        children = list(map(Child.of, result.children))
        found = {number: result_of(*below) for number, below in result.found.items()}
        return result._replace(children=children, found=found)
    return result


def brought(result: Result) -> int:
    """How many tasks a result would bring if nothing had been read along, or brings, if that is more."""
    return max(len(result.children), _left(result)) if isinstance(result, Partial) else 0


def _left(result: Result) -> int:
    """How many tasks it brings."""
    if not isinstance(result, Partial):
        return 0
    return len(result.children) - len(result.found) + sum(map(_left, result.found.values()))


class Report(NamedTuple):
    """One message of a worker."""

    results: list[tuple[int, tuple[Any, ...]]]  # plain
    files: int  # that follow, all of them of one result
    matched: set[int]  # patterns, all seen so far
    matched_only: set[int]
    lanes: int
    contents: ContentFrame | None = None  # what was taken; such a report has nothing else
    closed: Collection[bytes] = ()  # paths of files and directories that not everybody may read
    is_last: bool = False  # the answer to None instead of tasks: all that was taken has come
