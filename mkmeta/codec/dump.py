"""Lines of composefs-dump(5): a tree as text, one entry a line, which mkcomposefs and composefs-info read and write.

    PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [KEY=VALUE]...

The escapes are those of composefs-info dump: `\\\\ \\n \\r \\t` by name, other bytes outside 0x21 to 0x7E as `\\xhh`.
"""

from __future__ import annotations

import re
from typing import Final

from mkmeta.model import NS, Device, Node, RegularFile, Symlink

_ABSENT: Final = "-"
_NAMED: Final = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_UNSAFE: Final = re.compile(rb"[^\x21-\x5b\x5d-\x7e]")  # everything but the printable, less the backslash
_UNSAFE_XATTR: Final = re.compile(rb"[^\x21-\x3c\x3e-\x5b\x5d-\x7e]")  # the same, and "="


def dump_line(
    path: bytes, node: Node, *, nlink: int, content: bytes | None = None, payload: bytes | None = None
) -> str:
    """The line of the entry at `path` (empty: the root), without its newline.

    With `content`, a file has that, and nothing else. One whose content is on the volume has its own path there, from
    the root, as payload, or what is given as one. The digest is the fs-verity digest. `nlink` is a directory's count of
    subdirectories plus two, or the names of an inode.
    """
    size = node.size if isinstance(node, RegularFile) else len(node.target) if isinstance(node, Symlink) else 0
    shown = digest = _ABSENT
    match node:
        case RegularFile(size=size) if size and content is None:
            shown = _escape_optional(path if payload is None else payload)
            digest = node.verity.hex() if node.verity else _ABSENT
        case Symlink(target=target):
            shown = _escape_optional(target)
    rdev = _device_number(node.major, node.minor) if isinstance(node, Device) else 0
    seconds, nanoseconds = divmod(node.mtime_ns, NS)
    line = (
        f"/{_escape(path)} {size} {node.mode:o} {nlink} {node.uid} {node.gid} {rdev} {seconds}.{nanoseconds} "
        f"{shown} {_ABSENT if content is None else _escape_optional(content)} {digest}"
    )
    for name, value in node.xattrs:
        line += f" {_escape(name, _UNSAFE_XATTR)}={_escape(value, _UNSAFE_XATTR)}"
    return line


def dump_hard_link(path: bytes, node: Node, target: bytes) -> str:
    """The line of another name of the inode whose line is at `target`; readers look at path, type and target only."""
    return f"/{_escape(path)} 0 @{node.mode:o} 0 0 0 0 0.0 /{_escape(target)} {_ABSENT} {_ABSENT}"


def _device_number(major: int, minor: int) -> int:
    """new_encode_dev() of linux/kdev_t.h."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


def _escape_optional(raw: bytes) -> str:
    """A field where a lone "-" means absent."""
    return "\\x2d" if raw == b"-" else _escape(raw)


def _escape(raw: bytes, unsafe: re.Pattern[bytes] = _UNSAFE) -> str:
    return unsafe.sub(_escape_byte, raw).decode("ascii")


def _escape_byte(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return _NAMED.get(byte) or b"\\x%02x" % byte[0]
