"""An earlier manifest as the base of a scan: what has not changed since is neither read nor hashed again.

An entry has not changed when inode number, change time, modification time and size are as recorded. The kernel sets the
change time at every change of content, attributes, extended attributes or links, and nobody can set it back. But it
is only as fine as the volume's clock, and that clock may differ from ours: what changed shortly before the base's scan
began may have changed once more, unnoticed, while or after it was read. So nothing is trusted that changed later than
TRUST_MARGIN before the base was begun, nor a base that claims to be from the future: its machine's clock was ahead, so
that when it was begun is not known. What a change time is worth at all: `mkmeta.scanner.trust`.
"""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from blake3 import blake3

from mkmeta.codec.container import Location
from mkmeta.codec.facts import glance_at_facts
from mkmeta.codec.objects import encode_entry, examine_page, is_divided
from mkmeta.codec.packing import PackingError, pack, unpack
from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError, UsageError, printable
from mkmeta.manifest.content_walk import is_public
from mkmeta.manifest.cursor import directory_at
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Counts, DigestName, DirectoryKind, HardLinks
from mkmeta.scanner.trust import Trust, trust_in
from mkmeta.scanner.turns import Turns
from mkmeta.trees.links import FINGERPRINT_BYTES, Look
from mkmeta.trees.writer import LinkedName, Own, make_own

# ns. Clocks that NTP keeps differ by milliseconds, timestamps are coarse by up to two seconds; what is hashed once more
# for being so young is a release at most.
TRUST_MARGIN: Final = 300 * NS

_LITTLE: Final = 64 << 10  # bytes nobody minds
_PAGES_KEPT: Final = 4  # of a directory
COMPACT: Final = "compact_bytes"  # among the counts of an info record

# Places in a packed entry (formats/manifest.md section 3.1)
NAME, MODE, UID, GID, SEC, NSEC, SIZE = range(7)  # SIZE: of a file; where other types have what is theirs
CHILDREN, _ENTRIES, KIND = 6, 7, 8
BLAKE3, _VERITY, XATTRS = 7, 8, 9  # of a file
_TYPE_SHIFT: Final = 12  # of a mode
_REGULAR, _DIRECTORY = stat.S_IFREG >> _TYPE_SHIFT, stat.S_IFDIR >> _TYPE_SHIFT

_KINDS: Final = tuple(DirectoryKind)  # by value

Row = list[Any]  # an unpacked entry
_name = itemgetter(NAME)
_ONLY_REGULAR: Final = {_REGULAR}
_FILE: Final = itemgetter(MODE, UID, GID, SEC, SIZE)
_SEEN_FILE: Final = itemgetter(stat.ST_MODE, stat.ST_UID, stat.ST_GID, stat.ST_MTIME, stat.ST_SIZE)  # of a stat_result
_INODE: Final = itemgetter(stat.ST_INO)
_DEVICE: Final = itemgetter(stat.ST_DEV)


class BaseDirectory(NamedTuple):
    """A directory of the base: what is needed to see whether it is still the same, and to read it."""

    row: Row  # its entry
    children: ObjectId
    entries: int  # all below
    kind: DirectoryKind
    facts: Location
    inode: int
    change_time: int  # ns

    @property
    def own(self) -> Own:
        """Its entry, for a writer."""
        return make_own(self.row[:CHILDREN], self._xattrs, self.kind)

    @property
    def is_public(self) -> bool:
        """Whether everybody could search it, by what is recorded of it."""
        xattrs = self._xattrs
        return is_public(self.row[MODE], zip(xattrs[::2], xattrs[1::2], strict=True))

    @property
    def _xattrs(self) -> Sequence[bytes]:
        """Names and values in turn."""
        return self.row[KIND + 1] if len(self.row) > KIND + 1 else ()

    def plain(self) -> tuple[Any, ...]:
        """A tuple of plain ones, which are sent to another process in a quarter of the time."""
        return *self[:4], tuple(self.facts), *self[5:]

    @classmethod
    def of(cls, plain: tuple[Any, ...]) -> BaseDirectory:
        """What became plain."""
        row, children, entries, kind, facts, inode, change_time = plain
        return cls(row, children, entries, kind, Location._make(facts), inode, change_time)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Entries of a directory of the base that follow each other, in their order."""

    rows: list[Row]
    inodes: list[int]
    change_times: list[int]  # ns
    places: Sequence[Location | None]  # of the facts of those that are directories

    def names(self) -> list[bytes]:
        """Their names."""
        return list(map(_name, self.rows))

    def directories(self) -> dict[bytes, BaseDirectory]:
        """Those entries that are directories whose own facts are known."""
        if not self.places:
            return {}
        places = iter(self.places)
        found = {}
        for row, inode, change_time in zip(self.rows, self.inodes, self.change_times, strict=True):
            if stat.S_ISDIR(row[MODE]):
                place = next(places)
                if place is not None:
                    found[row[NAME]] = _directory_of(row, place, inode, change_time)
        return found

    def between(self, first: bytes, end: bytes | None) -> Recorded:
        """Those whose names are neither before `first` nor, if there is an end, at or behind it."""
        start = bisect_left(self.rows, first, key=_name)
        stop = len(self.rows) if end is None else bisect_left(self.rows, end, key=_name)
        if stop - start == len(self.rows):
            return self
        places = self.places
        if places:
            below = [stat.S_ISDIR(row[MODE]) for row in self.rows[:stop]]
            places = places[sum(below[:start]) : sum(below)]
        return Recorded(self.rows[start:stop], self.inodes[start:stop], self.change_times[start:stop], places)


class RecordedDirectory:
    """A directory of the base, of which a few pages at a time are in memory. For several threads."""

    def __init__(self, reader: ManifestReader, lock: Turns, directory: BaseDirectory, path: bytes) -> None:
        """`lock` guards the reader. Raises FormatError when the base is damaged."""
        self._reader = reader
        self._lock = lock
        self._facts = directory.facts
        self._path = path
        self._kept: dict[int, Recorded] = {}
        with lock:
            self._pages = reader.pages(directory, path)
        self._firsts = [page.first or b"" for page in self._pages]

    def names(self) -> list[bytes]:
        """All names in it. Raises FormatError when the base is damaged."""
        return [name for number in range(len(self._pages)) for name in self._page(number).names()]

    def between(self, first: bytes, end: bytes | None) -> Recorded:
        """As `Recorded.between`. Raises FormatError when the base is damaged."""
        if len(self._pages) == 1:
            return self._page(0).between(first, end)
        start = max(bisect_right(self._firsts, first) - 1, 0)
        stop = len(self._firsts) if end is None else bisect_left(self._firsts, end)
        parts = [self._page(number).between(first, end) for number in range(start, stop)]
        if len(parts) == 1:
            return parts[0]
        places: list[Location | None] = []
        found = Recorded([], [], [], places)
        for part in parts:
            found.rows.extend(part.rows)
            found.inodes.extend(part.inodes)
            found.change_times.extend(part.change_times)
            places.extend(part.places)
        return found

    def _page(self, number: int) -> Recorded:
        with self._lock:
            kept = self._kept.get(number)
            if kept is None:
                rows = self._rows(number)
                facts = self._reader.facts_of_page(self._facts, self._path, number, len(self._pages), len(rows))
                if [row[MODE] >> _TYPE_SHIFT for row in rows].count(_DIRECTORY) != len(facts.children):
                    raise FormatError(f"{self._where}: its facts are of another directory")
                kept = Recorded(rows, facts.inodes, facts.change_times, facts.children)
                if len(self._kept) >= _PAGES_KEPT:
                    del self._kept[min(self._kept)]  # names are taken in ascending order
                self._kept[number] = kept
        return kept

    def _rows(self, number: int) -> list[Row]:
        """A page, whose ID is checked: whoever wrote it had checked the rest (see `Base.check`)."""
        try:
            rows: Any = unpack(self._reader.page_bytes(self._pages[number], self._path))
        except PackingError as error:
            raise FormatError(f"{self._where}: {error}") from None
        return list(rows)

    @property
    def _where(self) -> str:
        return f"base: directory '{printable(self._path)}'" if self._path else "base: root directory"


class Base:
    """An open base. For several threads."""

    def __init__(self, reader: ManifestReader, root_fd: int, *, adopted: bool, trust: bool) -> None:
        """`adopted`: the new manifest has the base's objects, in their places. Without `trust` all has changed.

        Raises OSError when the volume, open as `root_fd`, does not answer.
        """
        self._reader = reader
        self._lock = Turns()
        self._device = os.fstat(root_fd).st_dev
        self.adopted = adopted
        self.is_from_the_future = reader.info.created > time.time_ns()
        clock = trust_in(root_fd)
        self._is_clock_trusted = clock is Trust.FULL
        trust = trust and clock is not Trust.NONE and not self.is_from_the_future
        self.trusted_before = reader.info.created - TRUST_MARGIN if trust else -(2**63)  # ns since the epoch

    def root(self) -> BaseDirectory:
        """The root; what is known of it is never taken for true, since it always merges."""
        top = self._reader.root.directory
        assert self._reader.facts_place is not None
        row: Any = unpack(encode_entry(b"", top))
        return BaseDirectory(row, top.children, top.entries, top.kind, self._reader.facts_place, -1, 0)

    def read(self, directory: BaseDirectory, path: bytes) -> RecordedDirectory:
        """What is in a directory. Raises FormatError when the base is damaged."""
        return RecordedDirectory(self._reader, self._lock, directory, path)

    def glance(self, directory: BaseDirectory) -> Recorded | None:
        """What is in a directory of one page; None of another, and where `read` says what is wrong with it."""
        try:
            with self._lock:
                page, record = self._reader.glance(directory.children, directory.facts)
            if is_divided(page):
                return None
            rows: Any = unpack(page)
            recorded = Recorded(rows, *glance_at_facts(record))
            directories = [row[MODE] >> _TYPE_SHIFT for row in rows].count(_DIRECTORY) if recorded.places else 0
        except (FormatError, ValueError, TypeError, IndexError):
            return None
        return recorded if len(rows) == len(recorded.inodes) and directories == len(recorded.places) else None

    def counts(self, directory: BaseDirectory, path: bytes) -> Counts:
        """What is in a directory and in all below it, itself included. Raises FormatError when the base is damaged."""
        try:
            with self._lock:
                return self._reader.counts(directory.facts, path)
        except FormatError as damage:
            raise of_base(damage, path) from None

    def check(self, directory: BaseDirectory, path: bytes) -> None:
        """Reads what is in a directory by all rules of a manifest: who compares it with what is there does not, for in
        what mkmeta wrote there is nothing to find. Raises FormatError.
        """
        with self._lock:
            digests = self._reader.root.digests
            for page in self._reader.pages(directory, path):
                data = self._reader.page_bytes(page, path)
                examine_page(data, directory_at(path), below=directory.kind, digests=digests)

    def is_same(self, directory: BaseDirectory, seen: os.stat_result) -> bool:
        """Whether a directory has the names and attributes it had."""
        change_time = seen.st_ctime_ns
        return (
            change_time == directory.change_time < self.trusted_before
            and inode_number(seen, self._device) == directory.inode
            and (self._is_clock_trusted or _has_own_clock(seen))
        )

    def are_as_recorded(
        self, rows: Sequence[Row], inodes: list[int], change_times: list[int], looks: Sequence[os.stat_result]
    ) -> bool:
        """Whether entries, at least one and no directories, are what the base has, given what lstat(2) says of their
        names now.

        One by one takes three times the time, and this is what a scan on a base spends it with.
        """
        if [seen.st_ctime_ns for seen in looks] != change_times or max(change_times) >= self.trusted_before:
            return False
        if not self._are_inodes(looks, inodes):
            return False
        if not self._is_clock_trusted and not all(map(_has_own_clock, looks)):
            return False
        if {row[MODE] >> _TYPE_SHIFT for row in rows} == _ONLY_REGULAR:
            return list(map(_FILE, rows)) == list(map(_SEEN_FILE, looks)) and [row[NSEC] for row in rows] == [
                seen.st_mtime_ns % NS for seen in looks
            ]
        return list(map(_recorded, rows)) == list(map(_seen, looks))

    def _are_inodes(self, looks: Sequence[os.stat_result], inodes: list[int]) -> bool:
        """Whether these are the inode numbers of what was looked at."""
        if set(map(_DEVICE, looks)) == {self._device}:
            return list(map(_INODE, looks)) == inodes
        return inodes_of(looks, self._device) == inodes

    def are_directories_as_recorded(self, recorded: Recorded, looks: Sequence[os.stat_result]) -> bool:
        """Whether entries, directories among them, are what the base has; what is in a directory is not asked."""
        if [seen.st_ctime_ns for seen in looks] != recorded.change_times:
            return False
        if not self._are_inodes(looks, recorded.inodes):
            return False
        columns = zip(recorded.rows, recorded.inodes, recorded.change_times, looks, strict=True)
        others = [column for column in columns if column[0][MODE] >> _TYPE_SHIFT != _DIRECTORY]
        if not others:
            return True
        rows, inodes, change_times, seen = map(list, zip(*others, strict=True))
        return self.are_as_recorded(rows, inodes, change_times, seen)

    def unchanged(self, recorded: Recorded, looks: dict[bytes, os.stat_result]) -> dict[bytes, Row]:
        """The entries, directories apart, that are as recorded, by name. `looks` is what lstat(2) says of names now."""
        found = {}
        for row, inode, change_time in zip(recorded.rows, recorded.inodes, recorded.change_times, strict=True):
            seen = looks.get(row[NAME])
            if seen is not None and self.are_as_recorded([row], [inode], [change_time], [seen]):
                found[row[NAME]] = row
        return found


def _recorded(row: Row) -> Row | None:
    """What is compared of an entry; None: a directory, which is never as recorded."""
    match stat.S_IFMT(row[MODE]):
        case stat.S_IFDIR:
            return None
        case stat.S_IFREG:
            return row[MODE : SIZE + 1]
        case stat.S_IFLNK:
            return [*row[MODE:SIZE], len(row[SIZE])]
        case stat.S_IFCHR | stat.S_IFBLK:
            return row[MODE : SIZE + 2]
        case _:
            return row[MODE:SIZE]


def _seen(seen: os.stat_result) -> Row:
    """What is compared of a look."""
    common = [seen.st_mode, seen.st_uid, seen.st_gid, *divmod(seen.st_mtime_ns, NS)]
    match stat.S_IFMT(seen.st_mode):
        case stat.S_IFREG | stat.S_IFLNK:
            return [*common, seen.st_size]
        case stat.S_IFCHR | stat.S_IFBLK:
            return [*common, os.major(seen.st_rdev), os.minor(seen.st_rdev)]
        case _:
            return common


def inode_number(seen: os.stat_result, device: int) -> int:
    """An inode number as facts have it: that of the volume, or a hash where the inode is on another device."""
    if seen.st_dev == device:
        return seen.st_ino
    return int.from_bytes(blake3(seen.st_dev.to_bytes(8, "big") + seen.st_ino.to_bytes(8, "big")).digest(8), "big")


def inodes_of(looks: Sequence[os.stat_result], device: int) -> list[int]:
    """The inode numbers of several."""
    if {seen.st_dev for seen in looks} <= {device}:
        return [seen.st_ino for seen in looks]
    return [inode_number(seen, device) for seen in looks]


def _has_own_clock(seen: os.stat_result) -> bool:
    """Whether the change time is none that an image shows instead (`mkmeta.scanner.trust`)."""
    return seen.st_ctime_ns != seen.st_mtime_ns or bool(seen.st_ctime_ns % NS)


def linked_name(seen: os.stat_result, row: Row, device: int) -> LinkedName:
    """A name, in its packed or to be packed entry, of an inode with several."""
    fingerprint = blake3(b"".join(map(pack, row[1:]))).digest(FINGERPRINT_BYTES)
    return LinkedName(row[NAME], Look(inode_number(seen, device), seen.st_ctime_ns, seen.st_nlink, fingerprint))


def of_base(damage: FormatError, path: bytes) -> FormatError:
    """What to say of a damaged base, and what to do."""
    return FormatError(str(damage), path=path, hint="scan without --base")


def check_base(reader: ManifestReader, root: bytes) -> None:
    """Raises UsageError unless a manifest can be the base of a scan of `root`."""
    if reader.info.root != root:
        raise UsageError(
            f"the base was scanned from {printable(reader.info.root)}, not from {printable(root)}",
            hint="name the same ROOT, or scan without --base",
        )
    if reader.facts_place is None:
        raise UsageError("the base has no facts to compare with", hint="scan without --base")


def other_setting(
    reader: ManifestReader,
    *,
    hide: tuple[bytes, ...],
    drop_xattrs: tuple[bytes, ...],
    digests: Collection[DigestName],
    hard_links: HardLinks,
) -> str | None:
    """The first option that the base was made with another value of; None: with these."""
    info = reader.info
    dropped = info.drop_xattrs or (None if info.counts.get("dropped_xattrs") else ())
    for name, theirs, ours in (
        ("hide", info.hide, hide),
        ("drop-xattr", dropped, drop_xattrs),
        ("digest", set(reader.root.digests), set(digests)),
        ("hard-links", info.hard_links, hard_links),
    ):
        if theirs != ours:
            return name
    return None


def check_settings(
    reader: ManifestReader,
    *,
    hide: tuple[bytes, ...],
    drop_xattrs: tuple[bytes, ...],
    digests: Collection[DigestName],
    hard_links: HardLinks,
) -> None:
    """Raises UsageError when the base was made with others than these."""
    name = other_setting(reader, hide=hide, drop_xattrs=drop_xattrs, digests=digests, hard_links=hard_links)
    if name is not None:
        raise UsageError(f"the base was made with another --{name}", hint="use the same, or scan without --base")


def check_selection(reader: ManifestReader, select: tuple[bytes, ...]) -> None:
    """Raises UsageError when the base was made with another selection: what is taken from it would be another's."""
    if reader.info.select != select:
        raise UsageError("the base was made with another --select", hint="use the same, or scan without --only")


def compact_size(reader: ManifestReader) -> int:
    """How many bytes a manifest had when it last held nothing but what its tree needs."""
    return reader.info.counts.get(COMPACT, reader.file.size)


def is_compact(reader: ManifestReader) -> bool:
    """Whether a manifest is at most twice as large as it needs to be. What earlier scans left adds up."""
    return reader.file.size <= 2 * compact_size(reader) + _LITTLE


def _directory_of(row: Row, place: Location, inode: int, change_time: int) -> BaseDirectory:
    children, entries, kind, *xattrs = row[CHILDREN:]
    if type(children) is not bytes or type(entries) is not int or type(kind) is not int or not 0 <= kind < len(_KINDS):
        raise FormatError("the entry of a directory is damaged")
    if xattrs and (type(xattrs[0]) is not list or set(map(type, xattrs[0])) != {bytes}):
        raise FormatError("the xattrs of a directory are damaged")
    return BaseDirectory(row, row[CHILDREN], row[_ENTRIES], _KINDS[row[KIND]], place, inode, change_time)
