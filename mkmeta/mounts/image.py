"""Layers that are images (formats/erofs.md): mounting, recognising and checking them (formats/mounts.md section 3).

An image is mounted as it is where the kernel can do that (Linux 6.12), else by a loop device: so also one on a
filesystem that the kernel takes no files of (tmpfs), and where its way of counting leaves no room for overlays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Final

from mkmeta.errors import MountError, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.loop import attach, backing_file
from mkmeta.linux.mount import FilesystemContext, MountFlags, MountRefused
from mkmeta.linux.mountinfo import Mount

IMAGE_TYPE: Final = b"erofs"
INNER_PLACE: Final = re.compile(rb"(?P<run>/.*|)/inner/[0-9a-f]{16}", re.DOTALL)  # RUN/inner/XXXXXXXXXXXXXXXX
FLAGS: Final = (
    MountFlags.RDONLY | MountFlags.NOSUID | MountFlags.NODEV
)  # it is read through an overlay, which has its own
_SOURCE_MAX: Final = 255  # bytes of a value that fsconfig(2) takes
_RATE: Final = 10 << 20  # bytes per second that any disk or server reads

Way = Callable[[bytes], int]


def by_file(path: bytes) -> int:
    """Mounts an image as it is: a mount that is nowhere yet. Raises OSError: ENOTBLK where the kernel cannot."""
    if len(path) > _SOURCE_MAX:
        raise MountRefused(errno.ENOTBLK, f"its path has more than {_SOURCE_MAX} bytes", path)
    return _mounted(path)


def by_loop(path: bytes) -> int:
    """Mounts an image by a loop device, which goes with the mount. Raises OSError."""
    device, fd = attach(path)
    with closing(fd):
        return _mounted(device)


WAYS: Final[tuple[Way, ...]] = (by_file, by_loop)


@contextlib.contextmanager
def opened(layer: bytes) -> Iterator[bytes]:
    """A path at which the tree of a layer can be looked at during the block, by this process and those it forks.

    An image is mounted for it, where nobody else sees it. Raises MountError when that is not possible.
    """
    if not os.path.isfile(layer):
        yield layer
        return
    with closing(mounted(layer)) as fd:
        yield b"/proc/self/fd/%d" % fd


def mounted(path: bytes) -> int:
    """An image, mounted in the first way that works, nowhere yet. Raises MountError."""
    problems = []
    for way in WAYS:
        try:
            return way(path)
        except OSError as error:
            problems.append(error)
    raise image_error(path, problems)


def image_error(path: bytes, problems: list[OSError]) -> MountError:
    """What to say when an image cannot be mounted in any way."""
    told = [error for error in problems if error.errno != errno.ENOTBLK] or problems
    why = str(told[0].strerror) if isinstance(told[0], MountRefused) else reason(told[0])
    hint = {
        errno.EPERM: "mounting an image takes root outside of user namespaces",
        errno.EACCES: "mounting an image takes root",
        errno.ENODEV: "this kernel has no EROFS: load or install its module, or build a directory",
        errno.ENOENT: "the kernel has no loop devices (module loop), or the image is gone",
        errno.EINVAL: "it may be damaged: build it again; `dmesg` may say more",
    }.get(told[0].errno or 0)
    return MountError(f"the image cannot be mounted: {why}", path=path, hint=hint)


def is_placed_image(mount: Mount) -> bool:
    """Whether a mount is that of an image, at a place of its own in a run directory."""
    return mount.fstype == IMAGE_TYPE and mount.root == b"/" and INNER_PLACE.fullmatch(mount.point) is not None


def image_of(mount: Mount) -> bytes:
    """The path of the image that was mounted; empty where that cannot be told."""
    behind = backing_file(mount.source)
    return mount.source if behind is None else behind


def seconds_for(path: bytes) -> float:
    """How long reading all of an image may take. Raises OSError."""
    return 30.0 + os.stat(path).st_size / _RATE


def _mounted(source: bytes) -> int:
    with FilesystemContext.open(IMAGE_TYPE) as context:
        context.set_string(b"source", source)
        context.set_flag(b"ro")
        context.create()
        return context.mount(FLAGS)
