"""Taking a layer away, and what is left of it when somebody elsewhere still has it (formats/mounts.md section 3)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from mkmeta.errors import LockedError, MkmetaError, MountError, printable, reason
from mkmeta.host.activation import live_mount
from mkmeta.linux.asking import NoAnswerError, ask, reused
from mkmeta.linux.mountinfo import mounts
from mkmeta.mounts.image import image_of, is_placed_image
from mkmeta.mounts.live import LiveMount, is_inner, is_layer, layers_of
from mkmeta.mounts.profile import INNER_SOURCE
from mkmeta.mounts.run import RunDirectory, run_directories
from mkmeta.mounts.switch import remove, submounts
from mkmeta.mounts.users import command_of, look, mount_tables
from mkmeta.store.generation import generation_of
from mkmeta.store.lock import held

Note = Callable[[str], None]

_SECONDS: Final = 2.0  # for a look at what processes have open, some of it on dead filesystems


@dataclass(frozen=True, kw_only=True)
class Left:
    """An inner mount whose layer is mounted here no more. It keeps the volume busy."""

    inner: bytes
    short_id: str
    users: tuple[tuple[int | None, str], ...]  # processes in mount namespaces that have the layer, or what keeps these
    complete: bool  # whether this user sees those of everybody
    copies: tuple[bytes, ...]  # where it is seen here, through mounts made by bind


@reused()
def deactivate(
    point: bytes, run: RunDirectory, note: Note, *, detach: bool, wait: float = 60.0
) -> tuple[LiveMount, Left | None]:
    """Unmounts; returns what was there, and what has to stay. Asks the volume nothing: its server may be dead.

    What is in use is detached only when that is asked for. Raises NotActiveError, MountError.
    """
    with held(run.lock, "deactivate", wait=wait, note=note):
        run.sweep()
        live = live_mount(point, run)
        below = [printable(mount.point) for mount in submounts(live)]
        if below and detach:
            note(f"note: with it goes what is mounted below it, at {', '.join(below)}")
        try:
            remove(live, detach=detach)
        except OSError as error:
            if detach:
                raise MountError(f"cannot be unmounted: {reason(error)}", path=live.point, hint=_MAY_NOT) from None
            if below:
                raise MountError(
                    f"has mounts below it, at {', '.join(below)}", path=live.point, hint="unmount these first"
                ) from None
            if error.errno != errno.EBUSY:
                hint = "it takes root" if error.errno == errno.EPERM else _MAY_NOT
                raise MountError(f"cannot be unmounted: {reason(error)}", path=live.point, hint=hint) from None
            who = users_of(live)
            raise MountError(
                f"is in use{': ' + who if who else ''}",
                path=live.point,
                hint="with --detach it goes now, and they keep what they have open",
            ) from None
        run.left(live.mount.device)
        run.sweep()
        return live, next((one for one in left_here() if one.inner == live.inner_path), None)


_MAY_NOT: Final = "a mount that came with its namespace can be unmounted only where it was made"


def left_here() -> list[Left]:
    """The inner mounts of this mount namespace whose layer is mounted here no more, and who still has that."""
    table = mounts()
    layers = [mount for mount in table if is_layer(mount)]
    inner = {mount.point: mount for mount in table if is_placed_image(mount)}
    inner |= {mount.point: mount for mount in table if is_inner(mount)}
    copies = {point: [mount.point for mount in layers if point in layers_of(mount).lowers] for point in inner}
    runs = run_directories(table)
    for mount in layers:
        known = next(filter(None, (run.placed(mount.device) for run in runs)), None)
        if known is None or known.is_here(mount):
            for point in layers_of(mount).lowers:
                inner.pop(point, None)
    if not inner:
        return []
    others = [table for table in mount_tables().tables if not table.own]
    found = []
    for mount in inner.values():
        users = [
            (table.process, command_of(table.process) if table.process is not None else table.who)
            for table in others
            if any(is_layer(one) and mount.point in layers_of(one).lowers for one in table.mounts)
        ]
        generation = generation_of(image_of(mount)) if is_placed_image(mount) else None
        short_id = generation.short_id if generation else printable(mount.source.removeprefix(INNER_SOURCE))
        found.append(
            Left(
                inner=mount.point,
                short_id=short_id,
                users=tuple(users),
                complete=os.geteuid() == 0,
                copies=tuple(copies[mount.point]),
            )
        )
    return found


def sweep_all(note: Note) -> None:
    """Removes inner mounts that nobody has any more, of every run directory in use here; not where a lock is held."""
    for run in run_directories(mounts()):
        if not os.access(run.path + b"/inner", os.W_OK):
            continue  # not ours
        try:
            with held(run.lock, "gc", wait=0.0, note=note):
                run.sweep()
        except LockedError:
            continue  # who holds it sweeps
        except (MkmetaError, OSError) as error:  # somebody else's, perhaps
            note(f"note: {printable(run.path)}: inner mounts that nobody needs stay: {error}")


def _holding(mount_id: int) -> set[int]:
    return {held.process for held in look().held if mount_id in held.mounts}


def users_of(live: LiveMount) -> str:
    """The processes that have something of a mount open, for people; as far as that can be seen in a few seconds."""
    try:
        found = ask(partial(_holding, live.mount.id), _SECONDS)
    except (NoAnswerError, OSError):
        return ""
    names = [f"{command_of(process)} ({process})" for process in sorted(found)[:5]]
    return ", ".join(names) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
