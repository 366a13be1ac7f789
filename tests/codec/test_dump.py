"""composefs-dump lines, field by field."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.codec.dump import dump_hard_link, dump_line
from mkmeta.digest import ObjectId, VerityDigest
from mkmeta.model import NS, Device, Directory, DirectoryKind, Node, RegularFile, Special, Symlink, Xattrs
from tests import strategies as some

ESCAPES: dict[bytes, str] = {
    b"plain~!": "plain~!",
    b"with space": "with\\x20space",
    b"a\\b": "a\\\\b",
    b"\n\r\t": "\\n\\r\\t",
    b"\x00\x01\x1f\x7f": "\\x00\\x01\\x1f\\x7f",
    b"\xc3\xa9\xff": "\\xc3\\xa9\\xff",
    b"\x0b\x0c": "\\x0b\\x0c",
    b"--": "--",
}


def file(size: int = 1, mtime_ns: int = 0, xattrs: Xattrs = (), verity: bytes | None = None) -> RegularFile:
    digest = VerityDigest(verity) if verity else None
    return RegularFile(mode=0o100644, uid=1, gid=2, mtime_ns=mtime_ns, size=size, xattrs=xattrs, verity=digest)


def link(target: bytes) -> Symlink:
    return Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=0, target=target)


def device(mode: int, major: int, minor: int) -> Device:
    return Device(mode=mode, uid=0, gid=0, mtime_ns=0, major=major, minor=minor)


def directory() -> Directory:
    children = ObjectId(bytes(32))
    return Directory(mode=0o041777, uid=0, gid=0, mtime_ns=0, children=children, entries=0, kind=DirectoryKind.OPAQUE)


LINES: list[tuple[bytes, Node, int, str]] = [
    (b"", directory(), 3, "/ 0 41777 3 0 0 0 0.0 - - -"),
    (b"a/f", file(), 1, "/a/f 1 100644 1 1 2 0 0.0 a/f - -"),
    (b"a/f", file(verity=b"\xab" * 32), 2, f"/a/f 1 100644 2 1 2 0 0.0 a/f - {'ab' * 32}"),
    (b"empty", file(size=0, verity=b"\xab" * 32), 1, "/empty 0 100644 1 1 2 0 0.0 - - -"),
    (b"-", file(), 1, "/- 1 100644 1 1 2 0 0.0 \\x2d - -"),
    (b"=", file(), 1, "/= 1 100644 1 1 2 0 0.0 = - -"),
    (b"l", link(b"../x"), 1, "/l 4 120777 1 0 0 0 0.0 ../x - -"),
    (b"l", link(b"-"), 1, "/l 1 120777 1 0 0 0 0.0 \\x2d - -"),
    (b"l", link(b"a b"), 1, "/l 3 120777 1 0 0 0 0.0 a\\x20b - -"),
    (b"c", device(0o020600, 5, 1), 1, "/c 0 20600 1 0 0 1281 0.0 - - -"),
    (b"b", device(0o060600, 4095, 2**20 - 1), 1, f"/b 0 60600 1 0 0 {2**32 - 1} 0.0 - - -"),
    (b"b", device(0o060600, 0, 256), 1, f"/b 0 60600 1 0 0 {2**20} 0.0 - - -"),
    (b"p", Special(mode=0o010000, uid=0, gid=0, mtime_ns=0), 1, "/p 0 10000 1 0 0 0 0.0 - - -"),
    (b"f", file(mtime_ns=5 * NS + 7), 1, "/f 1 100644 1 1 2 0 5.7 f - -"),
    (b"f", file(mtime_ns=-1), 1, "/f 1 100644 1 1 2 0 -1.999999999 f - -"),
    (b"f", file(size=2**63 - 1), 1, f"/f {2**63 - 1} 100644 1 1 2 0 0.0 f - -"),
    (
        b"f",
        file(xattrs=((b"user.a=b", b"c=d"), (b"user.dash", b"-"), (b"user.e", b""))),
        1,
        "/f 1 100644 1 1 2 0 0.0 f - - user.a\\x3db=c\\x3dd user.dash=- user.e=",
    ),
]


@pytest.mark.parametrize(("path", "node", "nlink", "line"), LINES)
def test_lines(path: bytes, node: Node, nlink: int, line: str) -> None:
    assert dump_line(path, node, nlink=nlink) == line


@pytest.mark.parametrize(("raw", "text"), ESCAPES.items())
def test_escapes(raw: bytes, text: str) -> None:
    assert dump_line(raw, link(raw), nlink=1) == f"/{text} {len(raw)} 120777 1 0 0 0 0.0 {text} - -"
    assert dump_line(b"f", file(size=0, xattrs=((raw, raw),)), nlink=1).endswith(f" {text}={text}")


def test_hard_link() -> None:
    assert dump_hard_link(b"b c", file(), b"a") == "/b\\x20c 0 @100644 0 0 0 0 0.0 /a - -"


def unescape(text: str) -> bytes:
    """What a reader of the format makes of a field."""
    named = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}
    pieces = re.findall(r"\\x[0-9a-f]{2}|\\[nrt\\]|[^\\]", text)
    assert "".join(pieces) == text
    return b"".join(
        bytes.fromhex(piece[2:]) if piece.startswith("\\x") else named[piece[1]] if piece[0] == "\\" else piece.encode()
        for piece in pieces
    )


@given(some.paths, some.leaves(), st.integers(1, 9))
def test_every_field_can_be_read_back(path: bytes, node: Node, nlink: int) -> None:
    fields = dump_line(path, node, nlink=nlink).split(" ")
    assert all("!" <= character <= "~" for field in fields for character in field)
    assert unescape(fields[0]) == b"/" + path
    seconds, nanoseconds = fields[7].split(".")
    assert int(seconds) * NS + int(nanoseconds) == node.mtime_ns
    if isinstance(node, Symlink):
        assert unescape(fields[8]) == node.target
    pairs = [tuple(map(unescape, field.split("="))) for field in fields[11:]]
    assert tuple(pairs) == node.xattrs
