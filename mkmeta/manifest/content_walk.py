"""Which contents the files of a tree have: what a writer keeps of them, what a check expects, what `show` says.

Equal directories are read once, wherever they are. Memory: some bytes for each object and for each content.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from mkmeta.codec.acl import mode_without_acl
from mkmeta.codec.container import CONTENT_SIZE_MAX
from mkmeta.codec.objects import decode_entry, unpack_rows
from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import FormatError
from mkmeta.manifest.cursor import Cursor, Page
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName, Directory, LinkRow, RegularFile

INSIDE_FILES: Final = "inline_files"  # among the counts of an info record
INSIDE_BYTES: Final = "inline_bytes"

_SIZE, _BLAKE3, _VERITY = 6, 7, 8  # places in the entry of a file
_PLAIN: Final = 9  # fields of a file without xattrs
_TYPE_SHIFT: Final = 12
_REGULAR: Final = stat.S_IFREG >> _TYPE_SHIFT
_WHERE: Final = "a directory"
_READ: Final = stat.S_IRGRP | stat.S_IROTH
_SEARCH: Final = stat.S_IXGRP | stat.S_IXOTH
_ACCESS_ACL: Final = b"system.posix_acl_access"


def is_public(mode: int, xattrs: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether everybody may read a file, or search a directory: group and others, and nobody named in an ACL may not.

    The owner may, whatever the mode is now. Who may enter the directories above is another question.
    """
    wanted = _SEARCH if stat.S_ISDIR(mode) else _READ
    if mode & wanted != wanted:
        return False
    acl = next((value for name, value in xattrs if name == _ACCESS_ACL), None)
    if acl is None:
        return True
    try:
        return mode_without_acl(mode, acl) & wanted == wanted
    except ValueError:
        return False


def zeros(count: int) -> memoryview:
    """So many bytes, of which only those that are written take memory: a file may say anything of its tables."""
    return memoryview(mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:count]


Take = Callable[[bytes, int], None]  # digest and size of a file


class Totals(NamedTuple):
    """Files that are inside, each name counted, and the sum of their sizes."""

    files: int
    size: int


def counted(counts: Mapping[str, int]) -> Totals:
    """How much is inside, as the writer of a manifest counted it: `counts` are those of its info record."""
    return Totals(counts.get(INSIDE_FILES, 0), counts.get(INSIDE_BYTES, 0))


def visit_files(reader: ManifestReader, take: Take, *, public: bool, closed: Collection[bytes] = ()) -> None:
    """Has `take` told of every file that may have content, or, if `public`, of those that everybody may read.

    `closed` are paths, of files and of directories with all that is below them, that do not count: something else may
    have the same content, or be an equal directory, and be told of. One is told of at least once. Raises FormatError.
    """
    top = reader.root.directory
    if b"" in closed or (public and not is_public(top.mode, top.xattrs)):
        return
    seen = zeros(reader.file.objects)
    name = _column(reader)
    ways = {path[:end] for path in closed for end in _slashes(path)}  # below these, it matters where something is

    def enter(directory: Directory, path: bytes | None) -> _Level:
        prefix = path + b"/" if path else b""

        def read(rows: list[Any]) -> None:
            for row in rows:
                if public and not is_public(row[1], _xattrs(row)):
                    continue
                if path is None or prefix + row[0] not in closed:
                    take(row[name], row[_SIZE])

        return _Level(reader, directory, read, path)

    stack = [enter(top, b"" if closed else None)]
    while stack:
        below = next(stack[-1], None)
        if below is None:
            stack.pop()
            continue
        if public and not is_public(below.mode, below.xattrs):
            continue
        path = stack[-1].path_of_last
        if path is not None and path in closed:
            continue
        if path is not None and path in ways:
            stack.append(enter(below, path))
            continue
        number = reader.file.object_number(below.children, "directory")
        if not seen[number]:
            seen[number] = 1
            stack.append(enter(below, None))


def count_inside(reader: ManifestReader, is_inside: Callable[[bytes, int], bool]) -> Totals:
    """How much of the expanded tree is inside; `is_inside` says so of a digest and a size. Raises FormatError."""
    known = zeros(reader.file.objects)
    files, sizes = zeros(8 * reader.file.objects).cast("Q"), zeros(8 * reader.file.objects).cast("Q")
    levels = [_Counting(reader, reader.root.directory, is_inside)]
    while True:
        level = levels[-1]
        below = next(level.cursor, None)
        if below is None:
            levels.pop()
            if not levels:
                return Totals(level.files, level.size)
            number = level.number
            known[number], files[number], sizes[number] = 1, level.files, level.size
            levels[-1].add(level.files, level.size)
            continue
        number = reader.file.object_number(below.children, "directory")
        if known[number]:
            levels[-1].add(files[number], sizes[number])
        else:
            levels.append(_Counting(reader, below, is_inside, number))


def data_inside(reader: ManifestReader) -> int:
    """The bytes in all inodes of a layer that are whole: of a file with several names, once. Reads the whole tree.

    Raises FormatError.
    """
    contents = reader.contents
    if contents is None:
        return 0
    size = count_inside(reader, lambda digest, size: contents.find_bytes(digest, size) >= 0).size
    for row in reader.links():
        if isinstance(row, LinkRow):
            node = reader.find(row.path)
            if isinstance(node, RegularFile) and contents.find(node) >= 0:
                size -= node.size
    return size


def data_beyond(reader: ManifestReader, room: int) -> int:
    """The same, if it is more than `room`, else 0.

    Of what the writer counted, which is of all names, less is believed; if it is more, the tree is read. Raises
    FormatError.
    """
    if counted(reader.info.counts).size <= room:
        return 0
    size = data_inside(reader)
    return size if size > room else 0


def _slashes(path: bytes) -> Iterator[int]:
    """Where the paths of the directories end that a path leads through, but the root."""
    end = path.find(b"/")
    while end >= 0:
        yield end
        end = path.find(b"/", end + 1)


class _Counting:
    """A directory whose files are counted."""

    __slots__ = ("_is_inside", "_name", "cursor", "files", "number", "size")

    def __init__(
        self, reader: ManifestReader, directory: Directory, is_inside: Callable[[bytes, int], bool], number: int = -1
    ) -> None:
        self.cursor = _Level(reader, directory, self._take)
        self.number = number
        self.files = self.size = 0
        self._is_inside = is_inside
        self._name = _column(reader)

    def add(self, files: int, size: int) -> None:
        """What is below a directory in it."""
        self.files += files
        self.size += size

    def _take(self, rows: list[Any]) -> None:
        for row in rows:
            if self._is_inside(row[self._name], row[_SIZE]):
                self.add(1, row[_SIZE])


class _Level(Cursor[Directory]):
    """Gives the directories in one, and has somebody told of the files that may have content, once."""

    __slots__ = ("_name", "_names", "_read_rows", "_told", "_way")

    def __init__(
        self,
        reader: ManifestReader,
        directory: Directory,
        read: Callable[[list[Any]], None],
        way: bytes | None = None,
    ) -> None:
        """`way`: its path, where that matters."""
        super().__init__(reader, directory, b"")
        self._read_rows = read
        self._way = way
        self._names: list[bytes] = []  # of the directories of the page, where it matters
        self._name = _column(reader)
        self._told = -1  # last page: pages may be read more than once

    @property
    def path_of_last(self) -> bytes | None:
        """Of the directory that was given last, where it matters."""
        if self._way is None:
            return None
        name = self._names[self._position - 1]
        return self._way + b"/" + name if self._way else name

    def _read(self, page: Page, pages: int) -> tuple[list[Directory], bytes, bytes]:
        data = self._reader.page_bytes(page, self._path)
        rows = unpack_rows(data)
        files, directories, names = [], [], []
        total = len(rows)
        for row in rows:
            if type(row) is list and len(row) == _PLAIN and type(row[1]) is int and row[1] >> _TYPE_SHIFT == _REGULAR:
                if self._may_have_content(row):
                    files.append(row)
                continue
            name, node = decode_entry(row, _WHERE)
            if isinstance(node, Directory):
                directories.append(node)
                if self._way is not None:
                    names.append(name)
                total += node.entries
            elif isinstance(node, RegularFile) and self._may_have_content(row):
                files.append(row)
        self._names = names
        first, last = (rows[0][0], rows[-1][0]) if rows else (b"", b"")
        if type(first) is not bytes or type(last) is not bytes:
            raise FormatError(f"{_WHERE}: a name that is not bytes")
        self._reader.check_page(page, first, total, _WHERE)  # or the whole might be larger than it says
        if self._told < self._number:
            self._told = self._number
            self._read_rows(files)
        return directories, first, last

    def _may_have_content(self, row: Any) -> bool:
        size, name = row[_SIZE], row[self._name]
        return type(size) is int and 0 < size <= CONTENT_SIZE_MAX and type(name) is bytes and len(name) == DIGEST_SIZE


def _column(reader: ManifestReader) -> int:
    """Where in the entry of a file the digest is that names its content; without digests, where there is none."""
    return _BLAKE3 if DigestName.BLAKE3 in reader.root.digests else _VERITY


def _xattrs(row: list[Any]) -> Iterable[tuple[bytes, bytes]]:
    return zip(row[_PLAIN][::2], row[_PLAIN][1::2], strict=True) if len(row) > _PLAIN else ()
