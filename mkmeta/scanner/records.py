"""What a scan's parent and its workers tell each other about directories, and what holds for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mkmeta.codec.packing import array_header, pack
from mkmeta.linux.ownership import Strangers
from mkmeta.model import ID_MAX, Counts, DigestName, DirectoryKind
from mkmeta.pattern import Patterns, State
from mkmeta.scanner.base import Base, BaseDirectory, inodes_of
from mkmeta.scanner.inlining import Inline, Inlining
from mkmeta.trees.writer import LinkedName


class Unfaithful(Exception):
    """Something a manifest cannot carry: where, and why."""

    def __init__(self, path: bytes, why: str, *, error: OSError | None = None) -> None:
        super().__init__(why)
        self.path = path
        self.why = why
        self.errno = error.errno if error else None


class Changed(Exception):
    """Something is not what it was a moment ago."""

    def __init__(self, path: bytes) -> None:
        self.path = path


class Child(NamedTuple):
    """Something below a directory that is a task of its own."""

    name: bytes
    kind: DirectoryKind | None  # None: a large file
    select: State
    hide: State
    position: int  # among the entries
    base: BaseDirectory | None = None  # what the base has there
    only: State | None = None  # None: everything below is walked
    inline: Inline | None = None  # None: no content is taken there

    def plain(self) -> tuple[Any, ...]:
        """As `BaseDirectory.plain`."""
        *common, base, only, inline = self
        return *common, base.plain() if base is not None else None, only, inline

    @classmethod
    def of(cls, plain: tuple[Any, ...]) -> Child:
        """What became plain."""
        child = cls._make(plain)
        return child if child.base is None else child._replace(base=BaseDirectory.of(child.base))


@dataclass(slots=True)
class Tally:
    """Counts of one listing while it is made; fields as in Counts."""

    symlinks: int = 0
    others: int = 0
    bytes: int = 0
    hidden: int = 0
    snapshots: int = 0
    silly_renamed: int = 0
    nfs4_acl: int = 0
    dropped_xattrs: int = 0
    unchanged: int = 0

    def add(self, other: Tally) -> None:
        """Adds what another one counted."""
        self.symlinks += other.symlinks
        self.others += other.others
        self.bytes += other.bytes
        self.hidden += other.hidden
        self.snapshots += other.snapshots
        self.silly_renamed += other.silly_renamed
        self.nfs4_acl += other.nfs4_acl
        self.dropped_xattrs += other.dropped_xattrs
        self.unchanged += other.unchanged


@dataclass(slots=True)
class Listing:
    """Entries of a directory that follow each other, as its object will need them: packed, with a gap for every child.

    `pieces[i]` holds the entries before child i, the last piece those after the last child. A large file comes as a
    listing with one piece, its entry.
    """

    entries: int = 0  # in the pieces
    pieces: list[bytes] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)  # per entry, children included
    change_times: list[int] = field(default_factory=list)
    linked: dict[int, int] = field(default_factory=dict)  # position of an entry: names of its inode, where several
    links: list[LinkedName] = field(default_factory=list)  # those of them that are no children
    left_out: list[tuple[bytes, str]] = field(default_factory=list)  # entries of a merge directory: path, why
    gone: list[bytes] = field(default_factory=list)  # names the base has on the way, and that are not there
    matched: set[int] = field(default_factory=set)  # numbers of selection patterns, and ~number of those that hide
    matched_only: set[int] = field(default_factory=set)  # those of what is walked
    same: bool = False  # entries and their facts are those of the base, directories apart
    tally: Tally = field(default_factory=Tally)

    def join(self, parts: Sequence[Listing]) -> None:
        """Adds what follows, in parts."""
        runs: list[list[bytes]] = [[self.pieces.pop()] if self.pieces else []]
        for part in parts:
            start = len(self.inodes)
            self.entries += part.entries
            if part.pieces:
                runs[-1].append(part.pieces[0])
                runs += ([piece] for piece in part.pieces[1:])
            if part.children:
                self.children += (child._replace(position=start + child.position) for child in part.children)
            self.inodes += part.inodes
            self.change_times += part.change_times
            if part.linked:
                self.linked.update({start + position: nlink for position, nlink in part.linked.items()})
            self.links += part.links
            self.left_out += part.left_out
            self.gone += part.gone
            self.matched |= part.matched
            self.matched_only |= part.matched_only
            self.tally.add(part.tally)
        self.same = all(part.same for part in parts)
        self.pieces += map(b"".join, runs)

    def add(self, rows: list[list[object]]) -> None:
        """Adds a piece: entries that follow each other, up to the next child or the end."""
        self.pieces.append(pack(rows)[len(array_header(len(rows))) :])
        self.entries += len(rows)

    def add_looks(self, looks: Sequence[os.stat_result], device: int) -> None:
        """The facts of all entries, children included: nothing else adds any."""
        self.inodes = inodes_of(looks, device)
        self.change_times = [seen.st_ctime_ns for seen in looks]

    def counts(self) -> Counts:
        """What the entries in the pieces are, and what was left out on purpose."""
        tally = self.tally
        return Counts(
            files=self.entries - tally.symlinks - tally.others,
            symlinks=tally.symlinks,
            others=tally.others,
            bytes=tally.bytes,
            linked=len(self.links),
            hidden=tally.hidden,
            snapshots=tally.snapshots,
            silly_renamed=tally.silly_renamed,
            nfs4_acl=tally.nfs4_acl,
            dropped_xattrs=tally.dropped_xattrs,
            unchanged=tally.unchanged,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRules:
    """What holds for the whole scan; workers inherit it."""

    root_fd: int
    device: int  # st_dev of the root
    select: Patterns
    hide: Patterns
    drop_xattrs: Patterns  # each a single component
    only: Patterns | None = None  # with a base: what is walked at all
    base: Base | None = None
    inlining: Inlining | None = None  # None: no content is taken
    digests: Collection[DigestName]
    mount_points: Collection[bytes]  # paths below the root
    open_content: Callable[[bytes], int]  # opens a file of the working directory for hashing
    strangers: Strangers  # what owners show that are not known

    def owner_problem(self, seen: os.stat_result) -> str | None:
        """Why the owner of something cannot be recorded."""
        uid, gid = seen.st_uid, seen.st_gid
        if uid > ID_MAX or gid > ID_MAX:
            return f"belongs to the invalid ID {ID_MAX + 1}, which no file can be given"
        if uid == self.strangers.uid or gid == self.strangers.gid:
            return f"seems to be of {uid}:{gid}, as all do whose owner or group has no ID in this user namespace"
        return None
