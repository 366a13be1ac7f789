"""A complete, strict reader of manifests, written from formats/manifest.md alone. Imports nothing of mkmeta.

    python examples/read_manifest.py FILE

checks everything the document demands and lists the tree. A file that breaks a rule gives one line, `where: reason`,
on stderr and exit status 1. Section numbers are those of the document. Nothing recurses, every limit is checked before
memory is taken for what it limits, and of a tree of any size or depth a few pages are held.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, NoReturn

import zstandard
from blake3 import blake3

MIB = 1 << 20
OBJECT_MAX = MIB  # section 4, down to COUNTS_MAX
PAGE_MAX = MIB // 4
FRAME_MAX = WINDOW_MAX = 4 * MIB
COMPRESSED_MAX = 4 * MIB + (64 << 10)
PATH_MAX = 4094
ENTRIES_MAX = 2**32 - 1
FACTS_MAX = MIB // 2
INFO_MAX = 4 * MIB
ROWS_MAX = 65_536
COUNTS_MAX = 4096
CONTENT_MAX = 4 * MIB
HAS_CONTENTS = 1  # section 2.1
ID_MAX = 2**32 - 2
COUNTED = ("dirs", "skeleton", "files", "symlinks", "others", "bytes", "linked")  # section 6: what the tree shows
COUNTS, COUNTS_LIMIT = 12, 64  # how many there are, and may be
COUNT_MAX = 2**64 - 1
CACHE_MAX = 16 * MIB  # decompressed frames kept; our choice, not the format's
PAGES_KEPT = 6  # decoded pages kept; likewise
CONTEXT = "mkmeta 2026 manifest v1 "  # section 3

HEADER = struct.Struct("<8sIIII8s")
FRAME_ROW = struct.Struct("<QII")
OBJECT_ROW = struct.Struct("<32sIII")
CONTENT_ROW = struct.Struct("<32sIII")
CONTENT_TRAILER = struct.Struct("<QII")
FOOTER = struct.Struct("<QIIQQ32sIIIIII8s")


class Refused(Exception):
    """The file breaks a rule; the text is `where: reason`."""


def refuse(where: str, reason: str) -> NoReturn:
    """Raises Refused."""
    raise Refused(f"{where}: {reason}")


def shown(raw: bytes) -> str:
    """Bytes as one line of ASCII."""
    return "".join(chr(b) if 0x20 < b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in raw)


# --- msgpack, section 3.5 ---

# first byte: kind, bytes of the number that follows, is it signed, least value this form is the shortest for
LONG_FORMS = {
    0xC4: ("bytes", 1, False, 0),
    0xC5: ("bytes", 2, False, 1 << 8),
    0xC6: ("bytes", 4, False, 1 << 16),
    0xCC: ("integer", 1, False, 1 << 7),
    0xCD: ("integer", 2, False, 1 << 8),
    0xCE: ("integer", 4, False, 1 << 16),
    0xCF: ("integer", 8, False, 1 << 32),
    0xD0: ("integer", 1, True, 32),
    0xD1: ("integer", 2, True, 1 << 7),
    0xD2: ("integer", 4, True, 1 << 15),
    0xD3: ("integer", 8, True, 1 << 31),
    0xD9: ("text", 1, False, 1 << 5),
    0xDA: ("text", 2, False, 1 << 8),
    0xDB: ("text", 4, False, 1 << 16),
    0xDC: ("array", 2, False, 1 << 4),
    0xDD: ("array", 4, False, 1 << 16),
    0xDE: ("map", 2, False, 1 << 4),
    0xDF: ("map", 4, False, 1 << 16),
}
# what only the values of unknown info keys hold: bytes that follow; for ext 8, 16 and 32 the size of their length
OTHER_FORMS = {0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
EXT_FORMS = {0xC7: 1, 0xC8: 2, 0xC9: 4}


@dataclass
class Cursor:
    """Reads msgpack values one after the other, each as the kind the document says comes next."""

    data: bytes
    where: str
    canonical: bool = True
    at: int = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self.data) - self.at:
            refuse(self.where, "a value ends early")
        self.at += size
        return self.data[self.at - size : self.at]

    def head(self) -> tuple[str, int]:
        """Kind of the next value, with its value (integer) or length (bytes, text, array, map)."""
        first = self.take(1)[0]
        if first <= 0x7F:
            return "integer", first
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "text", first & 0x1F
        if first == 0xC0:
            return "nil", 0
        if first >= 0xE0:
            return "integer", first - 0x100
        if first not in LONG_FORMS:
            return "other", first
        kind, size, signed, least = LONG_FORMS[first]
        value = int.from_bytes(self.take(size), "big", signed=signed)
        shortest = value < -least if signed else value >= least
        if self.canonical and not shortest:
            refuse(self.where, "not canonical msgpack")
        return kind, value

    def expect(self, wanted: str, what: str) -> int:
        """Value or length of the next value, which must be of kind `wanted`."""
        kind, value = self.head()
        if kind != wanted:
            refuse(self.where, f"{what} is not {wanted}")
        return value

    def integer(self, low: int, high: int, what: str) -> int:
        """An integer from `low` to `high`."""
        value = self.expect("integer", what)
        if not low <= value <= high:
            refuse(self.where, f"{what} {value} is out of range")
        return value

    def bytes(self, low: int, high: int, what: str) -> bytes:
        """A byte string of `low` to `high` bytes."""
        size = self.expect("bytes", what)
        if not low <= size <= high:
            refuse(self.where, f"{what} of {size} bytes")
        return self.take(size)

    def text(self, what: str) -> str:
        """UTF-8 text."""
        try:
            return self.take(self.expect("text", what)).decode()
        except UnicodeDecodeError:
            refuse(self.where, f"{what} is not UTF-8")

    def array(self, what: str) -> int:
        """The length of an array, which is at most what is left of the data."""
        length = self.expect("array", what)
        if length > len(self.data) - self.at:
            refuse(self.where, f"{what}: more elements than bytes")
        return length

    def is_nil(self) -> bool:
        """Skips a nil, if one comes next."""
        if self.data[self.at : self.at + 1] != b"\xc0":
            return False
        self.at += 1
        return True

    def skip(self) -> None:
        """Skips one value of any kind."""
        values = 1
        while values:
            values -= 1
            kind, value = self.head()
            if kind == "array":
                values += value
            elif kind == "map":
                values += 2 * value
            elif kind in ("bytes", "text"):
                self.take(value)
            elif kind == "other":
                if value in EXT_FORMS:
                    self.take(int.from_bytes(self.take(EXT_FORMS[value]), "big") + 1)
                elif value in OTHER_FORMS:
                    self.take(OTHER_FORMS[value])
                else:
                    refuse(self.where, "not msgpack")

    def end(self) -> None:
        """Nothing may follow."""
        if self.at != len(self.data):
            refuse(self.where, "bytes after the value")


# --- the container, section 2 ---


class Place(NamedTuple):
    """Where a record is."""

    frame: int
    offset: int
    length: int


class Container:
    """Header, frames, tables and footer: bytes by ID or by place."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.cache: OrderedDict[int, bytes] = OrderedDict()
        self.size = os.fstat(fd).st_size
        flags = self.check_header()
        self.read_footer()
        self.contents, self.content_table, self.first_content_frame = 0, 0, self.frames
        if flags & HAS_CONTENTS:
            self.read_content_trailer()
        self.check_frame_table()
        self.check_object_table()
        self.check_content_table()

    def pread(self, size: int, offset: int, where: str) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            refuse(where, "the file ends early")
        return data

    def check_header(self) -> int:
        magic, version, compat, _ro_compat, incompat, zero = HEADER.unpack(self.pread(HEADER.size, 0, "header"))
        if magic != b"\x89MKM\r\n\x1a\n":
            refuse("header", "wrong magic")
        if version != 1:
            refuse("header", f"version {version}")
        if incompat:
            refuse("header", f"incompat flags {incompat:#x}")
        if any(zero):
            refuse("header", "reserved bytes are not zero")
        return int(compat)

    def read_footer(self) -> None:
        if self.size < HEADER.size + FOOTER.size:
            refuse("footer", "missing")
        fields = FOOTER.unpack(self.pread(FOOTER.size, self.size - FOOTER.size, "footer"))
        self.frame_table, self.frames, zero, self.object_table, self.objects, self.id = fields[:6]
        self.info, self.facts = Place(*fields[6:9]), Place(*fields[9:12])
        if fields[12] != b"\n\x1a\n\rMKM\x89":
            refuse("footer", "wrong magic: the file is cut")
        if zero:
            refuse("footer", "reserved bytes are not zero")
        if self.frame_table < HEADER.size or self.object_table != self.frame_table + self.frames * FRAME_ROW.size:
            refuse("footer", "bad place of a table")
        if self.object_table + self.objects * OBJECT_ROW.size + FOOTER.size != self.size:
            refuse("footer", "the tables do not end where the footer begins")
        if not self.facts.length and any(self.facts):
            refuse("footer", "facts of no length")

    def frame_row(self, number: int) -> tuple[int, int, int]:
        offset = self.frame_table + number * FRAME_ROW.size
        row: tuple[int, int, int] = FRAME_ROW.unpack(self.pread(FRAME_ROW.size, offset, "frame table"))
        return row

    def check_frame_table(self) -> None:
        for number in range(self.frames):
            offset, compressed, size = self.frame_row(number)
            if offset < HEADER.size or offset + compressed > self.frame_table:
                refuse(f"frame {number}", "not between header and frame table")
            if compressed > COMPRESSED_MAX or size > FRAME_MAX:
                refuse(f"frame {number}", "larger than the limit")

    def object_row(self, number: int) -> tuple[bytes, Place]:
        offset = self.object_table + number * OBJECT_ROW.size
        object_id, *place = OBJECT_ROW.unpack(self.pread(OBJECT_ROW.size, offset, "object table"))
        return object_id, Place(*place)

    def check_object_table(self) -> None:
        previous = b""
        for number in range(self.objects):
            object_id, _ = self.object_row(number)
            if object_id <= previous:
                refuse("object table", f"row {number} is not above the one before it")
            previous = object_id

    def read_content_trailer(self) -> None:
        """Section 2.6."""
        at = self.frame_table - CONTENT_TRAILER.size
        if at < HEADER.size:
            refuse("content table", "there is no room for it")
        trailer = self.pread(CONTENT_TRAILER.size, at, "content table")
        self.contents, self.first_content_frame, zero = CONTENT_TRAILER.unpack(trailer)
        self.content_table = at - self.contents * CONTENT_ROW.size
        if zero:
            refuse("content table", "reserved bytes are not zero")
        if self.content_table < HEADER.size:
            refuse("content table", "it begins before the frames")
        if self.first_content_frame > self.frames:
            refuse("content table", "its first frame does not exist")

    def content_row(self, number: int) -> tuple[bytes, Place]:
        offset = self.content_table + number * CONTENT_ROW.size
        name, *place = CONTENT_ROW.unpack(self.pread(CONTENT_ROW.size, offset, "content table"))
        return name, Place(*place)

    def check_content_table(self) -> None:
        previous = b""
        for number in range(self.contents):
            name, _ = self.content_row(number)
            if name <= previous:
                refuse("content table", f"row {number} is not above the one before it")
            previous = name

    def content(self, number: int, digests: tuple[str, ...]) -> None:
        """Checks a content."""
        name, place = self.content_row(number)
        where = f"content {name.hex()}"
        if place.frame < self.first_content_frame:
            refuse(where, "in a frame of objects")
        if not 1 <= place.length <= CONTENT_MAX:
            refuse(where, f"{place.length} bytes")
        data = self.record(place, where)
        if (blake3(data).digest() if "blake3" in digests else verity(data)) != name:
            refuse(where, "has another digest")

    def find_content(self, name: bytes, size: int) -> int | None:
        """The number of the content of a file."""
        low, high = 0, self.contents
        while low < high:
            middle = (low + high) // 2
            found, place = self.content_row(middle)
            if found == name:
                return middle if place.length == size else None
            low, high = (middle + 1, high) if found < name else (low, middle)
        return None

    def frame(self, number: int, where: str) -> bytes:
        if number >= self.frames:
            refuse(where, f"frame {number} does not exist")
        if number in self.cache:
            self.cache.move_to_end(number)
            return self.cache[number]
        offset, compressed, size = self.frame_row(number)
        packed = self.pread(compressed, offset, f"frame {number}")
        try:
            stated = zstandard.get_frame_parameters(packed)
            if stated.content_size != size or stated.dict_id or not stated.has_checksum:
                refuse(f"frame {number}", "not as the frame table says, with a dictionary, or without a checksum")
            if stated.window_size > WINDOW_MAX:
                refuse(f"frame {number}", "a window larger than the limit")
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
            data = decompressor.decompress(packed, max_output_size=size or 1, allow_extra_data=False)
        except zstandard.ZstdError as error:
            refuse(f"frame {number}", str(error))
        if len(data) != size:
            refuse(f"frame {number}", "not as long as it says")
        self.cache[number] = data
        while len(self.cache) > 1 and sum(map(len, self.cache.values())) > CACHE_MAX:
            self.cache.popitem(last=False)
        return data

    def record(self, place: Place, where: str) -> bytes:
        frame = self.frame(place.frame, where)
        if place.offset + place.length > len(frame):
            refuse(where, "reaches beyond its frame")
        return frame[place.offset : place.offset + place.length]

    def object(self, kind: str, object_id: bytes, where: str) -> Cursor:
        low, high = 0, self.objects
        while low < high:
            middle = (low + high) // 2
            found, place = self.object_row(middle)
            if found == object_id:
                break
            low, high = (middle + 1, high) if found < object_id else (low, middle)
        else:
            refuse(where, f"object {object_id.hex()} is absent")
        if place.length > OBJECT_MAX:
            refuse(where, "larger than the limit")
        data = self.record(object_place(self, place, where), where)
        if blake3(data, derive_key_context=CONTEXT + kind).digest() != object_id:
            refuse(where, f"object {object_id.hex()} has another digest")
        return Cursor(data, where)


# --- objects, section 3 ---


class Entry(NamedTuple):
    """A name and its inode; `body` is what its type has."""

    name: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    body: tuple[int | bytes | None, ...]
    xattrs: tuple[tuple[bytes, bytes], ...]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def below(self) -> int:
        """How many entries a directory holds, as it says."""
        count = self.body[1]
        assert isinstance(count, int)
        return count


@dataclass
class Root:
    """The root object, section 3.4."""

    top: Entry
    links: bytes | None
    digests: tuple[str, ...]


TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
MERGE, OPAQUE = 0, 1


def read_attributes(c: Cursor) -> tuple[int, int, int, int, int]:
    """mode, uid, gid, mtime, mtime_nsec."""
    mode = c.integer(0, 0o177777, "mode")
    if stat.S_IFMT(mode) not in TYPES:
        refuse(c.where, f"mode {mode:o} has no known type")
    return (
        mode,
        c.integer(0, ID_MAX, "uid"),
        c.integer(0, ID_MAX, "gid"),
        c.integer(-(2**63), 2**63 - 1, "mtime"),
        c.integer(0, 999_999_999, "mtime_nsec"),
    )


def read_digest(c: Cursor, what: str, recorded: bool) -> bytes | None:
    """A digest of a regular file: there exactly if the root object announces it."""
    if recorded:
        return c.bytes(32, 32, what)
    if not c.is_nil():
        refuse(c.where, f"{what} is not nil, but the root object does not announce it")
    return None


def read_name(c: Cursor) -> bytes:
    """The name of an entry."""
    name = c.bytes(1, 255, "name")
    check_name(name, c.where)
    return name


def check_name(name: bytes, where: str) -> None:
    """Refuses what cannot be a name."""
    if not 1 <= len(name) <= 255 or b"\0" in name or b"/" in name or name in (b".", b".."):
        refuse(where, f"'{shown(name)}' is not a name")


def read_xattrs(c: Cursor, elements: int) -> tuple[tuple[bytes, bytes], ...]:
    """Section 3.2, after the array's header."""
    if elements % 2 or elements > 2 * 9362:
        refuse(c.where, f"xattrs of {elements} elements")
    pairs = []
    previous = b""
    for _ in range(elements // 2):
        name = c.bytes(1, 255, "xattr name")
        value = c.bytes(0, 65536, "xattr value")
        if name <= previous:
            refuse(c.where, f"xattr {shown(name)} does not ascend")
        spaces = (b"user.", b"trusted.", b"security.")
        known = name.startswith(spaces) and name not in spaces
        if b"\0" in name or not (known or name in (b"system.posix_acl_access", b"system.posix_acl_default")):
            refuse(c.where, f"xattr {shown(name)} is in no allowed namespace")
        if name.startswith((b"trusted.overlay.", b"user.overlay.")):
            refuse(c.where, f"xattr {shown(name)} belongs to overlayfs")
        pairs.append((name, value))
        previous = name
    return tuple(pairs)


def read_entry(c: Cursor, digests: tuple[str, ...], kind_above: int) -> Entry:
    """One entry of a directory, section 3.1."""
    elements = c.array("entry")
    if elements < 6:
        refuse(c.where, f"an entry of {elements} elements")
    name = read_name(c)
    outer, c.where = c.where, f"{c.where}: {shown(name)}"
    mode, uid, gid, mtime, mtime_nsec = read_attributes(c)
    file_type = stat.S_IFMT(mode)
    own = {stat.S_IFREG: 3, stat.S_IFDIR: 3, stat.S_IFLNK: 1, stat.S_IFCHR: 2, stat.S_IFBLK: 2}.get(file_type, 0)
    if elements not in (6 + own, 7 + own):
        refuse(c.where, f"an entry of {elements} elements")
    body: tuple[int | bytes | None, ...] = ()
    if file_type == stat.S_IFREG:
        size = c.integer(0, 2**63 - 1, "size")
        body = (size, read_digest(c, "blake3", "blake3" in digests), read_digest(c, "verity", "verity" in digests))
    elif file_type == stat.S_IFDIR:
        body = (c.bytes(32, 32, "directory ID"), c.integer(0, ENTRIES_MAX, "entries"), c.integer(0, 1, "kind"))
        if kind_above == OPAQUE and body[2] == MERGE:
            refuse(c.where, "a merge directory below an opaque one")
        if body[1:] == (0, MERGE):
            refuse(c.where, "a merge directory without entries")
    elif file_type == stat.S_IFLNK:
        target = c.bytes(1, 4095, "target")
        body = (target,)
        if b"\0" in target:
            refuse(c.where, "a target with NUL")
    elif own:
        body = (c.integer(0, 2**12 - 1, "major"), c.integer(0, 2**20 - 1, "minor"))
        if file_type == stat.S_IFCHR and body == (0, 0):
            refuse(c.where, "a whiteout")
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    if elements == 7 + own:
        length = c.array("xattrs")
        if not length:
            refuse(c.where, "an empty list of xattrs")
        xattrs = read_xattrs(c, length)
    c.where = outer
    return Entry(name, mode, uid, gid, mtime, mtime_nsec, body, xattrs)


class Row(NamedTuple):
    """A page of a directory."""

    first: bytes | None  # name of its first entry; None: the only page, which is the directory object itself
    page: bytes
    entries: int


class Page(NamedTuple):
    """What is in a page."""

    entries: list[Entry]
    size: int  # bytes of all entries
    first_size: int  # bytes of the first


def read_rows(file: Container, object_id: bytes, stated: int, where: str) -> list[Row]:
    """The pages of a directory that holds `stated` entries, section 3.1."""
    c = file.object("directory", object_id, where)
    count = c.array("directory")
    if c.data[c.at : c.at + 1] != b"\x93":
        return [Row(None, object_id, stated)]
    rows: list[Row] = []
    for _ in range(count):
        if c.array("row") != 3:
            refuse(where, "the row of a page is not three elements")
        first = read_name(c)
        if rows and first <= (rows[-1].first or b""):
            refuse(where, f"the page of {shown(first)} does not ascend")
        rows.append(Row(first, c.bytes(32, 32, "page ID"), c.integer(1, ENTRIES_MAX, "entries")))
    c.end()
    if len(rows) < 2:
        refuse(where, "rows for a single page")
    if sum(row.entries for row in rows) != stated:
        refuse(where, f"its pages do not hold {stated} entries together")
    return rows


def read_page(file: Container, row: Row, kind: int, path: bytes, digests: tuple[str, ...], where: str) -> Page:
    """A page of the directory of this kind at `path`."""
    c = file.object("directory" if row.first is None else "directory page", row.page, where)
    count = c.array("page")
    start = first_end = c.at
    entries: list[Entry] = []
    held = count
    for _ in range(count):
        child = read_entry(c, digests, kind)
        if not entries:
            first_end = c.at
        elif child.name <= entries[-1].name:
            refuse(where, f"{shown(child.name)} does not ascend")
        if len(path) + bool(path) + len(child.name) > PATH_MAX:
            refuse(where, f"the path of {shown(child.name)} is too long")
        entries.append(child)
        if child.is_directory:
            held += child.below
    c.end()
    if held != row.entries:
        refuse(where, f"holds {held} entries, not {row.entries}")
    if row.first is not None and entries[0].name != row.first:
        refuse(where, f"the page of {shown(row.first)} begins with {shown(entries[0].name)}")
    check_page_size(c.at - start, count, where)
    return Page(entries, c.at - start, first_end - start)


def check_page_size(size: int, count: int, where: str) -> None:
    """Refuses a page that should have been two."""
    if count > 1 and size > PAGE_MAX:
        refuse(where, f"a page of {size} bytes")


def check_division(size: int, next_size: int, where: str) -> None:
    """Refuses a page of so many bytes that could have taken the element after it."""
    if size + next_size <= PAGE_MAX:
        refuse(where, "a page ends although what comes next fits")


def read_root(file: Container) -> Root:
    """The root object, section 3.4."""
    c = file.object("root", file.id, "root object")
    if c.array("root") != 10:
        refuse(c.where, "not ten elements")
    attributes = read_attributes(c)
    if not stat.S_ISDIR(attributes[0]):
        refuse(c.where, "not a directory")
    xattrs = read_xattrs(c, c.array("xattrs"))
    body = (c.bytes(32, 32, "directory ID"), c.integer(0, ENTRIES_MAX, "entries"), MERGE)
    links = None if c.is_nil() else c.bytes(32, 32, "link index ID")
    digests = tuple(c.text("digest") for _ in range(c.array("digests")))
    if digests not in ((), ("blake3",), ("verity",), ("blake3", "verity")):
        refuse(c.where, "unknown digests")
    c.end()
    return Root(Entry(b"", *attributes, body, xattrs), links, digests)


def tree_order(path: bytes) -> bytes:
    """Section 1."""
    return path.replace(b"/", b"\0")


def read_path(c: Cursor) -> bytes:
    """A path of a link page."""
    path = c.bytes(1, PATH_MAX, "path")
    for name in path.split(b"/"):
        check_name(name, c.where)
    return path


def read_links(file: Container, root: Root) -> Iterator[tuple[bytes, int | bytes]]:
    """The rows of all link pages, section 3.3; their order is checked here, their truth by `Links`."""
    if root.links is None:
        return
    index = file.object("link index", root.links, "link index")
    pages = index.array("link index")
    if not pages:
        refuse("link index", "empty")
    previous, before = b"", PAGE_MAX
    for number in range(pages):
        c = file.object("link page", index.bytes(32, 32, "page ID"), f"link page {number}")
        rows = c.array("page")
        start = c.at
        if not rows:
            refuse(c.where, "no rows")
        for place in range(rows):
            row_start = c.at
            if c.array("row") != 2:
                refuse(c.where, "a row is not two elements")
            path = read_path(c)
            if tree_order(path) <= tree_order(previous):
                refuse(c.where, f"{shown(path)} does not ascend")
            previous = path
            kind = c.data[c.at : c.at + 1]
            is_target = bool(kind) and 0xC4 <= kind[0] <= 0xC6
            said = read_path(c) if is_target else c.integer(2, ENTRIES_MAX, "nlink")
            if not place:
                check_division(before, c.at - row_start, c.where)
            yield path, said
        c.end()
        before = c.at - start
        check_page_size(before, rows, c.where)
    index.end()


@dataclass
class Links:
    """Compares link rows with the entries of a walk. Both are in tree order, so one pass is enough.

    Memory: the inodes some of whose names are still to come.
    """

    rows: Iterator[tuple[bytes, int | bytes]]
    open: dict[bytes, tuple[Entry, int]] = field(default_factory=dict)
    row: tuple[bytes, int | bytes] | None = None

    def __post_init__(self) -> None:
        self.row = next(self.rows, None)

    def meet(self, path: bytes, entry: Entry) -> int | bytes | None:
        """What the rows say of the next entry of the walk: nlink of a primary, target of a link, or None."""
        if self.row is None or self.row[0] != path:
            return None
        said = self.row[1]
        self.row = next(self.rows, None)
        where = f"link row {shown(path)}"
        if entry.is_directory:
            refuse(where, "is a directory")
        if isinstance(said, int):
            self.open[path] = entry, said - 1
            return said
        if said not in self.open:
            refuse(where, f"{shown(said)} is no primary before it, or has fewer names")
        primary, missing = self.open.pop(said)
        if primary[1:] != entry[1:]:
            refuse(where, f"differs from {shown(said)}")
        if missing > 1:
            self.open[said] = primary, missing - 1
        return said

    def end(self) -> None:
        """After the walk."""
        if self.row is not None:
            refuse(f"link row {shown(self.row[0])}", "is no entry")
        for path in self.open:
            refuse(f"link row {shown(path)}", "has more names than rows")


# --- info and facts, sections 5 and 6 ---


def read_info(file: Container) -> dict[str, object]:
    """The keys version 1 knows, their types checked."""
    if file.info.length > INFO_MAX:
        refuse("info", "larger than the limit")
    c = Cursor(file.record(object_place(file, file.info, "info"), "info"), "info", canonical=False)
    info: dict[str, object] = {}
    seen = set()
    for _ in range(c.expect("map", "info")):
        key = c.text("key")
        if key in seen:
            refuse("info", f"{key!r} occurs twice")
        seen.add(key)
        if key == "root":
            info[key] = root = c.bytes(1, 4095, key)
            if root[:1] != b"/" or b"\0" in root:
                refuse("info", f"root {shown(root)} is no absolute path")
        elif key == "created":
            info[key] = c.expect("integer", key)
        elif key == "tool":
            info[key] = c.text(key)
        elif key in ("select", "hide", "drop_xattrs", "closed"):
            info[key] = [c.bytes(0, INFO_MAX, key) for _ in range(rows_of(c, key))]
        elif key == "left_out":
            info[key] = [read_left_out(c) for _ in range(rows_of(c, key))]
        elif key == "inline":
            info[key] = [read_inline(c) for _ in range(rows_of(c, key))]
        elif key == "inline_all":
            info[key] = c.integer(1, 1, key)
        elif key == "hard_links":
            info[key] = c.text(key)
            if info[key] not in ("all", "subtree"):
                refuse("info", f"hard_links is {info[key]!r}")
        elif key == "counts":
            pairs = c.expect("map", key)
            if pairs > COUNTS_MAX:
                refuse("info", f"{pairs} counts")
            info[key] = {c.text("name of a count"): c.expect("integer", "count") for _ in range(pairs)}
        else:
            c.skip()
    c.end()
    for key in ("root", "created", "tool", "select", "hide", "left_out", "counts"):
        if key not in info:
            refuse("info", f"{key!r} is missing")
    return info


def rows_of(c: Cursor, key: str) -> int:
    """The length of an array of the info record."""
    length = c.array(key)
    if length > ROWS_MAX:
        refuse(c.where, f"{key} has {length} elements")
    return length


def read_left_out(c: Cursor) -> tuple[bytes, str]:
    """A row of left_out."""
    if c.array("row of left_out") != 2:
        refuse(c.where, "a row of left_out is not two elements")
    return c.bytes(0, INFO_MAX, "path"), c.text("reason")


def read_inline(c: Cursor) -> tuple[bytes, int]:
    """A row of inline."""
    if c.array("row of inline") != 2:
        refuse(c.where, "a row of inline is not two elements")
    return c.bytes(0, INFO_MAX, "pattern"), c.integer(0, 2**64 - 1, "size")


def object_place(file: Container, place: Place, where: str) -> Place:
    """The place of what is no content."""
    if place.frame >= file.first_content_frame:
        refuse(where, "in a frame of contents, or in none")
    return place


def facts_record(file: Container, place: Place, where: str) -> Cursor:
    """A facts record."""
    if place.length > FACTS_MAX:
        refuse(where, "larger than the limit")
    return Cursor(file.record(object_place(file, place, where), where), where, canonical=False)


def read_counts(c: Cursor) -> list[int]:
    """What the facts of a directory begin with."""
    if c.array("facts") != 2:
        refuse(c.where, "not two arrays")
    length = c.array("counts")
    if not COUNTS <= length <= COUNTS_LIMIT:
        refuse(c.where, f"{length} counts")
    return [c.integer(0, COUNT_MAX, "count") for _ in range(length)]


class Fact(NamedTuple):
    """What the facts of a page say of an entry, as far as this reader wants to know."""

    place: Place | None  # of a directory: its facts
    is_linked: bool = False


UNKNOWN = Fact(None)


def read_facts(file: Container, place: Place, where: str, number: int, pages: int, entries: list[Entry]) -> list[Fact]:
    """The facts of page `number` of a directory, whose facts are at `place`: one for each entry."""
    c = facts_record(file, place, where)
    read_counts(c)
    if c.array("pages") != pages:
        refuse(where, f"not {pages} pages")
    if pages == 1:
        facts = read_page_facts(c, entries)
    else:
        places = [read_place(c) for _ in range(pages)]
        c.end()
        c = facts_record(file, places[number], where)
        facts = read_page_facts(c, entries)
    c.end()
    return facts


def read_page_facts(c: Cursor, entries: list[Entry]) -> list[Fact]:
    """The facts of a page with these entries."""
    if c.array("facts of a page") != 4:
        refuse(c.where, "not four arrays")
    for column in ("inode numbers", "change times"):
        if c.array(column) != len(entries):
            refuse(c.where, f"not one of {column} per entry")
        for _ in entries:
            c.integer(-(2**63), 2**63 - 1, column)
    if c.array("children") != sum(entry.is_directory for entry in entries):
        refuse(c.where, "not one child per directory")
    facts = [Fact(None if c.is_nil() else read_place(c)) if entry.is_directory else UNKNOWN for entry in entries]
    length = c.array("linked")
    if length % 2:
        refuse(c.where, "linked is not made of pairs")
    position = 0
    for number in range(length // 2):
        position += c.integer(min(number, 1), len(entries), "position of a linked entry")
        if position >= len(entries) or entries[position].is_directory:
            refuse(c.where, f"linked names entry {position}, which is a directory or not there")
        c.integer(2, 2**32 - 1, "number of names")
        facts[position] = Fact(None, True)
    return facts


def read_place(c: Cursor) -> Place:
    """The place of a facts record."""
    if c.array("place") != 3:
        refuse(c.where, "a place is not three elements")
    return Place(*(c.integer(0, 2**32 - 1, "place") for _ in range(3)))


# --- the tree ---


@dataclass
class Level:
    """A directory on the way of a walk."""

    path: bytes
    entry: Entry  # without its xattrs, which may be long
    place: Place | None  # of its facts
    page: int = 0
    position: int = 0  # in the page
    counts: list[int] = field(default_factory=list)  # COUNTED, so far
    known: bool = True  # there are facts of it, and of all below that was left again

    @property
    def kind(self) -> int:
        return OPAQUE if self.entry.body[2] == OPAQUE else MERGE


class Tree:
    """Walks a manifest, and checks all there is on the way."""

    def __init__(self, file: Container, root: Root) -> None:
        self.file = file
        self.root = root
        self.counts: list[int] | None = None  # of everything, after the walk; None: facts are missing
        # levels hold no pages, so that memory does not follow the depth: what was dropped is read and checked again
        self.page = lru_cache(maxsize=PAGES_KEPT)(self.read_page)
        self.rows = lru_cache(maxsize=PAGES_KEPT)(read_rows)

    def read_page(self, path: bytes, entry: Entry, place: Place | None, number: int) -> tuple[Page, list[Fact], bool]:
        """A page of a directory with its facts, and whether it is the last."""
        where = f"directory /{shown(path)}"
        object_id, stated, kind = entry.body
        assert isinstance(object_id, bytes) and isinstance(stated, int) and isinstance(kind, int)
        rows = self.rows(self.file, object_id, stated, where)
        page = read_page(self.file, rows[number], kind, path, self.root.digests, where)
        facts = [UNKNOWN] * len(page.entries)
        if place:
            facts = read_facts(self.file, place, f"facts of /{shown(path)}", number, len(rows), page.entries)
        return page, facts, number + 1 == len(rows)

    def open(self, path: bytes, entry: Entry, place: Place | None) -> Level:
        """A directory that is entered."""
        level = Level(path, entry._replace(xattrs=()), place, known=place is not None)
        level.counts = [int(level.kind == OPAQUE), int(level.kind == MERGE), 0, 0, 0, 0, 0]
        return level

    def next_of(self, level: Level) -> tuple[Entry, Fact] | None:
        """The next entry of a directory; None: there is none."""
        page, facts, is_last = self.page(level.path, level.entry, level.place, level.page)
        if level.position == len(page.entries):
            if is_last:
                return None
            following = self.page(level.path, level.entry, level.place, level.page + 1)[0]
            where = f"directory /{shown(level.path)}"
            check_division(page.size, following.first_size, where)
            if following.entries[0].name <= page.entries[-1].name:
                refuse(where, f"the page of {shown(following.entries[0].name)} does not ascend")
            level.page, level.position = level.page + 1, 0
            return self.next_of(level)
        level.position += 1
        return page.entries[level.position - 1], facts[level.position - 1]

    def walk(self) -> Iterator[tuple[bytes, Entry, int | bytes | None]]:
        """Every entry in tree order, with what the link rows say of it."""
        links = Links(read_links(self.file, self.root))
        stack = [self.open(b"", self.root.top, self.file.facts if self.file.facts.length else None)]
        while stack:
            level = stack[-1]
            step = self.next_of(level)
            if step is None:
                stack.pop()
                self.leave(level, stack[-1] if stack else None)
                continue
            entry, fact = step
            path = level.path + b"/" + entry.name if level.path else entry.name
            yield path, entry, links.meet(path, entry)
            if entry.is_directory:
                stack.append(self.open(path, entry, fact.place))
            else:
                count(level.counts, entry, fact)
        links.end()

    def leave(self, level: Level, above: Level | None) -> None:
        """Compares the counts of a directory, when all below it was met, and adds them to those above."""
        if level.known:
            assert level.place is not None
            where = f"facts of /{shown(level.path)}"
            compare_counts(where, read_counts(facts_record(self.file, level.place, where)), level.counts)
        if above is None:
            self.counts = level.counts if level.known else None
            return
        above.known &= level.known
        above.counts = [one + other for one, other in zip(above.counts, level.counts, strict=True)]


def count(counts: list[int], entry: Entry, fact: Fact) -> None:
    """Adds an entry that is no directory."""
    counts[COUNTED.index("linked")] += fact.is_linked
    if stat.S_ISREG(entry.mode):
        counts[COUNTED.index("files")] += 1
        size = entry.body[0]
        assert isinstance(size, int)
        counts[COUNTED.index("bytes")] += size
    else:
        counts[COUNTED.index("symlinks" if stat.S_ISLNK(entry.mode) else "others")] += 1


def compare_counts(where: str, said: list[int], counted: list[int]) -> None:
    """Refuses counts that are not those of what is there."""
    for name, number, true in zip(COUNTED, said, counted, strict=False):
        if number != min(true, COUNT_MAX):
            refuse(where, f"says {number} {name}, there are {true}")


def check_places(file: Container) -> None:
    """Refuses contents that overlap, section 2.6."""
    before = Place(0, 0, 0)
    for place in sorted(file.content_row(number)[1] for number in range(file.contents)):
        if place.frame == before.frame and place.offset < before.offset + before.length:
            refuse(f"frame {place.frame}", f"contents overlap at {place.offset}")
        before = place


def check(file: Container) -> tuple[Root, dict[str, object], Counter[int]]:
    """Reads everything. The root, the info record, and how many entries there are by type."""
    info = read_info(file)
    tree = Tree(file, read_root(file))
    types: Counter[int] = Counter()
    owned = bytearray(file.contents)
    for _, entry, _ in tree.walk():
        types[stat.S_IFMT(entry.mode)] += 1
        number = content_of(file, entry)
        if number is not None:
            owned[number] = 1
    for number in range(file.contents):
        file.content(number, tree.root.digests)
        if not owned[number]:
            refuse(f"content {file.content_row(number)[0].hex()}", "no file has it, with this size")
    check_places(file)
    if tree.counts is not None:
        said = info["counts"]
        assert isinstance(said, dict)
        compare_counts(
            "info",
            [said.get(name, min(n, COUNT_MAX)) for name, n in zip(COUNTED, tree.counts, strict=True)],
            tree.counts,
        )
    return tree.root, info, types


def verity(data: bytes) -> bytes:
    """The fs-verity digest: SHA-256, blocks of 4096 bytes, no salt (Documentation/filesystems/fsverity.rst)."""
    level = data
    while True:
        hashes = [
            hashlib.sha256(level[at : at + 4096].ljust(4096, b"\0")).digest() for at in range(0, len(level), 4096)
        ]
        level = b"".join(hashes)
        if len(hashes) == 1:
            break
    return hashlib.sha256(struct.pack("<BBBBIQ64s32s144x", 1, 1, 12, 0, 0, len(data), level, b"")).digest()


def content_of(file: Container, entry: Entry) -> int | None:
    """The number of the content of an entry, section 2.6."""
    if not stat.S_ISREG(entry.mode):
        return None
    size, content, measured = entry.body
    name = measured if content is None else content
    return file.find_content(name, size) if isinstance(name, bytes) and isinstance(size, int) else None


def shown_value(value: bytes) -> str:
    """The value of an xattr; a long one by its length and BLAKE3."""
    return shown(value) if len(value) <= 256 else f"{len(value)}:{blake3(value).hexdigest()}"


def describe(path: bytes, entry: Entry, link: int | bytes | None, inside: bool = False) -> str:
    """One line of the listing: every fact the manifest has of the entry, which for a link are those of its primary."""
    if isinstance(link, bytes):
        return f"{shown(path)} hardlink={shown(link)}"
    body = [item.hex() if isinstance(item, bytes) and len(item) == 32 else item for item in entry.body]
    if stat.S_ISLNK(entry.mode):
        body = [shown_value(item) for item in entry.body if isinstance(item, bytes)]
    parts = [
        shown(path),
        f"{entry.mode:06o} {entry.uid}:{entry.gid} {entry.mtime}+{entry.mtime_nsec:09d}",
        *("-" if item is None else str(item) for item in body),
        *(f"{shown(name)}={shown_value(value)}" for name, value in entry.xattrs),
    ]
    if link is not None:
        parts.append(f"nlink={link}")
    if inside:
        parts.append("inside")
    return " ".join(parts)


def main(argv: list[str]) -> int:
    """Checks the file completely, then prints what it holds."""
    if len(argv) != 2:
        print("usage: read_manifest.py FILE", file=sys.stderr)
        return 2
    try:
        with open(argv[1], "rb") as stream:
            file = Container(stream.fileno())
            root, info, types = check(file)
            print(f"id {file.id.hex()}")
            print(f"digests {' '.join(root.digests) or '-'}")
            print(f"facts {'yes' if file.facts.length else 'no'}")
            print(f"entries {types.total()}, of these directories {types[stat.S_IFDIR]}, files {types[stat.S_IFREG]}")
            if file.contents:
                print(f"contents {file.contents}")
            for key, value in info.items():
                print(f"info {key} {value!r}")
            print(describe(b"/", root.top, None))
            for path, entry, link in Tree(file, root).walk():
                print(describe(path, entry, link, content_of(file, entry) is not None))
    except Refused as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{argv[1]}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
