"""Whether the data below a layer has fs-verity: where it has none, `verity=on` makes every open fail (EIO)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from mkmeta.linux.syscalls import open_beneath
from mkmeta.linux.verity import measure_verity
from mkmeta.overlay_xattrs import OverlayXattrs, overlay_xattrs

_FILES: Final = 16  # files whose data is looked at: each is an open on the volume
_ENTRIES: Final = 4096  # entries of the layer looked at: a layer without digests has none at all
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE)  # verity or not, it cannot be opened


def unverified_file(layer: bytes, lower: bytes, *, userxattr: bool) -> bytes | None:
    """The first data file without fs-verity that a layer has a digest for, as a path with `lower` in front.

    None when all that were looked at have it: the first 16 files with a digest, among the first 4,096 entries. Data
    that is gone from the volume counts as looked at. Raises OSError.
    """
    looked_at = 0
    lower_fd = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for redirect in _redirects(layer, overlay_xattrs(userxattr=userxattr)):
            try:
                fd = open_beneath(redirect, os.O_RDONLY | os.O_NONBLOCK, dir_fd=lower_fd)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
            else:
                try:
                    if measure_verity(fd) is None:
                        return os.path.join(lower, redirect)
                finally:
                    os.close(fd)
            looked_at += 1
            if looked_at == _FILES:
                break
    finally:
        os.close(lower_fd)
    return None


def _redirects(layer: bytes, names: OverlayXattrs) -> Iterator[bytes]:
    """Where the data is, below the volume, of each file of the layer that has a digest."""
    seen = 0
    directories = [layer]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                seen += 1
                if seen > _ENTRIES:
                    return
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and (redirect := _redirect(entry.path, names)):
                    yield redirect


def _redirect(path: bytes, names: OverlayXattrs) -> bytes | None:
    """The redirect of a metadata-only file with a digest, without its slash."""
    try:
        if not os.getxattr(path, names.metacopy, follow_symlinks=False):
            return None
        return os.getxattr(path, names.redirect, follow_symlinks=False)[1:]
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None
