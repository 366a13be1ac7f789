"""What is mounted on this host, and whether it is what it should be."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, StoreError, printable, reason
from mkmeta.host.activation import store_of
from mkmeta.linux.mountinfo import mounts, namespace_mounts
from mkmeta.mounts.live import LiveMount, live_at, live_mounts
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.profile import Profile
from mkmeta.mounts.users import Held, command_of, held_on_overlays, is_of_layer, witness_of
from mkmeta.sinks.directory.staging import layer_id
from mkmeta.store.store import Generation, Store


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process, or a mount namespace, that still has an earlier generation."""

    process: int
    command: str
    generation: int
    mounted: bool  # in its mount table; otherwise through what it has open


@dataclass(frozen=True, kw_only=True)
class Status:
    """One mounted layer."""

    live: LiveMount
    id: ObjectId | None  # None: the layer cannot be read
    generation: Generation | None  # None: its store or itself is gone
    built_ns: int | None  # when it was complete; None: it does not say
    store: bytes | None
    current: Generation | None  # what `mkmeta activate` would mount
    newest: Generation | None
    holders: tuple[Holder, ...]
    problems: tuple[str, ...]  # what is wrong with the mount

    @property
    def behind(self) -> bool:
        """Whether the store's current generation is a later one with other content."""
        if self.current is None or self.generation is None:
            return False
        return self.current.number > self.generation.number and self.current.short_id != self.generation.short_id


def statuses(points: list[bytes] | None) -> list[Status]:
    """Every mounted layer of this mount namespace, or those at some real paths."""
    table = mounts()
    stacks: dict[bytes, list[LiveMount]] = {}
    for one in live_mounts(table):
        if points is None or one.point in points:
            stacks.setdefault(one.point, []).append(one)
    own = os.getpid()  # whoever calls us hands down what it has open
    held = [item for item, attached in held_on_overlays() if not attached and item.process != own] if stacks else []
    return [_status(live_at(point, table) or stack, stack, held) for point, stack in stacks.items()]


def _status(visible: list[LiveMount], stack: list[LiveMount], held: list[Held]) -> Status:
    live = visible[-1]
    problems = []
    store: Store | None = None
    number = None
    try:
        path, number = store_of(live)
        store = Store.open(path)
        generations = store.generations()
        current = store.current()
    except MkmetaError as error:
        generations, current = [], None
        if not (isinstance(error, StoreError) and number is None):
            problems.append(str(error))
    generation = next((one for one in generations if one.number == number), None)
    if store is not None and generation is None:
        problems.append(f"generation {number} is no longer in the store")
    built_ns = None
    try:
        built_ns = generation.about().built_ns if generation else None
    except StoreError as error:
        problems.append(str(error))
    if live.profile is Profile.NESTED and live.inner is None:
        problems.append("the inner mount is not reachable: it cannot be refreshed; activate it again")
    if len(stack) > 1:
        problems.append("a switch was interrupted: activate it again")
    found = None
    try:
        with closing(os.open(live.layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            found = layer_id(fd)
        if found is None or not found.hex().startswith(live.short_id):
            problems.append("the layer's ID cannot be read, or is not the one that was mounted")
        os.listdir(live.point)
        os.stat(live.lower)
    except OSError as error:
        problems.append(f"{printable(os.fsencode(error.filename or live.point))}: {reason(error)}")
    return Status(
        live=live,
        id=found,
        generation=generation,
        built_ns=built_ns,
        store=store.path if store else None,
        current=current,
        newest=generations[-1] if generations else None,
        holders=tuple(_holders(live, [one for one in generations if one.number != number], held)),
        problems=tuple(problems),
    )


def _holders(live: LiveMount, others: list[Generation], held: list[Held]) -> list[Holder]:
    """Who has another generation of the same store: through a mount that is gone, or in another mount namespace."""
    found: dict[tuple[int, int], Holder] = {}
    for generation in others:
        witness = None
        with contextlib.suppress(OSError):
            witness = witness_of(generation.layer)
        for item in held:
            if (item.process, generation.number) not in found and is_of_layer(item, generation.layer, witness):
                found[item.process, generation.number] = _holder(item.process, generation, mounted=False)
    by_id = {generation.short_id: generation for generation in others if generation.short_id != live.short_id}
    own = os.stat("/proc/self/ns/mnt").st_ino
    for process, table in namespace_mounts():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{process}/ns/mnt").st_ino == own:
                continue
        for one in live_mounts(table):
            if one.short_id in by_id:
                generation = by_id[one.short_id]
                found.setdefault((process, generation.number), _holder(process, generation, mounted=True))
    return sorted(found.values(), key=lambda holder: (holder.generation, holder.process))


def _holder(process: int, generation: Generation, *, mounted: bool) -> Holder:
    return Holder(process=process, command=command_of(process), generation=generation.number, mounted=mounted)
