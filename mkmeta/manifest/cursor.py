"""What is in one recorded directory, entry by entry: at most a page of it in memory, and for a walk not even that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts
from mkmeta.codec.objects import check_division
from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError, printable
from mkmeta.model import Counts, Directory, Entry, Node, RegularFile, Symlink

if TYPE_CHECKING:
    from mkmeta.manifest.reader import ManifestReader

_PAGES_HELD: Final = 512 << 10  # bytes of pages, packed, that cursors keep decoded, at up to 60 times their size

Place = tuple[int, int]  # in a directory: number of the page, and of the entry in it


class Page(NamedTuple):
    """A part of a directory: the directory object, or one of several that it names."""

    first: bytes | None  # name of its first entry; None: it is the only page
    id: ObjectId
    entries: int  # in it, and in all directories below those


class Recorded(NamedTuple):
    """An entry with its facts."""

    name: bytes
    node: Node
    inode: int  # 0: not known
    change_time: int  # ns since the epoch; 0 where the inode is not known
    nlink: int  # names of the inode on the volume; 1 where that is not known
    facts: Location | None  # of a directory: those of what is in it


_T = TypeVar("_T")


class _Holder(Protocol):
    held: Any  # None: it has to read it again


class Held:
    """Cursors that hold decoded pages, the least recently filled first. Beyond `_PAGES_HELD` bytes they are emptied."""

    def __init__(self) -> None:
        self._cursors: OrderedDict[_Holder, int] = OrderedDict()
        self._bytes = 0

    def hold(self, cursor: _Holder, size: int) -> None:
        """A cursor holds a page of so many bytes instead of what it had."""
        self.release(cursor)
        self._cursors[cursor] = size
        self._bytes += size
        while self._bytes > _PAGES_HELD and len(self._cursors) > 1:
            other, size = self._cursors.popitem(last=False)
            self._bytes -= size
            other.held = None

    def release(self, cursor: _Holder) -> None:
        """A cursor holds nothing any more."""
        self._bytes -= self._cursors.pop(cursor, 0)


class Cursor(Iterator[_T], Generic[_T]):
    """What is in a directory, page by page. What it holds may be taken away, and is read again when it is needed."""

    __slots__ = ("_directory", "_first", "_last", "_number", "_path", "_position", "_reader", "_size", "held")

    def __init__(self, reader: ManifestReader, directory: Directory, path: bytes) -> None:
        self.held: list[_T] | None = None
        self._reader = reader
        self._directory = without_xattrs(directory)
        self._path = path
        self._size = 0  # of what is held, in bytes of the file
        self._number = 0  # of the page
        self._position = 0  # in what it gave
        self._first = self._last = b""

    def __next__(self) -> _T:
        held = self.held
        if held is None:
            held = self._load()
        position = self._position
        while position == len(held):
            held = self._turn()
            position = 0
        self._position = position + 1
        return held[position]

    def tell(self) -> Place:
        """Where the next entry is."""
        return self._number, self._position

    def seek(self, place: Place) -> None:
        """Goes to where a cursor of the same directory was."""
        number, self._position = place
        if number != self._number:
            self._number = number
            self.held = None
            self._reader.cursors.release(self)
        elif self.held is not None:
            self._reader.cursors.hold(self, self._size)

    def _turn(self) -> list[_T]:
        """Goes on to the next page. Raises StopIteration after the last."""
        pages = self._reader.pages(self._directory, self._path)
        if self._number + 1 == len(pages):
            self._reader.cursors.release(self)
            raise StopIteration
        where, last = directory_at(self._path), self._last
        before = self._reader.page_bytes(pages[self._number], self._path)
        self._number += 1
        self._position = 0
        held = self._load()
        check_division(before, self._reader.page_bytes(pages[self._number], self._path), where)
        if self._first <= last:
            raise FormatError(f"{where}: a page does not sort after '{printable(last)}'")
        return held

    def _load(self) -> list[_T]:
        pages = self._reader.pages(self._directory, self._path)
        page = pages[self._number]
        held, self._first, self._last = self._read(page, len(pages))
        self.held = held
        self._size = len(self._reader.page_bytes(page, self._path))
        self._reader.cursors.hold(self, self._size)
        return held

    def _read(self, page: Page, pages: int) -> tuple[list[_T], bytes, bytes]:
        """What a page gives, and the names of its first and last entries."""
        raise NotImplementedError


class Entries(Cursor[Entry]):
    __slots__ = ()

    def _read(self, page: Page, pages: int) -> tuple[list[Entry], bytes, bytes]:
        entries = self._reader.page(page, self._directory, self._path)
        return entries, *_ends(entries)


class RecordedEntries(Cursor[Recorded]):
    __slots__ = ("_facts",)

    def __init__(self, reader: ManifestReader, directory: Directory, path: bytes, facts: Location | None) -> None:
        super().__init__(reader, directory, path)
        self._facts = facts

    def _read(self, page: Page, pages: int) -> tuple[list[Recorded], bytes, bytes]:
        entries = self._reader.page(page, self._directory, self._path)
        if self._facts is None:
            return [Recorded(name, node, 0, 0, 1, None) for name, node in entries], *_ends(entries)
        facts = self._reader.facts_of_page(self._facts, self._path, self._number, pages, len(entries))
        directories = {number for number, (_, node) in enumerate(entries) if type(node) is Directory}
        check_facts(facts, directories, self._path)
        below, nlinks = iter(facts.children), facts.linked
        numbered = enumerate(zip(entries, facts.inodes, facts.change_times, strict=True))
        recorded = [
            Recorded(name, node, inode, time, nlinks.get(number, 1), next(below) if number in directories else None)
            for number, ((name, node), inode, time) in numbered
        ]
        return recorded, *_ends(entries)


def without_xattrs(directory: Directory) -> Directory:
    """What is needed to read a directory: a walk holds it for each level, and xattrs may be a MiB."""
    return replace(directory, xattrs=()) if directory.xattrs else directory


def _ends(entries: list[Entry]) -> tuple[bytes, bytes]:
    return (entries[0].name, entries[-1].name) if entries else (b"", b"")


def check_facts(facts: PageFacts, directories: set[int], path: bytes) -> None:
    """Raises FormatError unless facts of a page can be those of one with these directories in it, by position."""
    if len(directories) != len(facts.children):
        raise FormatError(f"{facts_of(path)}: {len(facts.children)} children for {len(directories)} directories")
    if not directories.isdisjoint(facts.linked):
        raise FormatError(f"{facts_of(path)}: a directory with several names")


def counts_of(node: Node, nlink: int) -> Counts:
    """What an entry that is no directory adds to the counts."""
    linked = int(nlink > 1)
    match node:
        case RegularFile():
            return Counts(files=1, bytes=node.size, linked=linked)
        case Symlink():
            return Counts(symlinks=1, linked=linked)
        case _:
            return Counts(others=1, linked=linked)


@lru_cache(maxsize=4)
def directory_at(path: bytes) -> str:
    return f"directory '{printable(path)}'" if path else "root directory"


@lru_cache(maxsize=4)
def facts_of(path: bytes) -> str:
    return f"facts of {printable(path) or 'the root'}"
