"""Which layer an overlay has on top, whatever it was called when it was mounted (formats/mounts.md section 4).

By the handle of its root or of the file in question, which names the real file of the layer; overlays that have no
handles, as those above another overlay, by inode numbers: files of a read-only overlay have those of the layer.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from mkmeta.linux.descriptors import closing
from mkmeta.linux.filesystem import is_overlay
from mkmeta.linux.handles import Handle, handle_of, open_by_handle
from mkmeta.linux.mountinfo import Mount
from mkmeta.linux.namespaces import TOO_LONG, Proc, Table
from mkmeta.linux.syscalls import CLONE_NEWNS, open_beneath, setns
from mkmeta.mounts.live import layers_of

_DELETED: Final = b" (deleted)"  # what readlink of /proc/PID/fd appends
_WITNESSES: Final = 1000  # directories looked into for a witness
_ROOT_INODE: Final = 2  # of an overlay that makes up numbers: ovl_fill_super and ovl_next_ino in fs/overlayfs
_NO_HANDLE: Final = (errno.EINVAL, errno.EOVERFLOW, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


@dataclass(frozen=True)
class Layer:
    """A layer to compare with."""

    path: bytes
    witness: bytes | None  # the path in it of anything but a directory: its inode number tells it from other layers
    number: int  # that inode number

    @classmethod
    def at(cls, path: bytes) -> Self | None:
        """Looks for a witness. One that cannot be looked at has none, and any overlay may be of it.

        None: there is no such directory, so that nothing can have been mounted.
        """
        try:
            witness = _witness_of(path)
            return cls(path, witness, os.lstat(path + b"/" + witness).st_ino if witness is not None else 0)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            return cls(path, None, 0)


@dataclass(frozen=True)
class Like:
    """The layers that something may be of: of those compared with."""

    layers: frozenset[bytes] | None  # None: it cannot be told


class Likeness:
    """Compares overlays with layers. Every question goes to overlayfs or to the layers: ask in a `watched` child."""

    def __init__(self, proc: Proc, layers: Sequence[Layer]) -> None:
        self._proc = proc
        self._layers = layers

    def of_mounted(self, places: list[tuple[Table, Mount]]) -> Like:
        """Of an overlay that is mounted at these places. Goes into their namespaces."""
        for table, mount in places:
            if table.process is None:
                continue
            try:
                name = f"{table.process}/ns/mnt"
                with closing(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc.fd)) as namespace:
                    setns(namespace, CLONE_NEWNS)
                with closing(os.open(mount.point, os.O_PATH | os.O_CLOEXEC)) as fd:
                    if self._proc.mount_id(fd) == mount.id:  # or something else covers it there
                        like = self._of_root(fd, is_whole=mount.root == b"/", names=layers_of(mount).lowers)
                        if like.layers is not None:
                            return like
            except OSError:
                continue
        return Like(None)

    def of_open(self, fd: int, path: bytes) -> Like | None:
        """Of what is open as `fd` on a mount that is gone, at a path from its root; None: it is not on overlayfs."""
        handle = _handle(fd)
        if handle is not None and handle.is_overlay is False:
            return None
        real = handle.real() if handle is not None else None
        if real is None and not is_overlay(fd):
            return None
        named = self._layers_with(real) if real is not None else frozenset()
        if named is None or named:
            return Like(named)
        root = _root_of(fd)
        if root is not None:
            with closing(root):
                top = _handle(root)
                return self._of_root(root, is_whole=top is not None and top.inode == _ROOT_INODE)
        if real is not None:
            return Like(named)  # a file that is in no layer does not need one
        if path == TOO_LONG:
            return Like(None)
        name = path.removesuffix(_DELETED)
        return Like(frozenset(one.path for one in self._layers if _is_inode(fd, _number_of(one.path + name))))

    def _of_root(self, root: int, *, is_whole: bool, names: Sequence[bytes] = ()) -> Like:
        """Of the root of a mount; `is_whole`: it is the root of the overlay too, where witnesses can be found.

        `names`: what its layers were called.
        """
        handle = _handle(root)
        real = handle.real() if handle is not None else None
        if real is not None:
            return Like(self._layers_with(real))
        if not is_whole:
            return Like(None)
        found = frozenset(one.path for one in self._layers if one.witness is None or _has(root, one))
        return Like(found) if found else self._below(root, names)

    def _below(self, root: int, names: Sequence[bytes]) -> Like:
        """Of the root of an overlay that may have a directory of a mounted layer as one of its own, as of `/mnt/sw/grp`
        there is `grp` in the layer; what a relative name is the end of is not known.
        """
        found = set()
        for name in names:
            parts = [part for part in name.split(b"/") if part not in (b"", b".")]
            if not name.startswith(b"/") or b".." in parts:
                return Like(None)
            for layer in self._layers:
                for start in range(len(parts)):
                    path = b"/".join(parts[start:])
                    try:
                        with closing(os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
                            os.close(open_beneath(path, os.O_PATH | os.O_DIRECTORY, dir_fd=top))
                    except (FileNotFoundError, NotADirectoryError):
                        continue
                    except OSError:  # through a link, for one
                        found.add(layer.path)
                        continue
                    below = Layer.at(layer.path + b"/" + path)
                    if below is not None and (below.witness is None or _has(root, below)):
                        found.add(layer.path)
        return Like(frozenset(found))

    def _layers_with(self, handle: Handle) -> frozenset[bytes] | None:
        """The layers that the file with a handle is in; None when it may be in any."""
        found = set()
        for layer in self._layers:
            try:
                with (
                    closing(os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as top,
                    closing(open_by_handle(top, handle)) as fd,
                ):
                    path = self._proc.link(f"self/fd/{fd}")
                    own = self._proc.link(f"self/fd/{top}")
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.ESTALE:
                    continue  # of another filesystem
                return None
            if path in (b"/", TOO_LONG):  # a name that the kernel has not got, or cannot say
                return None
            if path == own or path.startswith(own + b"/"):
                found.add(layer.path)
        return frozenset(found)


def _has(root: int, layer: Layer) -> bool:
    try:
        with closing(os.open(layer.witness or b".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)) as fd:
            return _is_inode(fd, layer.number)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_inode(fd: int, number: int | None) -> bool:
    """Whether an open file has an inode number. Its handle tells without asking the filesystem, but not always."""
    if number is None:
        return False
    handle = _handle(fd)
    if handle is not None and handle.inode == number:
        return True
    return os.fstat(fd).st_ino == number


def _handle(fd: int) -> Handle | None:
    try:
        return handle_of(fd)
    except OSError as error:
        if error.errno in _NO_HANDLE:
            return None
        raise


def _number_of(path: bytes) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _witness_of(layer: bytes) -> bytes | None:
    ahead = [b""]
    for _ in range(_WITNESSES):
        if not ahead:
            return None
        path = ahead.pop()
        with os.scandir(layer + b"/" + path) as entries:
            for entry in entries:
                below = path + b"/" + entry.name if path else entry.name
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(below)
                else:
                    return below
    return None


def _root_of(fd: int) -> int | None:
    """The root of the mount that is gone and that a directory is on, however deep: its `..` is itself. None: a file."""
    here = os.dup(fd)
    while True:
        try:
            above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            same = _is_same(above, here)
        except NotADirectoryError:
            return None
        finally:
            os.close(here)
        if same:
            return above
        here = above


def _is_same(one: int, other: int) -> bool:
    handle = _handle(one)
    if handle is None:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    return handle == _handle(other)
