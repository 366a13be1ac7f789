"""Small files that cost a careless reader a thousand times their size. As a program, writes one:

python -m tests.manifest.hostile NAME FILE
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mkmeta.codec.packing import array_header, pack
from mkmeta.digest import ObjectKind
from tests.vectors.assemble import Draft, Parts, Value, entry, facts, file, sized
from tests.vectors.reject import info_values
from tests.vectors.trees import PAGE_BYTES

FIFO: Final = 0o010644


def fifos(room: int = PAGE_BYTES) -> list[Value]:
    """As many short entries as a page holds, or so many bytes of it."""
    letters = b"abcdefghijklmnopqrstuvwxyz"
    names = (bytes((a, b, c)) for a in letters for b in letters for c in letters)
    return [entry(next(names), FIFO) for _ in range(min(room // len(pack(entry(b"abc", FIFO))), len(letters) ** 3))]


def deep(
    levels: int,
    siblings: Callable[[int], list[Value]],
    name: bytes = b"~",
    *,
    known: bool = False,
    xattrs: Value = None,
) -> Parts:
    """Directories in one another, each after its siblings; with facts when `known`."""
    draft = Draft()
    inner: list[Value] = []
    place: list[int] | None = None
    dirs = others = 0
    for level in range(levels + 1):
        here = [*siblings(level), *inner]
        if known:
            dirs, others = dirs + 1, others + len(here) - len(inner)
            counts = {"dirs": dirs - (level == levels), "skeleton": int(level == levels), "others": others}
            numbers = [(-1) ** number * (2**62 + number) for number in range(len(here))]
            place = draft.add_facts(facts(numbers, numbers, [place] if inner else [], [], **counts))
        inner = [draft.folder(name, *here) + ([xattrs] if xattrs else [])] if level < levels else here
    return draft.finish(*inner, facts=place)


def wide(pages: int) -> Parts:
    """A directory of many pages, each of one entry that is a little more than half as long as a page may be."""
    draft = Draft()
    names = [b"%06d" % number for number in range(pages)]
    rows = [[name, draft.add(ObjectKind.DIRECTORY_PAGE, [sized(name, 131_073)]), 1] for name in names]
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, rows), count=pages)


def wide_of_directories(count: int) -> Parts:
    """A directory of empty ones with xattrs of 1 MB."""
    draft = Draft()
    empty = [draft.directory(), 0, 1, sized(b"a", 1_000_000)[-1]]
    names = [b"%06d" % number for number in range(count)]
    rows = [[name, draft.add(ObjectKind.DIRECTORY_PAGE, [entry(name, 0o040755, *empty)]), 1] for name in names]
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, rows), count=count)


def linked(names: int) -> Parts:
    """Names of one inode, at paths as long as can be."""
    draft = Draft()
    letters = b"abcdefghijklmno"
    files = [file(b"%06d" % number) for number in range(names)]
    inner, path = files, b""
    for letter in reversed(letters):
        name = bytes([letter]) * 255
        inner, path = [draft.folder(name, *inner)], name + b"/" + path
    first, *others = (path + row[0] for row in files)
    return draft.finish(*inner, links=draft.linked([[first, names], *([other, first] for other in others)]))


def info(**values: Value) -> Parts:
    """A file of one entry, with this in its info record."""
    return Draft().finish(file(), info=info_values() | values)


def raw_directory(data: bytes) -> Parts:
    """A directory of these bytes."""
    draft = Draft()
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, data), count=1)


def _nothing(element: bytes, size: int = (1 << 20) - 20) -> bytes:
    count = size // len(element)
    return array_header(count) + element * count


HOSTILE: Final[dict[str, Callable[[], Parts]]] = {
    "deep, full pages": lambda: deep(20, lambda _: fifos(PAGE_BYTES - 100)),
    "deep, full pages, facts": lambda: deep(60, lambda _: fifos(100_000), known=True),
    "deep, long entries": lambda: deep(1000, lambda _: [sized(b"a", 262_000)]),
    "deep, long attributes": lambda: deep(400, lambda _: [], xattrs=sized(b"a", 1_000_000)[-1]),
    "wide, long attributes": lambda: wide_of_directories(400),
    "wide": lambda: wide(1500),
    "linked": lambda: linked(2000),
    "info, rows": lambda: info(
        **{key: [b""] * 65_536 for key in ("select", "hide", "drop_xattrs")},
        left_out=[[b"", ""]] * 65_536,
        counts={f"{number}": number for number in range(4096)},
    ),
    "info, long rows": lambda: info(select=[bytes(60)] * 65_536),
    "info, unknown": lambda: info(new=[[]] * 4_000_000),
    "many xattrs": lambda: Draft().finish(file(b"f", [x for n in range(9362) for x in (b"user.%05d" % n, bytes(90))])),
    "empty arrays": lambda: raw_directory(_nothing(b"\x90")),
    "empty arrays in an entry": lambda: raw_directory(b"\x91" + _nothing(_nothing(b"\x90", 18_000))),
    "empty arrays in pairs": lambda: raw_directory(b"\x91" + _nothing(b"\x92\x90\x90")),
    "rows of empty arrays": lambda: raw_directory(_nothing(b"\x93\x90\x90\x90")),
    "texts": lambda: raw_directory(b"\x91" + _nothing(b"\xa1a")),
    "claims": lambda: raw_directory(b"\x91" + b"\xdc\x49\x24" * 5000),
    "claims, deep": lambda: raw_directory(b"\x91" + b"\x98" * 1000 + b"\xc0" * 1_000_000),
}


def main(name: str, path: str) -> None:
    """See the module."""
    Path(path).write_bytes(HOSTILE[name]().encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
