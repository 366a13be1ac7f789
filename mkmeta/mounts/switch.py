"""Puts a complete new mount where an old one is, or takes one away (formats/mounts.md section 3)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from mkmeta.errors import GapError, MountError, reason
from mkmeta.linux.mount import MNT_DETACH, move_mount, open_tree_clone, umount2, umount_fd
from mkmeta.linux.mountinfo import mount_id, mounts
from mkmeta.mounts.live import LiveMount, live_at
from mkmeta.mounts.overlay import closing, make
from mkmeta.mounts.profile import MountPlan
from mkmeta.mounts.run import RunDirectory


@contextlib.contextmanager
def made(plan: MountPlan, run: RunDirectory) -> Iterator[int]:
    """The mount of a plan, complete and nowhere, as a descriptor. Its inner mount goes again if the block fails.

    Raises MountError.
    """
    inner = plan.inner()
    directory = run.new_inner() if inner is not None else b""
    try:
        if inner is not None:
            with closing(make(inner, run.scratch)) as fd:
                move_mount(fd, directory)
        with closing(make(plan.outer(directory), run.scratch)) as fd:
            yield fd
    except BaseException:
        if directory:
            run.remove_inner(directory)
        raise


def settle(point: bytes) -> LiveMount | None:
    """The one mount of mkmeta's at `point`; others on top of it, left by a killed switch, are detached."""
    while len(stack := live_at(point, mounts())) > 1:
        with _opened(stack[-1]) as fd:
            umount_fd(fd, MNT_DETACH)
    return stack[0] if stack else None


def place(fd: int, point: bytes, old: LiveMount | None, *, allow_gap: bool) -> None:
    """Attaches a mount at `point` in place of `old`, which stays if that fails. Raises MountError.

    Whoever looks up a path sees the old one or the new one; with `allow_gap` and a kernel that knows no better, for a
    moment neither.
    """
    try:
        if old is None:
            move_mount(fd, point)
            return
        with _opened(old) as old_fd:
            try:
                move_mount(fd, point, beneath=True)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                if not allow_gap:
                    raise GapError(
                        "this kernel cannot put a mount beneath another (Linux 6.5 can): the old one would have to go "
                        "before the new one comes",
                        path=point,
                        hint="with --allow-gap the path is an empty directory for an instant; programs may fail",
                    ) from None
                _replace(fd, old_fd, point)
            else:
                umount_fd(old_fd, MNT_DETACH)
    except OSError as error:
        raise MountError(f"the new mount cannot be put here: {reason(error)}", path=point) from None


def remove(live: LiveMount, *, detach: bool) -> None:
    """Unmounts; with `detach`, also what is in use, which keeps it until it is closed. Raises OSError: EBUSY."""
    if detach:
        with _opened(live) as fd:
            umount_fd(fd, MNT_DETACH)
        return
    with _opened(live):
        pass  # it is the one; a descriptor on it would make it busy
    umount2(live.point)


def _replace(fd: int, old_fd: int, point: bytes) -> None:
    with closing(open_tree_clone(point)) as copy:
        umount_fd(old_fd, MNT_DETACH)
        try:
            move_mount(fd, point)
        except OSError:
            move_mount(copy, point)
            raise


@contextlib.contextmanager
def _opened(live: LiveMount) -> Iterator[int]:
    """The root of exactly this mount. Raises MountError when something else is on top of it."""
    with closing(os.open(live.point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        if mount_id(fd) != live.mount.id:
            raise MountError("something else was mounted over it", path=live.point, hint="unmount that first")
        yield fd
