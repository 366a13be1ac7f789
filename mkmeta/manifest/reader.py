"""Reading a manifest file lazily: footer first, then the frames that hold what is asked for, nothing else.

A manifest is hostile until proven otherwise: whatever the bytes are, methods return what the format allows or raise
FormatError; memory is bounded by the limits of formats/manifest.md section 4.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Container, Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from types import TracebackType
from typing import BinaryIO, Final, Self

import zstandard
from blake3 import blake3

from mkmeta.codec.container import (
    FOOTER,
    FRAME_ROW,
    HEADER,
    INFO_SIZE_MAX,
    OBJECT_ROW,
    Footer,
    FrameRow,
    Location,
    check_header,
    decode_footer,
    decode_frame_row,
)
from mkmeta.codec.facts import Facts, decode_facts
from mkmeta.codec.info import Info, decode_info
from mkmeta.codec.objects import (
    OBJECT_SIZE_MAX,
    decode_directory,
    decode_link_index,
    decode_link_page,
    decode_root,
    encode_entry,
)
from mkmeta.digest import DIGEST_SIZE, ObjectId, ObjectKind
from mkmeta.errors import FormatError, MkmetaError, printable, reason
from mkmeta.manifest.links import check_groups
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import (
    PATH_LIMIT,
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

_FRAME_CACHE_BYTES: Final = 16 << 20  # decompressed; a tree is written almost in the order it is read
_PAGE_ROWS = 128  # rows of the object table read at once
_PAGE_CACHE = 512  # pages kept: 2.75 MiB
_COPY_BYTES: Final = 1 << 20
_PLACE = struct.Struct(">III")  # of an object: frame, offset, length; sorts as bytes do
_DIRECTORY_CACHE = 64  # decoded directories kept for look-ups by path


class ManifestReader:
    """An open manifest. A context manager; owns the file descriptor it is given."""

    def __init__(self, fd: int) -> None:
        """Checks header and footer. Raises FormatError, and OSError when the file cannot be read."""
        self._fd = fd
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._frames_held = 0
        self._table_page = lru_cache(maxsize=_PAGE_CACHE)(self._read_table_page)
        self._directory = lru_cache(maxsize=_DIRECTORY_CACHE)(self._read_directory)
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=OBJECT_SIZE_MAX)
        size = os.fstat(fd).st_size
        check_header(os.pread(fd, HEADER.size, 0))
        if size < HEADER.size + FOOTER.size:
            raise FormatError("footer: missing: the file was cut or not completely written")
        self._footer: Footer = decode_footer(os.pread(fd, FOOTER.size, size - FOOTER.size), size)

    @classmethod
    def open(cls, path: bytes | str) -> Self:
        """Opens a manifest file. Raises FormatError, and MkmetaError when it cannot be opened."""
        raw = os.fsencode(path)
        try:
            fd = os.open(raw, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe must not hang it
        except OSError as error:
            raise MkmetaError(reason(error), path=raw, hint="name an existing manifest, made by mkmeta scan") from None
        try:
            return cls(fd)
        except OSError as error:
            os.close(fd)
            raise MkmetaError(reason(error), path=raw) from None
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
        os.close(self._fd)

    def copy_to(self, out: BinaryIO) -> None:
        """Writes the bytes of the file, unchecked. Raises OSError."""
        offset = 0
        while data := os.pread(self._fd, _COPY_BYTES, offset):
            out.write(data)
            offset += len(data)

    @property
    def id(self) -> ObjectId:
        """The manifest ID. What is read below it is checked against it."""
        return self._footer.manifest_id

    @cached_property
    def root(self) -> Root:
        """The root object."""
        return decode_root(self._object(ObjectKind.ROOT, self.id, "root object"))

    @cached_property
    def info(self) -> Info:
        """Where the manifest comes from."""
        if self._footer.info.length > INFO_SIZE_MAX:
            raise FormatError("info record: too long")
        return decode_info(self._read(self._footer.info, "info record"))

    @property
    def facts_place(self) -> Location | None:
        """Where the facts of the root directory are; None when the manifest has none."""
        return self._footer.facts

    def facts(self, place: Location, path: bytes, *, entries: int | None = None) -> Facts:
        """The facts of the directory at `path`, which has this many entries (None: looked up). Raises KeyError."""
        if entries is None:
            directory = self.find(path)
            if not isinstance(directory, Directory):
                raise KeyError(path)
            entries = len(self.directory(directory, path))
        where = f"facts of {printable(path) or 'the root'}"
        return decode_facts(self._read(place, where), where, entries=entries)

    def directory(self, directory: Directory, path: bytes) -> list[Entry]:
        """The entries of `directory`, which is at `path` (empty: the root)."""
        where = f"directory '{printable(path)}'" if path else "root directory"
        data = self._object(ObjectKind.DIRECTORY, directory.children, where)
        entries = decode_directory(data, where, below=directory.kind)
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
                    if (node.blake3 is not None) != (DigestName.BLAKE3 in digests) or (node.verity is not None) != (
                        DigestName.VERITY in digests
                    ):
                        raise FormatError(f"{where}: '{printable(name)}' has not the digests the root object announces")
        if total != directory.entries:
            raise FormatError(f"{where}: holds {total} entries, recorded as {directory.entries}")
        return entries

    def object_of(self, object_id: ObjectId, where: str) -> bytes:
        """The bytes of a directory object; `where` names it in errors."""
        return self._object(ObjectKind.DIRECTORY, object_id, where)

    @property
    def size(self) -> int:
        """Bytes of the file that hold objects and records, whether the tree needs them or not."""
        return self._footer.frame_table

    def frames(self) -> Iterator[tuple[FrameRow, bytes]]:
        """Every frame as it is in the file, compressed, when all objects in it have been found undamaged.

        Raises FormatError at the first that is not, or not where the object table says.
        """
        with ExternalSorter() as places:
            previous = b""
            for record in self.object_rows():
                object_id, frame, offset, length = OBJECT_ROW.unpack(record)
                if object_id <= previous:
                    raise FormatError("object table: not sorted")
                previous = object_id
                places.add(_PLACE.pack(frame, offset, length) + object_id)
            rows = iter(places)
            place = next(rows, None)
            for number in range(self._footer.frames):
                data = self._read_frame(number, f"frame {number}")
                while place is not None and _PLACE.unpack_from(place)[0] == number:
                    _, offset, length = _PLACE.unpack_from(place)
                    content, object_id = data[offset : offset + length], place[_PLACE.size :]
                    if len(content) != length or not any(kind.id_of(content) == object_id for kind in ObjectKind):
                        raise FormatError(f"frame {number}: object {object_id.hex()[:16]} is damaged")
                    place = next(rows, None)
                row = self._frame_row(number)
                yield row, self._pread(row.compressed, row.offset, f"frame {number}")
            if place is not None:
                raise FormatError("object table: names a frame that does not exist")

    def object_rows(self) -> Iterator[bytes]:
        """The rows of the object table."""
        for number in range((self._footer.objects + _PAGE_ROWS - 1) // _PAGE_ROWS):
            page = self._read_table_page(number)
            for at in range(0, len(page), OBJECT_ROW.size):
                yield page[at : at + OBJECT_ROW.size]

    def find(self, path: bytes) -> Node | None:
        """The inode recorded at `path` (empty: the root), or None."""
        node: Node = self.root.directory
        walked = b""
        for name in path.split(b"/") if path else ():
            if not isinstance(node, Directory):
                return None
            below = self._directory(walked, node.children, node.kind, node.entries)
            if name not in below:
                return None
            node = below[name]
            walked = walked + b"/" + name if walked else name
        return node

    def walk(self, top: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Everything at and below `top` with its path, `top` first, in tree order. Raises KeyError when absent."""
        node = self.find(top)
        if node is None:
            raise KeyError(top)
        stack: list[Iterator[tuple[bytes, Node]]] = [iter([(top, node)])]
        while stack:
            for path, node in stack[-1]:
                yield path, node
                if isinstance(node, Directory):
                    stack.append(_at(path, self.directory(node, path)))
                    break
            else:
                stack.pop()

    def link_pages(self) -> list[ObjectId]:
        """The IDs of the link pages, in order."""
        if self.root.links is None:
            return []
        return decode_link_index(self._object(ObjectKind.LINK_INDEX, self.root.links, "link index"), "link index")

    def links(self, *, skip: Container[int] = ()) -> Iterator[PrimaryRow | LinkRow]:
        """The rows of the link pages, in tree order, without those of pages in `skip`, which are not read.

        `check_links` says whether they are true.
        """
        pages = self.link_pages()
        after = b""
        for number, page in enumerate(pages):
            if number in skip:
                continue
            where = f"link page {number}"
            data = self._object(ObjectKind.LINK_PAGE, page, where)
            rows = decode_link_page(data, where, after=after, last=number == len(pages) - 1)
            after = rows[-1].path
            yield from rows

    def check_links(self) -> None:
        """Raises FormatError unless the hard links are as formats/manifest.md section 3.3 says.

        Reads the directories that hold names of such inodes, and those above them, once each.
        """
        check_groups(self._linked())

    def _linked(self) -> Iterator[tuple[PrimaryRow | LinkRow, bytes]]:
        """The link rows with a digest of the inode each names."""
        trail: list[tuple[bytes, dict[bytes, Node]]] = [(b"", dict(self.directory(self.root.directory, b"")))]
        for row in self.links():
            node = self._follow(trail, row.path)
            if node is None or isinstance(node, Directory):
                raise FormatError(f"links: '{printable(row.path)}' is not an entry that can have links")
            yield row, blake3(encode_entry(b"", node)).digest()

    def _follow(self, trail: list[tuple[bytes, dict[bytes, Node]]], path: bytes) -> Node | None:
        """The inode at `path`. `trail` has the directories above the path before, and then those above this one."""
        while not path.startswith(trail[-1][0]):
            trail.pop()
        while True:
            prefix, below = trail[-1]
            name, slash, _ = path[len(prefix) :].partition(b"/")
            node = below.get(name)
            if not slash or not isinstance(node, Directory):
                return None if slash else node
            trail.append((prefix + name + slash, dict(self.directory(node, prefix + name))))

    def check(self) -> None:
        """Reads everything that can be read; raises FormatError at the first flaw. Time: the whole expanded tree."""
        self._check_tables()
        _ = self.info
        for _ in self.walk():
            pass
        self.check_links()
        stack: list[tuple[Directory, Location | None, bytes]] = [(self.root.directory, self.facts_place, b"")]
        while stack:
            directory, place, path = stack.pop()
            if place is None:
                continue
            entries = self.directory(directory, path)
            facts = self.facts(place, path, entries=len(entries))
            below = [(name, node) for name, node in entries if isinstance(node, Directory)]
            if len(facts.children) != len(below):
                where = f"facts of {printable(path) or 'the root'}"
                raise FormatError(f"{where}: {len(facts.children)} children for {len(below)} directories")
            prefix = path + b"/" if path else b""
            stack += [(node, child, prefix + name) for (name, node), child in zip(below, facts.children, strict=True)]

    def _check_tables(self) -> None:
        """Every row of the frame table, and the order of the object table as a whole."""
        for number in range(self._footer.frames):
            self._frame_row(number)
        previous = b""
        for number in range((self._footer.objects + _PAGE_ROWS - 1) // _PAGE_ROWS):
            page = self._read_table_page(number)
            ids = [previous, *(page[at : at + DIGEST_SIZE] for at in range(0, len(page), OBJECT_ROW.size))]
            if any(a >= b for a, b in pairwise(ids)):
                raise FormatError("object table: not sorted")
            previous = ids[-1]

    # --- below: from IDs and places to bytes ---

    def _read_directory(self, path: bytes, children: ObjectId, kind: DirectoryKind, entries: int) -> dict[bytes, Node]:
        stand_in = Directory(mode=0, uid=0, gid=0, mtime_ns=0, children=children, entries=entries, kind=kind)
        return dict(self.directory(stand_in, path))

    def _object(self, kind: ObjectKind, object_id: ObjectId, where: str) -> bytes:
        """The bytes of an object, with the ID checked."""
        data = self._read(self._place_of(object_id, where), where)
        if kind.id_of(data) != object_id:
            raise FormatError(f"{where}: object {object_id.hex()[:16]} is damaged: its bytes have another digest")
        return data

    def _place_of(self, object_id: ObjectId, where: str) -> Location:
        """Binary search in the object table, by pages; IDs are spread evenly, so that the first guess is near."""
        low, high = 0, (self._footer.objects + _PAGE_ROWS - 1) // _PAGE_ROWS
        middle, step = int.from_bytes(object_id[:8], "big") * high >> 64, 1
        while low + 1 < high:
            if self._table_page(middle)[:DIGEST_SIZE] <= object_id:
                low = middle
                middle = min(low + step, (low + high + 1) // 2)
            else:
                high = middle
                middle = max(high - step, (low + high) // 2)
            step *= 4
        page = self._table_page(low) if high else b""
        at = page.find(object_id)
        while at > 0 and at % OBJECT_ROW.size:
            at = page.find(object_id, at + 1)
        if at < 0:
            raise FormatError(f"{where}: object {object_id.hex()[:16]} is not in the file")
        _, frame, offset, length = OBJECT_ROW.unpack_from(page, at)
        if length > OBJECT_SIZE_MAX:
            raise FormatError(f"{where}: object of {length} bytes, more than the limit of {OBJECT_SIZE_MAX}")
        return Location(frame, offset, length)

    def _read_table_page(self, number: int) -> bytes:
        rows = min(_PAGE_ROWS, self._footer.objects - number * _PAGE_ROWS)
        offset = self._footer.object_table + number * _PAGE_ROWS * OBJECT_ROW.size
        return self._pread(rows * OBJECT_ROW.size, offset, "object table")

    def _read(self, place: Location, where: str) -> bytes:
        """The bytes at a place, from the cached frame if there is one."""
        frame = self._frames.get(place.frame)
        if frame is None:
            frame = self._read_frame(place.frame, where)
            self._frames[place.frame] = frame
            self._frames_held += len(frame)
            while self._frames_held > _FRAME_CACHE_BYTES and len(self._frames) > 1:
                self._frames_held -= len(self._frames.popitem(last=False)[1])
        else:
            self._frames.move_to_end(place.frame)
        if place.offset + place.length > len(frame):
            raise FormatError(f"{where}: reaches beyond the end of frame {place.frame}")
        return frame[place.offset : place.offset + place.length]

    def _read_frame(self, number: int, where: str) -> bytes:
        if number >= self._footer.frames:
            raise FormatError(f"{where}: frame {number} does not exist")
        row = self._frame_row(number)
        data = self._pread(row.compressed, row.offset, f"frame {number}")
        try:
            parameters = zstandard.get_frame_parameters(data)
            if parameters.content_size != row.size:
                raise FormatError(f"frame {number}: says it has another size than the frame table")
            if parameters.dict_id or not parameters.has_checksum:
                raise FormatError(f"frame {number}: has a dictionary or no checksum")
            decompressed = self._decompressor.decompress(data, max_output_size=row.size or 1, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"frame {number}: damaged: {error}") from None
        if len(decompressed) != row.size:
            raise FormatError(f"frame {number}: {len(decompressed)} bytes instead of {row.size}")
        return decompressed

    def _frame_row(self, number: int) -> FrameRow:
        data = self._pread(FRAME_ROW.size, self._footer.frame_table + number * FRAME_ROW.size, "frame table")
        return decode_frame_row(data, number, self._footer.frame_table)

    def _pread(self, size: int, offset: int, where: str) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise FormatError(f"{where}: the file ends too early")
        return data


def _at(path: bytes, entries: list[Entry]) -> Iterator[tuple[bytes, Node]]:
    """The entries of the directory at `path` with their own paths."""
    prefix = path + b"/" if path else b""
    return ((prefix + name, node) for name, node in entries)
