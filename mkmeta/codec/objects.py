"""Objects of a manifest: canonical msgpack to model and back (formats/manifest.md section 3).

`decode_*` accept exactly the canonical encoding of a valid object and raise FormatError on any other bytes; `where`
names the object in the message. The ID is the caller's to check.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

from mkmeta.codec.packing import PackingError, array_header, element_ends, pack, unpack_elements
from mkmeta.digest import DIGEST_SIZE, ContentDigest, ObjectId, VerityDigest
from mkmeta.errors import FormatError, printable
from mkmeta.model import (
    ACL_XATTRS,
    ENTRIES_MAX,
    ID_MAX,
    MAJOR_LIMIT,
    MINOR_LIMIT,
    NAME_MAX,
    NS,
    OVERLAY_XATTRS,
    PATH_LIMIT,
    SIZE_MAX,
    SYMLINK_TARGET_MAX,
    XATTR_COUNT_MAX,
    XATTR_NAME_MAX,
    XATTR_NAMESPACES,
    XATTR_VALUE_MAX,
    Counts,
    Device,
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Root,
    Special,
    Symlink,
    Xattrs,
    tree_order,
)

OBJECT_SIZE_MAX: Final = 1 << 20  # bytes; bounds what one object makes a reader allocate, some 60 times as much
PAGE_BYTES: Final = 256 << 10  # FORMAT: what the entries, or rows, of a page have together, unless it is a single one

Where = str | tuple[str, bytes]  # an object, or an entry of one: put into words only when something is wrong with it

_ARRAY_OF_THREE = b"\x93"
_COMMON = 6  # fields every entry has
_PLAIN_FILE = 9  # fields of a file without xattrs, and of a directory without
_TYPE_SHIFT, _REGULAR = 12, stat.S_IFREG >> 12
_TIME_LIMIT = 2**63
_DOTS = (b".", b"..")
_FIELDS_BY_TYPE = {
    stat.S_IFREG: 3,
    stat.S_IFDIR: 3,
    stat.S_IFLNK: 1,
    stat.S_IFCHR: 2,
    stat.S_IFBLK: 2,
    stat.S_IFIFO: 0,
    stat.S_IFSOCK: 0,
}


class PageRow(NamedTuple):
    """A page of a directory that has several, as the directory object says of it."""

    first: bytes  # name of its first entry
    page: ObjectId
    entries: int  # in it, and in all directories below those


# --- encoding -----------------------------------------------------------------------------------------------------


def encode_page(count: int, entries: bytes | bytearray) -> bytes:
    """A page of a directory, or of link rows, and the object of a directory of one page: `count` packed elements."""
    return array_header(count) + entries


def encode_page_rows(rows: Sequence[PageRow]) -> bytes:
    """The object of a directory of several pages."""
    return pack([list(row) for row in rows])


def encode_entry(name: bytes, node: Node) -> bytes:
    """One entry."""
    fields: list[object] = [name, node.mode, node.uid, node.gid, *divmod(node.mtime_ns, NS)]
    match node:
        case RegularFile():
            fields += (node.size, node.blake3, node.verity)
        case Directory():
            fields += (node.children, node.entries, int(node.kind))
        case Symlink():
            fields.append(node.target)
        case Device():
            fields += (node.major, node.minor)
    if node.xattrs:
        fields.append(_flat(node.xattrs))
    return pack(fields)


def encode_root(root: Root) -> bytes:
    """The root object."""
    top = root.directory
    return pack(
        [
            top.mode,
            top.uid,
            top.gid,
            *divmod(top.mtime_ns, NS),
            _flat(top.xattrs),
            top.children,
            top.entries,
            root.links,
            [str(name) for name in root.digests],
        ]
    )


def encode_link_row(row: PrimaryRow | LinkRow) -> bytes:
    """A row of a link page."""
    return pack(list(row))


def encode_link_index(pages: Sequence[ObjectId]) -> bytes:
    """A link index."""
    return pack(list(pages))


def _flat(xattrs: Xattrs) -> list[bytes]:
    return [item for pair in xattrs for item in pair]


# --- decoding -----------------------------------------------------------------------------------------------------


def is_divided(data: bytes) -> bool:
    """Whether a directory object is that of a directory of several pages: its first element is an array of three."""
    _, start = _array_length(data, "directory")
    return data[start : start + 1] == _ARRAY_OF_THREE


def decode_page_rows(data: bytes, where: str) -> list[PageRow]:
    """The pages of a directory that has several."""
    rows: list[PageRow] = []
    previous = b""
    for row in _elements(data, where):
        if type(row) is not list or len(row) != 3:
            _fail(where, "a row of a page is not an array of three")
        first, page, entries = row
        check_name(first, where)
        if first <= previous:
            _fail(where, f"page '{printable(first)}' does not sort after '{printable(previous)}'")
        previous = first
        page_id = ObjectId(_digest(page, "page ID", where))
        rows.append(PageRow(first, page_id, _integer(entries, 1, ENTRIES_MAX, "entries", where)))
    if len(rows) < 2:
        _fail(where, "divided into a single page")
    return rows


def decode_page(data: bytes, where: str, *, below: DirectoryKind) -> list[Entry]:
    """The entries of a page of a directory of kind `below`.

    Raises FormatError naming `where` and, if it got that far, the entry.
    """
    _check_page_size(data, where)
    rows = _elements(data, where)
    entries: list[Entry] = []
    previous = b""
    for row in rows:
        if type(row) is list and len(row) == _PLAIN_FILE and (file := _plain_file(row)) is not None:
            name = row[0]
            if name <= previous:
                _fail(where, f"entry '{printable(name)}' does not sort after '{printable(previous)}'")
            previous = name
            entries.append(Entry(name, file))
            continue
        name, node = decode_entry(row, where)
        if name <= previous:
            _fail(where, f"entry '{printable(name)}' does not sort after '{printable(previous)}'")
        previous = name
        if below is DirectoryKind.OPAQUE and isinstance(node, Directory) and node.kind is DirectoryKind.MERGE:
            _fail(where, f"merge directory '{printable(name)}' below an opaque one")
        entries.append(Entry(name, node))
    return entries


def _plain_file(row: list[Any]) -> RegularFile | None:
    """What `decode_entry` makes of a file without xattrs, as most entries are, in less time; None: it has to look."""
    name, mode, uid, gid, sec, nsec, size, content, measured = row
    if (
        type(name) is bytes
        and 0 < len(name) <= NAME_MAX
        and b"/" not in name
        and b"\0" not in name
        and name not in _DOTS
        and type(mode) is int
        and mode >> _TYPE_SHIFT == _REGULAR
        and type(uid) is type(gid) is type(sec) is type(nsec) is type(size) is int
        and 0 <= uid <= ID_MAX
        and 0 <= gid <= ID_MAX
        and -_TIME_LIMIT <= sec < _TIME_LIMIT
        and 0 <= nsec < NS
        and 0 <= size <= SIZE_MAX
        and (content is None or (type(content) is bytes and len(content) == DIGEST_SIZE))
        and (measured is None or (type(measured) is bytes and len(measured) == DIGEST_SIZE))
    ):
        blake = None if content is None else ContentDigest(content)
        verity = None if measured is None else VerityDigest(measured)
        return RegularFile(
            mode=mode, uid=uid, gid=gid, mtime_ns=sec * NS + nsec, size=size, blake3=blake, verity=verity
        )
    return None


class Examined(NamedTuple):
    """What is in a page that was found valid."""

    entries: int
    first: bytes  # their names, empty where there is none
    last: bytes
    longest: int  # bytes of the longest name
    counts: Counts  # of all that are no directories; `linked` is 0
    directories: list[tuple[int, tuple[bytes, Directory]]]  # by position, with their names


def examine_page(data: bytes, where: str, *, below: DirectoryKind, digests: tuple[DigestName, ...]) -> Examined:
    """What `decode_page` and its reader would refuse is refused, at a fraction of the cost: no models are built.

    Raises FormatError.
    """
    _check_page_size(data, where)
    rows: Any = _elements(data, where)
    blake3 = bytes if DigestName.BLAKE3 in digests else type(None)
    verity = bytes if DigestName.VERITY in digests else type(None)
    previous = b""
    files = size_of_all = symlinks = others = longest = 0
    directories: list[tuple[int, tuple[bytes, Directory]]] = []
    for position, row in enumerate(rows):
        if type(row) is list and len(row) == _PLAIN_FILE:
            name, mode, uid, gid, sec, nsec, size, content, measured = row
            if (
                type(name) is bytes
                and previous < name
                and len(name) <= NAME_MAX
                and b"/" not in name
                and b"\0" not in name
                and name not in _DOTS
                and type(mode) is int
                and mode >> _TYPE_SHIFT == _REGULAR
                and type(uid) is type(gid) is type(sec) is type(nsec) is type(size) is int
                and 0 <= uid <= ID_MAX
                and 0 <= gid <= ID_MAX
                and -_TIME_LIMIT <= sec < _TIME_LIMIT
                and 0 <= nsec < NS
                and 0 <= size <= SIZE_MAX
                and type(content) is blake3
                and type(measured) is verity
                and (content is None or len(content) == DIGEST_SIZE)
                and (measured is None or len(measured) == DIGEST_SIZE)
            ):
                files += 1
                size_of_all += size
                if len(name) > longest:
                    longest = len(name)
                previous = name
                continue
        name, node = decode_entry(row, where)
        if name <= previous:
            _fail(where, f"entry '{printable(name)}' does not sort after '{printable(previous)}'")
        previous, longest = name, max(longest, len(name))
        match node:
            case RegularFile():
                check_digests(node, digests, (where, name))
                files += 1
                size_of_all += node.size
            case Directory():
                if below is DirectoryKind.OPAQUE and node.kind is DirectoryKind.MERGE:
                    _fail(where, f"merge directory '{printable(name)}' below an opaque one")
                directories.append((position, (name, node)))
            case Symlink():
                symlinks += 1
            case _:
                others += 1
    first = rows[0][0] if rows else b""
    counts = Counts(files=files, symlinks=symlinks, others=others, bytes=size_of_all)
    return Examined(len(rows), first, previous, longest, counts, directories)


def check_digests(node: RegularFile, digests: tuple[DigestName, ...], where: Where) -> None:
    """Raises FormatError unless a file has the digests that the root object announces."""
    there = (node.blake3 is not None, node.verity is not None)
    if there != (DigestName.BLAKE3 in digests, DigestName.VERITY in digests):
        _fail(where, "has not the digests the root object announces")


def element_count(data: bytes) -> int:
    """How many elements a page says it has."""
    return _array_length(data, "page")[0]


def page_bytes(data: bytes) -> int:
    """What the elements of a page have together, in bytes."""
    return len(data) - _array_length(data, "page")[1]


def first_element_bytes(data: bytes) -> int:
    """Length of the first element of a page that has been decoded."""
    start = _array_length(data, "page")[1]
    return next(element_ends(memoryview(data)[start:]))


def check_division(before: bytes, after: bytes, where: str) -> None:
    """Raises FormatError when the first element of a page would have fitted into the page before it."""
    if page_bytes(before) + first_element_bytes(after) <= PAGE_BYTES:
        _fail(where, "a page ends although the next element fits")


def _check_page_size(data: bytes, where: str) -> None:
    """Before it is decoded: what a page may take of memory is a quarter of what an object may."""
    count, start = _array_length(data, where)
    if count > 1 and len(data) - start > PAGE_BYTES:
        _fail(where, f"a page of {len(data) - start} bytes, more than {PAGE_BYTES}")


def decode_root(data: bytes, where: str = "root object") -> Root:
    """The root object."""
    fields = _elements(data, where)
    if len(fields) != 10:
        _fail(where, f"{len(fields)} elements instead of 10")
    mode, uid, gid, sec, nsec, xattrs, directory, entries, links, digests = fields
    mode = _mode(mode, where)
    if not stat.S_ISDIR(mode):
        _fail(where, "is not a directory")
    if type(digests) is not list or digests not in ([], ["blake3"], ["verity"], ["blake3", "verity"]):
        _fail(where, "bad list of digests")
    return Root(
        directory=Directory(
            mode=mode,
            uid=_integer(uid, 0, ID_MAX, "uid", where),
            gid=_integer(gid, 0, ID_MAX, "gid", where),
            mtime_ns=_time(sec, nsec, where),
            xattrs=_xattrs(xattrs, where) if xattrs != [] else (),
            children=ObjectId(_digest(directory, "directory ID", where)),
            entries=_integer(entries, 0, ENTRIES_MAX, "entries", where),
            kind=DirectoryKind.MERGE,
        ),
        links=None if links is None else ObjectId(_digest(links, "link index ID", where)),
        digests=tuple(DigestName(name) for name in digests),
    )


def decode_link_page(data: bytes, where: str, *, after: bytes) -> list[PrimaryRow | LinkRow]:
    """The rows of a link page; `after` is the path of the row before it."""
    rows: list[PrimaryRow | LinkRow] = []
    _check_page_size(data, where)
    raw = _elements(data, where)
    if not raw:
        _fail(where, "no rows")
    key = tree_order(after)
    for row in raw:
        if type(row) is not list or len(row) != 2:
            _fail(where, "a row is not an array of two")
        path = _path(row[0], where)
        previous, key = key, tree_order(path)
        if key <= previous:
            _fail(where, f"'{printable(path)}' does not sort after the row before it")
        if type(row[1]) is bytes:
            target = _path(row[1], where)
            if tree_order(target) >= key:
                _fail(where, f"hard link '{printable(path)}' comes before its primary '{printable(target)}'")
            rows.append(LinkRow(path, target))
        else:
            rows.append(PrimaryRow(path, _integer(row[1], 2, ENTRIES_MAX, "nlink", where)))
    return rows


def decode_link_index(data: bytes, where: str) -> list[ObjectId]:
    """The IDs of the link pages."""
    ids = [ObjectId(_digest(item, "page ID", where)) for item in _elements(data, where)]
    if not ids:
        _fail(where, "no pages")
    return ids


def _elements(data: bytes, where: str) -> list[object]:
    """The elements of the one array `data` consists of, in canonical form.

    The outermost header is read here, so that only its elements, not what nests in them, may be long: what a hostile
    object makes msgpack allocate stays in proportion to the object.
    """
    count, start = _array_length(data, where)
    if count > len(data) - start:
        _fail(where, f"an array of {count} elements in {len(data)} bytes")
    try:
        elements = unpack_elements(
            memoryview(data)[start:], count, max_bin_len=XATTR_VALUE_MAX, max_array_len=2 * XATTR_COUNT_MAX
        )
    except PackingError as error:
        _fail(where, f"not valid msgpack: {error}")
    try:
        canonical = pack(elements)
    except (ValueError, TypeError, OverflowError):
        canonical = b""
    if canonical != data:
        _fail(where, "not canonical msgpack")
    return elements


def _array_length(data: bytes, where: str) -> tuple[int, int]:
    """Length and header size of the msgpack array that `data` begins with."""
    if data[:1] and 0x90 <= data[0] <= 0x9F:
        return data[0] & 0x0F, 1
    if data[:1] == b"\xdc" and len(data) >= 3:
        return int.from_bytes(data[1:3], "big"), 3
    if data[:1] == b"\xdd" and len(data) >= 5:
        return int.from_bytes(data[1:5], "big"), 5
    _fail(where, "not an array")


def unpack_rows(data: bytes) -> list[Any]:
    """What a directory object holds, as msgpack has it and unchecked: `decode_entry` checks one element.

    For comparing two directories, where most elements are alike and of no interest. Raises FormatError when it is no
    array of as many elements as it says.
    """
    count, start = _array_length(data, "directory")
    try:
        return unpack_elements(
            memoryview(data)[start:], count, max_bin_len=XATTR_VALUE_MAX, max_array_len=2 * XATTR_COUNT_MAX
        )
    except PackingError as error:
        _fail("directory", f"not valid msgpack: {error}")


def decode_entry(row: object, where: str) -> Entry:
    """An element of a directory object. Raises FormatError naming `where` and, if it got that far, the entry."""
    if type(row) is not list or len(row) < _COMMON:
        _fail(where, "an entry is not an array of six or more")
    name = row[0]
    check_name(name, where)
    at = (where, name)
    mode = _mode(row[1], at)
    uid = _integer(row[2], 0, ID_MAX, "uid", at)
    gid = _integer(row[3], 0, ID_MAX, "gid", at)
    mtime_ns = _time(row[4], row[5], at)
    file_type = stat.S_IFMT(mode)
    base = _COMMON + _FIELDS_BY_TYPE[file_type]
    if len(row) not in (base, base + 1):
        _fail(at, f"{len(row)} fields")
    xattrs = _xattrs(row[base], at) if len(row) > base else ()
    node: Node
    if file_type == stat.S_IFREG:
        node = RegularFile(
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=mtime_ns,
            xattrs=xattrs,
            size=_integer(row[6], 0, SIZE_MAX, "size", at),
            blake3=None if row[7] is None else ContentDigest(_digest(row[7], "BLAKE3 digest", at)),
            verity=None if row[8] is None else VerityDigest(_digest(row[8], "fs-verity digest", at)),
        )
    elif file_type == stat.S_IFDIR:
        node = Directory(
            mode=mode,
            uid=uid,
            gid=gid,
            mtime_ns=mtime_ns,
            xattrs=xattrs,
            children=ObjectId(_digest(row[6], "directory ID", at)),
            entries=_integer(row[7], 0, ENTRIES_MAX, "entries", at),
            kind=DirectoryKind(_integer(row[8], 0, 1, "kind", at)),
        )
        if node.kind is DirectoryKind.MERGE and not node.entries:
            _fail(at, "a merge directory without entries")
    elif file_type == stat.S_IFLNK:
        target = row[6]
        if type(target) is not bytes or not 1 <= len(target) <= SYMLINK_TARGET_MAX or 0 in target:
            _fail(at, "bad symlink target")
        node = Symlink(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, target=target)
    elif file_type in (stat.S_IFCHR, stat.S_IFBLK):
        major = _integer(row[6], 0, MAJOR_LIMIT - 1, "major number", at)
        minor = _integer(row[7], 0, MINOR_LIMIT - 1, "minor number", at)
        if file_type == stat.S_IFCHR and major == minor == 0:
            _fail(at, "a character device 0,0 is an overlayfs whiteout")
        node = Device(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, major=major, minor=minor)
    else:
        node = Special(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs)
    return Entry(name, node)


def check_name(name: object, where: Where) -> None:
    """Raises FormatError unless `name` can be the name of a directory entry."""
    if type(name) is not bytes:
        _fail(where, "a name that is not bytes")
    if not 1 <= len(name) <= NAME_MAX:
        _fail(where, f"a name of {len(name)} bytes")
    if 0 in name or b"/" in name or name in (b".", b".."):
        _fail(where, f"'{printable(name)}' is not a name")


def _path(path: object, where: str) -> bytes:
    if type(path) is not bytes or not 1 <= len(path) <= PATH_LIMIT:
        _fail(where, "bad path")
    for name in path.split(b"/"):
        check_name(name, where)
    return path


def _mode(mode: object, where: Where) -> int:
    value = _integer(mode, 0, 0o177777, "mode", where)
    if stat.S_IFMT(value) not in _FIELDS_BY_TYPE:
        _fail(where, f"bad mode {value:o}: no file type")
    return value


def _time(sec: object, nsec: object, where: Where) -> int:
    return _integer(sec, -(2**63), 2**63 - 1, "mtime", where) * NS + _integer(nsec, 0, NS - 1, "mtime_nsec", where)


def _integer(value: object, low: int, high: int, what: str, where: Where) -> int:
    if type(value) is not int or not low <= value <= high:
        _fail(where, f"bad {what}")
    return value


def _digest(value: object, what: str, where: Where) -> bytes:
    if type(value) is not bytes or len(value) != DIGEST_SIZE:
        _fail(where, f"bad {what}")
    return value


def _xattrs(value: object, where: Where) -> Xattrs:
    if type(value) is not list or not value or len(value) % 2 or len(value) > 2 * XATTR_COUNT_MAX:
        _fail(where, "bad list of xattrs")
    pairs = []
    previous = b""
    for i in range(0, len(value), 2):
        name, content = value[i], value[i + 1]
        if type(name) is not bytes or type(content) is not bytes or len(content) > XATTR_VALUE_MAX:
            _fail(where, "bad xattr")
        problem = xattr_problem(name)
        if problem:
            _fail(where, f"xattr '{printable(name)}': {problem}")
        if name <= previous:
            _fail(where, f"xattr '{printable(name)}' does not sort after the one before it")
        previous = name
        pairs.append((name, content))
    return tuple(pairs)


def xattr_problem(name: bytes) -> str | None:
    """Why a manifest cannot carry an xattr of this name; None if it can."""
    if not 1 <= len(name) <= XATTR_NAME_MAX or 0 in name:
        return "not a valid name"
    if name.startswith(OVERLAY_XATTRS):
        return "belongs to overlayfs"
    if name in ACL_XATTRS:
        return None
    if not name.startswith(XATTR_NAMESPACES):
        return "unknown namespace"
    if name.endswith(b".") and name in XATTR_NAMESPACES:
        return "not a valid name"
    return None


def _fail(where: Where, reason: str) -> NoReturn:
    place = where if isinstance(where, str) else f"{where[0]}: '{printable(where[1])}'"
    raise FormatError(f"{place}: {reason}")
