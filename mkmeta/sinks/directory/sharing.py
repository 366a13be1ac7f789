"""Files that a layer shares with an earlier one (`build --base`): hard links of inodes that are just as planned.

Files whose data is on the volume are shared, and whole ones with the same data. A redirect is the path of its file, so
a shared inode has one name in each layer. What that means for who uses the layers is in formats/upper.md section 7.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, Self

from mkmeta.errors import BuildError, printable, reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import NO_CONTENT
from mkmeta.overlay_xattrs import NAMESPACES, USER, OverlayXattrs
from mkmeta.plan import PlannedNode
from mkmeta.sinks.directory.inspection import node_differences
from mkmeta.sinks.directory.staging import layer_id

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# What link(2) says when this inode, or any, cannot have one more name here: the file is written then.
_NOT_LINKED: Final = frozenset({errno.ENOENT, errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ESTALE})
_HINT: Final = "name a layer that mkmeta build made, on the filesystem the new one goes to, or leave --base out"


def is_shared(fd: int) -> bool:
    """Whether the layer open as `fd` may share inodes with another: then nothing must ever write to it."""
    for names in NAMESPACES:
        with contextlib.suppress(OSError):
            os.getxattr(fd, names.shared)
            return True
    return False


class SharedLayer:
    """The layer to share files with. A context manager; safe to use after a fork."""

    def __init__(self, path: bytes, names: OverlayXattrs) -> None:
        """Opens it. Raises BuildError for what is no layer, or has been written to."""
        self.path = os.path.realpath(path)
        self._names = names
        try:
            self._fd = os.open(path, _OPEN_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"--base cannot be opened: {reason(error)}", path=path, hint=_HINT) from None
        try:
            self._check()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def mark(self, top: int) -> bool:
        """Says of both layers, before the first link, that they share inodes. False when no link can be made.

        Raises BuildError when the base cannot be marked.
        """
        if os.fstat(top).st_dev != os.fstat(self._fd).st_dev:
            return False
        try:
            os.setxattr(self._fd, self._names.shared, b"")
            os.fsync(self._fd)
            os.setxattr(top, self._names.shared, b"")
        except OSError as error:
            message = f"--base cannot be marked as shared: {reason(error)}"
            raise BuildError(message, path=self.path, hint="it takes write permission; or leave --base out") from None
        return True

    def directory(self, path: bytes) -> int | None:
        """Opens the base's directory at `path`, following no link; None when there is none to share with."""
        try:
            return open_beneath(path, os.O_PATH | os.O_DIRECTORY, dir_fd=self._fd)
        except OSError:
            return None

    def _check(self) -> None:
        if layer_id(self._fd) is None:
            raise BuildError("--base is not a layer that mkmeta built", path=self.path, hint=_HINT)
        there = [os.fsencode(name) for name in os.listxattr(self._fd)]
        if self._names.manifest_id not in there:
            without = "without" if self._names is USER else "with"
            raise BuildError(
                f"--base was built {without} --userxattr: no file of it can be shared", path=self.path, hint=_HINT
            )
        foreign = [name for name in there if name.startswith(self._names.prefix) and name not in self._names.marks]
        beside = os.path.dirname(self.path)
        beside = os.path.dirname(beside) if os.path.basename(beside) == b"private" else beside  # formats/store.md 1
        if foreign or os.path.lexists(os.path.join(beside, b"written")):
            why = f" (it has {printable(foreign[0])})" if foreign else ""
            raise BuildError(
                f"--base was mounted as a writable upper{why}: a later write would change the new layer too",
                path=self.path,
                hint="name a layer that was only ever mounted read-only, or leave --base out",
            )


def share(
    node: PlannedNode, base_directory: int, directory: int, content: Callable[[], bytes]
) -> os.stat_result | None:
    """Links the base's file of that name into the working directory, which is open as `directory`.

    `content` gives the data of one that is whole; not called for others.
    None when there is nothing to link, or what there is is not exactly as planned; then nothing was made.
    Raises OSError for what a new file would meet too, such as a full disk.
    """
    name = node.name
    try:
        os.link(name, name, src_dir_fd=base_directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_LINKED:
            return None
        raise
    # Looked at under its new name: what was there before the link may have been replaced since.
    try:
        status = os.lstat(name)
        if not any(node_differences(name, node, status)) and (
            node.content == NO_CONTENT or _has_data(name, status, content())
        ):
            return status
    except OSError:
        os.unlink(name)
        raise
    os.unlink(name)
    return None


def _has_data(name: bytes, status: os.stat_result, data: bytes) -> bool:
    """Whether a file, of which lstat(2) said `status`, has this data."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return False  # its mode forbids it, to whoever is not root
    with open(fd, "rb", buffering=0) as file:
        if not os.path.samestat(os.fstat(fd), status):
            return False
        found = bytearray()
        while len(found) <= len(data) and (piece := file.read(len(data) + 1 - len(found))):
            found += piece
        return found == data
