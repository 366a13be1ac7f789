"""The volume below a layer: whether it answers, whether it is the one the layer was made of, and still the same.

Whatever is asked of it is asked from a child process (mkmeta/linux/asking.py): a server that is dead hangs nobody.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from mkmeta.errors import MountError, RefusedError, UsageError, printable, reason
from mkmeta.linux.asking import Asked, NoAnswerError, ask
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.linux.mount import MountFlags
from mkmeta.linux.mountinfo import mounts, seen_at
from mkmeta.linux.syscalls import open_beneath
from mkmeta.mounts.image import opened
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.run import Placed
from mkmeta.store.as_built import sampled
from mkmeta.store.generation import About

SECONDS: Final = 30.0  # a mount by autofs, or a server that is just starting, takes less
_FILES: Final = 16  # of the layer, looked for on the volume
REPEATED: Final = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC  # overlayfs does not take them over
_DEAD: Final = "see whether its server is up and reachable, `dmesg`, and mount it again"
_UNTOLD: Final = (errno.EACCES, errno.EPERM)  # root_squash: what is there is not for us to see
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


Note = Callable[[str], None]


class _Compared(NamedTuple):
    looked_for: int
    alike: int
    missing: bytes  # the first that is not as recorded


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume that answered."""

    path: bytes  # real
    device: int  # st_dev and st_ino of its root
    inode: int
    flags: MountFlags  # of its mount, of those to be repeated
    overlay: bool

    def is_of(self, placed: Placed) -> bool:
        """Whether it is the filesystem that a layer was put over: what was mounted anew is another."""
        return (placed.device, placed.inode) == (self.device, self.inode)


def look(path: bytes, seconds: float = SECONDS) -> Volume:
    """Asks a volume. Raises UsageError where there is none, MountError when it fails or does not answer in time."""
    with asking(path) as asked:
        return answered(asked, path, time.monotonic() + seconds)


def answered(asked: Asked[Volume], path: bytes, deadline: float) -> Volume:
    """What a volume answered to `asking`. Raises as `look`."""
    try:
        return asked.answer(deadline)
    except NoAnswerError:
        raise MountError("the volume does not answer", path=path, hint=_DEAD) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UsageError("the volume is not a directory", path=path, hint="mount it first") from None
        raise MountError(f"the volume cannot be read: {reason(error)}", path=path, hint=_DEAD) from None


def asking(path: bytes) -> Asked[Volume]:
    """The question, on its way. A context manager."""
    return Asked(partial(_look, path))


def check_is_the_one(volume: Volume, layer: bytes, about: About, note: Note, *, seconds: float = SECONDS) -> None:
    """Raises RefusedError when nothing of what a layer has is on the volume: an empty directory, or another volume.

    What was deleted since, or replaced, is no reason: one file of the recorded size is enough, of up to 256 spread over
    the layer. Where most are not as recorded, it says so. Raises MountError when the volume fails meanwhile.
    """
    with Asked(partial(_compare, volume.path, layer, about)) as asked:
        try:
            compared = asked.answer(time.monotonic() + seconds)
        except NoAnswerError:
            raise MountError("the volume does not answer", path=volume.path, hint=_DEAD) from None
        except OSError as error:
            where = error.filename if isinstance(error.filename, bytes) else volume.path
            raise MountError(f"cannot be looked at: {reason(error)}", path=where, hint=_DEAD) from None
    if compared.looked_for and not compared.alike:
        raise RefusedError(
            "this is not the volume the layer was made of, or it is not mounted: nothing of the layer is there, "
            f"such as {printable(compared.missing)}",
            path=volume.path,
            hint="mount the volume; if all of this was deleted from it, scan and build again",
        )
    if 2 * compared.alike < compared.looked_for:
        note(
            f"note: of {compared.looked_for} files looked for on the volume, {compared.alike} are as recorded; "
            f"{printable(compared.missing)} is not"
        )


def shows_through(live: LiveMount, seconds: float = 10.0) -> bool:
    """Whether a layer's volume answers through it: an NFS filesystem that was exported anew has the same numbers.

    Asks for a name that is nowhere, so for one request at most; a closed layer asks for none.
    """
    name = live.point + b"/.mkmeta-" + os.urandom(8).hex().encode()
    try:
        ask(partial(os.lstat, name), seconds)
    except FileNotFoundError:
        return True
    except (NoAnswerError, OSError):
        return False
    return True


def is_outdated(live: LiveMount, placed: Placed | None, path: bytes, status: os.stat_result) -> bool:
    """Whether a layer has to be mounted anew though it is the right one: the volume was, or has other flags by now.

    Judged by what stat(2) says of something on the volume, at `path`; asks nothing more.
    """
    on_volume = path.startswith(live.lower.rstrip(b"/") + b"/")
    if placed is not None and on_volume and placed.device != status.st_dev:
        return True
    mount = seen_at(live.lower, mounts())
    return mount is not None and bool(MountFlags.of(mount.flags) & REPEATED & ~MountFlags.of(live.mount.flags))


def _look(path: bytes) -> Volume:
    """In the child. O_DIRECTORY has autofs mount what is to be mounted here; statvfs(3) asks the server itself."""
    with closing(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        status = os.fstat(fd)
        shown = os.fstatvfs(fd)
        flags = {os.ST_NOSUID: MountFlags.NOSUID, os.ST_NODEV: MountFlags.NODEV, os.ST_NOEXEC: MountFlags.NOEXEC}
        return Volume(
            path=os.path.realpath(path),
            device=status.st_dev,
            inode=status.st_ino,
            flags=MountFlags(sum(flag for bit, flag in flags.items() if shown.f_flag & bit)),
            overlay=filesystem_type(fd) == "overlay",  # fstatfs(2) would ask the server once more
        )


def _compare(volume: bytes, layer: bytes, about: About) -> _Compared:
    """In the child: looks for a few files of the layer; for more, while there is none."""
    looked_for, alike, missing = 0, 0, b""
    with closing(os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top, opened(layer) as tree:
        for path, recorded in sampled(tree, about.id):
            if alike and looked_for >= _FILES:
                break
            where = b"/".join(part for part in (about.redirect_prefix, path) if part)
            try:
                with closing(open_beneath(where, os.O_PATH | os.O_NOFOLLOW, dir_fd=top)) as fd:
                    found: os.stat_result | None = os.fstat(fd)
            except OSError as error:
                if error.errno in _UNTOLD:
                    continue
                if error.errno not in _GONE:
                    raise OSError(error.errno, os.strerror(error.errno or 0), volume + b"/" + where) from None
                found = None
            looked_for += 1
            if found is not None and _is_alike(recorded, found):
                alike += 1
            else:
                missing = missing or where
    return _Compared(looked_for, alike, missing)


def _is_alike(recorded: os.stat_result, found: os.stat_result) -> bool:
    if stat.S_IFMT(recorded.st_mode) != stat.S_IFMT(found.st_mode):
        return False
    return not stat.S_ISREG(found.st_mode) or recorded.st_size == found.st_size
