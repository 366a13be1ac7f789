"""Profiles: what is written is read again, and nothing else is."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.demand.profile import (
    COUNT_MAX,
    LINE_MAX,
    PATH_ROOM,
    Header,
    ProfileError,
    ProfileMount,
    ProfileReader,
    Row,
    Source,
    is_plain,
    room_of,
    write_profile,
)
from mkmeta.demand.reading import Demand
from mkmeta.demand.tally import LISTING, MISS, OPEN, STAT, Tally
from mkmeta.model import PATH_LIMIT

HEADER = Header(source=Source.STRACE, mounts=(ProfileMount(point=b"/sw"), ProfileMount(point=b"/\xff")), host="h")

names = st.binary(min_size=1, max_size=20).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
paths = st.lists(names, max_size=5).map(b"/".join)
counts = st.integers(0, COUNT_MAX)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    calls = [draw(counts) for _ in range(5)]
    first = [draw(st.integers(0, calls[n])) for n in range(3)]
    if draw(st.booleans()):
        return Row(draw(paths), opens=calls[0], first_opens=calls[0], is_file=True)
    rest = (*(draw(st.integers(0, most)) for most in (calls[3], first[1], first[1])), draw(counts))
    return Row._make((draw(paths), *calls, *first, *rest, draw(st.integers(0, 1)), False))


def text_of(header: Header, wanted: list[Row]) -> bytes:
    stream = io.BytesIO()
    assert write_profile(stream, header, wanted) == len(wanted)
    return stream.getvalue()


def read(text: bytes) -> tuple[Header, list[Row]]:
    reader = ProfileReader(io.BytesIO(text), b"p")
    return reader.header, list(reader.rows())


@given(st.lists(rows(), max_size=5))
def test_what_is_written_is_read(wanted: list[Row]) -> None:
    header = replace(HEADER, lost={"cut": 3}, outside=7)
    assert read(text_of(header, wanted)) == (header, wanted)


@given(st.data())
def test_no_other_bytes_do_more_than_an_error(data: st.DataObject) -> None:
    text = bytearray(text_of(HEADER, [Row(b"a/b", 5, first_misses=2), Row(b"\xff", opens=1, is_file=True)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        _, found = read(bytes(text))
    except ProfileError as error:
        assert error.path == b"p"
    else:
        assert all(is_plain(row.path) or not row.path for row in found)


def test_a_writer_counts_only_what_a_reader_takes() -> None:
    tally = Tally([b"/sw"])
    for path in (b"/sw/a\0/x", b"/sw/b/\0", b"/sw/" + b"c" * PATH_LIMIT, b"/sw/" + b"d/" * 2046 + b"x"):
        for kind in (MISS, OPEN):
            tally.add(path, kind, 2)
        tally.add_directory(path, LISTING, 2)
    assert tally.lost == {"paths": 24} and not list(tally.rows())
    tally.add(b"/sw/e/x", OPEN, COUNT_MAX)
    tally.add(b"/sw/e/x", OPEN, COUNT_MAX)
    _, found = read(text_of(replace(HEADER, mounts=HEADER.mounts[:1]), list(tally.rows())))
    assert [(row.path, row.opens, row.is_file) for row in found] == [
        (b"e", COUNT_MAX, False),
        (b"e/x", COUNT_MAX, True),
    ]


def test_the_totals_of_many_mounts() -> None:
    totals = {f"OPERATION_{number}": (COUNT_MAX, COUNT_MAX) for number in range(100)}
    mounts = tuple(ProfileMount(point=b"/sw%d" % number, totals=totals) for number in range(64))
    header = replace(HEADER, mounts=mounts)
    assert read(text_of(header, [])) == (header, [])


def test_deep_paths_take_the_room_of_all_above_them() -> None:
    """What predict keeps of them, directory by directory, is bounded by the same limit."""
    deep = b"/".join([b"a"] * 2045)
    above = sum(len(deep.rsplit(b"/", n)[0]) for n in range(2045))
    assert above <= room_of(deep) <= above + 2 * len(deep)
    demand, tally = Demand(), Tally([b"/"])
    fit = PATH_ROOM // room_of(deep[:-3] + b"000")
    assert fit < 300
    for number in range(fit + 10):
        path = deep[:-3] + b"%03d" % number
        tally.add(b"/" + path + b"/x", MISS)
        if number < fit:
            demand.add(Row(path), path, b"p")
    with pytest.raises(ProfileError, match="deeper"):
        demand.add(Row(deep + b"/b"), deep + b"/b", b"p")
    assert tally.lost["directories"] >= 10, "a writer counts no more than a reader takes"
    again = Demand()
    for row in tally.rows():
        again.add(row, row.path, b"p")


HEAD = {"mkmeta_profile": 1, "source": "env", "mounts": [{"point": "/sw"}]}
BAD = {
    "nothing": (),
    "no profile": ({"a": 1},),
    "a later version": ({**HEAD, "mkmeta_profile": 2}, {"rows": 0}),
    "true is 1": ({**HEAD, "mkmeta_profile": True}, {"rows": 0}),
    "no mount": ({**HEAD, "mounts": []}, {"rows": 0}),
    "a relative mount": ({**HEAD, "mounts": [{"point": "sw"}]}, {"rows": 0}),
    "an unknown source": ({**HEAD, "source": ["x"]}, {"rows": 0}),
    "no end": (HEAD,),
    "another number of rows": (HEAD, {"path": "a"}, {"rows": 2}),
    "something behind the end": (HEAD, {"rows": 0}, {"path": "a"}),
    "up": (HEAD, {"path": "a/../b"}, {"rows": 1}),
    "absolute": (HEAD, {"path": "/a"}, {"rows": 1}),
    "too long": (HEAD, {"path": "a" * (PATH_LIMIT + 1)}, {"rows": 1}),
    "a surrogate": (HEAD, {"path": "\udc80"}, {"rows": 1}),
    "no base64": (HEAD, {"path": "a", "path_b64": "?"}, {"rows": 1}),
    "another mount": (HEAD, {"path": "a", "mount": 1}, {"rows": 1}),
    "less than nothing": (HEAD, {"path": "a", "misses": -1}, {"rows": 1}),
    "too much": (HEAD, {"path": "a", "misses": 2**63}, {"rows": 1}),
    "a fraction": (HEAD, {"path": "a", "misses": 1.5}, {"rows": 1}),
    "true": (HEAD, {"path": "a", "misses": True}, {"rows": 1}),
    "more first ones": (HEAD, {"path": "a", "misses": 1, "first_misses": 2}, {"rows": 1}),
    "a long line": (HEAD, {"path": "a", "x": "y" * LINE_MAX}, {"rows": 1}),
}


@pytest.mark.parametrize("lines", BAD.values(), ids=BAD)
def test_bad(lines: tuple[dict[str, object], ...]) -> None:
    with pytest.raises(ProfileError):
        read(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def test_deep_nesting_and_endless_numbers_are_errors() -> None:
    head = json.dumps(HEAD).encode() + b"\n"
    for line in (b"[" * 60_000, b'{"path": ' * 7000, b'{"path": "a", "misses": ' + b"9" * 50_000 + b"}", b"NaN"):
        with pytest.raises(ProfileError):
            read(head + line + b'\n{"rows": 1}\n')


def test_keys_of_later_versions_are_passed_over() -> None:
    lines: list[dict[str, object]] = [{**HEAD, "new": [1]}, {"path": "a", "misses": 3, "new": {}}, {"rows": 1}]
    _, found = read(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert found == [Row(b"a", 3, first_misses=3)]


def counted(*calls: tuple[str, int]) -> dict[bytes, Row]:
    """Rows of calls: paths below /sw, and what was done with them."""
    tally = Tally([b"/sw"])
    for path, kind in calls:
        (tally.add_directory if kind == LISTING else tally.add)(b"/sw/" + path.encode(), kind)
    found = {row.path: row for row in tally.rows() if not row.is_file}
    assert found == {row.path: row for row in tally.rows() if not row.is_file}, "and the same once more"
    return found


def test_a_directory_that_is_asked_for_in_vain_is_a_miss_once() -> None:
    """What the loader does: a stat of a directory for what it would hold, after names in it; and below that."""
    names = ("tls/libc.so", "tls", "tls/x86_64/libc.so", "tls/x86_64", "libc.so", "hwcaps/v3/libc.so")
    found = counted(*((f"lib/{name}", MISS) for name in names))
    assert {path: row.first_misses for path, row in found.items()} == {
        b"lib": 2,  # tls, libc.so
        b"lib/tls": 0,
        b"lib/tls/x86_64": 0,
        b"lib/hwcaps/v3": 1,  # nobody asked for hwcaps itself
    }
    assert sum(row.misses for row in found.values()) == len(names)


def test_a_directory_on_the_way_is_no_stat() -> None:
    found = counted(("a/lib", STAT), ("a/lib/none", MISS), ("a/file", STAT), ("a/empty", STAT))
    assert (found[b"a"].stats, found[b"a"].first_stats) == (3, 2)


def test_what_a_listing_tells_is_known() -> None:
    """As Python imports: a directory is asked for, listed, asked for again, then names in it are."""
    found = counted(
        *(("lib", STAT), ("lib", LISTING), ("lib", STAT), ("lib/pkg", STAT), ("lib/pkg/init.so", MISS)),
        *(("lib/pkg/init.py", STAT), ("lib/pkg", LISTING), ("lib/pkg/one.py", STAT), ("lib", LISTING)),
    )
    assert found[b""] == Row(b"", stats=2)
    assert found[b"lib"] == Row(b"lib", stats=1, listings=2, known_listings=2, checked=1)
    assert found[b"lib/pkg"] == Row(
        b"lib/pkg", misses=1, stats=2, listings=1, first_misses=1, first_stats=2, known_listings=1, listed_stats=1
    )
    again = counted(("a/x", STAT), ("a/x", OPEN), ("a/y", OPEN), ("a/y", STAT))[b"a"]
    assert again == Row(b"a", stats=2, opens=2, first_stats=1, first_opens=2, opened_stats=1)
    assert counted(("lib", LISTING), ("lib", LISTING))[b"lib"].known_listings == 1
