"""Files that look odd and are valid: what formats/manifest.md allows, both readers must accept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import read_manifest as example
from mkmeta.codec.packing import pack
from mkmeta.manifest.reader import ManifestReader
from tests.vectors.assemble import Draft, Parts, entry, file, handmade_frame
from tests.vectors.reject import changed, info_values


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
    draft = Draft()
    inside = draft.folder(b"d", file())
    yield "facts known of the root only", draft.finish(inside, facts=draft.add_facts([[1], [2], [None]])).encode()
    draft = Draft()
    long_form = b"\xdc\0\3" + b"\x91\xd3" + b"\xff" * 8 + b"\x91\0" + b"\x91\xc0"
    yield "facts in long forms", draft.finish(draft.folder(b"d"), facts=draft.add_facts(long_form)).encode()
    yield "nothing at all", Draft().finish().encode()
    draft = Draft()
    inner = draft.folder(b"m", entry(b"p", 0o010000), kind=0)
    yield "fifo in the skeleton", draft.finish(inner).encode()
    draft = Draft()
    same = draft.folder(b"a", file())
    yield "equal directories", draft.finish(same, [b"b", *same[1:]]).encode()
    yield "path of 4095 bytes", _deep()
    draft = Draft()
    rows = [[b"f0000", 4096], *([b"f%04d" % number, b"f0000"] for number in range(1, 4096))]
    names = [file(b"f%04d" % number) for number in range(4096)]
    yield "one full link page", draft.finish(*names, links=draft.links(rows)).encode()
    draft = Draft()
    every = [entry(b"d", 0o060000, 4095, 2**20 - 1), entry(b"f", 0o010000), entry(b"l", 0o120000, b"t")]
    every += [[b"m", *every[0][1:]], [b"n", *every[1][1:]], [b"o", *every[2][1:]]]
    rows = [[b"d", 2], [b"f", 2], [b"l", 2], [b"m", b"d"], [b"n", b"f"], [b"o", b"l"]]
    yield "hard links of devices, fifos, symlinks", draft.finish(*every, links=draft.links(rows)).encode()
    most = [item for number in range(9362) for item in (b"user.%05d" % number, b"")]
    yield "9362 xattrs", Draft().finish(file(b"f", most)).encode()
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


def _deep() -> bytes:
    draft = Draft()
    inner = file(b"f" * 255)
    for _ in range(15):
        inner = draft.folder(b"n" * 255, inner)
    return draft.finish(inner).encode()


ODD = dict(odd_files())


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_both_readers_accept(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.mkm"
    path.write_bytes(data)
    with ManifestReader.open(str(path)) as reader:
        reader.check()
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
