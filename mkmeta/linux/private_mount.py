"""A mount of one's own of a volume that is mounted already: on NFS with caches that nobody else fills."""

from __future__ import annotations

import os

from mkmeta.linux.mount import FilesystemContext, MountFlags
from mkmeta.linux.mountinfo import mount_of, mounts

_NFS = (b"nfs", b"nfs4")


def open_private(path: bytes) -> tuple[int, bool]:
    """Opens a directory through a new read-only NFS mount with nosharecache, which is gone when the descriptor closes.

    The mount is in no namespace. Second: whether it is that; elsewhere, and for who may not mount, the directory is
    simply opened. Raises OSError when it cannot be.
    """
    found = mount_of(path, mounts())
    if found.fstype in _NFS:
        try:
            return _mounted(path, found.fstype, found.source, found.options, found.point), True
        except OSError:  # not root, or a kernel that wants more: what everybody sees has to do
            pass
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False


def _mounted(path: bytes, fstype: bytes, source: bytes, options: tuple[tuple[bytes, bytes], ...], point: bytes) -> int:
    with FilesystemContext.open(fstype) as context:
        context.set_string(b"source", source)
        for key, value in options:
            if key in (b"rw", b"ro", b"sharecache", b"nosharecache", b"fsc"):
                continue
            if value:
                context.set_string(key, value)
            else:
                context.set_flag(key)
        context.set_flag(b"nosharecache")
        context.create()
        mount = context.mount(MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC)
    try:
        below = os.path.relpath(os.path.realpath(path), point)
        return os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
