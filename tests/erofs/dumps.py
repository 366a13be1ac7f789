"""composefs-dump(5) texts for tests, odd ones among them, and what mkcomposefs makes of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hypothesis import strategies as st

ROOT = b"/ 4096 40755 2 0 0 0 0.0 - - -"


def mkcomposefs(text: bytes, image: Path, *options: str) -> bytes | None:
    """The image that mkcomposefs makes of a text; None: it refuses it."""
    image.unlink(missing_ok=True)
    command = ["mkcomposefs", *options, "--from-file", "-", str(image)]
    made = subprocess.run(command, input=text, capture_output=True, check=False)
    return image.read_bytes() if made.returncode == 0 else None


def escaped(raw: bytes, *, key: bool = False) -> bytes:
    """As a field."""
    if raw == b"-" and not key:
        return b"\\x2d"
    plain = b"=\\" if key else b"\\"
    return b"".join(bytes([c]) if 0x21 <= c <= 0x7E and c not in plain else b"\\x%02x" % c for c in raw)


_some_bytes = st.one_of(
    st.binary(max_size=12),
    st.builds(lambda byte, size: byte * size, st.binary(min_size=1, max_size=1), st.integers(0, 400)),
    st.just(b"v" * 3000),
)
_without_nul = _some_bytes.map(lambda raw: raw.replace(b"\0", b"0"))
_name_bytes = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"00", b"7f", b"ff", b"0", b"fff", b"!", b".a", b"-", b"..."]),
    st.binary(min_size=1, max_size=6).map(lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_")),
    st.builds(lambda byte, size: byte * size, st.sampled_from([b"x", b"\xff", b" "]), st.integers(200, 255)),
)
names = _name_bytes.filter(lambda raw: raw not in (b".", b".."))
_PREFIXES = (b"user.", b"trusted.", b"trusted.overlay.", b"")
_xattr_names = st.one_of(
    st.sampled_from([b"user.foo", b"security.selinux", b"security.capability", b"lustre.lov", b"foo", b"user."]),
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default", b"system.posix_acl_accessed"]),
    st.builds(
        bytes.__add__,
        st.sampled_from([b"trusted.overlay.", b"user.overlay.", b"trusted.overlay.overlay."]),
        st.sampled_from([b"opaque", b"redirect", b"metacopy", b"whiteout", b"whiteouts"]),
    ),
    st.builds(lambda prefix, size: prefix + b"n" * size, st.sampled_from(_PREFIXES), st.integers(1, 239)),
)
_xattrs = st.one_of(
    st.just({}), st.just({b"user.same": b"same"}), st.dictionaries(_xattr_names, _some_bytes, max_size=5)
)
_numbers = st.one_of(st.sampled_from([0, 1, 2, 1000]), st.sampled_from([65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]))
_sizes = st.one_of(
    st.integers(0, 10), st.sampled_from([4096, 4097, 70000, 2**32 - 1, 2**32, 2**43, 2**43 + 1, 2**53 - 2**45, 2**53])
)
_times = st.one_of(
    st.sampled_from([b"0.0", b"0.0", b"0.0", b"1.5"]),
    st.builds(lambda s, ns: b"%d.%d" % (s, ns), st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1)),
)
_KINDS = (0o100000, 0o100000, 0o100000, 0o120000, 0o020000, 0o060000, 0o010000, 0o140000)


@st.composite
def _line(draw: st.DrawFn, path: bytes, kind: int) -> bytes:
    permissions = draw(st.sampled_from([0o644, 0o755, 0o7777, 0]))
    size, payload, content, digest = draw(_sizes), b"-", b"-", b"-"
    rdev = draw(st.sampled_from([0, 0, 259, 2**32 - 1])) if kind in (0o020000, 0o060000) else 0
    if kind == 0o120000:
        target = draw(st.one_of(_without_nul.filter(bool), st.integers(3800, 4095).map(lambda n: b"t" * n)))
        payload, size = escaped(target), len(target)
    elif kind == 0o100000:
        if draw(st.booleans()):
            data = draw(st.one_of(_some_bytes, st.integers(1900, 5000).map(lambda n: b"d" * n)))
            content, size = escaped(data), len(data)
        elif draw(st.booleans()):
            payload = draw(st.sampled_from([b"ab/cdef", b"x", b"p" * 200]))
            digest = draw(st.sampled_from([b"-", b"5a" * 32, b"A5" * 32]))
    pairs = b"".join(
        b" " + escaped(key, key=True) + b"=" + (escaped(value) if value != b"-" else b"-")
        for key, value in draw(_xattrs).items()
    )
    return b"%s %d %o %d %d %d %d %s %s %s %s%s" % (
        path, size, kind | permissions, draw(_numbers), draw(_numbers), draw(_numbers), rdev, draw(_times), payload,
        content, digest, pairs,
    )  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Trees of up to thirty entries, in an order that mkcomposefs takes."""
    lines = [draw(_line(b"/", 0o040000))]
    directories = [b""]
    files: list[bytes] = []
    taken = set()
    for _ in range(draw(st.integers(0, 30))):
        path = draw(st.sampled_from(directories)) + b"/" + draw(names)
        if path in taken:
            continue
        taken.add(path)
        kind = draw(st.sampled_from([0o040000, 0o040000, *_KINDS, 1]))
        if kind == 1:
            if files:
                target = draw(st.sampled_from(files))
                line = b"%s 0 @100644 0 0 0 0 0.0 %s - -" % (escaped(path), escaped(target))
                lines.insert(draw(st.integers(lines_before(lines, path), len(lines))), line)
                files.append(path)
            continue
        lines.append(draw(_line(escaped(path), kind)))
        (directories if kind == 0o040000 else files).append(path)
    return b"".join(line + b"\n" for line in lines)


def lines_before(lines: list[bytes], path: bytes) -> int:
    """How many of the lines have to come before the one of a path: its directory's is the last of them."""
    directory = escaped(path.rpartition(b"/")[0]) or b"/"
    return next(number for number, line in enumerate(lines) if line.split(b" ")[0] == directory) + 1
