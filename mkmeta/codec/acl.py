"""POSIX ACLs: what a mode may allow when the ACL it goes with is not recorded, and which ones the kernel takes.

The layout is that of linux/posix_acl_xattr.h, the rules of access are those of acl(5). With an ACL, the group bits of a
mode are its mask, and say nothing of what the group may do.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

_HEADER: Final = struct.Struct("<I")  # version
_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, ID
_VERSION: Final = 2
_PERMISSIONS: Final = 0o777
_ALL: Final = 0o7
_NOBODY: Final = 2**32 - 1  # ACL_UNDEFINED_ID: of entries that name none


class Tag(IntEnum):
    """e_tag of struct posix_acl_xattr_entry."""

    USER_OBJ = 0x01
    USER = 0x02
    GROUP_OBJ = 0x04
    GROUP = 0x08
    MASK = 0x10
    OTHER = 0x20


def mode_without_acl(mode: int, acl: bytes) -> int:
    """`mode`, allowing nobody what `acl`, the value of system.posix_acl_access, does not allow: perhaps less.

    A member of the owning group may be a user with an entry of its own; anybody else may be one, or in a group that has
    one. Raises ValueError for what is no ACL.
    """
    if len(acl) < _HEADER.size or (len(acl) - _HEADER.size) % _ENTRY.size or _HEADER.unpack_from(acl)[0] != _VERSION:
        raise ValueError("not an ACL of version 2")
    owner = group = other = -1
    mask = users = groups = _ALL
    named: list[tuple[int, int]] = []
    for tag, permissions, _ in _ENTRY.iter_unpack(acl[_HEADER.size :]):
        match tag:
            case Tag.USER_OBJ:
                owner = permissions
            case Tag.GROUP_OBJ:
                group = permissions
            case Tag.MASK:
                mask = permissions
            case Tag.OTHER:
                other = permissions
            case Tag.USER | Tag.GROUP:
                named.append((tag, permissions))
            case _:
                raise ValueError(f"an ACL entry of kind {tag:#x}")
    if min(owner, group, other) < 0 or max(owner, group, other, mask) > _ALL:
        raise ValueError("an ACL without one of its three base entries")
    for tag, permissions in named:
        if tag == Tag.USER:
            users &= permissions & mask
        else:
            groups &= permissions & mask
    return mode & ~_PERMISSIONS | owner << 6 | (group & mask & users) << 3 | other & users & groups


def acl_permissions(acl: bytes) -> int:
    """The permission bits of the mode that goes with `acl`. Raises ValueError for what the kernel would not keep.

    The rules are those of fs/posix_acl.c: posix_acl_from_xattr(), posix_acl_valid(), posix_acl_equiv_mode().
    """
    if len(acl) <= _HEADER.size or (len(acl) - _HEADER.size) % _ENTRY.size or _HEADER.unpack_from(acl)[0] != _VERSION:
        raise ValueError("not an ACL of version 2")
    entries = list(_ENTRY.iter_unpack(acl[_HEADER.size :]))
    tags = [tag for tag, _, _ in entries]
    named = [tag for tag in tags if tag in (Tag.USER, Tag.GROUP)]
    needed = [Tag.USER_OBJ, Tag.GROUP_OBJ, *([Tag.MASK] if named else []), Tag.OTHER]
    if tags != sorted(tags) or sorted(set(tags) - {Tag.MASK, *named}) != [Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER]:
        raise ValueError("an ACL whose entries are not those of an ACL, in order")
    if any(tags.count(tag) != 1 for tag in needed) or tags.count(Tag.MASK) > 1:
        raise ValueError("an ACL with an entry too many, or without its mask")
    if any(permissions > _ALL or (number == _NOBODY) == (tag in named) for tag, permissions, number in entries):
        raise ValueError("an ACL with an entry of other permissions, or for nobody")
    bits: dict[int, int] = {tag: permissions for tag, permissions, _ in entries}
    return bits[Tag.USER_OBJ] << 6 | bits.get(Tag.MASK, bits[Tag.GROUP_OBJ]) << 3 | bits[Tag.OTHER]
