"""Removes generations nobody uses (formats/store.md section 4)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from mkmeta.errors import StoreError, TooNewError, printable, reason
from mkmeta.linux.mountinfo import mount_of, mounts, namespace_mounts
from mkmeta.model import NS
from mkmeta.mounts.live import layers_of
from mkmeta.mounts.profile import INNER_SOURCE
from mkmeta.mounts.users import command_of, held_on_overlays, is_of_layer, uses, witness_of
from mkmeta.store.removal import remove_gone, remove_unfinished, retire
from mkmeta.store.store import Generation, Store


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What went and what stayed."""

    removed: tuple[Generation, ...]
    kept: tuple[tuple[Generation, str], ...]  # with the reason


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

    `pace` is the share of the time spent removing: what is left over is for others who use the disk. Raises StoreError,
    LockedError, OSError.
    """
    store = Store.open(path)
    with store.lock("gc", wait=wait, note=note):
        removed, kept = _decide(store, keep=keep, min_age=min_age)
        if not dry_run:
            for generation in removed:
                retire(store, generation)
    if not dry_run:
        remove_unfinished(store)
        remove_gone(store, pace=pace, progress=progress)
    return Collected(removed=tuple(removed), kept=tuple(kept))


def _decide(store: Store, *, keep: int, min_age: float) -> tuple[list[Generation], list[tuple[Generation, str]]]:
    generations = store.generations()
    current = store.current()
    readable = [generation for generation in generations if not _is_damaged(generation)]
    newest = {*readable[-keep:], *generations[-1:]}  # the highest of all: its number must not come again
    used = _Usage()
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
            why = used.by_whom(generation)
        if why is None:
            removed.append(generation)
        else:
            kept.append((generation, why))
    return removed, kept


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


class _Usage:
    """The mounts of all namespaces and what processes hold, looked at once."""

    def __init__(self) -> None:
        tables = list(namespace_mounts())
        needed = {lower for _process, table in tables for mount in table for lower in layers_of(mount).lowers}
        # an inner mount whose outer one is gone is nobody's: the next `activate` removes it
        self._tables = [
            (process, [one for one in table if not one.source.startswith(INNER_SOURCE) or one.point in needed])
            for process, table in tables
        ]
        self._held = [item for item, attached in held_on_overlays() if not attached]

    def by_whom(self, generation: Generation) -> str | None:
        """Who uses a generation; None: nobody."""
        where = mount_of(generation.path, mounts())
        for process, table in self._tables:
            for mount in table:
                if uses(mount, generation.short_id, generation.path, where):
                    return f"mounted at {printable(mount.point)} (as process {process} sees it)"
        witness = None
        try:
            witness = witness_of(generation.layer)
        except (FileNotFoundError, NotADirectoryError):
            pass  # then nothing can have been mounted
        except OSError as error:
            return f"its layer cannot be looked at: {reason(error)}"
        for item in self._held:
            # through a writable mount nothing shows which layer it is: then anything that is open counts
            if generation.written or is_of_layer(item, generation.layer, witness):
                return f"open in process {item.process} ({command_of(item.process)})"
        return None
