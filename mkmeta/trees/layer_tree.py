"""A layer on disk as a tree to compare: what is really there, whatever manifest it was built from.

Read as formats/upper.md describes it. overlayfs's own xattrs are turned back into what they stand for: the kind of a
directory and the fs-verity digest of a file. Whether they are right in every detail is what `verify` is for.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar

from mkmeta.digest import DIGEST_SIZE, ObjectId, VerityDigest
from mkmeta.errors import MkmetaError, UsageError, reason
from mkmeta.linux.names import listable
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import (
    ACL_SHADOWS,
    Device,
    Directory,
    DirectoryKind,
    Entry,
    HardLinks,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Special,
    Symlink,
    Xattrs,
)
from mkmeta.overlay_xattrs import NAMESPACES, OPAQUE_VALUE, OverlayXattrs
from mkmeta.trees.links import FINGERPRINT_BYTES, LinkCollector, Look

_NAMES_HELD: Final = 256 << 10  # bytes of names of one directory in memory, with what Python spends on them
_DIRECTORIES_OPEN: Final = 32  # of those that a comparison comes back to
_NLINK: Final = 2**32 - 1  # names of an inode that is one whatever links other layers have
_NO_ID: Final = ObjectId(b"")  # equal to no other: what is in a directory of a layer has to be looked at

_T = TypeVar("_T")


class LayerTree:
    """A layer as a side of a comparison. A context manager.

    Raises MkmetaError naming what cannot be read, at any time: nothing of a layer is kept in memory.
    """

    def __init__(self, path: bytes) -> None:
        """Raises UsageError when there is no layer that mkmeta built, or none whose xattrs this user sees."""
        self._path = path
        self._open: OrderedDict[bytes, int] = OrderedDict()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MkmetaError(reason(error), path=path, hint="name a manifest, or a layer") from None
        names = [os.fsencode(name) for name in os.listxattr(self._fd)]
        self._own: OverlayXattrs
        try:
            self._own = next(own for own in NAMESPACES if own.manifest_id in names)
        except StopIteration:
            os.close(self._fd)
            raise UsageError(
                "is no layer that mkmeta built, or one whose trusted.* xattrs only root can see",
                path=path,
                hint="name a manifest, a layer, a generation or a store",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
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

    def entries(self, directory: Directory, path: bytes) -> Iterator[Entry]:
        """What is in the directory at `path`, ascending by name."""
        return self._looks(path, lambda name, fd: Entry(name, self._node(fd, name)))

    def links(self) -> Iterator[PrimaryRow | LinkRow]:
        """The hard links, in tree order. Walks the whole layer; names that other layers share do not count."""

        def looks(path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
            return self._looks(path, lambda name, fd: (name, os.stat(name, dir_fd=fd, follow_symlinks=False)))

        with LinkCollector(HardLinks.ALL) as names:
            stack = [(b"", looks(b""))]
            while stack:
                prefix, found = stack[-1]
                for name, status in found:
                    path = prefix + name
                    if stat.S_ISDIR(status.st_mode):
                        stack.append((path + b"/", looks(path)))
                        break
                    if status.st_nlink > 1:
                        names.add(Look(status.st_ino, 0, _NLINK, bytes(FINGERPRINT_BYTES)), path, b"")
                else:
                    stack.pop()
            yield from names.rows()

    def _looks(self, path: bytes, look: Callable[[bytes, int], _T]) -> Iterator[_T]:
        """What `look` makes of each name in the directory at `path`, ascending by name.

        Between two of them most of the names are on disk, if there are many, and nothing of the last look is held.
        """
        with ExternalSorter(_NAMES_HELD) as names:
            try:
                with os.scandir(listable(self._directory(path))) as found:
                    for entry in found:
                        names.add(os.fsencode(entry.name))
                for name in names:
                    yield look(name, self._directory(path))
            except OSError as error:
                raise self._failure(path, error) from None

    def _directory(self, path: bytes) -> int:
        """An open directory of the layer, for now. Raises OSError."""
        fd = self._open.get(path)
        if fd is None:
            fd = open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
            self._open[path] = fd
            if len(self._open) > _DIRECTORIES_OPEN:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return fd

    def _node(self, fd: int, name: bytes, *, root: bool = False) -> Node:
        """The inode called `name` in an open directory. Raises OSError."""
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        recorded, own = self._xattrs(fd, name)
        mode, uid, gid, mtime_ns = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
        common: dict[str, Any] = {"mode": mode, "uid": uid, "gid": gid, "mtime_ns": mtime_ns}
        if stat.S_ISREG(mode):
            verity = VerityDigest(own.get(self._own.metacopy, b"")[-DIGEST_SIZE:]) or None
            return RegularFile(**common, xattrs=recorded, size=status.st_size, verity=verity)
        if stat.S_ISDIR(mode):
            kind = (
                DirectoryKind.OPAQUE if own.get(self._own.opaque) == OPAQUE_VALUE and not root else DirectoryKind.MERGE
            )
            return Directory(**common, xattrs=recorded, children=_NO_ID, entries=0, kind=kind)
        if stat.S_ISLNK(mode):
            return Symlink(**common, xattrs=recorded, target=os.readlink(name, dir_fd=fd))
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            device = {"major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev)}
            return Device(**common, xattrs=recorded, **device)
        return Special(**common, xattrs=recorded)

    def _xattrs(self, fd: int, name: bytes) -> tuple[Xattrs, dict[bytes, bytes]]:
        """The xattrs a manifest would record, and overlayfs's own."""
        at = b"/proc/self/fd/%d/%s" % (fd, name)
        recorded, own = [], {}
        for xattr in sorted(map(os.fsencode, os.listxattr(at, follow_symlinks=False))):
            value = os.getxattr(at, xattr, follow_symlinks=False)
            if xattr.startswith(self._own.prefix):
                own[xattr] = value
            elif xattr not in ACL_SHADOWS:
                recorded.append((xattr, value))
        return tuple(recorded), own

    def _failure(self, path: bytes, error: OSError) -> MkmetaError:
        return MkmetaError(f"cannot be read: {reason(error)}", path=self._path + (b"/" + path if path else b""))
