"""Lines of composefs-dump(5) as mkcomposefs 1.0.8 reads them: the same are taken, and the same are refused.

But for what it takes and makes something arbitrary of: those are refused as well, and named below. Everything is bytes.

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE]...

A mode that begins with "@" makes a hard link: then path, mode and payload are all there is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from mkmeta.codec.erofs import SIZE_MAX, TYPES
from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import printable
from mkmeta.model import NAME_MAX, SYMLINK_TARGET_MAX, XATTR_NAME_MAX

CONTENT_MAX: Final = 5000  # bytes; LCFS_INLINE_CONTENT_MAX
XATTRS_MAX: Final = 32767  # bytes of a node's, each counted with XATTR_COST more than name and value
XATTRS_COST: Final = 12
XATTR_COST: Final = 7
_PAYLOAD_MAX: Final = 4095  # bytes
_XATTR_TEXT_MAX: Final = 65535  # bytes, as they are written
_TYPE_MASK: Final = 0o170000
_REGULAR, _DIRECTORY, _LINK = 0o100000, 0o040000, 0o120000
_DEVICES: Final = (0o020000, 0o060000)
_FIELDS: Final = 11
_ABSENT: Final = b"-"
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.?))", re.DOTALL)
_NAMED: Final = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_NUMBER: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)")  # strtoull(3)
_DIGITS_MAX: Final = 24  # more than 2^64 has, in octal too
_OCTAL: Final = b"01234567"
_DIGEST: Final = re.compile(rb"[0-9a-fA-F]{%d}" % (2 * DIGEST_SIZE))
_U32, _U64 = 2**32 - 1, 2**64 - 1

Xattrs = dict[bytes, bytes]


class DumpEntry(NamedTuple):
    """What a line says."""

    path: bytes  # without outer slashes; empty: the root
    mode: int
    nlink: int
    uid: int
    gid: int
    device: int  # of a device: its number, as the kernel encodes it in 32 bits
    seconds: int  # mtime, signed
    nanoseconds: int  # any 32 bits
    size: int  # of a symlink, of its target
    payload: bytes | None
    content: bytes | None  # of a regular file
    digest: bytes | None  # fs-verity digest of a regular file without content
    xattrs: Xattrs


class DumpLink(NamedTuple):
    """A line of a hard link."""

    path: bytes
    target: bytes  # path of what it names, which may be another one


def decode_line(line: bytes) -> DumpEntry | DumpLink:
    """What a line says, without its newline. Raises ValueError, saying why it is refused."""
    if b"\0" in line:
        raise ValueError("a NUL byte")
    fields = line.split(b" ", _FIELDS)
    if len(fields) < _FIELDS:
        fields += [b""] * (_FIELDS - len(fields))
    path = _path(_text(fields[0]))
    mode_text = fields[2]
    is_link = mode_text.startswith(b"@")
    mode = _often(mode_text[1:] if is_link else mode_text, "mode", 8) & 0xFFFF
    kind = mode & _TYPE_MASK
    if kind not in TYPES:
        raise ValueError(f"mode '{printable(mode_text)}' has no file type")
    payload = None if fields[8] == _ABSENT else _text(fields[8])
    if is_link:
        if kind == _DIRECTORY:
            raise ValueError("a hard link cannot be a directory")
        if payload is None:
            raise ValueError("a hard link without a target")
        return DumpLink(path, b"/".join(part for part in payload.split(b"/") if part))
    size = _number(fields[1], "size")
    if kind == _LINK:
        if not payload or len(payload) > SYMLINK_TARGET_MAX:
            raise ValueError(f"a symlink's target has 1 to {SYMLINK_TARGET_MAX} bytes")
    elif kind == _REGULAR and payload and len(payload) > _PAYLOAD_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes, more than {_PAYLOAD_MAX}")
    content = None if fields[9] == _ABSENT else _bytes(fields[9])
    if content is not None and (len(content) != size or size > CONTENT_MAX):
        raise ValueError(f"content of {len(content)} bytes; it must be as long as the size, and at most {CONTENT_MAX}")
    if kind == _LINK:
        assert payload is not None
        size = len(payload)
    digest_text, digest = _bytes(fields[10]), None
    if kind != _REGULAR or not size or content is not None:
        content = content if kind == _REGULAR and size else None
        if kind != _LINK:
            payload = None
    else:
        if size > SIZE_MAX:
            raise ValueError(f"a size of {size} bytes, more than 2^53")
        if payload and payload.startswith(b"/"):  # mkcomposefs: a redirect that the kernel refuses
            raise ValueError("a payload that begins with a slash")
        digest = _digest(digest_text)
    seconds, nanoseconds = _time(fields[7])
    device = _often(fields[6], "rdev") & _U32  # mkcomposefs: 0 for what is no number, unless the uid is 0; so the gid
    return DumpEntry(
        path,
        mode,
        _often(fields[3], "nlink") & _U32,
        _often(fields[4], "uid") & _U32,
        _often(fields[5], "gid") & _U32,
        device if kind in _DEVICES else 0,
        seconds,
        nanoseconds,
        size,
        payload,
        content,
        digest,
        _xattrs(fields[_FIELDS]) if len(fields) > _FIELDS else {},
    )


def _number(text: bytes, what: str, base: int = 10) -> int:
    """What strtoull(3) makes of all of a text: too much is the most there is, and a minus counts from there."""
    if len(text) < _DIGITS_MAX and text.isdigit() and base == 10:
        return min(int(text), _U64)
    match = _NUMBER.fullmatch(text)
    if match is None or (base == 8 and match[2].strip(_OCTAL)):
        raise ValueError(f"{what} '{printable(text)}' is not a number")
    digits = match[2].lstrip(b"0") or b"0"
    value = int(digits, base) if len(digits) < _DIGITS_MAX else _U64 + 1
    if value > _U64:
        return _U64
    return -value & _U64 if match[1] == b"-" else value


_often = lru_cache(maxsize=1024)(_number)  # of fields that say the same on most lines


def _time(text: bytes) -> tuple[int, int]:
    seconds, dot, nanoseconds = text.partition(b".")
    if not dot:
        raise ValueError(f"mtime '{printable(text)}' has no dot")
    whole = _number(seconds, "mtime")
    return whole - 2**64 if whole >> 63 else whole, _often(nanoseconds, "mtime") & _U32


def _digest(text: bytes) -> bytes | None:
    """mkcomposefs takes any text, and what is in its memory."""
    if text == _ABSENT:
        return None
    if _DIGEST.fullmatch(text) is None:
        raise ValueError(f"digest '{printable(text)}' is not {2 * DIGEST_SIZE} hexadecimal digits")
    return bytes.fromhex(text.decode())


def _xattrs(text: bytes) -> Xattrs:
    if len(text) > _XATTR_TEXT_MAX:
        raise ValueError(f"xattrs of {len(text)} bytes of text, more than {_XATTR_TEXT_MAX}")
    found: Xattrs = {}
    pairs = text.split(b" ")
    if not pairs[-1]:
        pairs.pop()
    for pair in pairs:
        key, equals, value = pair.partition(b"=")
        name = _text(key)
        if not equals or not name:
            raise ValueError(f"xattr '{printable(pair)}' is not KEY=VALUE")
        if len(name) > XATTR_NAME_MAX:
            raise ValueError(f"the name of an xattr has {len(name)} bytes, more than {XATTR_NAME_MAX}")
        found[name] = _bytes(value)
    size = XATTRS_COST + sum(XATTR_COST + len(name) + len(value) for name, value in found.items())
    if found and size > XATTRS_MAX:
        raise ValueError(f"xattrs of {size} bytes, more than {XATTRS_MAX}")
    return found


def _path(text: bytes) -> bytes:
    if text == b"/":
        return b""
    path = text.lstrip(b"/")
    if b"//" in path:
        path = b"/".join(part for part in path.split(b"/") if part)
    name = path.rpartition(b"/")[2]
    if not name or text.endswith(b"/"):
        raise ValueError("an empty path, or one that ends with a slash")
    if name in (b".", b".."):
        raise ValueError("a path that ends with a dot or two")
    if len(name) > NAME_MAX:
        raise ValueError(f"a name of {len(name)} bytes, more than {NAME_MAX}")
    return path


def _text(field: bytes) -> bytes:
    """A field that is text: it ends at a NUL."""
    return field if b"\\" not in field else _bytes(field).partition(b"\0")[0]


def _bytes(field: bytes) -> bytes:
    return field if b"\\" not in field else _ESCAPE.sub(_unescaped, field)


def _unescaped(match: re.Match[bytes]) -> bytes:
    if match[1] is not None:
        return bytes((int(match[1], 16),))
    byte = _NAMED.get(match[2])
    if byte is None:
        raise ValueError(f"'{printable(match[0])}' is not an escape")
    return byte
