"""What is encoded decodes to itself; any other bytes give a value or FormatError, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from itertools import pairwise

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
from mkmeta.codec.facts import (
    Facts,
    PageFacts,
    decode_counts,
    decode_facts,
    decode_page_facts,
    encode_facts,
    encode_page_facts,
)
from mkmeta.codec.info import Info, decode_info, encode_info
from mkmeta.codec.objects import (
    PageRow,
    check_digests,
    check_division,
    decode_link_index,
    decode_link_page,
    decode_page,
    decode_page_rows,
    decode_root,
    encode_entry,
    encode_link_index,
    encode_link_row,
    encode_page,
    encode_page_rows,
    encode_root,
    examine_page,
    first_element_bytes,
    is_divided,
    page_bytes,
)
from mkmeta.codec.packing import array_header
from mkmeta.digest import ObjectId
from mkmeta.errors import FormatError
from mkmeta.manifest.cursor import counts_of
from mkmeta.model import (
    NO_COUNTS,
    Counts,
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    LinkRow,
    PrimaryRow,
    RegularFile,
    Root,
    tree_order,
)
from tests import strategies as some
from tests.vectors.trees import PAGE_BYTES, encode_directory, pages_of, regular

MERGE, OPAQUE = DirectoryKind.MERGE, DirectoryKind.OPAQUE
ANY_NODE = some.leaves() | some.directories()


def encode_link_page(rows: list[PrimaryRow | LinkRow]) -> bytes:
    return encode_page(len(rows), b"".join(map(encode_link_row, rows)))


@given(some.entry_lists(ANY_NODE))
def test_directory_round_trip(entries: list[Entry]) -> None:
    data = encode_directory(entries)
    packed = [encode_entry(*entry) for entry in entries]
    assert data == array_header(len(entries)) + b"".join(packed)
    assert not is_divided(data)
    if len(entries) > 1 and sum(map(len, packed)) > PAGE_BYTES:
        with pytest.raises(FormatError, match="more than 262144"):
            decode_page(data, "it", below=MERGE)
    else:
        assert decode_page(data, "it", below=MERGE) == entries
        assert page_bytes(data) == sum(map(len, packed))
        assert not packed or first_element_bytes(data) == len(packed[0])


@given(some.entry_lists(ANY_NODE))
def test_below_an_opaque_directory_only_opaque_ones(entries: list[Entry]) -> None:
    for page in pages_of(entries):
        merging = any(getattr(node, "kind", None) is MERGE for _, node in page)
        with pytest.raises(FormatError, match="merge") if merging else contextlib.nullcontext():
            assert decode_page(encode_directory(page), "it", below=OPAQUE) == page


@given(
    st.lists(st.sampled_from([6, 1000, 131_071, 131_072, 131_073, 262_138, 262_144, 262_145]), min_size=1, max_size=12)
)
def test_a_page_ends_where_the_next_element_does_not_fit(sizes: list[int]) -> None:
    """`pages_of` against the plainest model; `check_division` accepts this division, and not one entry earlier."""
    entries = [entry_of(b"%02d" % number, size + 60) for number, size in enumerate(sizes)]
    packed = [len(encode_entry(*entry)) for entry in entries]
    borders = [0]
    for number in range(1, len(entries)):
        if sum(packed[borders[-1] : number + 1]) > PAGE_BYTES:
            borders.append(number)
    pages = [entries[start:stop] for start, stop in zip(borders, [*borders[1:], None], strict=True)]
    assert pages_of(entries) == pages
    for before, after in pairwise(pages):
        check_division(encode_directory(before), encode_directory(after), "it")
        if len(before) > 1:
            with pytest.raises(FormatError, match="fits"):
                check_division(encode_directory(before[:-1]), encode_directory([before[-1], *after]), "it")


def entry_of(name: bytes, size: int) -> Entry:
    """A file whose entry takes about so many bytes."""
    xattrs = tuple((b"user.%d" % number, bytes(65_536)) for number in range(size // 65_536))
    xattrs += ((b"user.x", bytes(size % 65_536)),)
    return Entry(name, dataclasses.replace(regular(), xattrs=xattrs))


@given(some.page_rows)
def test_page_rows_round_trip(rows: list[PageRow]) -> None:
    data = encode_page_rows(rows)
    assert is_divided(data)
    assert decode_page_rows(data, "it") == rows
    with pytest.raises(FormatError, match="single page"):
        decode_page_rows(encode_page_rows(rows[:1]), "it")
    with pytest.raises(FormatError, match="does not sort after"):
        decode_page_rows(encode_page_rows(rows[::-1]), "it")


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


@given(some.counts, some.page_facts())
@example(
    Counts(bytes=2**64 - 1),
    PageFacts([2**64 - 1, 0, 2**63], [-(2**63), 2**63 - 1, 0], [None], {0: 2, 1: 2**32 - 1}),
)
def test_facts_round_trip(counts: Counts, page: PageFacts) -> None:
    data = encode_facts(counts, encode_page_facts(page))
    entries = len(page.inodes)
    assert decode_facts(data, "it", pages=1, entries=entries) == Facts(counts, [page])
    assert decode_page_facts(encode_page_facts(page), "it", entries=entries) == page
    assert decode_counts(data, "it") == counts
    for pages, other in ((1, entries + 1), (1, entries - 1), (2, entries)):
        with pytest.raises(FormatError):
            decode_facts(data, "it", pages=pages, entries=other)


@given(some.counts, st.lists(some.locations, min_size=2, max_size=5))
def test_facts_of_several_pages_round_trip(counts: Counts, places: list[Location]) -> None:
    data = encode_facts(counts, places)
    assert decode_facts(data, "it", pages=len(places), entries=7) == Facts(counts, places)
    for pages in (1, len(places) - 1, len(places) + 1):
        with pytest.raises(FormatError) if pages != len(places) else contextlib.nullcontext():
            decode_facts(data, "it", pages=pages, entries=7)


def test_a_count_beyond_64_bits_is_the_greatest() -> None:
    data = encode_facts(Counts(bytes=3 * 2**63, unchanged=5), [Location(1, 2, 3)] * 2)
    assert decode_counts(data, "it") == Counts(bytes=2**64 - 1)


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
    assert decode_link_page(data, "it", after=b"") == rows
    with pytest.raises(FormatError, match="after the row before"):
        decode_link_page(data, "it", after=rows[0].path)
    with pytest.raises(FormatError, match="no rows"):
        decode_link_page(encode_link_page([]), "it", after=b"")
    with pytest.raises(FormatError, match="sort after") if len(rows) > 1 else contextlib.nullcontext():
        decode_link_page(encode_link_page(rows[::-1]), "it", after=b"")


@pytest.mark.parametrize("more", [0, 1])
def test_the_greatest_link_page(more: int) -> None:
    """128 rows of 2,048 bytes fill a page."""
    path = b"/".join([b"d" * 255] * 7) + b"/"
    names = [b"%03d" % number + b"x" * 248 for number in range(127)] + [b"127" + b"x" * (248 + more)]
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(path + name, 2) for name in names]
    data = encode_link_page(rows)
    assert page_bytes(data) == PAGE_BYTES + more
    with pytest.raises(FormatError, match="more than 262144") if more else contextlib.nullcontext():
        assert decode_link_page(data, "it", after=b"") == rows


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
    "directory": lambda data: decode_page(data, "it", below=MERGE),
    "examined": lambda data: examine_page(data, "it", below=MERGE, digests=()),
    "page rows": lambda data: decode_page_rows(data, "it"),
    "root": decode_root,
    "link page": lambda data: decode_link_page(data, "it", after=b""),
    "link index": lambda data: decode_link_index(data, "it"),
    "info": decode_info,
    "facts": lambda data: decode_facts(data, "it", pages=1, entries=3),
    "facts of two pages": lambda data: decode_facts(data, "it", pages=2, entries=3),
    "page facts": lambda data: decode_page_facts(data, "it", entries=3),
    "counts": lambda data: decode_counts(data, "it"),
    "header": lambda data: check_header(data[:32]),
    "footer": lambda data: decode_footer(data, 1000),
    "frame row": lambda data: decode_frame_row(data[:16].ljust(16, b"\0"), 0, 1000),
}
ENCODED = st.one_of(
    some.entry_lists(ANY_NODE).map(encode_directory),
    some.roots.map(encode_root),
    some.infos.map(encode_info),
    link_rows().map(encode_link_page),
    some.page_rows.map(encode_page_rows),
    some.page_facts(3).map(encode_page_facts),
    st.builds(encode_facts, some.counts, some.page_facts(3).map(encode_page_facts)),
    st.builds(encode_facts, some.counts, st.lists(some.locations, min_size=2, max_size=2)),
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


@pytest.mark.parametrize("kind", ["directory", "page rows", "root", "link page", "link index"])
@given(data=MSGPACK | damaged())
def test_what_an_object_decodes_from_is_the_only_encoding(kind: str, data: bytes) -> None:
    """Canonical: whatever a decoder accepts, the encoder would have written, byte for byte."""
    try:
        value = DECODERS[kind](data)
    except FormatError:
        return
    encoders: dict[str, Callable[..., bytes]] = {
        "directory": encode_directory,
        "page rows": encode_page_rows,
        "root": encode_root,
        "link page": encode_link_page,
        "link index": encode_link_index,
    }
    assert encoders[kind](value) == data


@given(
    data=some.entry_lists(ANY_NODE).map(encode_directory) | damaged(),
    kind=st.sampled_from(DirectoryKind),
    digests=some.digest_sets,
)
def test_to_examine_is_to_decode(data: bytes, kind: DirectoryKind, digests: tuple[DigestName, ...]) -> None:
    """The quick look refuses what the thorough one refuses, and sees the same in the rest."""
    try:
        entries = decode_page(data, "it", below=kind)
        for name, node in entries:
            if isinstance(node, RegularFile):
                check_digests(node, digests, ("it", name))
    except FormatError:
        with pytest.raises(FormatError):
            examine_page(data, "it", below=kind, digests=digests)
        return
    found = examine_page(data, "it", below=kind, digests=digests)
    names = [name for name, _ in entries] or [b""]
    assert (found.entries, found.first, found.last) == (len(entries), names[0], names[-1])
    assert found.longest == max(map(len, names))
    expected = [(number, entry) for number, entry in enumerate(entries) if isinstance(entry.node, Directory)]
    assert found.directories == expected
    counts = NO_COUNTS
    for _, node in entries:
        counts = counts if isinstance(node, Directory) else counts.plus(counts_of(node, 1))
    assert found.counts == counts


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
