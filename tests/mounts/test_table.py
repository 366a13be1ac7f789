"""Mount tables: any user can put lines with any bytes into the table of a namespace that mkmeta looks at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.linux.filesystem import filesystem_type
from mkmeta.linux.mount import leave_mount_namespace, mount
from mkmeta.linux.mountinfo import Mount, mount_of, mounts, parse, seen_at, visible_at
from mkmeta.mounts.live import layers_of, live_at, live_mounts
from mkmeta.mounts.run import run_directories
from mkmeta.mounts.users import may_be_of_any, mount_tables, uses
from tests.store.processes import fork, wait

# white space as bytes.split, bytes.splitlines and str.splitlines have it; what separates in a mount table
ODD = [
    *(
        b"\r",
        b"\r\n",
        b"\n",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\x1d",
        b"\x1e",
        b"\x85",
        b"\t",
        b" ",
        b" - ",
        b"\x0c-\x0cext4",
    ),
    *(
        "\u2028".encode(),
        "\u2029".encode(),
        "\x85".encode(),
        "\xa0".encode(),
        b"\\",
        b"\\134",
        b"\\999",
        b",=:#",
        b"\xff",
    ),
]

WORD = st.lists(
    st.sampled_from(
        [*ODD, b"/a", b"/inner/", b"mkmeta:", b"mkmeta-inner:", b"lowerdir=", b"upperdir=", b"::", b"verity=", b"7"]
    ),
    max_size=4,
).map(b"".join)
LINE = st.one_of(
    st.binary(max_size=40),
    st.lists(WORD, max_size=12).map(b" ".join),
    st.builds(
        lambda words: b"%b %b %b:%b /%b /%b ro shared:1 - %b %b rw,%b" % tuple(words),
        st.tuples(
            *[st.sampled_from([b"1", b"9999999999", b"", b"-1", b"x"])] * 4,
            *(WORD, WORD, st.sampled_from([b"overlay", b"fuse.mkmeta", b""])),
            *(WORD, st.lists(WORD, max_size=3).map(b",".join)),
        ),
    ),
)


@given(st.lists(LINE, max_size=6).map(b"\n".join))
def test_no_table_is_fatal(table: bytes) -> None:
    found = parse(table)
    assert len(found) <= table.count(b"\n") + 1
    for one in found:
        visible_at(one.point, found)
        seen_at(one.point + b"/below", found)
        uses(one, "0123456789ab", b"000001-0123456789ab", one.device, b"/store/generations/000001-0123456789ab")
        may_be_of_any(one, identified=False)
        live_at(one.point, found)
    run_directories(found)
    for live in live_mounts(found):
        assert (live.verity, live.userxattr, live.point) is not None


def _line(number: int, point: bytes, fstype: bytes, source: bytes, options: bytes) -> bytes:
    return b"%d 1 0:%d / %b rw - %b %b %b\n" % (number, number, point, fstype, source, options)


@pytest.mark.parametrize(
    ("fstype", "options"), [(b"tmpfs", b"rw"), (b"fuse", b"rw,lowerdir=/a"), (b"overlay", b"rw"), (b"overlay", b"")]
)
def test_an_inner_mount_of_somebody_elses_making(fstype: bytes, options: bytes) -> None:
    table = _line(2, b"/x", fstype, b"mkmeta-inner:0123456789ab", options)
    table += _line(3, b"/y", b"overlay", b"mkmeta:0123456789ab", b"ro,lowerdir+=/x,lowerdir+=/volume,verity=odd")
    (live,) = live_mounts(parse(table))
    assert (live.layer, live.lower) == (b"" if fstype == b"overlay" else b"/x", b"/volume")


@pytest.mark.parametrize(
    "options", [b"ro", b"ro,lowerdir=", b"ro,lowerdir=\\134", b"ro,upperdir=/u", b"ro,datadir+=/d"]
)
def test_a_mount_with_our_name_and_hardly_a_layer(options: bytes) -> None:
    assert len(live_mounts(parse(_line(2, b"/x", b"overlay", b"mkmeta:0123456789ab", options)))) == 1


def test_the_rest_of_a_broken_line_is_passed_over() -> None:
    table = _line(2, b"/x", b"odd", b"source", b"rw,comment=\n3 1 half\n\n") + _line(4, b"/y", b"tmpfs", b"", b"rw")
    assert [(one.id, one.point, one.source) for one in parse(table)] == [(2, b"/x", b"source"), (4, b"/y", b"")]


@pytest.mark.needs("root", "overlay")
def test_mount_points_and_sources_of_any_bytes(tmp_path: Path) -> None:
    """As this kernel writes them: whatever it escapes and whatever not, they are read back as they are."""
    top = os.fsencode(tmp_path)
    names = [b"point" + odd + b"end" for odd in ODD]

    def look() -> int:
        leave_mount_namespace()
        for name in names:
            os.mkdir(top + b"/" + name)
            mount(b"from" + name, top + b"/" + name, b"tmpfs", 0)
        table = mounts()
        for name in names:
            check(mount_of(top + b"/" + name, table), name)
        assert any(
            top + b"/" + names[0] in [one.point for one in found]
            for found in [table.mounts for table in mount_tables().tables]
        )
        return 0

    def check(found: Mount, name: bytes) -> None:
        assert (found.point, found.source, found.fstype) == (top + b"/" + name, b"from" + name, b"tmpfs")
        assert layers_of(found) == ([], [], None)
        fd = os.open(top + b"/" + name, os.O_RDONLY)
        assert filesystem_type(fd) == "tmpfs"
        os.close(fd)

    assert wait(fork(look)) == 0
