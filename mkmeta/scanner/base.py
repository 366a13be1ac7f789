"""An earlier manifest as the base of a scan: what has not changed since is neither read nor hashed again.

An entry has not changed when inode number, change time, modification time and size are as recorded. The kernel sets the
change time at every change of content, attributes, extended attributes or links, and nobody can set it back. But it
is only as fine as the volume's clock, and that clock may differ from ours: what changed shortly before the base's scan
began may have changed once more, unnoticed, while or after it was read. So nothing is trusted that changed later than
TRUST_MARGIN before the base was begun, nor what claims to be from the future.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from blake3 import blake3

from mkmeta.codec.container import Location
from mkmeta.codec.packing import PackingError, array_header, pack, unpack
from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError, UsageError, printable
from mkmeta.manifest.links import FINGERPRINT_BYTES
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, DigestName, DirectoryKind

# ns. Clocks that NTP keeps differ by milliseconds, timestamps are coarse by up to two seconds; what is hashed once more
# for being so young is a release at most.
TRUST_MARGIN: Final = 300 * NS

_LITTLE: Final = 64 << 10  # bytes nobody minds
COMPACT: Final = "compact_bytes"  # among the counts of an info record

# Places in a packed entry (formats/manifest.md section 3.1)
NAME, MODE, _UID, _GID, SEC, NSEC, SIZE = range(7)
CHILDREN, _ENTRIES, KIND = 6, 7, 8

Row = list[Any]  # an unpacked entry


class BaseDirectory(NamedTuple):
    """A directory of the base: what is needed to see whether it is still the same, and to read it."""

    row: bytes  # its packed entry
    children: ObjectId
    entries: int  # all below
    kind: DirectoryKind
    facts: Location
    inode: int
    change_time: int  # ns


@dataclass(frozen=True, slots=True)
class Recorded:
    """The content of a directory of the base, in entry order."""

    rows: list[Row]
    inodes: list[int]
    change_times: list[int]  # ns
    places: list[Location | None]  # of the facts of those that are directories

    def names(self) -> list[bytes]:
        """The names in it."""
        return [row[NAME] for row in self.rows]

    def directories(self) -> dict[bytes, BaseDirectory]:
        """Those entries that are directories whose own facts are known."""
        places = iter(self.places)
        found = {}
        for row, inode, change_time in zip(self.rows, self.inodes, self.change_times, strict=True):
            if stat.S_ISDIR(row[MODE]):
                place = next(places)
                if place is not None:
                    found[row[NAME]] = _directory_of(row, place, inode, change_time)
        return found


class Base:
    """An open base. For several threads."""

    def __init__(self, reader: ManifestReader, *, adopted: bool, trust: bool) -> None:
        """`adopted`: the new manifest has the base's objects, in their places. Without `trust` all has changed."""
        self._reader = reader
        self._lock = threading.Lock()
        self.adopted = adopted
        self.trusted_before = reader.info.created - TRUST_MARGIN if trust else -(2**63)  # ns since the epoch

    def root(self) -> BaseDirectory:
        """The root; what is known of it is never taken for true, since it always merges."""
        top = self._reader.root.directory
        assert self._reader.facts_place is not None
        return BaseDirectory(b"", top.children, top.entries, top.kind, self._reader.facts_place, -1, 0)

    def read(self, directory: BaseDirectory, path: bytes) -> Recorded:
        """What is in a directory. Raises FormatError when the base is damaged."""
        where = f"base: directory '{printable(path)}'" if path else "base: root directory"
        with self._lock:
            data = self._reader.object_of(directory.children, where)
            rows: Any = unpacked(data, where)
            facts = self._reader.facts(directory.facts, path, entries=len(rows))
        if sum(stat.S_ISDIR(row[MODE]) for row in rows) != len(facts.children):
            raise FormatError(f"{where}: its facts are of another directory")
        return Recorded(rows, facts.inodes, facts.change_times, facts.children)

    def is_same(self, directory: BaseDirectory, seen: os.stat_result) -> bool:
        """Whether a directory has the names and attributes it had."""
        return seen.st_ctime_ns == directory.change_time < self.trusted_before and seen.st_ino == directory.inode

    def unchanged(self, recorded: Recorded, looks: dict[bytes, os.stat_result]) -> dict[bytes, Row]:
        """The entries, directories apart, that are as recorded, by name. `looks` is what lstat(2) says of names now."""
        limit = self.trusted_before
        found = {}
        for row, inode, change_time in zip(recorded.rows, recorded.inodes, recorded.change_times, strict=True):
            seen = looks.get(row[NAME])
            if (
                seen is not None
                and seen.st_ctime_ns == change_time < limit
                and seen.st_ino == inode
                and seen.st_mode == row[MODE]
                and seen.st_mtime_ns == row[SEC] * NS + row[NSEC]
                and not stat.S_ISDIR(seen.st_mode)
                and (not stat.S_ISREG(seen.st_mode) or seen.st_size == row[SIZE])
            ):
                found[row[NAME]] = row
        return found


def head_and_tail(directory: BaseDirectory) -> tuple[bytes, bytes]:
    """A directory's packed entry without the ID and the number of entries in its middle."""
    row: Any = unpack(directory.row)
    head = array_header(len(row)) + b"".join(map(pack, row[:CHILDREN]))
    return head, b"".join(map(pack, row[KIND:]))


def fingerprint(row: Row) -> bytes:
    """What stands for everything recorded of an inode, for its hard links."""
    return blake3(b"".join(map(pack, row[1:]))).digest(FINGERPRINT_BYTES)


def check_base(reader: ManifestReader, root: bytes) -> None:
    """Raises UsageError unless a manifest can be the base of a scan of `root`."""
    if reader.info.root != root:
        raise UsageError(
            f"the base was scanned from {printable(reader.info.root)}, not from {printable(root)}",
            hint="name the same ROOT, or scan without --base",
        )
    if reader.facts_place is None:
        raise UsageError("the base has no facts to compare with", hint="scan without --base")


def check_settings(
    reader: ManifestReader,
    *,
    hide: tuple[bytes, ...],
    drop_xattrs: tuple[bytes, ...],
    digests: Collection[DigestName],
) -> None:
    """Raises UsageError when the base was made with others than these."""
    info = reader.info
    dropped = info.drop_xattrs or (None if info.counts.get("dropped_xattrs") else ())
    for name, theirs, ours in (
        ("--hide", info.hide, hide),
        ("--drop-xattr", dropped, drop_xattrs),
        ("--digest", set(reader.root.digests), set(digests)),
    ):
        if theirs != ours:
            raise UsageError(f"the base was made with another {name}", hint="use the same, or scan without --base")


def check_selection(reader: ManifestReader, select: tuple[bytes, ...]) -> None:
    """Raises UsageError when the base was made with another selection: what is taken from it would be another's."""
    if reader.info.select != select:
        raise UsageError("the base was made with another --select", hint="use the same, or scan without --only")


def compact_size(reader: ManifestReader) -> int:
    """How many bytes a manifest had when it last held nothing but what its tree needs."""
    return reader.info.counts.get(COMPACT, reader.size)


def is_compact(reader: ManifestReader) -> bool:
    """Whether a manifest is at most twice as large as it needs to be. What earlier scans left adds up."""
    return reader.size <= 2 * compact_size(reader) + _LITTLE


def _directory_of(row: Row, place: Location, inode: int, change_time: int) -> BaseDirectory:
    kind = DirectoryKind(row[KIND])
    return BaseDirectory(pack(row), row[CHILDREN], row[_ENTRIES], kind, place, inode, change_time)


def unpacked(data: bytes, where: str) -> object:
    """The rows of a directory object whose ID was right: whoever wrote it had checked it."""
    try:
        return unpack(data)
    except PackingError as error:
        raise FormatError(f"{where}: {error}") from None
