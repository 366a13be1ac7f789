"""A layer on disk as a tree to compare: what is really there, whatever manifest it was built from.

Read as formats/upper.md describes it. overlayfs's own xattrs are turned back into what they stand for: the kind of a
directory and the fs-verity digest of a file. Whether they are right in every detail is what `verify` is for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, Final, Self

from mkmeta.digest import DIGEST_SIZE, ObjectId, VerityDigest
from mkmeta.errors import MkmetaError, UsageError, reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.links import FINGERPRINT_BYTES, LinkCollector
from mkmeta.model import (
    OVERLAY_XATTRS,
    Device,
    Directory,
    DirectoryKind,
    Entry,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Special,
    Symlink,
    Xattrs,
)

_NO_ID: Final = ObjectId(b"")  # equal to no other: what is in a directory of a layer has to be looked at
_MARKS: Final = tuple(prefix + b"mkmeta" for prefix in OVERLAY_XATTRS)  # on the root: the manifest ID, raw


class LayerTree:
    """A layer as a side of a comparison. A context manager.

    Raises MkmetaError naming what cannot be read, at any time: nothing of a layer is kept in memory.
    """

    def __init__(self, path: bytes) -> None:
        """Raises UsageError when there is no layer that mkmeta built, or none whose xattrs this user sees."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MkmetaError(reason(error), path=path, hint="name a manifest, or a layer") from None
        names = [os.fsencode(name) for name in os.listxattr(self._fd)]
        self._prefix = next((mark.removesuffix(b"mkmeta") for mark in _MARKS if mark in names), b"")
        if not self._prefix:
            os.close(self._fd)
            raise UsageError(
                "is no layer that mkmeta built, or one whose trusted.* xattrs only root can see",
                path=path,
                hint="name a manifest, a layer, a generation or a store",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def find(self, path: bytes) -> Node | None:
        """What is at `path` (empty: the root)."""
        parent, _, name = path.rpartition(b"/")
        try:
            fd = open_beneath(parent, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure(parent, error) from None
        try:
            return self._node(fd, name or b".", root=not path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure(path, error) from None
        finally:
            os.close(fd)

    def directory(self, directory: Directory, path: bytes) -> list[Entry]:
        """What is in the directory at `path`, ascending by name."""
        try:
            fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
            try:
                return [Entry(name, self._node(fd, name)) for name in sorted(map(os.fsencode, os.listdir(fd)))]
            finally:
                os.close(fd)
        except OSError as error:
            raise self._failure(path, error) from None

    def links(self) -> Iterator[PrimaryRow | LinkRow]:
        """The hard links, in tree order. Walks the whole layer; names that other layers share do not count."""
        with LinkCollector() as names:
            stack = [b""]
            while stack:
                path = stack.pop()
                prefix = path + b"/" if path else b""
                try:
                    fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
                    try:
                        for name in map(os.fsencode, os.listdir(fd)):
                            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                            if stat.S_ISDIR(status.st_mode):
                                stack.append(prefix + name)
                            elif status.st_nlink > 1:
                                names.add(status.st_ino, prefix + name, bytes(FINGERPRINT_BYTES), 0)
                    finally:
                        os.close(fd)
                except OSError as error:
                    raise self._failure(path, error) from None
            yield from names.rows(())

    def _node(self, fd: int, name: bytes, *, root: bool = False) -> Node:
        """The inode called `name` in an open directory. Raises OSError."""
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        recorded, own = self._xattrs(fd, name)
        mode, uid, gid, mtime_ns = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
        common: dict[str, Any] = {"mode": mode, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}
        if stat.S_ISREG(mode):
            verity = VerityDigest(own.get(b"metacopy", b"")[-DIGEST_SIZE:]) or None
            return RegularFile(**common, xattrs=recorded, size=status.st_size, verity=verity)
        if stat.S_ISDIR(mode):
            kind = DirectoryKind.OPAQUE if own.get(b"opaque") == b"y" and not root else DirectoryKind.MERGE
            return Directory(**common, xattrs=recorded, children=_NO_ID, entries=0, kind=kind)
        if stat.S_ISLNK(mode):
            return Symlink(**common, xattrs=recorded, target=os.readlink(name, dir_fd=fd))
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
            return Device(**common, xattrs=recorded, **device)
        return Special(**common, xattrs=recorded)

    def _xattrs(self, fd: int, name: bytes) -> tuple[Xattrs, dict[bytes, bytes]]:
        """The xattrs a manifest would record, and overlayfs's own without their prefix."""
        at = b"/proc/self/fd/%d/%s" % (fd, name)
        recorded, own = [], {}
        for xattr in sorted(map(os.fsencode, os.listxattr(at, follow_symlinks=False))):
            value = os.getxattr(at, xattr, follow_symlinks=False)
            if xattr.startswith(self._prefix):
                own[xattr.removeprefix(self._prefix)] = value
            else:
                recorded.append((xattr, value))
        return tuple(recorded), own

    def _failure(self, path: bytes, error: OSError) -> MkmetaError:
        return MkmetaError(f"cannot be read: {reason(error)}", path=self._path + (b"/" + path if path else b""))
