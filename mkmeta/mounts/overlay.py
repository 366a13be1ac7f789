"""Makes one overlay mount, nowhere yet, in whichever way this kernel takes layers (formats/mounts.md section 3)."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from mkmeta.errors import MountError, printable, reason
from mkmeta.linux.descriptors import closing as closing
from mkmeta.linux.mount import (
    MNT_DETACH,
    FilesystemContext,
    MountFlags,
    MountRefused,
    mount,
    open_tree_clone,
    umount2,
)
from mkmeta.mounts.profile import Overlay

Scratch = Callable[[], AbstractContextManager[bytes]]  # a directory to mount at for a moment

_OPTIONS_MAX: Final = 4095  # bytes: mount(2) takes one page, NUL included
_OTHER_WAY: Final = re.compile(  # the kernel does not take layers this way; anything else it says is about the mount
    r"(?i)(unknown parameter|bad value for|parameter type for) '(lower|data|upper|work)dir\+?'|invalid argument$"
    r"|^vfs: legacy: "
)


def make(overlay: Overlay, scratch: Scratch) -> int:
    """The mount, as a descriptor; it is gone when that is closed before it is attached. Raises MountError."""
    ways = (_by_descriptor, _by_path, _by_string)
    try:
        for way in ways:
            try:
                return way(overlay)
            except MountRefused as error:
                if not _is_about_the_way(error):
                    raise
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
        return _by_mount2(overlay, scratch)
    except OSError as error:
        raise _explained(error, overlay) from None


def _is_about_the_way(error: MountRefused) -> bool:
    """Besides its words: fsconfig(2) takes descriptors not at all before Linux 6.5, none opened O_PATH before 6.13."""
    return error.errno in (errno.EBADF, errno.EOPNOTSUPP) or bool(_OTHER_WAY.search(str(error.strerror)))


def _by_descriptor(overlay: Overlay) -> int:
    with ExitStack() as stack:
        context = stack.enter_context(FilesystemContext.open(b"overlay"))

        def opened(path: bytes) -> int:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        for key, path in _layers(overlay):
            context.set_fd(key, opened(path))
        return _finish(context, overlay)


def _by_path(overlay: Overlay) -> int:
    if b"\\" in (overlay.upper or b""):  # takes escapes here, and mountinfo would not tell from those of the first way
        raise MountRefused(errno.EINVAL, "bad value for 'upperdir'", overlay.upper)
    with FilesystemContext.open(b"overlay") as context:
        for key, path in _layers(overlay):
            context.set_string(key, path)
        return _finish(context, overlay)


def _by_string(overlay: Overlay) -> int:
    with FilesystemContext.open(b"overlay") as context:
        context.set_string(b"lowerdir", _lowerdir(overlay))
        for key, path in _writable_layers(overlay):
            context.set_string(key, path.replace(b"\\", b"\\\\"))
        return _finish(context, overlay)


def _by_mount2(overlay: Overlay, scratch: Scratch) -> int:
    """mount(2) shows the mount at a path; it is cloned from there, so that it can go to its place in one step."""
    options = [(b"lowerdir", _lowerdir(overlay).replace(b",", b"\\,"))]
    options += [(key, path.replace(b"\\", b"\\\\").replace(b",", b"\\,")) for key, path in _writable_layers(overlay)]
    data = b",".join(key + b"=" + value if value else key for key, value in (*options, *overlay.options))
    if len(data) > _OPTIONS_MAX:
        raise MountError(
            f"the paths of its layers are too long: {len(data)} bytes of options, this kernel takes {_OPTIONS_MAX}",
            hint="move the store to a shorter path",
        )
    with scratch() as directory:
        mount(overlay.source, directory, b"overlay", int(overlay.flags), data)
        try:
            return open_tree_clone(directory)
        finally:
            umount2(directory, MNT_DETACH)


def _finish(context: FilesystemContext, overlay: Overlay) -> int:
    context.set_string(b"source", overlay.source)
    for key, value in overlay.options:
        if value:
            context.set_string(key, value)
        else:
            context.set_flag(key)
    if overlay.flags & MountFlags.RDONLY:
        context.set_flag(b"ro")
    context.create()
    return context.mount(overlay.flags)


def _layers(overlay: Overlay) -> Iterator[tuple[bytes, bytes]]:
    for path in overlay.lowers:
        yield b"lowerdir+", path
    for path in overlay.data:
        yield b"datadir+", path
    yield from _writable_layers(overlay)


def _writable_layers(overlay: Overlay) -> Iterator[tuple[bytes, bytes]]:
    if overlay.upper is not None and overlay.work is not None:
        yield b"upperdir", overlay.upper
        yield b"workdir", overlay.work


def _lowerdir(overlay: Overlay) -> bytes:
    escaped = [re.sub(rb"([\\:])", rb"\\\1", path) for path in (*overlay.lowers, *overlay.data)]
    ordinary, data = escaped[: len(overlay.lowers)], escaped[len(overlay.lowers) :]
    return b"".join([b":".join(ordinary), *(b"::" + path for path in data)])


def _explained(error: OSError, overlay: Overlay) -> MountError:
    """The kernel's own words, and what they mean where that is known."""
    said = str(error.strerror) if isinstance(error, MountRefused) else reason(error)
    layer = overlay.upper or overlay.lowers[0]
    hint = {
        errno.EPERM: "mounting takes root, or a user and mount namespace of one's own with a layer built --userxattr",
        errno.ENODEV: "this kernel has no overlayfs: load or install its module",
        errno.ELOOP: "layer and volume must not contain each other",
        errno.EINVAL: "`mkmeta doctor` shows what this kernel can mount; `dmesg` may say more",
        errno.ENOSYS: "Linux 5.2 or newer is needed, or a sandbox forbids mounting",
        errno.ESTALE: "the layer was copied or rebuilt under an index of another: build it anew",
    }.get(error.errno or 0)
    volume = (*overlay.lowers, *overlay.data)[-1]
    return MountError(f"cannot be mounted over {printable(volume)}: {said}", path=layer, hint=hint)
