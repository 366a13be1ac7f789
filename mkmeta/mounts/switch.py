"""Puts a complete new mount where an old one is, or takes one away (formats/mounts.md section 3)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from mkmeta.errors import GapError, MountError, RefusedError, printable, reason
from mkmeta.linux.asking import Asked, NoAnswerError
from mkmeta.linux.mount import (
    MNT_DETACH,
    UMOUNT_NOFOLLOW,
    move_mount,
    move_mount_to,
    open_tree_clone,
    umount2,
    umount_fd,
)
from mkmeta.linux.mountinfo import Mount, mount_id, mounts, visible_at
from mkmeta.mounts.image import WAYS, image_error
from mkmeta.mounts.live import LiveMount, live_at
from mkmeta.mounts.overlay import closing, make
from mkmeta.mounts.profile import MountPlan
from mkmeta.mounts.run import RunDirectory

SECONDS: Final = 30.0  # for making a mount: the volume has just answered, and is asked for two directories
_OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class NewMount:
    """A complete mount that is nowhere yet, and what is to come along below it: open until it is placed or dropped."""

    fd: int
    carried: tuple[tuple[bytes, int], ...]  # paths below the mount point; copies of the mounts that are there
    placed: bool = False  # whether users see it


@contextlib.contextmanager
def made(plan: MountPlan, run: RunDirectory, old: LiveMount | None = None) -> Iterator[NewMount]:
    """The mount of a plan, with copies of what is mounted below `old`. Its inner mount goes again unless it is placed.

    What may wait for a server is done in a child process: a volume that dies meanwhile takes `SECONDS`, no more.
    Raises MountError.
    """
    directory = run.new_inner() if plan.inner() is not None or plan.image is not None else b""
    below = submounts(old) if old is not None else []
    work = partial(_make, plan, run, directory, below)
    new: NewMount | None = None
    try:
        with Asked(work, descriptors=True) as asked:
            try:
                asked.answer(time.monotonic() + SECONDS)
            except NoAnswerError:
                raise MountError(
                    f"does not answer: no mount could be made within {SECONDS:g} s",
                    path=plan.lower,
                    hint="see whether its server is up and reachable, and `dmesg`",
                ) from None
            finally:
                fds = asked.descriptors
        try:
            prefix = old.point.rstrip(b"/") + b"/" if old is not None else b""
            carried = tuple(zip((mount.point.removeprefix(prefix) for mount in below), fds[1:], strict=True))
            new = NewMount(fds[0], carried)
            yield new
        finally:
            for fd in fds:
                os.close(fd)
    finally:
        if directory and not (new and new.placed):
            run.remove_inner(directory)


def submounts(live: LiveMount) -> list[Mount]:
    """The mounts on directories of a layer that users see; those below them belong to them."""
    table = mounts()
    points = sorted({mount.point for mount in table if mount.parent == live.mount.id and mount.point != live.point})
    stacks = [visible_at(point, table) for point in points]
    return [stack[-1] for stack in stacks if stack and stack[0].parent == live.mount.id]


def settle(point: bytes, run: RunDirectory) -> LiveMount | None:
    """The one mount of mkmeta's at `point`; others on top of it, left by a killed switch, are detached.

    What is mounted below goes from the upper to the lower one, unless a switch had come that far.
    """
    while len(stack := layers_at(point, run)) > 1:
        kept = {mount.point for mount in mounts() if mount.parent == stack[-2].mount.id}
        below = [mount for mount in submounts(stack[-1]) if mount.point not in kept]
        with contextlib.ExitStack() as copies:
            fds = [(mount.point, copies.enter_context(closing(_copied(mount)))) for mount in below]
            with _opened(stack[-1]) as fd:
                umount_fd(fd, MNT_DETACH)
            for path, copy in fds:
                move_mount(copy, path)
    return stack[0] if stack else None


def layers_at(point: bytes, run: RunDirectory) -> list[LiveMount]:
    """The layers at the top of what is visible at a path that were mounted there, not made by bind from elsewhere."""

    def is_copy(mount: Mount) -> bool:
        placed = run.placed(mount.device)
        return placed is not None and not placed.is_here(mount)

    return live_at(point, mounts(), is_copy)


def place(new: NewMount, point: bytes, old: LiveMount | None, *, allow_gap: bool) -> None:
    """Attaches a mount at `point` in place of `old`, which stays if that fails. Raises MountError.

    Whoever looks up a path sees the old one or the new one, with what is mounted below it; with `allow_gap` and a
    kernel that knows no better, for a moment neither.
    """
    try:
        if old is None:
            move_mount(new.fd, point)
            new.placed = True
            return
        with _opened(old) as old_fd:
            try:
                move_mount(new.fd, point, beneath=True)
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
                _replace(new, old_fd, point)
            else:
                new.placed = True
                _carry(new, point)
                umount_fd(old_fd, MNT_DETACH)
    except OSError as error:
        raise MountError(f"the new mount cannot be put here: {reason(error)}", path=point) from None


def remove(live: LiveMount, *, detach: bool) -> None:
    """Unmounts; with `detach`, also what is in use, which keeps it until it is closed. Raises OSError: EBUSY.

    By name, which umount2(2) resolves without a question to the server: opening the root would be one.
    """
    check_on_top(live)
    umount2(live.point, UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0))


def check_on_top(live: LiveMount) -> None:
    """Raises MountError unless lookups of its path end on this mount. Asks no filesystem."""
    if [mount.id for mount in visible_at(live.point, mounts())[-1:]] != [live.mount.id]:
        raise MountError("something else was mounted over it", path=live.point, hint="unmount that first")


def _make(plan: MountPlan, run: RunDirectory, directory: bytes, below: list[Mount]) -> list[int]:
    """In the child: the mount, and copies of those below the old one, as descriptors. Raises MountError."""
    fd = _stacked(plan, run, directory) if plan.image is None else _over_image(plan, plan.image, run, directory)
    return [fd, *(_copied(mount) for mount in below)]


def _stacked(plan: MountPlan, run: RunDirectory, directory: bytes) -> int:
    inner = plan.inner()
    if inner is not None:
        with closing(make(inner, run.scratch)) as fd:
            move_mount(fd, directory)
    return make(plan.outer(directory), run.scratch)


def _over_image(plan: MountPlan, image: bytes, run: RunDirectory, directory: bytes) -> int:
    """The same with an image for a layer, mounted at `directory`, below the inner mount if there is one.

    A way that mounts it need not do for the overlays: some kernels count such a mount as one of their two levels.
    """
    refused: MountError | None = None
    problems: list[OSError] = []
    for way in WAYS:
        try:
            with closing(way(image)) as fd:
                move_mount(fd, directory)
        except OSError as error:
            problems.append(error)
            continue
        try:
            return _stacked(replace(plan, layer=directory), run, directory)
        except MountError as error:
            refused = error
            for _ in visible_at(directory, mounts()):
                umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW)
    raise refused or image_error(image, problems)


def _copied(mount: Mount) -> int:
    """A copy of a mount below a layer, with all below it. Raises MountError."""
    try:
        return open_tree_clone(mount.point, recursive=True)
    except OSError as error:
        raise MountError(
            f"what is mounted here cannot come along: {reason(error)}",
            path=mount.point,
            hint="unmount it, and mount it again afterwards",
        ) from None


def check_room(new: NewMount, point: bytes) -> None:
    """Raises RefusedError where the new layer has no place for what is mounted below the old one."""
    for path, _fd in new.carried:
        try:
            os.close(_target(new, path))
        except OSError as error:
            raise RefusedError(
                f"something is mounted at {printable(path)}, where the new layer has no place for it: {reason(error)}",
                path=point,
                hint="unmount that first",
            ) from None


def _carry(new: NewMount, point: bytes) -> None:
    for path, fd in new.carried:
        with closing(_target(new, path)) as target:
            move_mount_to(fd, target, point + b"/" + path)


def _target(new: NewMount, path: bytes) -> int:
    """What is at a path of the new mount, itself. Raises OSError."""
    return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=new.fd)


def _replace(new: NewMount, old_fd: int, point: bytes) -> None:
    with closing(open_tree_clone(point, recursive=True)) as copy:
        umount_fd(old_fd, MNT_DETACH)
        try:
            move_mount(new.fd, point)
        except OSError:
            move_mount(copy, point)
            raise
        new.placed = True
        _carry(new, point)


@contextlib.contextmanager
def _opened(live: LiveMount) -> Iterator[int]:
    """The root of exactly this mount. Raises MountError when something else is on top of it."""
    with closing(os.open(live.point, _OPEN_DIRECTORY)) as fd:
        if mount_id(fd) != live.mount.id:
            raise MountError("something else was mounted over it", path=live.point, hint="unmount that first")
        yield fd
