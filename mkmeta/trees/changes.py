"""What differs between two recorded inodes, in the words that messages use."""

from __future__ import annotations

import stat
from collections.abc import Iterable

from mkmeta.errors import printable
from mkmeta.model import Device, Directory, Node, RegularFile, Symlink


def own_changes(before: Node, after: Node) -> list[str]:
    """Which attributes differ, in a fixed order; empty when none does.

    For directories their own ones: what is in them is not looked at. When the type differs, nothing else is compared.
    Digests are compared where both sides have them.
    """
    if before is after:
        return []
    if stat.S_IFMT(before.mode) != stat.S_IFMT(after.mode):
        return ["type"]
    found = []
    if before.mode != after.mode:
        found.append("mode")
    if before.uid != after.uid or before.gid != after.gid:
        found.append("owner")
    if before.mtime_ns != after.mtime_ns:
        found.append("mtime")
    match before, after:
        case RegularFile(), RegularFile():
            if before.size != after.size:
                found.append("size")
            if _differ(before.blake3, after.blake3) or _differ(before.verity, after.verity):
                found.append("content")
        case Directory(), Directory():
            if before.kind is not after.kind:
                found.append("kind")
        case Symlink(), Symlink():
            if before.target != after.target:
                found.append("target")
        case Device(), Device():
            if (before.major, before.minor) != (after.major, after.minor):
                found.append("device")
    if before.xattrs != after.xattrs:
        found.append("xattrs")
    return found


def _differ(digest: bytes | None, other: bytes | None) -> bool:
    return digest is not None and other is not None and digest != other


def changed_xattrs(before: Node, after: Node) -> list[bytes]:
    """The names of the xattrs that only one of the two has, or that have another value; ascending."""
    one, other = dict(before.xattrs), dict(after.xattrs)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def in_words(names: Iterable[str], before: Node, after: Node) -> str:
    """Changes as a message enumerates them, xattrs by name: `mode, xattrs (user.note)`."""
    words = []
    for name in names:
        if name == "xattrs":
            listed = ", ".join(printable(xattr) for xattr in changed_xattrs(before, after))
            words.append(f"xattrs ({listed})")
        else:
            words.append(name)
    return ", ".join(words)
