"""Makes overlays forget the names they remember and nobody uses (formats/mounts.md section 5)."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import NamedTuple

from mkmeta.errors import MountError
from mkmeta.linux.mount import MS_REMOUNT, FilesystemContext, MountFlags, mount
from mkmeta.linux.mountinfo import Mount, mounts, visible_at
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.profile import Profile


class Refreshed(NamedTuple):
    """What a refresh did."""

    seconds: float
    names: (
        int | None
    )  # fewer in the cache of the whole host afterwards, others' lookups count against it; None: unknown


def refresh(live: LiveMount) -> Refreshed:
    """Drops unused names and inodes of a mount, the outer one first: its names keep those of the inner one in use.

    Nothing that is open is touched: the mount, its options and flags stay as they are. Raises MountError.
    """
    if live.profile is Profile.NESTED and live.inner is None:
        raise MountError(
            "its inner mount is not reachable, so only part of it can be refreshed",
            path=live.point,
            hint="`mkmeta activate` replaces it by a complete one",
        )
    before = _cached_names()
    started = time.monotonic()
    for one in (live.mount, live.inner):
        if one is not None:
            try:
                if [mount.id for mount in visible_at(one.point, mounts())[-1:]] != [one.id]:
                    raise MountError("something else was mounted over it", path=one.point, hint="unmount that first")
                _drop(one)
            except OSError as error:
                raise MountError(f"cannot be refreshed: {error.strerror}", path=one.point) from None
    seconds = time.monotonic() - started
    after = _cached_names()
    return Refreshed(seconds, None if before is None or after is None else max(0, before - after))


def _drop(one: Mount) -> None:
    read_only = not one.values(b"upperdir")
    try:
        with FilesystemContext.pick(one.point) as context:
            if read_only:
                context.set_flag(b"ro")
            context.reconfigure()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        flags = MS_REMOUNT | MountFlags.of(one.flags) | (MountFlags.RDONLY if read_only else 0)
        mount(b"none", one.point, None, flags)


def _cached_names() -> int | None:
    """Dentries in the host's cache: the first field of fs.dentry-state (Documentation/admin-guide/sysctl/fs.rst).

    None where that cannot be read: some containers have no /proc/sys.
    """
    try:
        return int(Path("/proc/sys/fs/dentry-state").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
