"""Removes generations nobody uses (formats/store.md section 4)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mkmeta.errors import LockedError, StoreError, TooNewError, printable, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.lease import Use, leased
from mkmeta.linux.mountinfo import Mount
from mkmeta.linux.namespaces import Table, Unseen, open_proc, whole_path
from mkmeta.model import NS
from mkmeta.mounts.live import layers_of
from mkmeta.mounts.profile import INNER_SOURCE
from mkmeta.mounts.users import Usage, command_of, look, may_be_of_any, uses
from mkmeta.store.removal import remove_gone, remove_unfinished, retire
from mkmeta.store.store import Generation, Store

_LOOKS: Final = 5  # at the host, while others change the store
_NOT_LOOKED_AT: Final = "it cannot be looked at: "
_PERHAPS: Final = "perhaps in use: "
_IMAGE_OPEN: Final = "its image is open: mounted somewhere, behind a loop device, or read by a program"
_DOUBTS: Final = 2  # more looks, when something could not be told
_PAUSE: Final = 0.2  # seconds between them
_TICK: Final = 0.03  # seconds: more than a tick of any kernel's clock, 10 ms


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What went and what stayed."""

    removed: tuple[Generation, ...]
    kept: tuple[tuple[Generation, str], ...]  # with the reason
    unseen: tuple[Unseen, ...]  # for which some were kept


def collect(
    path: bytes,
    *,
    keep: int,
    min_age: float,
    pace: float,
    dry_run: bool,
    wait: float,
    note: Callable[[str], None],
    progress: Callable[[int], None],
) -> Collected:
    """Removes generations of the store at `path`: not the newest `keep` >= 1, none younger than `min_age` seconds.

    Looks at the host without a lock; then, under the store's, retires what nobody uses, unless others had the lock
    meanwhile: then it looks again. `pace` is the share of the time spent removing: what is left over is for others who
    use the disk. Raises StoreError, LockedError, OSError.
    """
    store = Store.open(path)
    for _ in range(_LOOKS):
        changed = store.changed()
        if time.time() - changed / NS < _TICK:
            time.sleep(_TICK)  # or a change in the same tick of the filesystem's clock would leave no trace
        chosen = _decide(store, _Users(store), keep=keep, min_age=min_age)
        if dry_run:
            return chosen
        with store.lock("gc", wait=wait, note=note) as last_changed:
            if last_changed == changed:
                chosen = _retired(store, chosen)
                break
    else:
        raise LockedError("others change the store all the time", path=store.path, hint="try again later")
    remove_unfinished(store)
    remove_gone(store, pace=pace, progress=progress)
    return chosen


def _retired(store: Store, chosen: Collected) -> Collected:
    """Retires what was chosen, but for images that somebody has opened meanwhile."""
    kept = list(chosen.kept)
    removed = []
    for generation in chosen.removed:
        with contextlib.ExitStack() as stack:
            if generation.is_image:
                try:
                    use = stack.enter_context(leased(generation.layer))
                except OSError as error:  # another gc has a lease on it at this moment, for one
                    kept.append((generation, _NOT_LOOKED_AT + reason(error)))
                    continue
                if use is not Use.NONE:
                    kept.append((generation, _IMAGE_OPEN if use is Use.OPEN else f"{_PERHAPS}{use.value}"))
                    continue
            retire(store, generation)
            removed.append(generation)
    return replace(chosen, removed=tuple(removed), kept=tuple(kept))


def _decide(store: Store, users: _Users, *, keep: int, min_age: float) -> Collected:
    generations = store.generations()
    current = store.current()
    readable = [generation for generation in generations if not _is_damaged(generation)]
    newest = {*readable[-keep:], *generations[-1:]}  # the highest of all: its number must not come again
    removed: list[Generation] = []
    kept: list[tuple[Generation, str]] = []
    for generation in generations:
        if generation == current:
            why: str | None = "current"
        elif generation in newest:
            why = f"among the newest {keep}"
        elif min_age and time.time() - _built(generation) < min_age:
            why = "younger than --min-age"
        else:
            why = users.of(generation)
        if why is None:
            removed.append(generation)
        else:
            kept.append((generation, why))
    return Collected(removed=tuple(removed), kept=tuple(kept), unseen=tuple(users.unseen_for))


def _is_damaged(generation: Generation) -> bool:
    """Whether it does not say how it was built; one of a newer mkmeta is none of our business."""
    try:
        generation.about()
    except TooNewError:
        return False
    except StoreError:
        return True
    return False


def _built(generation: Generation) -> float:
    """When it was complete, in seconds since the epoch: as it says, but not after its directory was last changed."""
    changed = os.stat(generation.path).st_ctime
    with contextlib.suppress(StoreError):
        return min(changed, generation.about().built_ns / NS)
    return changed


class _Users:
    """Who uses generations: looked for when it is first asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._usage: Usage | None = None
        self._tables: list[Table] = []
        self._where: tuple[int, bytes] | None = None  # of the directory of generations
        self.unseen_for: list[Unseen] = []  # what some generation was kept for

    def of(self, generation: Generation) -> str | None:
        """Who uses a generation, or may; None: nobody. Raises StoreError."""
        usage = self._looked()
        try:
            device, root = self._place(generation)
            if generation.is_image:
                return self._mounted(generation, device, root) or self._image_open(generation)
            return (
                self._mounted(generation, device, root)
                or self._laid_over(generation, usage)
                or self._open(generation, usage)
                or self._in_doubt(usage)
            )
        except OSError as error:
            return _NOT_LOOKED_AT + reason(error)

    def _looked(self) -> Usage:
        if self._usage is None:
            self._usage = self._look()
            tables = self._usage.tables
            needed = {
                lower
                for table in tables
                for mount in table.mounts
                for lower in layers_of(mount).lowers
                if lower != mount.point  # or it is an inner one over an image
            }
            # an inner mount whose outer one is gone is nobody's: the next `activate` removes it
            self._tables = [
                replace(table, mounts=[one for one in table.mounts if not _is_inner(one) or one.point in needed])
                for table in tables
            ]
        return self._usage

    def _look(self) -> Usage:
        """Looks until nothing is in doubt, but not for ever: what comes and goes is gone the next time."""
        layers = [generation.layer for generation in self._store.generations()]
        try:
            usage = look(layers)
            for _ in range(_DOUBTS):
                if not usage.in_doubt:
                    break
                time.sleep(_PAUSE)
                usage = look(layers)
        except OSError as error:
            hint = "mount it: mount -t proc proc /proc"
            raise StoreError(f"who uses it cannot be seen, as /proc is missing: {reason(error)}", hint=hint) from None
        return usage

    def _place(self, generation: Generation) -> tuple[int, bytes]:
        """The device a generation is on, and its path in that filesystem, as the mount tables name them."""
        if self._where is None:
            self._where = self._place_of(os.path.dirname(generation.path))
        device, root = self._where
        return device, root + b"/" + generation.name

    def _place_of(self, directory: bytes) -> tuple[int, bytes]:
        with open_proc() as proc, closing(os.open(directory, os.O_PATH | os.O_CLOEXEC)) as fd:
            wanted = proc.mount_id(fd)
            path = whole_path(proc, fd)
        for table in self._tables:
            for mount in table.mounts:
                if mount.id == wanted:
                    return mount.device, mount.root.rstrip(b"/") + path.removeprefix(mount.point.rstrip(b"/"))
        raise OSError("the mount it is on is in no table")

    def _mounted(self, generation: Generation, device: int, root: bytes) -> str | None:
        for table in self._tables:
            for mount in table.mounts:
                if uses(mount, generation.short_id, generation.name, device, root):
                    return f"mounted at {printable(mount.point)} (as {table.who} sees it)"
        return None

    def _laid_over(self, generation: Generation, usage: Usage) -> str | None:
        """Whether an overlay that somebody else made has it as a layer."""
        for table in self._tables:
            for mount in table.mounts:
                if mount.device not in usage.like:
                    continue
                like = usage.like[mount.device]
                where = f"an overlay at {printable(mount.point)} (as {table.who} sees it)"
                if like is not None and generation.layer in like:
                    return f"under {where}"
                if like is None or may_be_of_any(mount, identified=bool(like)):
                    return f"perhaps under {where}, of which it cannot be told"
        return None

    def _image_open(self, generation: Generation) -> str | None:
        """Whether an image is open. What the kernel says of that is all there is, whatever could not be looked at."""
        for attempt in range(_DOUBTS + 1):
            with leased(generation.layer) as use:
                if use is Use.NONE:
                    return None
            if use is Use.UNKNOWN:
                return f"{_PERHAPS}{use.value}"
            if attempt < _DOUBTS:
                time.sleep(_PAUSE)  # a loop device takes a moment to go
        return _IMAGE_OPEN

    def _open(self, generation: Generation, usage: Usage) -> str | None:
        for item in usage.held:
            if item.attached:
                continue
            who = f"process {item.process} ({command_of(item.process)})"
            # through a writable mount nothing shows which layer it is: then anything that is open counts
            if generation.written or (item.layers and generation.layer in item.layers):
                return f"open in {who}"
            if item.layers is None:
                return f"perhaps open in {who}, of which it cannot be told"
        return None

    def _in_doubt(self, usage: Usage) -> str | None:
        if not usage.unseen:
            return None
        self.unseen_for = usage.unseen
        return _PERHAPS + usage.unseen[0].what


def _is_inner(mount: Mount) -> bool:
    return mount.source.startswith(INNER_SOURCE)
