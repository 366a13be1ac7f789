"""What overlayfs shows of a layer over a volume, said a second way: in Python, without the kernel.

Written from Documentation/filesystems/overlayfs.rst and fs/overlayfs/namei.c; test_overlay.py holds it against the
kernel's own mounts. Directory redirects are not modelled: mkmeta never writes one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

PREFIX: Final = b"trusted.overlay."
OPAQUE: Final = PREFIX + b"opaque"
METACOPY: Final = PREFIX + b"metacopy"
REDIRECT: Final = PREFIX + b"redirect"
Seen = tuple[Any, ...]  # what `shown` tells of one path: from mode to data, or an error number alone
_ESCAPED: Final = PREFIX + b"overlay."


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An inode as a tree shows it. `read` gives the data of a regular file, or raises OSError as open(2) would."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int  # bytes, of a regular file; else 0
    rdev: int  # of a device; else 0
    target: bytes  # of a symlink; else empty
    nlink: int  # of anything but a directory; else 0
    xattrs: Mapping[bytes, bytes]
    read: Callable[[], bytes]

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and self.rdev == 0

    @property
    def is_opaque(self) -> bool:
        return self.xattrs.get(OPAQUE) == b"y"

    @property
    def is_metacopy(self) -> bool:
        return stat.S_ISREG(self.mode) and METACOPY in self.xattrs


class Tree(Protocol):
    """Something that can be a layer: a directory on disk, or an overlay. Paths are relative; the root is empty."""

    def node(self, path: bytes) -> Node | None:
        """What is at a path whose parent is a directory. None when there is nothing. Raises OSError as lstat(2)."""

    def names(self, path: bytes) -> list[bytes]:
        """What a listing of the directory at `path` has, ascending. Raises OSError."""


class Disk:
    """A directory as the kernel shows it."""

    def __init__(self, top: Path) -> None:
        self._top = os.fsencode(top)

    def node(self, path: bytes) -> Node | None:
        real = os.path.join(self._top, path)
        try:
            status = os.lstat(real)
        except (FileNotFoundError, NotADirectoryError):
            return None
        kind = stat.S_IFMT(status.st_mode)
        xattrs = map(os.fsencode, os.listxattr(real, follow_symlinks=False))
        return Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=status.st_size if kind == stat.S_IFREG else 0,
            rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            target=os.readlink(real) if kind == stat.S_IFLNK else b"",
            nlink=0 if kind == stat.S_IFDIR else status.st_nlink,
            xattrs={name: os.getxattr(real, name, follow_symlinks=False) for name in xattrs},
            read=lambda: _read(real),
        )

    def names(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(os.path.join(self._top, path)))


def _read(path: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read()


class Without:
    """A tree from which something is gone, with all below it."""

    def __init__(self, tree: Tree, gone: bytes) -> None:
        self._tree, self._gone = tree, gone

    def node(self, path: bytes) -> Node | None:
        return None if is_within(path, self._gone) else self._tree.node(path)

    def names(self, path: bytes) -> list[bytes]:
        return [name for name in self._tree.names(path) if join(path, name) != self._gone]


class Overlay:
    """A read-only overlay with `metacopy=on`: ordinary layers, uppermost first, then data-only ones."""

    def __init__(self, *layers: Tree, data: Sequence[Tree] = ()) -> None:
        self._layers, self._data = layers, data

    def node(self, path: bytes) -> Node | None:
        stack = self._stack(path)
        if not stack:
            return None
        level, top = stack[0]
        read = self._backing(level, path, top) if top.is_metacopy else top.read
        return replace(top, xattrs=_shown_xattrs(top.xattrs), read=read)

    def names(self, path: bytes) -> list[bytes]:
        stack = self._stack(path)
        if len(stack) == 1 and path:  # no merge directory, as a root always is: the real one, whiteouts and all
            return self._layers[stack[0][0]].names(path)
        found: set[bytes] = set()
        hidden: set[bytes] = set()
        for level, _ in stack:
            for name in self._layers[level].names(path):
                if name not in found:
                    (hidden if self._hides(level, join(path, name)) else found).add(name)
        return sorted(found - hidden)

    def _hides(self, level: int, path: bytes) -> bool:
        try:
            node = self._layers[level].node(path)
        except OSError:  # it is there, and cannot be looked at
            return False
        return node is not None and node.is_whiteout

    def _stack(self, path: bytes) -> list[tuple[int, Node]]:
        """What merges at `path`, by number of the layer: one thing that is no directory, or some directories."""
        if not path:
            roots = enumerate(layer.node(b"") for layer in self._layers)
            return [(level, root) for level, root in roots if root is not None]
        found: list[tuple[int, Node]] = []
        for level, _ in self._stack(parent(path)):
            node = self._layers[level].node(path)
            if node is None:
                continue
            if node.is_whiteout or (found and not node.is_directory):
                break
            found.append((level, node))
            if not node.is_directory or node.is_opaque:
                break
        return found

    def _backing(self, level: int, path: bytes, top: Node) -> Callable[[], bytes]:
        """The data of a metacopy file: looked up at once in ordinary layers, at open(2) in data-only ones."""
        redirect = top.xattrs.get(REDIRECT)
        below = range(level + 1, len(self._layers))
        if redirect is None:
            target = path
            directories = {number for number, _ in self._stack(parent(path))}
            below_here = [number for number in below if number in directories]
        else:
            assert redirect.startswith(b"/"), "mkmeta writes no other redirect"
            target = redirect[1:]
            below_here = list(below)
        for number in below_here:
            data = self._walk(self._layers[number], target)
            if data is not None:
                if not stat.S_ISREG(data.mode) or data.is_metacopy:
                    raise OSError(errno.EIO, "no data file", path)
                return data.read
        if redirect is None or not self._data:
            raise OSError(errno.EIO, "no data file", path)
        return lambda: self._open(target)

    @staticmethod
    def _walk(layer: Tree, target: bytes) -> Node | None:
        """What an ordinary layer has at the end of a redirect."""
        node = None
        for path in (*parents(target), target):
            node = layer.node(path)
            if node is None or (node.is_whiteout and path != target):
                return None
            if path != target and not node.is_directory:
                return None
        return node

    def _open(self, target: bytes) -> bytes:
        """Opens what the first data-only layer that has it has at the end of a redirect."""
        failure = errno.ENOENT
        for layer in self._data:
            for path in parents(target):
                node = layer.node(path)
                if node is None or not node.is_directory:
                    is_link = node is not None and stat.S_ISLNK(node.mode)
                    failure = errno.ENOENT if node is None else errno.ELOOP if is_link else errno.ENOTDIR
                    break
            else:
                node = layer.node(target)
                if node is not None and stat.S_ISREG(node.mode):
                    return node.read()
        raise OSError(failure, os.strerror(failure), target)


def merged(layer: Tree, volume: Tree) -> Tree:
    """The profile `merge` of formats/mounts.md."""
    return Overlay(layer, volume)


def nested(layer: Tree, volume: Tree) -> Tree:
    """The profile `nested`."""
    return Overlay(Overlay(layer, data=[volume]), volume)


PROFILES: Final = {"merge": merged, "nested": nested}


def walk(tree: Tree, path: bytes = b"") -> Iterator[tuple[bytes, Node | OSError | None]]:
    """Every listed name below `path`, in order, with what lstat(2) says of it; None: no such file."""
    for name in tree.names(path):
        at = join(path, name)
        try:
            node = tree.node(at)
        except OSError as error:
            yield at, error
            continue
        yield at, node
        if node is not None and node.is_directory:
            yield from walk(tree, at)


def shown(tree: Tree) -> dict[bytes, Seen]:
    """All that a user sees of a tree by path: attributes, xattrs, data, or the error number of lstat(2) or open(2)."""
    return {path: seen_of(node) for path, node in walk(tree)}


def seen_of(node: Node | OSError | None) -> Seen:
    """The same of one thing."""
    if node is None:
        return (errno.ENOENT,)
    if isinstance(node, OSError):
        return (node.errno,)
    data: object = None
    if stat.S_ISREG(node.mode):
        try:
            data = node.read()
        except OSError as error:
            data = error.errno
    own = (oct(node.mode), node.uid, node.gid, node.mtime_ns, node.size, node.rdev, node.target, node.nlink)
    return (*own, tuple(sorted(node.xattrs.items())), data)


def _shown_xattrs(xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Those of a layer as a mount of it shows them: its own hidden, escaped ones unescaped (Linux 6.7)."""
    found = {name: value for name, value in xattrs.items() if not name.startswith(PREFIX)}
    escaped = {PREFIX + name[len(_ESCAPED) :]: value for name, value in xattrs.items() if name.startswith(_ESCAPED)}
    return found | escaped


def join(directory: bytes, name: bytes) -> bytes:
    """The path of a name in a directory."""
    return directory + b"/" + name if directory else name


def parent(path: bytes) -> bytes:
    """The directory a path is in."""
    return path.rpartition(b"/")[0]


def parents(path: bytes) -> list[bytes]:
    """The directories above a path, uppermost first, without the root."""
    names = path.split(b"/")
    return [b"/".join(names[:count]) for count in range(1, len(names))]


def is_within(path: bytes, top: bytes) -> bool:
    """Whether `path` is `top` or below it."""
    return path == top or path.startswith(top + b"/")
