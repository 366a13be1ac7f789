"""Comparing a node on disk with what it should be, attribute for attribute, as lstat(2) and the xattrs tell it.

Looks and changes nothing. Names are those of the working directory and are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from mkmeta.errors import printable
from mkmeta.model import ACL_SHADOWS, NS, Device, Inode, RegularFile, Symlink, Xattrs, type_name
from mkmeta.plan import PlannedNode

# A security module gives every new inode a label of its own, whoever makes it.
LABEL_XATTRS: Final = frozenset({b"security.selinux", b"security.SMACK64"})
_PERMISSIONS: Final = 0o7777
_SHOWN: Final = 64  # bytes of a value in a message


class Mismatch(NamedTuple):
    """One thing that is not as it should be."""

    what: str  # mode, owner, mtime ...: a word for programs
    message: str  # for people


def node_differences(name: bytes, node: PlannedNode, status: os.stat_result) -> Iterator[Mismatch]:
    """How the inode `name`, of which lstat(2) said `status`, differs from the planned one. Raises OSError."""
    inode = node.inode
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(inode.mode):
        yield Mismatch("type", f"is a {type_name(status.st_mode)} instead of a {type_name(inode.mode)}")
        return
    yield from inode_differences(name, inode, status)
    yield from xattr_differences(node.xattrs, read_xattrs(name), ignored=LABEL_XATTRS)


def inode_differences(name: bytes, inode: Inode, status: os.stat_result, *, mtime: bool = True) -> Iterator[Mismatch]:
    """What lstat(2) and readlink(2) tell, of two inodes of the same type. Raises OSError."""
    # The permission bits of a link mean nothing to Linux, which has no call to set them.
    if status.st_mode != inode.mode and not stat.S_ISLNK(inode.mode):
        was, should = status.st_mode & _PERMISSIONS, inode.mode & _PERMISSIONS
        yield Mismatch("mode", f"mode is {was:04o} instead of {should:04o}")
    if (status.st_uid, status.st_gid) != (inode.uid, inode.gid):
        yield Mismatch("owner", f"owner is {status.st_uid}:{status.st_gid} instead of {inode.uid}:{inode.gid}")
    if mtime and status.st_mtime_ns != inode.mtime_ns:
        yield Mismatch("mtime", f"mtime is {_seconds(status.st_mtime_ns)} instead of {_seconds(inode.mtime_ns)}")
    match inode:
        case RegularFile() if status.st_size != inode.size:
            yield Mismatch("size", f"size is {status.st_size} instead of {inode.size}")
        case Symlink() if (target := os.readlink(name)) != inode.target:
            yield Mismatch("target", f"target is {_shown(target)} instead of {_shown(inode.target)}")
        case Device() if (os.major(status.st_rdev), os.minor(status.st_rdev)) != (inode.major, inode.minor):
            is_now = f"{os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
            yield Mismatch("device", f"device number is {is_now} instead of {inode.major},{inode.minor}")


def read_xattrs(name: bytes) -> dict[bytes, bytes]:
    """All xattrs that this process may see; none where the filesystem knows none. Raises OSError."""
    try:
        names = os.listxattr(name, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    found = {os.fsencode(xattr): os.getxattr(name, xattr, follow_symlinks=False) for xattr in names}
    return {xattr: value for xattr, value in found.items() if xattr not in ACL_SHADOWS}


def xattr_differences(
    planned: Xattrs, found: dict[bytes, bytes], *, ignored: frozenset[bytes] = frozenset()
) -> Iterator[Mismatch]:
    """What is missing, what has another value, what is there and should not be (but for `ignored` names)."""
    should = dict(planned)
    if should == found:
        return
    for name in sorted(should.keys() | found.keys()):
        what = f"xattr {printable(name)}"
        if name not in found:
            yield Mismatch("xattr", f"{what} is missing")
        elif name not in should:
            if name not in ignored:
                yield Mismatch("xattr", f"{what} should not be there")
        elif found[name] != should[name]:
            yield Mismatch("xattr", f"{what} is {_shown(found[name])} instead of {_shown(should[name])}")


def _shown(value: bytes) -> str:
    more = f" ... ({len(value)} bytes)" if len(value) > _SHOWN else ""
    return f"'{printable(value[:_SHOWN])}'{more}"


def _seconds(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, NS)
    return f"{seconds}.{rest:09}"
