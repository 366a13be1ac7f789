"""NFSv4 ACLs, as Linux shows them in system.nfs4_acl: whether one keeps anybody from what mode bits allow to all.

The layout is that of fattr4_acl (RFC 7531): XDR, big endian; the rules of access are those of RFC 7530 section 6.2.1.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Final

_COUNT = struct.Struct(">I")
_ENTRY = struct.Struct(">IIII")  # type, flags, mask, length of the name
_ALLOW, _DENY, _AUDIT, _ALARM = range(4)
_INHERIT_ONLY: Final = 0x8  # an entry for what is made in a directory, and not for that itself
_OWNER: Final = b"OWNER@"
_EVERYONE: Final = b"EVERYONE@"


class Access(IntFlag):
    """ACE4_READ_DATA of files, ACE4_EXECUTE of directories."""

    READ = 0x1
    SEARCH = 0x20


def allows_everybody(acl: bytes, wanted: Access) -> bool:
    """Whether everybody but perhaps the owner has this access: all are allowed it, and nobody is denied it.

    In doubt, as for what is no ACL, not.
    """
    allowed = False
    try:
        (count,) = _COUNT.unpack_from(acl)
        at = _COUNT.size
        for _ in range(count):
            kind, flags, mask, length = _ENTRY.unpack_from(acl, at)
            at += _ENTRY.size
            who = acl[at : at + length]
            if len(who) != length or kind > _ALARM:
                return False
            at += length + -length % 4
            if not mask & wanted or flags & _INHERIT_ONLY or kind in (_AUDIT, _ALARM):
                continue
            if kind == _DENY and who != _OWNER:
                return False
            allowed |= kind == _ALLOW and who == _EVERYONE
    except struct.error:
        return False
    return allowed
