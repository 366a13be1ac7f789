"""The recorded tree: what an entry of a manifest is, and the limits of one.

Names, targets and xattrs are bytes; times are integer nanoseconds since the epoch, negative before 1970 and of any
size (a 64-bit count of seconds does not fit 64 bits of nanoseconds). `mode` is the full `st_mode`, type bits included.
The rules are those of formats/manifest.md.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from operator import add
from typing import NamedTuple

from mkmeta.digest import ContentDigest, ObjectId, VerityDigest

NAME_MAX = 255  # bytes of one name; NAME_MAX of limits.h
PATH_LIMIT = 4094  # bytes; PATH_MAX less its NUL and the slash before it: the kernel does not follow a longer redirect
SYMLINK_TARGET_MAX = 4095  # bytes, as the VFS
XATTR_NAME_MAX = 255  # bytes; XATTR_NAME_MAX of limits.h
XATTR_VALUE_MAX = 65536  # bytes; XATTR_SIZE_MAX of limits.h
XATTR_COUNT_MAX = 9362  # names of seven bytes with their NUL that fill XATTR_LIST_MAX
SIZE_MAX = 2**63 - 1  # loff_t
ID_MAX = 2**32 - 2  # uid_t and gid_t; 2**32 - 1 is "no change" to chown
MAJOR_LIMIT, MINOR_LIMIT = 2**12, 2**20  # the kernel's dev_t
ENTRIES_MAX = 2**32 - 1  # entries of a whole tree: inodes of the largest filesystem a layer is written to
NO_CONTENT = -1  # instead of the number of a content: the manifest does not have it
NS = 1_000_000_000

ACL_XATTRS = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
# Where xfs keeps the ACLs it shows as system.posix_acl_*, for root to see (fs/xfs/xfs_xattr.c): no part of a tree
ACL_SHADOWS = frozenset({b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"})
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")
OVERLAY_XATTRS = (b"trusted.overlay.", b"user.overlay.")  # what no manifest records; the names: overlay_xattrs.py

Xattrs = tuple[tuple[bytes, bytes], ...]  # (name, value), ascending by name


class DigestName(StrEnum):
    """A digest a manifest can carry for every regular file; the values are those of the root object."""

    BLAKE3 = "blake3"
    VERITY = "verity"


class DirectoryKind(IntEnum):
    """How a directory takes part in the mount; the values are on disk."""

    MERGE = 0  # skeleton: shows what is recorded and what the volume has
    OPAQUE = 1  # recorded completely: shows nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """What every kind of inode has."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularFile(Inode):
    """A file whose content stays on the volume."""

    size: int  # bytes, st_size
    blake3: ContentDigest | None = None
    verity: VerityDigest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory(Inode):
    """A directory; what is in it is the object `children`."""

    children: ObjectId
    entries: int  # entries in it and in all directories below it
    kind: DirectoryKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Symlink(Inode):
    """A symbolic link."""

    target: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Device(Inode):
    """A character or block device; `mode` says which."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Special(Inode):
    """A fifo or a socket; `mode` says which."""


Node = RegularFile | Directory | Symlink | Device | Special


class Entry(NamedTuple):
    """A name in a directory and the inode it names."""

    name: bytes
    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The root object: the directory that was scanned, always a merge directory, and what holds for the whole tree."""

    directory: Directory
    links: ObjectId | None  # link index
    digests: tuple[DigestName, ...]  # what every regular file carries


class PrimaryRow(NamedTuple):
    """The first name, in tree order, of an inode with several names in the manifest."""

    path: bytes
    nlink: int


class LinkRow(NamedTuple):
    """Another name of the inode whose primary is `target`."""

    path: bytes
    target: bytes


class Counts(NamedTuple):
    """What a directory, with all below it, holds and what was left out of it on purpose (manifest.md section 6).

    Of a scan on a base the last two before `unchanged` may be less.
    """

    dirs: int = 0  # opaque directories
    skeleton: int = 0  # merge directories
    files: int = 0
    symlinks: int = 0
    others: int = 0  # fifos, sockets, devices
    bytes: int = 0  # st_size of all files
    linked: int = 0  # names of inodes that have several on the volume
    hidden: int = 0  # names left out by --hide
    snapshots: int = 0  # .snapshot directories left out
    silly_renamed: int = 0  # .nfsXXXX files left out
    nfs4_acl: int = 0  # entries with an NFSv4 ACL, which is not recorded
    dropped_xattrs: int = 0  # left out by --drop-xattr
    unchanged: int = 0  # not read, since they are as in a base: of this scan alone, and so never in facts

    def plus(self, other: Iterable[int]) -> Counts:
        """The sums with what another Counts, or a plain tuple of its fields, holds."""
        return Counts(*map(add, self, other))


NO_COUNTS = Counts()
STORED_COUNTS = len(Counts._fields) - 1  # those in facts


class HardLinks(StrEnum):
    """Which names of one inode are recorded as such; the values are those of the info record."""

    SUBTREE = "subtree"  # those within one subtree: no release depends on a path of another
    ALL = "all"


def path_within(path: bytes, top: bytes) -> bool:
    """Whether `path` is `top` or below it."""
    return not top or path == top or path.startswith(top + b"/")


def tree_order(path: bytes) -> bytes:
    """A key that sorts paths as a depth-first walk with sorted names meets them. Names contain no NUL."""
    return path.replace(b"/", b"\0")


def type_name(mode: int) -> str:
    """The word for the type bits of a mode, as the messages use it."""
    return _TYPE_NAMES.get(stat.S_IFMT(mode), "unknown type")


_TYPE_NAMES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
