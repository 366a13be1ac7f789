"""Files that look odd and are valid: what formats/manifest.md allows, both readers must accept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from examples import read_manifest as example
from mkmeta.codec.packing import pack
from mkmeta.digest import ObjectKind
from mkmeta.manifest.check import check_all
from mkmeta.manifest.reader import ManifestReader
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
)
from tests.vectors.reject import changed, holding_file, info_values


def odd_files() -> Iterator[tuple[str, bytes]]:
    """Name and bytes."""
    yield "unknown compat flag", changed(lambda parts: parts.header.__setitem__(2, 2**31))
    yield "unknown ro_compat flag", changed(lambda parts: parts.header.__setitem__(3, 1))
    yield "unused objects with absurd places", changed(_add_unused)
    yield "gap between frames", changed(_add_gap)
    yield "frames that overlap", changed(_add_overlap)
    yield "stored, not compressed", changed(_store)
    yield "info in long forms", Draft().finish(file(), info=b"\xdf\0\0\0\x07" + pack(info_values())[1:]).encode()
    new = {"new": [1.5, True, {"a": [b""]}, [[[[None]]]]]}
    yield "unknown info keys", Draft().finish(file(), info=new | info_values()).encode()
    ext = b"\x88" + pack(info_values())[1:] + pack("new") + b"\xc7\x03\x05abc"
    yield "unknown info key of an extension type", Draft().finish(file(), info=ext).encode()
    most: dict[str, Value] = {key: [b"x"] * 65_536 for key in ("select", "hide", "drop_xattrs")}
    most |= {"root": b"/" + b"r" * 4094, "left_out": [[b"", ""]] * 65_536, "counts": {f"{n}": n for n in range(4096)}}
    yield "info at its limits", Draft().finish(file(), info=info_values() | most).encode()
    for value in ("all", "subtree"):
        yield f"hard links: {value}", Draft().finish(file(), info=info_values() | {"hard_links": value}).encode()
    draft = Draft()
    inside = draft.folder(b"d", file())
    unknown = facts([1], [2], [None], [], dirs=99, bytes=2**64 - 1)
    yield (
        "facts known of the root only, which nobody can count",
        draft.finish(
            inside, facts=draft.add_facts(unknown), info=info_values() | {"counts": {"dirs": 98, "new": -1}}
        ).encode(),
    )
    draft = Draft()
    counts, pages = facts([1], [2], [], [0, 2**32 - 1], skeleton=1, files=1, bytes=3, linked=1)
    later = [[*counts, *range(52)], pages]
    yield "facts of a later version", draft.finish(file(), facts=draft.add_facts(later)).encode()
    draft = Draft()
    zeros = pack(facts(dirs=1)[0])
    long_form = b"\xdc\0\2" + zeros + b"\xdc\0\1" + b"\xdc\0\4\x91\xd3" + b"\xff" * 8 + b"\x91\0\x91\xc0\xdc\0\0"
    yield "facts in long forms", draft.finish(draft.folder(b"d"), facts=draft.add_facts(long_form)).encode()
    yield "a page full to the last byte", Draft().finish(sized(b"a", 131_072), sized(b"b", 131_072)).encode()
    yield "an entry of 1 MiB, with the array around it", Draft().finish(sized(b"a", 2**20 - 1)).encode()
    yield "a page of a byte that was too much", _pages([sized(b"a", 131_072)], [sized(b"b", 131_073)])
    yield "one entry a page, each longer than one", _pages(*([sized(b"%d" % n, 300_000 + n)] for n in range(9)))
    yield "a frame of 4 MiB", changed(_fill)
    yield "a window of 4 MiB", changed(_widen)
    yield "nothing at all", Draft().finish().encode()
    draft = Draft()
    inner = draft.folder(b"m", entry(b"p", 0o010000), kind=0)
    yield "fifo in the skeleton", draft.finish(inner).encode()
    yield "contents", holding_file().encode()
    parts = holding_file()
    parts.sizes[-1] += 5
    parts.frames[-1] = compress(zstandard.decompress(parts.frames[-1]) + b"extra")
    yield "a gap in a frame of contents", parts.encode()
    parts = Draft().finish(file(), info=info_values() | {"inline": []})
    add_contents(parts)
    yield "a table of no contents", parts.encode()
    parts = Draft().finish(*(holding(name, bytes(2**22)) for name in (b"a", b"b")), root={9: ["blake3"]})
    add_contents(parts, [bytes(2**22)])
    yield "a content of 4 MiB, of two files", parts.encode()
    draft = Draft()
    same = draft.folder(b"a", file())
    yield "equal directories", draft.finish(same, [b"b", *same[1:]]).encode()
    yield "path of 4094 bytes", _deep()
    draft = Draft()
    rows = [[b"f0000", 5000], *([b"f%04d" % number, b"f0000"] for number in range(1, 5000))]
    names = [file(b"f%04d" % number) for number in range(5000)]
    yield "one link page of many rows", draft.finish(*names, links=draft.links(rows)).encode()
    draft = Draft()
    every = [entry(b"d", 0o060000, 4095, 2**20 - 1), entry(b"f", 0o010000), entry(b"l", 0o120000, b"t")]
    every += [[b"m", *every[0][1:]], [b"n", *every[1][1:]], [b"o", *every[2][1:]]]
    rows = [[b"d", 2], [b"f", 2], [b"l", 2], [b"m", b"d"], [b"n", b"f"], [b"o", b"l"]]
    yield "hard links of devices, fifos, symlinks", draft.finish(*every, links=draft.links(rows)).encode()
    longest = [item for number in range(9362) for item in (b"user.%05d" % number, b"")]
    yield "9362 xattrs", Draft().finish(file(b"f", longest)).encode()
    edges = [b"user.overlay", b"", b"user.overlayx", b"", b"user.trusted.overlay.", b""]
    yield "xattrs next to overlay's", Draft().finish(file(b"f", edges)).encode()


def _add_unused(parts: Parts) -> None:
    parts.object_rows.append([b"\xff" * 32, 2**32 - 1, 2**32 - 1, 2**32 - 1])


def _add_gap(parts: Parts) -> None:
    """A frame no row tells of, in front."""
    sizes = [len(frame) for frame in parts.frames]
    starts = [32 + 100 + sum(sizes[:number]) for number in range(3)]
    parts.frame_rows = {number: [starts[number], sizes[number], parts.sizes[number]] for number in range(3)}
    parts.frames[0] = b"\xee" * 100 + parts.frames[0]


def _add_overlap(parts: Parts) -> None:
    parts.frames.append(b"")
    parts.sizes.append(0)
    parts.frame_rows[3] = [32, len(parts.frames[0]), parts.sizes[0]]
    for row in parts.object_rows:
        row[1] = 3 if row[0][0] % 2 else 0


def _store(parts: Parts) -> None:
    record = pack(info_values())
    parts.frames[1], parts.sizes[1] = handmade_frame(record, size=len(record)), len(record)


def _fill(parts: Parts) -> None:
    """With bytes that nothing refers to."""
    parts.sizes[0] = 2**22
    parts.frames[0] = compress(zstandard.decompress(parts.frames[0]).ljust(2**22, b"\0"))


def _widen(parts: Parts) -> None:
    record = pack(info_values())
    parts.frames[1], parts.sizes[1] = handmade_frame(record, size=len(record), window=22), len(record)


def _pages(*pages: list[Value]) -> bytes:
    draft = Draft()
    rows = [[page[0][0], draft.add(ObjectKind.DIRECTORY_PAGE, page), len(page)] for page in pages]
    return draft.finish(top=draft.add(ObjectKind.DIRECTORY, rows), count=sum(map(len, pages))).encode()


def _deep() -> bytes:
    draft = Draft()
    inner = file(b"f" * 254)
    for _ in range(15):
        inner = draft.folder(b"n" * 255, inner)
    return draft.finish(inner).encode()


ODD = dict(odd_files())


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_both_readers_accept(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.mkm"
    path.write_bytes(data)
    with ManifestReader.open(str(path)) as reader:
        check_all(reader)
    assert example.main(["", str(path)]) == 0


def test_a_reader_that_asks_for_little_reads_little(tmp_path: Path) -> None:
    """Lazy: what is wrong elsewhere in the file does not matter, only a check finds it."""
    draft = Draft()
    bad = draft.folder(b"bad", file(b"."))
    good = draft.folder(b"good", file(b"f"))
    path = tmp_path / "half.mkm"
    path.write_bytes(draft.finish(bad, good).encode())
    with ManifestReader.open(str(path)) as reader:
        assert reader.find(b"good/f") is not None
        assert reader.find(b"good/g") is None
        assert reader.find(b"good/f/g") is None
