"""Reading a manifest lazily: from the bytes that `ObjectFile` finds to the tree they stand for.

A manifest is hostile until proven otherwise: whatever the bytes are, methods return what the format allows or raise
FormatError; memory is bounded by the limits of formats/manifest.md section 4.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Iterator
from functools import cached_property, lru_cache
from types import TracebackType
from typing import Final, Protocol, Self

from blake3 import blake3

from mkmeta.codec.container import (
    Location,
)
from mkmeta.codec.facts import (
    FACTS_SIZE_MAX,
    Facts,
    PageFacts,
    decode_counts,
    decode_facts,
    decode_page_facts,
)
from mkmeta.codec.info import INFO_SIZE_MAX, Info, decode_info
from mkmeta.codec.objects import (
    check_digests,
    check_division,
    decode_link_index,
    decode_link_page,
    decode_page,
    decode_page_rows,
    decode_root,
    encode_entry,
    is_divided,
)
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError, MkmetaError, printable, reason
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.cursor import Cursor, Entries, Held, Page, Recorded, RecordedEntries, directory_at, facts_of
from mkmeta.manifest.link_check import check_groups
from mkmeta.manifest.object_file import ObjectFile
from mkmeta.model import (
    PATH_LIMIT,
    Counts,
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Root,
)

_PAGES_KEPT: Final = 256 << 10  # bytes of pages, packed, that look-ups by path keep decoded, at up to 60 times that
_NO_MANIFEST: Final = dict.fromkeys((errno.ENOENT, errno.ENOTDIR), "name an existing manifest, made by mkmeta scan")
_WHAT_INSTEAD: Final = {  # of what is no file
    errno.EISDIR: "name a manifest; of a store's generation it is STORE/generations/NUMBER-ID/manifest.mkm",
    errno.ESPIPE: "a manifest is read from its end: to read one from a pipe, give - and have it on standard input",
}
_DIVIDED_KEPT = 2  # lists of pages of directories that have several


class Stored(Protocol):
    """What is known of a directory whose pages are looked for."""

    @property
    def children(self) -> ObjectId:
        """The ID of its object."""

    @property
    def entries(self) -> int:
        """All in it and below."""


class ManifestReader:
    """An open manifest. A context manager; owns the file descriptor it is given."""

    def __init__(self, fd: int) -> None:
        """Checks header and footer. Raises FormatError, and OSError when the file cannot be read."""
        self.file = ObjectFile(fd)
        self._divided = lru_cache(maxsize=_DIVIDED_KEPT)(self._read_divided)
        self._found: OrderedDict[tuple[ObjectId, DirectoryKind, int], tuple[dict[bytes, Node], int]] = OrderedDict()
        self._found_bytes = 0
        self._last: tuple[bytes, Directory] | None = None  # where something was looked up last
        self.cursors = Held()

    @classmethod
    def open(cls, path: bytes | str) -> Self:
        """Opens a manifest file. Raises FormatError, and MkmetaError when it cannot be opened."""
        raw = os.fsencode(path)
        try:
            fd = os.open(raw, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe must not hang it
        except OSError as error:
            raise MkmetaError(reason(error), path=raw, hint=_NO_MANIFEST.get(error.errno or 0)) from None
        try:
            return cls(fd)
        except OSError as error:
            os.close(fd)
            what = "is a pipe" if error.errno == errno.ESPIPE else reason(error)
            raise MkmetaError(what, path=raw, hint=_WHAT_INSTEAD.get(error.errno or 0)) from None
        except FormatError as error:
            os.close(fd)
            error.path = error.path or raw
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    @property
    def id(self) -> ObjectId:
        """The manifest ID. What is read below it is checked against it."""
        return self.file.footer.manifest_id

    @cached_property
    def root(self) -> Root:
        """The root object."""
        return decode_root(self.file.object(ObjectKind.ROOT, self.id, "root object"))

    @cached_property
    def info(self) -> Info:
        """Where the manifest comes from."""
        if self.file.footer.info.length > INFO_SIZE_MAX:
            raise FormatError("info record: too long")
        return decode_info(self.file.record(self.file.footer.info, "info record"))

    @cached_property
    def contents(self) -> Contents | None:
        """The contents of files; None when the manifest has none. Raises FormatError."""
        table = self.file.content_table
        if table is None:
            return None
        named_by = DigestName.BLAKE3 if DigestName.BLAKE3 in self.root.digests else DigestName.VERITY
        return Contents(self.file, table, named_by)

    @property
    def facts_place(self) -> Location | None:
        """Where the facts of the root directory are; None when the manifest has none."""
        return self.file.footer.facts

    def facts(self, place: Location, path: bytes, *, pages: int, entries: int) -> Facts:
        """The facts of the directory at `path`, which has so many pages, the first of which has so many entries."""
        where = facts_of(path)
        return decode_facts(self._read_facts(place, where), where, pages=pages, entries=entries)

    def page_facts(self, place: Location, path: bytes, *, entries: int) -> PageFacts:
        """The facts of one of several pages of the directory at `path`."""
        where = facts_of(path)
        return decode_page_facts(self._read_facts(place, where), where, entries=entries)

    def counts(self, place: Location, path: bytes) -> Counts:
        """What was counted in the directory at `path` and below it, given the place of its facts."""
        where = facts_of(path)
        return decode_counts(self._read_facts(place, where), where)

    def pages(self, directory: Stored, path: bytes) -> list[Page]:
        """The pages of `directory`, which is at `path` (empty: the root)."""
        where = directory_at(path)
        data = self.file.object(ObjectKind.DIRECTORY, directory.children, where)
        if not is_divided(data):
            return [Page(None, directory.children, directory.entries)]
        pages = self._divided(directory.children, where)
        total = sum(page.entries for page in pages)
        if total != directory.entries:
            raise FormatError(f"{where}: holds {total} entries, recorded as {directory.entries}")
        return pages

    def glance(self, children: ObjectId, facts: Location) -> tuple[bytes, bytes]:
        """The object of a directory, and its facts, for who is content with a FormatError that names nothing."""
        return self.file.object(ObjectKind.DIRECTORY, children, ""), self._read_facts(facts, "")

    def page(self, page: Page, directory: Directory, path: bytes) -> list[Entry]:
        """The entries of a page of `directory`, which is at `path`."""
        where = directory_at(path)
        entries = decode_page(self.page_bytes(page, path), where, below=directory.kind)
        room = PATH_LIMIT - (len(path) + 1 if path else 0)
        total = len(entries)
        digests = self.root.digests
        for name, node in entries:
            if len(name) > room:
                raise FormatError(f"{where}: the path of '{printable(name)}' is longer than {PATH_LIMIT} bytes")
            match node:
                case Directory():
                    total += node.entries
                case RegularFile():
                    check_digests(node, digests, (where, name))
        self.check_page(page, entries[0].name if entries else b"", total, where)
        return entries

    def check_page(self, page: Page, first: bytes, total: int, where: str) -> None:
        """Raises FormatError unless a page begins with `first` and holds `total` entries, all below included."""
        if total != page.entries:
            raise FormatError(f"{where}: holds {total} entries, recorded as {page.entries}")
        if page.first is not None and first != page.first:
            raise FormatError(f"{where}: the page of '{printable(page.first)}' begins with another entry")

    def facts_of_page(self, place: Location, path: bytes, number: int, pages: int, entries: int) -> PageFacts:
        """The facts of a page, given the place of the directory's and how many entries it has."""
        found = self.facts(place, path, pages=pages, entries=entries).pages[number]
        return found if isinstance(found, PageFacts) else self.page_facts(found, path, entries=entries)

    def page_bytes(self, page: Page, path: bytes) -> bytes:
        """The object of a page of the directory at `path`: an array of entries, of which only the ID was checked."""
        kind = ObjectKind.DIRECTORY if page.first is None else ObjectKind.DIRECTORY_PAGE
        return self.file.object(kind, page.id, directory_at(path))

    def entries(self, directory: Directory, path: bytes) -> Cursor[Entry]:
        """What is in `directory`, which is at `path` (empty: the root), ascending by name.

        Holds a page at most, and not even that while too many others are read: a walk may keep one for each level.
        """
        return Entries(self, directory, path)

    def directory(self, directory: Directory, path: bytes) -> list[Entry]:
        """All entries at once, however many."""
        return list(self.entries(directory, path))

    def recorded(self, directory: Directory, path: bytes, facts: Location | None) -> Cursor[Recorded]:
        """The same with the facts, which are at `facts`; None: nothing is known."""
        return RecordedEntries(self, directory, path, facts)

    def object_of(self, object_id: ObjectId, where: str, kind: ObjectKind = ObjectKind.DIRECTORY) -> bytes:
        """The bytes of an object; `where` names it in errors."""
        return self.file.object(kind, object_id, where)

    def find(self, path: bytes) -> Node | None:
        """The inode recorded at `path` (empty: the root), or None."""
        if not path:
            return self.root.directory
        parent, _, name = path.rpartition(b"/")
        if self._last is None or self._last[0] != parent:
            directory: Node | None = self.root.directory
            walked = b""
            for step in parent.split(b"/") if parent else ():
                assert isinstance(directory, Directory)
                directory = self._look_up(directory, walked, step)
                if not isinstance(directory, Directory):
                    return None
                walked = walked + b"/" + step if walked else step
            assert isinstance(directory, Directory)
            self._last = (parent, directory)
        return self._look_up(self._last[1], parent, name)

    def _look_up(self, directory: Directory, path: bytes, name: bytes) -> Node | None:
        """What is called `name` in a directory."""
        pages = self.pages(directory, path)
        page = pages[0]
        if len(pages) > 1:
            number = bisect_right(pages, name, key=lambda page: page.first or b"") - 1
            if number < 0:
                return None
            page = pages[number]
        key = (page.id, directory.kind, page.entries)
        if key in self._found:
            self._found.move_to_end(key)
        else:
            size = len(self.page_bytes(page, path))
            self._found[key] = dict(self.page(page, directory, path)), size
            self._found_bytes += size
            while self._found_bytes > _PAGES_KEPT and len(self._found) > 1:
                self._found_bytes -= self._found.popitem(last=False)[1][1]
        return self._found[key][0].get(name)

    def walk(self, top: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Everything at and below `top` with its path, `top` first, in tree order. Raises KeyError when absent."""
        node = self.find(top)
        if node is None:
            raise KeyError(top)
        yield top, node
        stack = [(top + b"/" if top else b"", self.entries(node, top))] if isinstance(node, Directory) else []
        while stack:
            prefix, entries = stack[-1]
            for name, node in entries:
                yield prefix + name, node
                if isinstance(node, Directory):
                    stack.append((prefix + name + b"/", self.entries(node, prefix + name)))
                    break
            else:
                stack.pop()

    def link_pages(self) -> list[ObjectId]:
        """The IDs of the link pages, in order."""
        if self.root.links is None:
            return []
        return decode_link_index(self.file.object(ObjectKind.LINK_INDEX, self.root.links, "link index"), "link index")

    def links(self, *, skip: Container[int] = ()) -> Iterator[PrimaryRow | LinkRow]:
        """The rows of the link pages, in tree order, without those of pages in `skip`, which are not read.

        `check_links` says whether they are true.
        """
        after, before = b"", None
        for number, page in enumerate(self.link_pages()):
            if number in skip:
                before = None
                continue
            where = f"link page {number}"
            data = self.file.object(ObjectKind.LINK_PAGE, page, where)
            rows = decode_link_page(data, where, after=after)
            if before is not None:
                check_division(before, data, where)
            after, before = rows[-1].path, data
            yield from rows

    def link_page(self, number: int, page: ObjectId) -> list[PrimaryRow | LinkRow]:
        """The rows of one link page; nothing is said of those before and after it."""
        where = f"link page {number}"
        return decode_link_page(self.file.object(ObjectKind.LINK_PAGE, page, where), where, after=b"")

    def check_links(self) -> None:
        """Raises FormatError unless the hard links are as formats/manifest.md section 3.3 says.

        Reads the directories that hold names of such inodes, and those above them.
        """
        check_groups(self._linked())

    def _linked(self) -> Iterator[tuple[PrimaryRow | LinkRow, bytes]]:
        """The link rows with a digest of the inode each names."""
        for row in self.links():
            node = self.find(row.path)
            if node is None or isinstance(node, Directory):
                raise FormatError(f"links: '{printable(row.path)}' is not an entry that can have links")
            yield row, blake3(encode_entry(b"", node)).digest()

    def is_adopted(self, directory: Directory, frames: int) -> bool:
        """Whether the object of a directory is in one of the first so many frames."""
        return self.file.frame_of(directory.children, "directory") < frames

    def _read_divided(self, children: ObjectId, where: str) -> list[Page]:
        data = self.file.object(ObjectKind.DIRECTORY, children, where)
        return [Page(*row) for row in decode_page_rows(data, where)]

    def _read_facts(self, place: Location, where: str) -> bytes:
        if place.length > FACTS_SIZE_MAX:
            raise FormatError(f"{where}: {place.length} bytes, more than the limit of {FACTS_SIZE_MAX}")
        return self.file.record(place, where)
