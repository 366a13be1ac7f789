"""Who may read by an NFSv4 ACL: in doubt, not everybody."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.codec.nfs4_acl import Access, allows_everybody

Entry = tuple[int, int, int, bytes]
ALLOW, DENY, AUDIT = 0, 1, 2
EVERYBODY: Entry = (ALLOW, 0, 0x1200A9, b"EVERYONE@")
# What Linux servers make of mode 0644, and of mode 0604
PLAIN: list[Entry] = [(ALLOW, 0, 0x16019F, b"OWNER@"), (ALLOW, 0x40, 0x120081, b"GROUP@"), EVERYBODY]
CLOSED: list[Entry] = [PLAIN[0], (DENY, 0x40, 0x1, b"GROUP@"), EVERYBODY]


def encoded(entries: list[Entry]) -> bytes:
    data = struct.pack(">I", len(entries))
    for kind, flags, mask, who in entries:
        data += struct.pack(">IIII", kind, flags, mask, len(who)) + who + bytes(-len(who) % 4)
    return data


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (PLAIN, True),
        (CLOSED, False),
        ([], False),
        (PLAIN[:2], False),
        ([(DENY, 0, 0x1, b"bob@example.org"), EVERYBODY], False),
        ([EVERYBODY, (DENY, 0, 0x1, b"bob@example.org")], False),  # it would not count behind the other: in doubt
        ([(DENY, 0, 0x1, b"OWNER@"), EVERYBODY], True),
        ([(DENY, 0, 0x2, b"bob@example.org"), EVERYBODY], True),
        ([(DENY, 0xB, 0x1, b"bob@example.org"), EVERYBODY], True),  # of what is made in it
        ([(ALLOW, 0xB, 0x1, b"EVERYONE@")], False),
        ([(AUDIT, 0, 0x1, b"bob@example.org"), EVERYBODY], True),
        ([(9, 0, 0, b"x"), EVERYBODY], False),
    ],
)
def test_reading(entries: list[Entry], expected: bool) -> None:
    assert allows_everybody(encoded(entries), Access.READ) is expected


def test_searching() -> None:
    assert allows_everybody(encoded([EVERYBODY]), Access.SEARCH)
    assert not allows_everybody(encoded([(ALLOW, 0, 0x1, b"EVERYONE@")]), Access.SEARCH)
    assert not allows_everybody(encoded([(DENY, 0, 0x20, b"g@x"), EVERYBODY]), Access.SEARCH)


@given(st.one_of(st.binary(max_size=80), st.integers(0, 60).map(lambda end: encoded(PLAIN)[:end])))
def test_what_is_no_acl_allows_nothing(data: bytes) -> None:
    assert allows_everybody(data, Access.READ) in (True, False)
    assert not allows_everybody(encoded(PLAIN)[:60], Access.READ)
