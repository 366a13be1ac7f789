"""What is mounted on this host, and whether it is what it should be.

All is read from the kernel's mount table and the store. What may wait for a server, the volume's above all, is asked in
child processes with one deadline for all of them: monitoring has its answer within seconds, whatever is dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mkmeta.digest import ObjectId
from mkmeta.errors import MkmetaError, StoreError, printable, reason
from mkmeta.host.activation import store_of
from mkmeta.host.volume import Volume, answered, asking
from mkmeta.linux.asking import Asked, NoAnswerError, reused
from mkmeta.linux.mount import MountFlags
from mkmeta.linux.mountinfo import Mount, mounts, seen_at, visible_at
from mkmeta.mounts.live import LiveMount, live_mounts
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.profile import Profile
from mkmeta.mounts.run import Placed, RunDirectory, run_directories
from mkmeta.mounts.users import command_of, look
from mkmeta.sinks.directory.staging import layer_id
from mkmeta.store.store import Generation, Store

SECONDS: Final = 3.0  # for everything that may not answer
_DENIED: Final = (errno.EACCES, errno.EPERM)


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
    copies: tuple[bytes, ...]  # where else the layers of this mount point are seen, through mounts made by bind
    problems: tuple[str, ...]  # what is wrong with the mount
    unseen: tuple[str, ...]  # what this user may not look at

    @property
    def behind(self) -> bool:
        """Whether the store's current generation is a later one with other content."""
        if self.current is None or self.generation is None:
            return False
        return self.current.number > self.generation.number and self.current.short_id != self.generation.short_id


@reused()
def statuses(points: list[bytes] | None, run: RunDirectory | None = None) -> list[Status]:
    """Every layer that was mounted in this mount namespace, or those at some real paths; bind mounts of it are its own.

    `run` is where activations wrote down what they did, besides the places that the mounts themselves name.
    """
    table = mounts()
    runs = [*([run] if run else []), *run_directories(table)]
    places: dict[bytes, list[LiveMount]] = {}
    copies: dict[bytes, list[bytes]] = {}
    placed: dict[int, Placed | None] = {}
    first: dict[int, bytes] = {}  # of each overlay: mount tables are in the order in which mounts were made
    for one in live_mounts(table):
        original = first.setdefault(one.mount.device, one.point)
        known = next(filter(None, (directory.placed(one.mount.device) for directory in runs)), None)
        placed[one.mount.id] = known
        here = known.is_here(one.mount) if known is not None else original == one.point
        if not here:
            copies.setdefault(known.point if known is not None else original, []).append(one.point)
        elif points is None or one.point in points:
            places.setdefault(one.point, []).append(one)
    deadline = time.monotonic() + SECONDS
    with contextlib.ExitStack() as stack:
        looks = []
        for point, there in places.items():
            seen = visible_at(point, table)
            live = next((one for one in reversed(there) if one.mount in seen), there[-1])
            asked = stack.enter_context(asking(live.lower))
            layer = stack.enter_context(Asked(partial(_look_at_layer, live)))
            root = stack.enter_context(Asked(partial(_look_at_root, live)))
            others = stack.enter_context(Asked(partial(_holders, live)))
            looks.append(_Look(live, there, asked, layer, root, others, deadline, placed[live.mount.id]))
        return [look.status(table, tuple(copies.get(look.live.point, ()))) for look in looks]


@dataclass(frozen=True)
class _InStore:
    """What the store says of a layer, and who else has its generations."""

    id: ObjectId | None = None
    generation: Generation | None = None
    built_ns: int | None = None
    store: bytes | None = None
    current: Generation | None = None
    newest: Generation | None = None
    problems: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass
class _Look:
    """What is being asked about one mount."""

    live: LiveMount
    there: list[LiveMount]  # all at that path, visible or not
    volume: Asked[Volume]
    layer: Asked[_InStore]
    root: Asked[str | None]
    others: Asked[list[Holder]]
    deadline: float
    placed: Placed | None
    problems: list[str] = field(default_factory=list)

    def status(self, table: list[Mount], copies: tuple[bytes, ...]) -> Status:
        """All of it together."""
        live = self.live
        self._place(table)
        try:
            found = self.layer.answer(self.deadline)
        except NoAnswerError:
            found = _InStore(problems=("the store does not answer",))
        except OSError as error:
            found = _InStore(problems=(_words(error, live.layer),))
        self._volume(found)
        unseen = list(found.unseen)
        holders: list[Holder] = []
        try:
            holders = self.others.answer(self.deadline)
        except NoAnswerError:
            unseen.append("who still has an earlier generation: a process has something open that does not answer")
        except OSError as error:
            unseen.append(f"who still has an earlier generation: {reason(error)}")
        return Status(
            live=live,
            id=found.id,
            generation=found.generation,
            built_ns=found.built_ns,
            store=found.store,
            current=found.current,
            newest=found.newest,
            holders=tuple(holders),
            copies=copies,
            problems=(*self.problems, *found.problems),
            unseen=tuple(unseen),
        )

    def _place(self, table: list[Mount]) -> None:
        """Whether users see it, from the table alone."""
        live = self.live
        seen = visible_at(live.point, table)
        if live.mount not in seen:
            over = seen_at(live.point, table)
            where = printable(over.point) if over else "a directory above"
            self.problems.append(f"users do not see it: something else is mounted over it, at {where}")
        elif seen[-1].id != live.mount.id:
            kind = seen[-1].fstype.decode(errors="replace")
            self.problems.append(f"users do not see it: a mount of type {kind} is on top of it")
        if len({one.mount.device for one in self.there if one.mount in seen}) > 1:
            self.problems.append("a switch was interrupted: activate it again")
        if live.profile is Profile.NESTED and live.inner is None:
            self.problems.append("the inner mount is not reachable: it cannot be refreshed; activate it again")

    def _volume(self, found: _InStore) -> None:
        """Whether the volume answers, and is the one below the layer, with the flags the layer has."""
        live = self.live
        try:
            volume = answered(self.volume, live.lower, self.deadline)
            wrong = self.root.answer(self.deadline)
        except NoAnswerError:
            self.problems.append(f"{printable(live.point)}: does not answer: its volume is dead, or its store")
            return
        except MkmetaError as error:
            self.problems.append(str(error))
            return
        except OSError as error:
            self.problems.append(_words(error, live.point))
            return
        if wrong is not None:
            self.problems.append(wrong)
        if self.placed is not None and not volume.is_of(self.placed):
            self.problems.append(
                f"{printable(live.lower)} is another filesystem than the one below the layer: it was unmounted, or "
                "mounted anew; activate it again"
            )
        have = MountFlags.of(live.mount.flags)
        if found.generation is not None:
            lacks = volume.flags & ~have
            if lacks:
                names = ", ".join(str(flag.name).lower() for flag in lacks)
                self.problems.append(f"the volume is mounted {names} by now, the layer is not: activate it again")


def _look_at_root(live: LiveMount) -> str | None:
    """In a child: whether the mount itself can be listed; what is wrong with it."""
    try:
        os.listdir(live.point)
    except OSError as error:
        if error.errno in _DENIED:
            return None
        return _words(error, live.point)
    return None


def _look_at_layer(live: LiveMount) -> _InStore:
    """In a child: the store, and the layer's ID."""
    problems: list[str] = []
    unseen: list[str] = []
    store: Store | None = None
    number = None
    generations: list[Generation] = []
    current = None
    try:
        path, number = store_of(live)
        os.stat(path + b"/generations/.")  # may this user look at all?
        store = Store.open(path)
        generations, current = store.generations(), store.current()
    except StoreError as error:
        if number is not None:
            problems.append(str(error))
    except OSError as error:
        if error.errno in _DENIED:
            unseen.append("whether it is the current generation: only root may read the store")
        else:
            problems.append(_words(error, live.layer))
    generation = next((one for one in generations if one.number == number), None)
    if store is not None and generation is None:
        problems.append(f"generation {number} is no longer in the store")
    built_ns = None
    try:
        built_ns = generation.about().built_ns if generation else None
    except StoreError as error:
        problems.append(str(error))
    identifier = _id(live, generation, problems, unseen)
    return _InStore(
        id=identifier,
        generation=generation,
        built_ns=built_ns,
        store=store.path if store else None,
        current=current,
        newest=generations[-1] if generations else None,
        problems=tuple(problems),
        unseen=tuple(unseen),
    )


def _id(live: LiveMount, generation: Generation | None, problems: list[str], unseen: list[str]) -> ObjectId | None:
    if live.image is not None:  # its digest was compared before it was mounted: it is what its generation says
        try:
            os.stat(live.layer)
        except OSError as error:  # it goes on being read, but nothing can be mounted of it any more
            if error.errno not in _DENIED:
                problems.append(_words(error, live.layer))
        with contextlib.suppress(StoreError):  # said already
            return generation.about().id if generation is not None else None
        return None
    try:
        with closing(os.open(live.layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            found = layer_id(fd)
    except OSError as error:
        if error.errno not in _DENIED:
            problems.append(_words(error, live.layer))
            return None
        found = None
    if found is None and os.geteuid() != 0:
        unseen.append("the layer's ID: only root may read it")
    elif found is None or not found.hex().startswith(live.short_id):
        problems.append("the layer's ID cannot be read, or is not the one that was mounted")
    return found


def _holders(live: LiveMount) -> list[Holder]:
    """In a child: who has another generation of the same store, through a mount that is gone, or elsewhere mounted."""
    try:
        path, number = store_of(live)
        others = [one for one in Store.open(path).generations() if one.number != number]
    except StoreError:
        return []  # said already
    if not others:
        return []
    found: dict[tuple[int, int], Holder] = {}
    usage = look([generation.layer for generation in others])
    own = {os.getpid(), os.getppid()}  # whoever calls us hands down what it has open
    for item in usage.held:
        for generation in others:
            if not item.attached and item.process not in own and item.layers and generation.layer in item.layers:
                holder = _holder(item.process, generation, mounted=False)
                found.setdefault((item.process, generation.number), holder)
    by_id = {generation.short_id: generation for generation in others if generation.short_id != live.short_id}
    for table in usage.tables:
        for one in live_mounts(table.mounts if not table.own and table.process is not None else []):
            if one.short_id in by_id:
                generation = by_id[one.short_id]
                holder = _holder(table.process or 0, generation, mounted=True)
                found.setdefault((holder.process, generation.number), holder)
    return sorted(found.values(), key=lambda holder: (holder.generation, holder.process))


def _holder(process: int, generation: Generation, *, mounted: bool) -> Holder:
    return Holder(process=process, command=command_of(process), generation=generation.number, mounted=mounted)


def _words(error: OSError, path: bytes) -> str:
    where = os.fsencode(error.filename) if isinstance(error.filename, str | bytes) else path
    return f"{printable(where)}: {reason(error)}"
