"""Files a reader must refuse: each has one flaw, is otherwise valid, and has true digests unless they are the flaw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, product

import zstandard
from blake3 import blake3

from mkmeta.codec.packing import pack
from mkmeta.digest import ObjectKind
from tests.vectors.assemble import (
    Draft,
    Parts,
    Value,
    add_contents,
    compress,
    entry,
    facts,
    file,
    handmade_frame,
    holding,
    sized,
    total,
)
from tests.vectors.trees import INFO, PAGE_BYTES

REG, DIR, LNK, CHR, BLK, FIFO, SOCK = 0o100644, 0o040755, 0o120777, 0o020600, 0o060600, 0o010600, 0o140600
ID = bytes(range(32))  # of nothing


def base() -> Parts:
    """A valid file: two entries in a subtree, facts."""
    draft = Draft()
    below = draft.folder(b"d", file(b"a"), file(b"b"))
    inner = draft.add_facts(facts([1, 1], [5, -5], [], [1, 2], dirs=1, files=2, bytes=6, linked=1))
    outer = draft.add_facts(facts([2], [7], [inner], [], dirs=1, skeleton=1, files=2, bytes=6, linked=1))
    return draft.finish(below, facts=outer)


def entries(*rows: Value) -> bytes:
    """A file with these entries in the root."""
    return Draft().finish(*rows).encode()


def below(*rows: Value, **options: Value) -> bytes:
    """A file with these entries in an opaque directory."""
    draft = Draft()
    return draft.finish(draft.folder(b"d", *rows, **options)).encode()


def raw_directory(data: bytes, count: int = 1) -> bytes:
    """A file whose root directory consists of these bytes."""
    draft = Draft()
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, data), count=count).encode()


def root(number: int, value: Value) -> bytes:
    """A file with another value for an element of the root object."""
    return Draft().finish(file(), root={number: value}).encode()


def changed(change: Callable[[Parts], None]) -> bytes:
    """The valid file with a change to its parts."""
    parts = base()
    change(parts)
    return parts.encode()


def container_cases() -> Iterator[tuple[str, bytes]]:
    """Header, footer and tables."""
    valid = base().encode()
    size = len(valid)
    yield "empty-file", b""
    yield "header-magic", b"\x88" + valid[1:]
    yield "header-cut", valid[:20]
    yield "header-only", valid[:32]
    for name, number, value in (("version", 1, 2), ("incompat", 4, 1), ("reserved", 5, b"\0\0\0\0\0\0\0\1")):
        yield f"header-{name}", changed(lambda parts: parts.header.__setitem__(number, value))  # noqa: B023 - called now
    yield "footer-cut", valid[:-1]
    yield "footer-half-cut", valid[: size // 2]
    yield "footer-bytes-after", valid + b"\0"
    tables = base()
    frame_table = 32 + sum(map(len, tables.frames))
    rows = len(tables.object_rows)
    footers: dict[str, dict[str, Value]] = {
        "reserved": {"zero": 1},
        "frame-table": {"frame_table": frame_table + 16},
        "frame-table-in-header": {"frame_table": 16, "frames": 3, "object_table": 64, "objects": 0},
        "frame-count": {"frames": 4},
        "object-table": {"object_table": frame_table + 3 * 16 + 44},
        "object-count": {"objects": rows + 1},
        "object-count-huge": {"objects": 2**63},
        "id": {"id": ID},
        "info-frame": {"info": (9, 0, 10)},
        "info-offset": {"info": (1, 2**32 - 1, 10)},
        "info-length": {"info": (1, 0, 2**32 - 1)},
        "info-length-plus-one": {"info": (1, 0, tables.sizes[1] + 1)},
        "info-empty": {"info": (1, 0, 0)},
        "facts-frame": {"facts": (9, 0, 10)},
        "facts-offset": {"facts": (2, 2**32 - 1, 10)},
        "facts-length": {"facts": (2, 0, 1000)},
        "facts-of-no-length": {"facts": (2, 0, 0)},
    }
    for name, footer in footers.items():
        yield f"footer-{name}", changed(lambda parts: parts.footer.update(footer))  # noqa: B023 - called now
    length = len(tables.frames[0])
    content = tables.sizes[0]
    frame_rows = {
        "frame-in-header": [16, length, content],
        "frame-in-tables": [frame_table - length + 1, length, content],
        "frame-beyond-file": [2**64 - 1, length, content],
        "frame-not-zstd": [33, length, content],
        "frame-compressed-short": [32, length - 1, content],
        "frame-compressed-long": [32, length + 1, content],
        "frame-compressed-huge": [32, 2**32 - 1, content],
        "frame-compressed-zero": [32, 0, content],
        "frame-size-short": [32, length, content - 1],
        "frame-size-long": [32, length, content + 1],
        "frame-size-beyond-limit": [32, length, 2**22 + 1],
    }
    for name, row in frame_rows.items():
        yield name, changed(lambda parts: parts.frame_rows.update({0: row}))  # noqa: B023 - called now
    unused = base()
    unused.frames.append(b"")
    unused.sizes.append(0)
    unused.frame_rows[3] = [2**40, 1, 1]
    yield "frame-unused-beyond-file", unused.encode()
    large = base()
    large.sizes[0] = 2**22 + 1
    large.frames[0] = compress(zstandard.decompress(large.frames[0]).ljust(2**22 + 1, b"\0"))
    yield "frame-too-large", large.encode()
    object_rows: dict[str, tuple[int, Value]] = {
        "object-frame": (1, 9),
        "object-offset": (2, 2**32 - 1),
        "object-offset-plus-one": (2, content),
        "object-length": (3, 2**32 - 1),
        "object-length-beyond-limit": (3, 2**20 + 1),
        "object-length-plus-one": (3, 4096),
        "object-length-zero": (3, 0),
        "object-absent": (0, b"\xff" * 32),
    }
    for name, (column, value) in object_rows.items():
        yield name, _with_row_of_directory(column, value)
    yield "object-table-unsorted", changed(lambda parts: parts.object_rows.reverse())
    yield "object-table-duplicate", changed(lambda parts: parts.object_rows.insert(0, parts.object_rows[0]))
    for name, place in (("unsorted", 128), ("duplicate", 256)):
        yield f"object-table-{name}-far", _long_table(place, duplicate=name == "duplicate")


def _with_row_of_directory(column: int, value: Value) -> bytes:
    """The valid file with a change to the object table's row of the directory `d`."""
    below_id = Draft().directory(file(b"a"), file(b"b"))

    def change(parts: Parts) -> None:
        next(row for row in parts.object_rows if row[0] == below_id)[column] = value
        parts.object_rows.sort()

    return changed(change)


def _long_table(place: int, *, duplicate: bool) -> bytes:
    """A table of hundreds of rows, all but those of the tree unused, wrong before row `place`."""

    def change(parts: Parts) -> None:
        parts.object_rows += [[number.to_bytes(2, "big") * 16, 0, 0, 1] for number in range(0x101, 0x300)]
        parts.object_rows.sort()
        rows = parts.object_rows
        rows[place][0], rows[place - 1][0] = rows[place - 1][0], rows[place][0]
        if duplicate:
            rows[place][0] = rows[place - 1][0]

    return changed(change)


def frame_cases() -> Iterator[tuple[str, bytes]]:
    """Zstandard frames that are not what the table says."""
    info = _info_bytes()
    size = len(info)
    frames = {
        "no-content-size": handmade_frame(info, size=None),
        "no-checksum": handmade_frame(info, size=size, checksum=False),
        "dictionary": handmade_frame(info, size=size, dictionary=7),
        "bomb": handmade_frame(info, size=size, zeros=4096),
        "window": handmade_frame(info, size=size, window=23),
        "states-too-much": handmade_frame(info, size=2**62),
        "states-a-little-more": handmade_frame(info, size=size + 1),
        "holds-less": handmade_frame(info[:-1], size=size),
        "two": compress(info) + compress(b""),
        "bytes-after": compress(info) + b"\0",
        "skippable": b"\x50\x2a\x4d\x18" + size.to_bytes(4, "little") + info,
        "skippable-first": b"\x50\x2a\x4d\x18" + bytes(4) + compress(info),
        "checksum-damaged": compress(info)[:-1] + bytes([compress(info)[-1] ^ 1]),
        "empty": b"",
    }
    for name, frame in frames.items():
        parts = Draft().finish(file())
        parts.frames[1], parts.sizes[1] = frame, size
        yield f"zstd-{name}", parts.encode()


def _info_bytes() -> bytes:
    return pack(info_values())


def info_values() -> dict[str, Value]:
    """A valid info record."""
    return {
        "root": INFO.root,
        "created": INFO.created,
        "tool": INFO.tool,
        "select": [b"a*"],
        "hide": [],
        "left_out": [[b"x", "why"]],
        "counts": {"hidden": 1},
    }


def digest_cases() -> Iterator[tuple[str, bytes]]:
    """IDs that are not those of the bytes."""
    draft = Draft()
    draft.add(ObjectKind.DIRECTORY, [entry(b"d", DIR, ID, 1, 1)], object_id=ID)
    yield "digest-cycle", draft.finish(entry(b"d", DIR, ID, 1, 1), count=2).encode()
    draft = Draft()
    page = draft.add(ObjectKind.DIRECTORY, [[b"a", 2], [b"b", b"a"]])
    index = draft.add(ObjectKind.LINK_INDEX, [page])
    yield "digest-of-another-kind", draft.finish(file(b"a"), file(b"b"), links=index).encode()
    draft = Draft()
    damaged = draft.directory(file())
    draft.objects[damaged] = draft.objects[damaged].replace(b"f", b"g")
    yield "digest-damaged", draft.finish(entry(b"d", DIR, damaged, 1, 1)).encode()


def msgpack_cases() -> Iterator[tuple[str, bytes]]:
    """A directory of one file in every encoding but the canonical one."""
    good = pack([file()])
    name = b"\xc4\x01f"
    mode = b"\xcd\x81\xa4"
    yield "msgpack-empty", raw_directory(b"")
    yield "msgpack-bytes-after", raw_directory(good + b"\0")
    yield "msgpack-value-after", raw_directory(good + pack(file(b"g")), 2)
    yield "msgpack-cut", raw_directory(good[:-1])
    yield "msgpack-long-directory", raw_directory(b"\xdc\0\1" + good[1:])
    yield "msgpack-longest-directory", raw_directory(b"\xdd\0\0\0\1" + good[1:])
    yield "msgpack-long-entry", raw_directory(good[:1] + b"\xdc\0\x09" + good[2:])
    yield "msgpack-long-name", raw_directory(good.replace(name, b"\xc5\0\1f"))
    yield "msgpack-long-integer", raw_directory(good.replace(mode, b"\xce\0\0\x81\xa4"))
    yield "msgpack-longest-integer", raw_directory(good.replace(mode, b"\xcf\0\0\0\0\0\0\x81\xa4"))
    yield "msgpack-signed-integer", raw_directory(good.replace(mode, b"\xd2\0\0\x81\xa4"))
    yield "msgpack-long-zero", raw_directory(good.replace(mode + b"\0", mode + b"\xcc\0"))
    negative = pack([[b"f", REG, 0, 0, -1, 0, 3, None, None]])
    yield "msgpack-long-negative", raw_directory(negative.replace(b"\xff", b"\xd0\xff"))
    yield "msgpack-huge-array", raw_directory(b"\xdd\xff\xff\xff\xff" + good[1:])
    yield "msgpack-huge-entry", raw_directory(b"\x91\xdd\xff\xff\xff\xff" + good[2:])
    yield "msgpack-huge-name", raw_directory(good.replace(name, b"\xc6\xff\xff\xff\xfff"))
    yield "msgpack-too-few", raw_directory(b"\x92" + good[1:], 2)
    yield "msgpack-too-many", raw_directory(b"\x90" + good[1:], 0)
    yield "msgpack-nested", raw_directory(b"\x91" * 5000 + b"\x90")
    yield "msgpack-nested-long", raw_directory(b"\x91" + b"\xdc\x49\x24" * 5000)
    yield "msgpack-map", raw_directory(b"\x81\xc4\1f\0")
    yield "msgpack-reserved", raw_directory(b"\x91\xc1")
    yield "msgpack-integer", raw_directory(b"\x01")
    others = {"float": 0.0, "float-like": 3.5, "true": True, "false": False, "map": {}, "text": "0", "array": []}
    for kind, value in others.items():
        yield f"msgpack-{kind}-field", entries([b"f", REG, 0, 0, 0, value, 3, None, None])
    yield "msgpack-ext-field", raw_directory(good.replace(mode + b"\0", mode + b"\xc7\0\5"))
    yield "msgpack-bad-utf8", raw_directory(b"\x91\x91\xa1\xff")


def entry_cases() -> Iterator[tuple[str, bytes]]:
    """Fields of an entry."""
    wrong: dict[str, list[Value]] = {
        "not-array": [5],
        "empty": [[]],
        "of-five": [[b"f", REG, 0, 0, 0]],
        "of-six": [[b"f", REG, 0, 0, 0, 0]],
        "too-long": [file(b"f", [b"user.a", b""], 0)],
        "name-text": [file("f")],
        "name-nil": [file(None)],
        "name-integer": [file(7)],
        "mode-bytes": [entry(b"f", b"x", 0, None, None)],
        "mode-zero": [entry(b"f", 0, 0, None, None)],
        "mode-no-type": [entry(b"f", 0o644, 0, None, None)],
        "mode-unknown-type": [entry(b"f", 0o150644, 0, None, None)],
        "mode-bits-above": [entry(b"f", 0o300644, 0, None, None)],
        "mode-negative": [entry(b"f", -1, 0, None, None)],
        "uid-negative": [[b"f", REG, -1, 0, 0, 0, 3, None, None]],
        "uid-all-ones": [[b"f", REG, 2**32 - 1, 0, 0, 0, 3, None, None]],
        "uid-nil": [[b"f", REG, None, 0, 0, 0, 3, None, None]],
        "gid-negative": [[b"f", REG, 0, -1, 0, 0, 3, None, None]],
        "gid-all-ones": [[b"f", REG, 0, 2**32 - 1, 0, 0, 3, None, None]],
        "mtime-too-late": [[b"f", REG, 0, 0, 2**63, 0, 3, None, None]],
        "mtime-nil": [[b"f", REG, 0, 0, None, 0, 3, None, None]],
        "mtime-nsec-negative": [[b"f", REG, 0, 0, 0, -1, 3, None, None]],
        "mtime-nsec-a-second": [[b"f", REG, 0, 0, 0, 10**9, 3, None, None]],
        "size-negative": [file(size=-1)],
        "size-too-large": [file(size=2**63)],
        "size-nil": [file(size=None)],
        "directory-id-short": [entry(b"f", DIR, bytes(31), 0, 1)],
        "directory-id-nil": [entry(b"f", DIR, None, 0, 1)],
        "directory-entries-negative": [entry(b"f", DIR, ID, -1, 1)],
        "directory-entries-too-many": [entry(b"f", DIR, ID, 2**32, 1)],
        "directory-kind": [entry(b"f", DIR, ID, 0, 2)],
        "directory-kind-true": [entry(b"f", DIR, ID, 0, True)],
        "symlink-empty": [entry(b"f", LNK, b"")],
        "symlink-nul": [entry(b"f", LNK, b"a\0b")],
        "symlink-too-long": [entry(b"f", LNK, b"x" * 4096)],
        "symlink-text": [entry(b"f", LNK, "target")],
        "symlink-nothing": [entry(b"f", LNK)],
        "device-major": [entry(b"f", CHR, 4096, 0)],
        "device-minor": [entry(b"f", BLK, 0, 2**20)],
        "device-negative": [entry(b"f", BLK, -1, 0)],
        "device-one-number": [entry(b"f", BLK, 1)],
        "whiteout": [entry(b"f", CHR, 0, 0)],
        "fifo-field": [entry(b"f", FIFO, 0)],
        "socket-two-fields": [entry(b"f", SOCK, 0, [b"user.a", b""])],
    }
    for name, rows in wrong.items():
        yield f"entry-{name}", entries(*rows)
    names = {
        "empty": b"",
        "dot": b".",
        "dot-dot": b"..",
        "slash": b"a/b",
        "only-slash": b"/",
        "nul": b"a\0",
        "too-long": b"n" * 256,
    }
    for name, value in names.items():
        yield f"name-{name}", entries(file(value))
    yield "name-unsorted", entries(file(b"b"), file(b"a"))
    yield "name-unsorted-bytes", entries(file(b"\xff"), file(b"\x7f"))
    yield "name-duplicate", entries(file(b"a"), file(b"a"))
    yield "name-duplicate-kind", entries(entry(b"a", FIFO), file(b"a"))


def xattr_cases() -> Iterator[tuple[str, bytes]]:
    """Xattrs."""
    lists: dict[str, Value] = {
        "empty-list": [],
        "nil": None,
        "bytes": b"user.a",
        "odd": [b"user.a"],
        "name-text": ["user.a", b""],
        "value-text": [b"user.a", ""],
        "value-nil": [b"user.a", None],
        "value-too-large": [b"user.a", bytes(65537)],
        "name-empty": [b"", b""],
        "name-too-long": [b"user." + b"a" * 251, b""],
        "name-nul": [b"user.a\0", b""],
        "namespace-none": [b"a", b""],
        "namespace-system": [b"system.nfs4_acl", b""],
        "namespace-unknown": [b"btrfs.compression", b""],
        "namespace-upper-case": [b"User.a", b""],
        "namespace-only": [b"user.", b""],
        "overlay-trusted": [b"trusted.overlay.opaque", b"y"],
        "overlay-user": [b"user.overlay.metacopy", b""],
        "overlay-escaped": [b"trusted.overlay.overlay.opaque", b"y"],
        "overlay-prefix-only": [b"user.overlay.", b""],
        "unsorted": [b"user.b", b"", b"user.a", b""],
        "duplicate": [b"user.a", b"", b"user.a", b""],
        "too-many": [item for number in range(9363) for item in (b"user.%05d" % number, b"")],
    }
    for name, value in lists.items():
        yield f"xattr-{name}", entries(file(b"f", value))
    yield "xattr-of-root", root(5, [b"trusted.overlay.opaque", b"y"])
    draft = Draft()
    inside = [*draft.folder(b"d", file()), [b"trusted.overlay.redirect", b"/etc"]]
    yield "xattr-of-directory", draft.finish(inside).encode()


def tree_cases() -> Iterator[tuple[str, bytes]]:
    """Directories that do not fit together."""
    draft = Draft()
    merge = draft.folder(b"m", file(), kind=0)
    yield "merge-below-opaque", draft.finish(draft.folder(b"d", merge)).encode()
    draft = Draft()
    yield "merge-empty", draft.finish(draft.folder(b"d", kind=0)).encode()
    yield "entries-too-few", below(file(b"a"), file(b"b"), count=1)
    yield "entries-too-many", below(file(b"a"), file(b"b"), count=3)
    yield "entries-of-empty", below(count=1)
    yield "entries-of-root", root(7, 2)
    yield "bomb-with-lies", _bomb(lambda true: min(true, 2))
    yield "bomb-with-great-lies", _bomb(lambda true: min(true, 2**32 - 1))
    yield "bomb-honest", _bomb(lambda true: true)
    yield "digest-not-announced", entries(entry(b"f", REG, 0, None, ID))
    only = entry(b"f", REG, 0, ID, None)
    yield "digest-one-of-two", Draft().finish(only, root={9: ["blake3", "verity"]}).encode()
    for name, value in (("short", bytes(31)), ("long", bytes(33)), ("text", "a" * 32), ("integer", 0), ("nil", None)):
        for number, digest in enumerate(("blake3", "verity")):
            digests = [value if number == other else None for other in range(2)]
            yield f"digest-{digest}-{name}", Draft().finish(entry(b"f", REG, 0, *digests), root={9: [digest]}).encode()
    yield "path-too-long", _deep(4095)
    yield "object-too-long", entries(sized(b"f", 2**20))
    yield "root-too-long", root(5, sized(b"f", 2**20)[-1])


def page_cases() -> Iterator[tuple[str, bytes]]:
    """Directories of several pages."""
    a, b, c = (sized(name, 150_000) for name in (b"a", b"b", b"c"))
    half, more = sized(b"a", 131_072), sized(b"b", 131_073)
    yield "page-too-long", entries(half, more)
    yield "page-too-long-of-several", _divided([half, more], [c])
    yield "page-ends-early", _divided([sized(b"a", 1000)], [sized(b"b", 1000)])
    yield "page-ends-early-exactly", _divided([half], [sized(b"b", 131_072)])
    yield "page-ends-early-late", _divided([a], [b], [sized(b"c", 1000)])
    yield "page-longer-than-an-object", _divided([a], [sized(b"b", 2**20)])
    yield "page-single", _divided([a])
    yield "pages-unsorted", _divided([half, sized(b"z", 100_000)], [b])
    yield "pages-duplicate", _divided([half, sized(b"b", 100_000)], [b])
    full = sized(b"a", 262_144)
    yield "page-of-pages", _divided([full], [[b"b", ID, 1], [b"c", ID, 1]])
    yield "page-merge-below-opaque", _divided([full], [entry(b"b", DIR, ID, 1, 0), c], kind=1)
    good = pack([file(b"b")])
    pages = {
        "empty": [],
        "of-no-bytes": b"",
        "not-array": 5,
        "cut": good[:-1],
        "bytes-after": good + b"\0",
        "reserved-byte": b"\x91\xc1",
        "nested": b"\x91" * 5000 + b"\x90",
        "huge": b"\xdd\xff\xff\xff\xff" + good[1:],
        "long-header": b"\xdc\0\1" + good[1:],
    }
    for name, page in pages.items():
        yield f"page-{name}", _divided([full], page, rows=lambda ids: [[b"a", ids[0], 1], [b"b", ids[1], 1]], count=2)
    draft = Draft()
    other = draft.directory(b)
    yield (
        "page-of-another-kind",
        _divided([a], rows=lambda ids: [[b"a", *ids, 1], [b"b", other, 1]], count=2, draft=draft),
    )
    rows: dict[str, Callable[[list[bytes]], Value]] = {
        "first": lambda ids: [[b"a", ids[0], 1], [b"aa", ids[1], 1]],
        "first-later": lambda ids: [[b"a", ids[0], 1], [b"bb", ids[1], 1]],
        "first-empty": lambda ids: [[b"", ids[0], 1], [b"b", ids[1], 1]],
        "first-no-name": lambda ids: [[b"a", ids[0], 1], [b"b/", ids[1], 1]],
        "first-text": lambda ids: [["a", ids[0], 1], [b"b", ids[1], 1]],
        "descending": lambda ids: [[b"b", ids[1], 1], [b"a", ids[0], 1]],
        "twice": lambda ids: [[b"a", ids[0], 1], [b"a", ids[0], 1]],
        "id-short": lambda ids: [[b"a", ids[0], 1], [b"b", ids[1][:31], 1]],
        "id-nil": lambda ids: [[b"a", ids[0], 1], [b"b", None, 1]],
        "id-absent": lambda ids: [[b"a", ids[0], 1], [b"b", ID, 1]],
        "entries-of-none": lambda ids: [[b"a", ids[0], 2], [b"b", ids[1], 0]],
        "entries-swapped": lambda ids: [[b"a", ids[0], 2], [b"b", ids[1], 1]],
        "entries-too-many": lambda ids: [[b"a", ids[0], 1], [b"b", ids[1], 2**32]],
        "entries-nil": lambda ids: [[b"a", ids[0], 1], [b"b", ids[1], None]],
        "of-two": lambda ids: [[b"a", ids[0], 1], [b"b", ids[1]]],
        "of-four": lambda ids: [[b"a", ids[0], 1], [b"b", ids[1], 1, 0]],
        "not-array": lambda ids: [[b"a", ids[0], 1], b"b"],
        "entry-behind": lambda ids: [[b"a", ids[0], 1], file(b"b")],
        "bytes-after": lambda ids: pack([[b"a", ids[0], 1], [b"b", ids[1], 1]]) + b"\0",
        "long-header": lambda ids: b"\xdc\0\2" + pack([[b"a", ids[0], 1], [b"b", ids[1], 1]])[1:],
    }
    for name, said in rows.items():
        yield f"page-row-{name}", _divided([a], [b], rows=said, count=3 if name == "entries-swapped" else 2)
    yield "pages-total", _divided([a], [b], count=3)


def _divided(
    *pages: Value,
    rows: Callable[[list[bytes]], Value] | None = None,
    count: int | None = None,
    kind: int = 0,
    draft: Draft | None = None,
) -> bytes:
    """A file of a directory `d` of these pages; `rows` says what its object says, given the IDs of the pages."""
    draft = draft or Draft()
    ids = [draft.add(ObjectKind.DIRECTORY_PAGE, page) for page in pages]
    totals = [total(tuple(page)) if isinstance(page, list) else 1 for page in pages]
    if rows is None:
        said: Value = [[page[0][0], page_id, number] for page, page_id, number in zip(pages, ids, totals, strict=True)]
    else:
        said = rows(ids)
    directory = draft.add(ObjectKind.DIRECTORY, said)
    return draft.finish(entry(b"d", DIR, directory, sum(totals) if count is None else count, kind)).encode()


def _bomb(stated: Callable[[int], int]) -> bytes:
    """Forty levels of two equal children; `stated` says what a directory claims to hold, given the truth."""
    draft = Draft()
    object_id, true = draft.directory(), 0
    for _ in range(40):
        children = [entry(name, DIR, object_id, stated(true), 1) for name in (b"a", b"b")]
        object_id, true = draft.directory(*children), 2 + 2 * true
    return draft.finish(top=object_id, count=min(stated(true), 2**32 - 1)).encode()


def _deep(size: int) -> bytes:
    """A file at a path of `size` bytes."""
    draft = Draft()
    names = [b"n" * 255] * (size // 256)
    inner: Value = file(b"f" * (size - 256 * len(names)) or b"f")
    for name in reversed(names):
        inner = draft.folder(name, inner)
    return draft.finish(inner).encode()


def root_cases() -> Iterator[tuple[str, bytes]]:
    """The root object."""
    elements: list[Value] = [DIR, 0, 0, 0, 0, [], ID, 1, None, []]
    for name, value in (("not-array", 7), ("of-nine", elements[:-1]), ("of-eleven", [*elements, None])):
        yield f"root-{name}", Draft().finish(file(), root_object=value).encode()
    yield "root-empty-object", Draft().finish(file(), root_object=b"\xc0").encode()
    wrong: dict[str, tuple[int, Value]] = {
        "not-directory": (0, REG),
        "mode-bits-above": (0, 0o240755),
        "uid": (1, 2**32 - 1),
        "gid": (2, -1),
        "mtime": (3, b""),
        "mtime-nsec": (4, 10**9),
        "xattrs-nil": (5, None),
        "xattrs-odd": (5, [b"user.a"]),
        "directory-nil": (6, None),
        "directory-absent": (6, ID),
        "entries-nil": (7, None),
        "entries-too-many": (7, 2**32),
        "links-integer": (8, 0),
        "links-absent": (8, ID),
        "links-short": (8, bytes(31)),
        "digests-nil": (9, None),
        "digests-unknown": (9, ["sha256"]),
        "digests-order": (9, ["verity", "blake3"]),
        "digests-twice": (9, ["blake3", "blake3"]),
        "digests-bytes": (9, [b"blake3"]),
        "digests-integer": (9, [1]),
    }
    for name, (number, value) in wrong.items():
        yield f"root-{name}", root(number, value)


def link_cases() -> Iterator[tuple[str, bytes]]:
    """Hard links."""
    good = [[b"a", 2], [b"b", b"a"]]
    pages: dict[str, list[Value]] = {
        "to-nowhere": [[[b"a", 2], [b"x", b"a"]]],
        "from-nowhere": [[[b"B", 2], [b"a", b"B"]]],
        "to-directory": [[[b"a", 2], [b"d", b"a"]]],
        "of-directory": [[[b"d", 2], [b"d2", b"d"]]],
        "to-link": [[[b"a", 3], [b"b", b"a"], [b"c", b"b"]]],
        "to-no-primary": [[[b"b", b"a"]]],
        "to-something-different": [[[b"a", 2], [b"e", b"a"]]],
        "before-primary": [[[b"a", b"b"], [b"b", 2]]],
        "to-itself": [[[b"a", b"a"]]],
        "nlink-one": [[[b"a", 1]]],
        "nlink-too-large": [[[b"a", 3], [b"b", b"a"]]],
        "nlink-too-small": [[[b"a", 2], [b"b", b"a"], [b"c", b"a"]]],
        "nlink-without-rows": [[[b"a", 2]]],
        "nlink-huge": [[[b"a", 2**32], [b"b", b"a"]]],
        "row-nil": [[[b"a", 2], [b"b", None]]],
        "row-text": [[[b"a", 2], [b"b", "a"]]],
        "row-path-text": [[["a", 2], [b"b", b"a"]]],
        "row-of-one": [[[b"a"]]],
        "row-of-three": [[[b"a", 2, 0], [b"b", b"a"]]],
        "row-not-array": [[5]],
        "unsorted": [[[b"b", b"a"], [b"a", 2]]],
        "unsorted-tree-order": [[[b"d.", 2], [b"d/f", b"d."]]],
        "duplicate": [[[b"a", 2], [b"a", 2], [b"b", b"a"], [b"c", b"a"]]],
        "path-empty": [[[b"", 2], [b"a", b""]]],
        "path-absolute": [[[b"/a", 2], [b"b", b"/a"]]],
        "path-slash-at-end": [[[b"a/", 2], [b"b", b"a/"]]],
        "path-dot-dot": [[[b"a", 2], [b"d/../b", b"a"]]],
        "path-double-slash": [[[b"a", 2], [b"d//f", b"a"]]],
        "path-nul": [[[b"a", 2], [b"b\0", b"a"]]],
        "path-too-long": [[[b"a", 2], [b"/".join([b"n" * 255] * 15 + [b"n" * 252, b"nn"]), b"a"]]],
        "target-empty": [[[b"a", 2], [b"b", b""]]],
        "page-empty": [good, []],
        "page-only-empty": [[]],
        "page-ends-early": [good[:1], good[1:]],
        "page-not-array": [pack(5)],
        "pages-none": [],
    }
    for name, content in pages.items():
        draft = Draft()
        yield f"link-{name}", _linked(draft, draft.links(*content))
    rows = _long_rows()
    first = next(number for number in range(len(rows)) if len(pack(rows[:number])) - 3 > PAGE_BYTES) - 1
    long_pages: dict[str, list[Value]] = {
        "page-too-long": [rows],
        "page-too-long-by-one-row": [rows[: first + 1], rows[first + 1 :]],
        "page-ends-a-row-early": [rows[: first - 1], rows[first - 1 :]],
        "pages-unsorted": [[*rows[: first - 1], rows[-1]], rows[first - 1 : -1]],
    }
    for name, content in long_pages.items():
        draft = Draft()
        yield f"link-{name}", _long_linked(draft, draft.links(*content))
    draft = Draft()
    yield "link-page-absent", _linked(draft, draft.add(ObjectKind.LINK_INDEX, [ID]))
    yield "link-page-nil", _linked(draft, draft.add(ObjectKind.LINK_INDEX, [None]))
    yield "link-index-not-array", _linked(draft, draft.add(ObjectKind.LINK_INDEX, None))
    yield "link-index-long-header", _linked(draft, draft.add(ObjectKind.LINK_INDEX, b"\xdc\0\1" + pack(ID)))
    draft = Draft()
    yield "link-page-bytes-after", _linked(draft, draft.links(pack(good) + b"\xc0"))


def _linked(draft: Draft, links: bytes) -> bytes:
    """A file with a, b and c alike, d a directory with a file, e different; `links` is the ID of the link index."""
    below = draft.folder(b"d", file(b"f"))
    rows = [file(b"a"), file(b"b"), file(b"c"), below, draft.folder(b"d2"), file(b"e", size=4)]
    rows.insert(4, file(b"d."))
    return draft.finish(*rows, links=links).encode()


_LONG = [bytes([letter]) * 255 for letter in b"abcdefghijklmn"]  # directories in one another
_LONG_NAMES = [b"%02d" % number for number in range(50)]


def _long_rows() -> list[Value]:
    """Rows for `_long_linked`: more than a page holds."""
    first, *others = (b"/".join([*_LONG, name]) for name in _LONG_NAMES)
    return [[first, len(_LONG_NAMES)], *([other, first] for other in others)]


def _long_linked(draft: Draft, links: bytes) -> bytes:
    """A file with names of one inode deep down."""
    inner = draft.folder(_LONG[-1], *map(file, _LONG_NAMES))
    for name in reversed(_LONG[:-1]):
        inner = draft.folder(name, inner)
    return draft.finish(inner, links=links).encode()


def record_cases() -> Iterator[tuple[str, bytes]]:
    """Info and facts."""
    infos: dict[str, Value] = {
        "not-map": [],
        "nil": b"\xc0",
        "bytes-after": _info_bytes() + b"\0",
        "cut": _info_bytes()[:-1],
        "huge-map": b"\xdf\xff\xff\xff\xff",
        "key-bytes": pack({b"root": b""}),
        "key-integer": pack({1: b""}),
        "key-array": b"\x81\x91\1\1",
        "bad-utf8": b"\x81\xa4tool\xa1\xff",
        "key-twice": b"\x88" + _info_bytes()[1:] + pack("tool") + pack("x"),
        "unknown-key-cut": b"\x88" + _info_bytes()[1:] + pack("new") + b"\x92\1",
        "unknown-key-reserved-byte": b"\x88" + _info_bytes()[1:] + pack("new") + b"\xc1",
    }
    wrong: dict[str, list[Value]] = {
        "root": ["/mnt", None, b"", b"mnt", b"/a\0b", b"/" + b"a" * 4095],
        "created": [b"", 1.5, True],
        "tool": [b"mkmeta", 1],
        "select": [b"a", ["a"], [1], [b""] * 65_537],
        "hide": [None, [None], [b""] * 65_537],
        "left_out": [{}, [[b"a"]], [["a", "b"]], [[b"a", b"b"]], [[b"a", "b", "c"]], [7], [[b"a", ""]] * 65_537],
        "counts": [[], {b"files": 1}, {"files": "1"}, {"files": 1.0}, {f"{n}": n for n in range(4097)}],
        "drop_xattrs": [b"user.a", ["user.a"], None, [b""] * 65_537],
        "hard_links": ["some", b"all", None, ""],
    }
    for key, values in wrong.items():
        missing = {name: value for name, value in info_values().items() if name != key}
        if key in info_values():
            infos[f"{key}-missing"] = missing
        infos |= {f"{key}-{number}": info_values() | {key: value} for number, value in enumerate(values, 1)}
    infos["select-huge"] = b"\x81" + pack("select") + b"\xdd\xff\xff\xff\xff" + b"\xc4\0" * 9
    for name, info in infos.items():
        yield f"info-{name.replace('_', '-')}", Draft().finish(file(), info=info).encode()


def facts_cases() -> Iterator[tuple[str, bytes]]:
    """Facts of the root: a directory `d` of one file, of which nothing is known, and two files."""
    counts = [1, 1, 3, 0, 0, 9, *[0] * 6]
    page: list[Value] = [[1, 1, 1], [1, 1, 1], [None], []]
    wrong: dict[str, Value] = {
        "not-array": 1,
        "of-one": [counts],
        "of-three": [counts, [page], []],
        "counts-not-array": [1, [page]],
        "counts-too-few": [counts[:-1], [page]],
        "counts-too-many": [counts + [0] * 53, [page]],
        "count-negative": [[*counts[:-1], -1], [page]],
        "count-nil": [[*counts[:-1], None], [page]],
        "count-of-a-later-version-negative": [[*counts, -1], [page]],
        "pages-not-array": [counts, 1],
        "pages-none": [counts, []],
        "pages-two": [counts, [page, page]],
        "pages-placed": [counts, [[2, 0, 9]]],
        "page-not-array": [counts, [1]],
        "page-of-three": [counts, [page[:3]]],
        "page-of-five": [counts, [[*page, []]]],
        "bytes-after": pack([counts, [page]]) + b"\0",
        "cut": pack([counts, [page]])[:-1],
        "huge": b"\x92" + pack(counts) + b"\xdd\xff\xff\xff\xff" + b"\1" * 9,
        "huge-column": b"\x92" + pack(counts) + b"\x91\x94\xdd\xff\xff\xff\xff" + b"\1" * 9,
    }
    columns: dict[str, list[Value]] = {
        "columns-not-arrays": [1, 1, 1, 1],
        "inodes-too-few": [[1, 1], *page[1:]],
        "inodes-too-many": [[1, 1, 1, 1], [1, 1, 1, 1], *page[2:]],
        "times-too-few": [page[0], [1, 1], *page[2:]],
        "inode-too-large": [[1, 1, 2**63], *page[1:]],
        "time-too-large": [page[0], [1, 1, 2**64 - 1], *page[2:]],
        "inode-nil": [[1, 1, None], *page[1:]],
        "inode-true": [[1, 1, True], *page[1:]],
        "inode-array": [[1, 1, [1]], *page[1:]],
        "children-too-few": [*page[:2], [], []],
        "children-too-many": [*page[:2], [None, None], []],
        "child-integer": [*page[:2], [2], []],
        "child-of-two": [*page[:2], [[2, 0]], []],
        "child-negative": [*page[:2], [[2, -1, 3]], []],
        "child-too-large": [*page[:2], [[2, 2**32, 3]], []],
        "child-frame": [*page[:2], [[3, 0, 3]], []],
        "child-offset": [*page[:2], [[2, 4000, 3]], []],
        "child-length": [*page[:2], [[2, 0, 4000]], []],
        "child-nothing": [*page[:2], [[2, 0, 0]], []],
        "child-of-another": [*page[:2], [[2, 0, 8]], []],
        "linked-odd": [*page[:3], [1]],
        "linked-nil": [*page[:3], [1, None]],
        "linked-array": [*page[:3], [[1, 2]]],
        "linked-of-directory": [*page[:3], [0, 2]],
        "linked-out-of-range": [*page[:3], [3, 2]],
        "linked-second-out-of-range": [*page[:3], [1, 2, 2, 2]],
        "linked-negative": [*page[:3], [-1, 2]],
        "linked-twice": [*page[:3], [1, 2, 0, 2]],
        "linked-descending": [*page[:3], [2, 2, -1, 2]],
        "linked-huge": [*page[:3], [2**62, 2]],
        "linked-nlink-one": [*page[:3], [1, 1]],
        "linked-nlink-too-large": [*page[:3], [1, 2**32]],
        "linked-nlink-negative": [*page[:3], [1, -2]],
    }
    wrong |= {name: [counts, [content]] for name, content in columns.items()}
    for name, content in wrong.items():
        draft = Draft()
        inside = draft.folder(b"d", file())
        rows = (inside, file(b"e"), file(b"f"))
        yield f"facts-{name}", draft.finish(*rows, facts=draft.add_facts(content)).encode()
    yield "facts-too-long", _long_facts()


def _long_facts() -> bytes:
    """A valid record of more than 512 KiB: of many short entries, with integers in their longest forms."""
    count = 15_000
    column = b"\xdc" + count.to_bytes(2, "big") + (b"\xd3" + bytes(8)) * count
    linked = (
        b"\xdd"
        + (2 * count).to_bytes(4, "big")
        + b"".join(b"\xd3" + number.to_bytes(8, "big") for position in range(count) for number in (min(position, 1), 2))
    )
    draft = Draft()
    counts = pack(facts(skeleton=1, others=count, linked=count)[0])
    record = b"\x92" + counts + b"\x91\x94" + column + column + b"\x90" + linked
    letters = b"abcdefghijklmnopqrstuvwxyz"
    names = [bytes(name) for name in islice(product(letters, repeat=3), count)]
    return draft.finish(*(entry(name, FIFO) for name in names), facts=draft.add_facts(record)).encode()


def count_cases() -> Iterator[tuple[str, bytes]]:
    """Counts that are not those of the tree."""
    true = {"dirs": 1, "skeleton": 1, "files": 2, "symlinks": 1, "others": 1, "bytes": 6, "linked": 1}
    inner = true | {"skeleton": 0}
    for name in true:
        yield f"counts-{name}", _counted(inner, true | {name: true[name] + 1})
        yield f"counts-of-info-{name}", _counted(inner, true, info_values() | {"counts": true | {name: 9}})
    yield "counts-below", _counted(inner | {"files": 3}, true)
    yield "counts-below-and-above", _counted(inner | {"files": 3}, true | {"files": 3})
    yield "counts-beyond-64-bits", _counted(inner, true | {"bytes": 2**64 - 1})


def _counted(inner: dict[str, int], outer: dict[str, int], info: Value = None) -> bytes:
    """A file with facts of everything, which have these counts."""
    draft = Draft()
    below = draft.folder(b"d", file(b"a"), file(b"b"), entry(b"l", LNK, b"a"), entry(b"p", FIFO))
    place = draft.add_facts(facts([1, 1, 1, 1], [5, 0, 0, 0], [], [1, 3], **inner))
    return draft.finish(below, facts=draft.add_facts(facts([2], [7], [place], [], **outer)), info=info).encode()


def page_facts_cases() -> Iterator[tuple[str, bytes]]:
    """Facts of a root of two pages, each of one file."""
    good = [[1], [1], [], []]
    counts = {"skeleton": 1, "files": 2, "bytes": 6}
    pages: dict[str, Callable[[list[int]], Value]] = {
        "one": lambda place: [place],
        "three": lambda place: [place] * 3,
        "none": lambda place: [],
        "inside": lambda place: [good, good],
        "nil": lambda place: [place, None],
        "frame": lambda place: [place, [9, 0, 9]],
        "length-zero": lambda place: [place, [2, 0, 0]],
        "length-beyond-limit": lambda place: [place, [place[0], place[1], 2**19 + 1]],
        "place-of-two": lambda place: [place, place[:2]],
        "place-negative": lambda place: [place, [2, 0, -1]],
    }
    for name, said in pages.items():
        draft = Draft()
        yield f"facts-of-pages-{name}", _two_pages(draft, facts(pages=said(draft.add_facts(good)), **counts))
    records: dict[str, Value] = {
        "record-of-directory": facts(*good, **counts),
        "record-too-few": [[], [], [], []],
        "record-too-many": [[1, 1], [1, 1], [], []],
        "record-children": [[1], [1], [None], []],
        "record-linked-beyond": [[1], [1], [], [1, 2]],
        "record-bytes-after": pack(good) + b"\0",
        "record-not-array": 0,
    }
    for name, record in records.items():
        draft = Draft()
        places = [draft.add_facts(good), draft.add_facts(record)]
        yield f"facts-of-pages-{name}", _two_pages(draft, facts(pages=places, **counts))


def _two_pages(draft: Draft, record: Value) -> bytes:
    rows = []
    for name in (b"a", b"b"):
        row = sized(name, 150_000)
        rows.append([name, draft.add(ObjectKind.DIRECTORY_PAGE, [row]), 1])
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, rows), count=2, facts=draft.add_facts(record)).encode()


def holding_file() -> Parts:
    """A valid file with contents: two in a frame, one in another."""
    draft = Draft()
    below = draft.folder(b"d", *(holding(b"%d" % number, content) for number, content in enumerate(CONTENTS)))
    parts = draft.finish(below, root={9: ["blake3"]}, info=info_values() | {"inline": [[b"", 9]], "inline_all": 1})
    add_contents(parts, [CONTENTS[0], CONTENTS[1]], [CONTENTS[2]])
    return parts


CONTENTS = (b"one", b"two", b"three")


def sharing(data: bytes, *slices: slice) -> Parts:
    """A file with contents that are parts of one frame."""
    names = [b"%05d" % number for number in range(len(slices))]
    files = [holding(name, data[part]) for name, part in zip(names, slices, strict=True)]
    parts = Draft().finish(*files, root={9: ["blake3"]}, info=info_values() | {"inline": [[b"", 9]], "inline_all": 1})
    add_contents(parts, [data])
    frame = len(parts.frames) - 1
    parts.contents = sorted([blake3(data[part]).digest(), frame, part.start, part.stop - part.start] for part in slices)
    return parts


def content_cases() -> Iterator[tuple[str, bytes]]:
    """Contents, their table, and what info says of them."""

    def row(number: int, column: int, value: Value) -> bytes:
        parts = holding_file()
        assert parts.contents is not None
        parts.contents[number][column] = value
        return parts.encode()

    def trailer(**values: Value) -> bytes:
        parts = holding_file()
        parts.trailer = values
        return parts.encode()

    names = sorted(blake3(content).digest() for content in CONTENTS)
    lengths = {blake3(content).digest(): len(content) for content in CONTENTS}
    longest = names.index(blake3(CONTENTS[2]).digest())
    other = (longest + 1) % 3
    yield "content-digest", row(longest, 0, names[longest][:31] + bytes((names[longest][31] ^ 1,)))
    yield "content-longer", row(other, 3, lengths[names[other]] + 3)
    yield "content-shorter", row(longest, 3, 4)
    yield "content-beyond-frame", row(longest, 3, 6)
    yield "content-empty", row(longest, 3, 0)
    yield "content-too-long", row(longest, 3, 2**22 + 1)
    yield "content-frame-absent", row(longest, 1, 9)
    yield "content-in-frame-of-objects", trailer(first=3)
    yield "content-frame-has-objects", trailer(first=0)
    yield "content-first-frame", trailer(first=9)
    yield "content-count", trailer(rows=4)
    yield "content-count-huge", trailer(rows=2**63)
    yield "content-reserved", trailer(zero=1)
    parts = holding_file()
    assert parts.contents is not None
    yield "content-unsorted", _with_rows(parts.contents[::-1])
    yield "content-duplicate", _with_rows([parts.contents[0], *parts.contents])
    yield "content-overlap", sharing(b"1234", slice(0, 3), slice(1, 4)).encode()
    yield "content-in-another", sharing(b"1234", slice(0, 4), slice(1, 3)).encode()
    yield "content-at-the-same-place", sharing(b"1234", slice(0, 4), slice(0, 3)).encode()
    parts = Draft().finish()
    parts.header[2] = 1
    yield "content-table-absent", parts.encode()
    for name, content, size in (("of-no-file", b"nobody's", 0), ("of-a-file-of-another-size", b"one", 4)):
        parts = Draft().finish(
            entry(b"f", REG, size, blake3(content if size else b"").digest(), None), root={9: ["blake3"]}
        )
        add_contents(parts, [content])
        yield f"content-{name}", parts.encode()
    parts = Draft().finish(file(size=3))  # no digests are recorded
    add_contents(parts, [b"one"])
    yield "content-of-a-file-without-digest", parts.encode()
    infos: dict[str, dict[str, Value]] = {
        "rules-integer": {"inline": 1},
        "rule-of-one": {"inline": [[b""]]},
        "rule-of-text": {"inline": [["", 1]]},
        "rule-negative": {"inline": [[b"", -1]]},
        "rules-too-many": {"inline": [[b"", 1]] * 65_537},
        "all-zero": {"inline_all": 0},
        "all-true": {"inline_all": True},
        "closed-nil": {"closed": None},
        "closed-text": {"closed": ["a"]},
    }
    for name, values in infos.items():
        yield f"info-inline-{name}", Draft().finish(file(), info=info_values() | values).encode()


def _with_rows(rows: list[list[Value]]) -> bytes:
    parts = holding_file()
    parts.contents = rows
    return parts.encode()


REJECTED: dict[str, bytes] = {
    name: data
    for cases in (
        container_cases,
        frame_cases,
        digest_cases,
        msgpack_cases,
        entry_cases,
        xattr_cases,
        tree_cases,
        page_cases,
        root_cases,
        link_cases,
        record_cases,
        facts_cases,
        count_cases,
        page_facts_cases,
        content_cases,
    )
    for name, data in cases()
}
