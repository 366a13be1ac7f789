"""What is encoded decodes to itself; any other bytes give a value or FormatError, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mkmeta.codec.container import (
    FOOTER,
    Footer,
    Location,
    check_header,
    decode_footer,
    decode_frame_row,
    encode_header,
)
from mkmeta.codec.facts import Facts, decode_facts, encode_columns, encode_facts
from mkmeta.codec.info import Info, decode_info, encode_info
from mkmeta.codec.objects import (
    LINK_PAGE_ROWS,
    decode_directory,
    decode_link_index,
    decode_link_page,
    decode_root,
    encode_directory,
    encode_entry,
    encode_link_index,
    encode_link_page,
    encode_root,
)
from mkmeta.codec.packing import array_header
from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError
from mkmeta.model import DirectoryKind, Entry, LinkRow, PrimaryRow, Root, tree_order
from tests import strategies as some

MERGE, OPAQUE = DirectoryKind.MERGE, DirectoryKind.OPAQUE
ANY_NODE = some.leaves() | some.directories()


@given(some.entry_lists(ANY_NODE))
def test_directory_round_trip(entries: list[Entry]) -> None:
    data = encode_directory(entries)
    assert decode_directory(data, "it", below=MERGE) == entries
    assert data == array_header(len(entries)) + b"".join(encode_entry(*entry) for entry in entries)


@given(some.entry_lists(ANY_NODE))
def test_below_an_opaque_directory_only_opaque_ones(entries: list[Entry]) -> None:
    merging = any(getattr(node, "kind", None) is MERGE for _, node in entries)
    with pytest.raises(FormatError, match="merge") if merging else contextlib.nullcontext():
        assert decode_directory(encode_directory(entries), "it", below=OPAQUE) == entries


@given(some.roots)
def test_root_round_trip(root: Root) -> None:
    assert decode_root(encode_root(root)) == root


@given(some.infos)
def test_info_round_trip(info: Info) -> None:
    assert decode_info(encode_info(info)) == info


@given(
    some.infos,
    st.dictionaries(
        st.text(max_size=8).map("new ".__add__),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=6,
        ),
    ),
)
def test_info_of_a_newer_version(info: Info, more: dict[str, object]) -> None:
    """Unknown keys are ignored, wherever they stand."""
    fields = msgpack.unpackb(encode_info(info))
    assert decode_info(msgpack.packb(more | fields)) == info
    assert decode_info(msgpack.packb(fields | more)) == info


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=20),
    st.lists(st.none() | some.locations, max_size=5),
)
@example([(2**64 - 1, -(2**63)), (0, 2**63 - 1), (2**63, 0)], [])
def test_facts_round_trip(rows: list[tuple[int, int]], children: list[Location | None]) -> None:
    inodes, times = [row[0] for row in rows], [row[1] for row in rows]
    data = encode_facts(encode_columns(inodes, times), children[: len(rows)])
    assert decode_facts(data, "it", entries=len(rows)) == Facts(inodes, times, children[: len(rows)])
    for other in (len(rows) + 1, len(rows) - 1):
        with pytest.raises(FormatError):
            decode_facts(data, "it", entries=other)


@st.composite
def link_rows(draw: st.DrawFn) -> list[PrimaryRow | LinkRow]:
    """Rows in order; every target comes before its link."""
    paths = sorted(draw(st.sets(some.paths, min_size=1, max_size=8)), key=tree_order)
    rows: list[PrimaryRow | LinkRow] = []
    for number, path in enumerate(paths):
        if number and draw(st.booleans()):
            rows.append(LinkRow(path, draw(st.sampled_from(paths[:number]))))
        else:
            rows.append(PrimaryRow(path, draw(st.integers(2, 2**32 - 1))))
    return rows


@given(link_rows())
def test_link_page_round_trip(rows: list[PrimaryRow | LinkRow]) -> None:
    data = encode_link_page(rows)
    assert decode_link_page(data, "it", after=b"", last=True) == rows
    with pytest.raises(FormatError, match="after the row before"):
        decode_link_page(data, "it", after=rows[0].path, last=True)
    with pytest.raises(FormatError, match="rows"):
        decode_link_page(data, "it", after=b"", last=False)
    with pytest.raises(FormatError, match="sort after") if len(rows) > 1 else contextlib.nullcontext():
        decode_link_page(encode_link_page(rows[::-1]), "it", after=b"", last=True)


def test_a_page_that_is_not_the_last_is_full() -> None:
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(b"%05d" % number, 2) for number in range(LINK_PAGE_ROWS)]
    assert decode_link_page(encode_link_page(rows), "it", after=b"", last=False) == rows


@given(st.lists(some.digests.map(ObjectId), min_size=1, max_size=300))
def test_link_index_round_trip(pages: list[ObjectId]) -> None:
    assert decode_link_index(encode_link_index(pages), "it") == pages


@given(some.digests.map(ObjectId), some.locations, st.none() | some.locations.filter(lambda place: place.length > 0))
def test_footer_round_trip(manifest_id: ObjectId, info: Location, facts: Location | None) -> None:
    footer = Footer(
        frame_table=1000, frames=3, object_table=1048, objects=2, manifest_id=manifest_id, info=info, facts=facts
    )
    assert decode_footer(footer.encode(), 1048 + 2 * 44 + 96) == footer
    with pytest.raises(FormatError, match="fill the file"):
        decode_footer(footer.encode(), 1048 + 2 * 44 + 97)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "directory": lambda data: decode_directory(data, "it", below=MERGE),
    "root": decode_root,
    "link page": lambda data: decode_link_page(data, "it", after=b"", last=True),
    "link index": lambda data: decode_link_index(data, "it"),
    "info": decode_info,
    "facts": lambda data: decode_facts(data, "it", entries=3),
    "header": lambda data: check_header(data[:32]),
    "footer": lambda data: decode_footer(data, 1000),
    "frame row": lambda data: decode_frame_row(data[:16].ljust(16, b"\0"), 0, 1000),
}
ENCODED = st.one_of(
    some.entry_lists(ANY_NODE).map(encode_directory),
    some.roots.map(encode_root),
    some.infos.map(encode_info),
    link_rows().map(encode_link_page),
    st.just(encode_facts(encode_columns([1, 2, 300], [5, 4, 3]), [None, Location(1, 2, 3)])),
    st.just(encode_header()),
    st.binary(min_size=FOOTER.size, max_size=FOOTER.size).map(lambda data: data[:-8] + encode_header()[7::-1]),
)
MSGPACK = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary() | st.integers(0, 9), inner),
).map(msgpack.packb)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Something encoded, with bytes changed, cut out or put in."""
    data = bytearray(draw(ENCODED))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@given(data=st.binary() | MSGPACK | damaged())
@example(data=b"\x91" * 3000)
@example(data=b"\xdd\xff\xff\xff\xff" * 3000)
@example(data=b"\xdf\xff\xff\xff\xff" * 3000)
@example(data=b"\x81\xa1x" + b"\x91" * 3000)
@example(data=b"\x93\x91\x01\x91\x01\x91" + b"\x91" * 3000)
def test_any_bytes_give_a_value_or_format_error(decode: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(FormatError):
        decode(data)


@pytest.mark.parametrize("kind", ["directory", "root", "link page", "link index"])
@given(data=MSGPACK | damaged())
def test_what_an_object_decodes_from_is_the_only_encoding(kind: str, data: bytes) -> None:
    """Canonical: whatever a decoder accepts, the encoder would have written, byte for byte."""
    try:
        value = DECODERS[kind](data)
    except FormatError:
        return
    encoders: dict[str, Callable[..., bytes]] = {
        "directory": encode_directory,
        "root": encode_root,
        "link page": encode_link_page,
        "link index": encode_link_index,
    }
    assert encoders[kind](value) == data


def test_struct_sizes_are_those_of_the_document() -> None:
    footer = Footer(
        frame_table=1,
        frames=2,
        object_table=3,
        objects=4,
        manifest_id=ObjectId(b"i" * 32),
        info=Location(5, 6, 7),
        facts=Location(8, 9, 10),
    ).encode()
    assert dataclasses.is_dataclass(Footer) and len(footer) == 96 and len(encode_header()) == 32
    places = {0: 1, 8: 2, 12: 0, 16: 3, 24: 4, 64: 5, 68: 6, 72: 7, 76: 8, 80: 9, 84: 10}
    for offset, value in places.items():
        assert footer[offset] == value and footer[offset + 1 : offset + 4] == bytes(3), offset
    assert footer[32:64] == b"i" * 32 and footer[88:] == bytes.fromhex("0a1a0a0d4d4b4d89")
