"""Activating a generation: from what is asked for to what is mounted, refusing what would show wrong data."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from mkmeta.errors import MountError, NoGenerationError, NotActiveError, RefusedError, StoreError, UsageError, printable
from mkmeta.linux.mount import MountFlags
from mkmeta.linux.mountinfo import Mount, mount_of, mounts, namespace_mounts
from mkmeta.linux.process import ending_signals_held
from mkmeta.mounts.live import LiveMount, layers_of
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.probe import probe
from mkmeta.mounts.profile import EXTRA_OPTIONS, SHORT_ID_DIGITS, MountPlan, Profile, Verity
from mkmeta.mounts.run import RunDirectory
from mkmeta.mounts.switch import made, place, remove, settle
from mkmeta.mounts.users import command_of, held_on_overlays
from mkmeta.mounts.verity_check import unverified_file
from mkmeta.sinks.directory.sharing import is_shared
from mkmeta.sinks.directory.staging import layer_id
from mkmeta.store.lock import held
from mkmeta.store.store import Generation, Store

Note = Callable[[str], None]
_MASK = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC  # what overlayfs does not take over from the volume


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be mounted where. None: as it is now, or by default."""

    point: bytes
    store: bytes
    lower: bytes | None = None
    profile: Profile | None = None
    generation: int | None = None
    verity: Verity = Verity.OFF
    extra: tuple[tuple[bytes, bytes], ...] = ()
    allow_gap: bool = False
    other_root: bool = False  # the manifest may have been scanned from a directory of another name
    wait: float = 60.0  # seconds for locks


class Action(StrEnum):
    """What was done."""

    MOUNTED = "mounted"
    SWITCHED = "switched"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class Activated:
    """The outcome."""

    action: Action
    point: bytes
    generation: Generation
    profile: Profile
    lower: bytes
    before: LiveMount | None
    seconds: float  # between the old mount and the new one being complete


def activate(request: Request, run: RunDirectory, note: Note) -> Activated:
    """Mounts a generation of a store, or switches what is mounted to it, or finds it there already.

    Raises RefusedError, GapError, StoreError, LockedError, other MountErrors: then what was mounted still is.
    """
    with held(run.lock, "activate", wait=request.wait, note=note):
        return activate_locked(request, run, note)


def activate_locked(request: Request, run: RunDirectory, note: Note) -> Activated:
    """The same, for a caller who holds the lock of `run`."""
    started = time.monotonic()
    point = _directory(request.point, "the mount point", "make the directory first")
    run.sweep()
    live = settle(point)
    store = Store.open(request.store)
    lower = _lower(request.lower or (live.lower if live else None), point)
    with store.lock("activate", wait=request.wait, note=note):
        generation = _chosen(store, request.generation, live)
        if live is not None and _is_there(request, live, generation, lower):
            _follow_current(store, generation)
            action, profile = Action.UNCHANGED, live.profile
        else:
            profile = _mount(
                request, run, note, store=store, generation=generation, live=live, point=point, lower=lower
            )
            action = Action.SWITCHED if live else Action.MOUNTED
    run.sweep()
    return Activated(
        action=action,
        point=point,
        generation=generation,
        profile=profile,
        lower=lower,
        before=live,
        seconds=time.monotonic() - started,
    )


def rollback(
    point: bytes, run: RunDirectory, note: Note, *, to: int | None, allow_gap: bool = False, wait: float = 60.0
) -> Activated:
    """Goes back to the generation before the mounted one, or to `to`. Raises NotActiveError and as `activate`."""
    with held(run.lock, "rollback", wait=wait, note=note):
        live = live_mount(point)
        store, number = store_of(live)
        if to is None:
            earlier = [one.number for one in Store.open(store).generations() if one.number < number and not one.written]
            if not earlier:
                raise NoGenerationError(f"there is no generation before {number} to go back to", path=store)
            to = earlier[-1]
        again = Request(
            point=live.point,
            store=store,
            lower=live.lower,
            profile=live.profile,
            generation=to,
            verity=live.verity,
            extra=tuple(option for option in live.mount.options if option[0] in EXTRA_OPTIONS),
            allow_gap=allow_gap,
            other_root=True,  # it was accepted for this volume before
            wait=wait,
        )
        return activate_locked(again, run, note)


def deactivate(point: bytes, run: RunDirectory, note: Note, *, detach: bool, wait: float = 60.0) -> LiveMount:
    """Unmounts. What is in use is detached only when that is asked for. Raises NotActiveError, MountError."""
    with held(run.lock, "deactivate", wait=wait, note=note):
        live = live_mount(point)
        try:
            remove(live, detach=detach)
        except OSError as error:
            who = users_of(live)
            raise MountError(
                f"is in use{': ' + who if who else ''} ({error.strerror})",
                path=live.point,
                hint="with --detach it goes now, and they keep what they have open",
            ) from None
        run.sweep()
        return live


def live_mount(point: bytes) -> LiveMount:
    """What is mounted at a path, left-overs of a killed switch removed. Raises NotActiveError."""
    live = settle(os.path.realpath(point))
    if live is None:
        raise NotActiveError("no layer is mounted here", path=point, hint="`mkmeta status` lists those of this host")
    return live


def store_of(live: LiveMount) -> tuple[bytes, int]:
    """The store and the number of the generation that is mounted. Raises StoreError when it is not in a store."""
    parts = live.layer.rsplit(b"/", 3)  # STORE/generations/NUMBER-ID/layer
    number = parts[2].split(b"-")[0] if len(parts) == 4 and parts[1] == b"generations" else b""
    if not number.isdigit():
        raise StoreError("is mounted from a layer that is in no store", path=live.point)
    return parts[0], int(number)


def users_of(live: LiveMount) -> str:
    """The processes that have something of a mount open, for people."""
    found = {held.process for held, _ in held_on_overlays() if held.mount_id == live.mount.id}
    names = [f"{command_of(process)} ({process})" for process in sorted(found)[:5]]
    return ", ".join(names) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def _directory(path: bytes, what: str, hint: str) -> bytes:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        raise UsageError(f"{what} is not a directory", path=path, hint=hint)
    return real


def _lower(lower: bytes | None, point: bytes) -> bytes:
    if lower is None:
        raise UsageError("--lower is needed: nothing is mounted here yet that would tell the volume", path=point)
    real = _directory(lower, "the volume", "mount it first")
    if real == point or real.startswith(point.rstrip(b"/") + b"/"):
        raise UsageError(
            "the volume must be reachable when the layer is mounted: it cannot be at or below the mount point",
            path=lower,
            hint="mount the volume elsewhere, such as /mnt/sw for a layer at /sw",
        )
    return real


def _chosen(store: Store, number: int | None, live: LiveMount | None) -> Generation:
    if number is not None:
        return store.generation(number)
    current = store.current()
    if current is None:
        raise NoGenerationError(
            "has no generation yet", path=store.path, hint="`mkmeta build MANIFEST --store` adds the first"
        )
    if live is not None:
        with contextlib.suppress(StoreError):
            mounted_from, mounted = store_of(live)
            if mounted_from == store.path and current.number < mounted and current.short_id != live.short_id:
                raise RefusedError(
                    f"generation {mounted} is mounted, newer than the store's current one, {current.number}",
                    path=live.point,
                    hint=f"to go back: `mkmeta rollback`, or --generation {current.number}",
                )
    return current


def _is_there(request: Request, live: LiveMount, generation: Generation, lower: bytes) -> bool:
    """Whether what is mounted is what is asked for, so that nothing needs to be done."""
    return (
        live.short_id == generation.short_id
        and live.lower == lower
        and live.profile is (request.profile or live.profile)
        and live.verity is request.verity
        and (live.profile is not Profile.NESTED or live.inner is not None)
        and all(option in live.mount.options for option in request.extra)
        and _id_of(live.layer) == generation.about().id
    )


def _follow_current(store: Store, generation: Generation) -> None:
    if not store.is_current(generation):
        store.set_current(generation)


def _mount(
    request: Request,
    run: RunDirectory,
    note: Note,
    *,
    store: Store,
    generation: Generation,
    live: LiveMount | None,
    point: bytes,
    lower: bytes,
) -> Profile:
    """Makes the mount, moves `current`, then attaches. If anything fails, all is as it was."""
    plan = _checked_plan(request, generation, lower)
    abilities = probe(run, userxattr=plan.userxattr)
    wanted = request.profile
    if wanted is not None and wanted not in abilities.profiles:
        cause = abilities.failures.get(wanted, "unknown")
        raise MountError(f"this kernel cannot mount profile {wanted}: {cause}", hint="--profile auto picks what works")
    profile = wanted or abilities.best()
    if wanted is None and profile is Profile.NESTED and _is_overlay(lower):
        profile = Profile.MERGE  # three overlays on top of each other are one too many for the kernel
        note("note: the volume is an overlay itself, so the nested profile would be one overlay too many")
    if wanted is None and profile.lacks:
        reasons = abilities.failures.get(Profile.NESTED, "the volume is an overlay")
        note(f"note: profile {profile}, as nested does not work here ({reasons}): {profile.lacks}")
    if profile is Profile.UPPER:
        _check_unused(generation)
        _check_unshared(generation)
        generation.mark_written()
    plan = replace(plan, profile=profile, work=generation.work if profile is Profile.UPPER else None)
    with ending_signals_held(), made(plan, run) as fd, _moved(store, generation):
        place(fd, point, live, allow_gap=request.allow_gap)
    return profile


def _checked_plan(request: Request, generation: Generation, lower: bytes) -> MountPlan:
    """Raises RefusedError for what would be mounted, and show wrong data."""
    about = generation.about()
    if generation.written and request.profile is not Profile.UPPER:
        raise RefusedError(
            f"generation {generation.number} was mounted writable, and is no longer what its manifest says",
            path=generation.layer,
            hint="`mkmeta build --store` adds an unchanged one; --profile upper mounts this one again",
        )
    found = _id_of(generation.layer)
    if found is None:
        raise RefusedError(
            "the layer's attributes cannot be read here: its files would read as zeros",
            path=generation.layer,
            hint="trusted.* attributes take root outside of user namespaces; for these, build with --userxattr",
        )
    if found != about.id:
        raise StoreError("the layer is not the one its generation names", path=generation.layer, hint="build it again")
    expected = b"/".join(part for part in (lower.rstrip(b"/"), about.redirect_prefix) if part) or b"/"
    if not request.other_root and os.path.realpath(about.root) != os.path.realpath(expected):
        raise RefusedError(
            f"the layer was made from {printable(about.root)}, not from {printable(expected)}",
            path=generation.path,
            hint="if it is the same volume under another name, say so with --other-root",
        )
    if request.verity is Verity.REQUIRE and not about.verity:
        raise RefusedError(
            "--verity require: the layer has no fs-verity digests, every open would fail",
            path=generation.layer,
            hint="scan with verity digests and build without --no-verity, or leave --verity away",
        )
    if request.verity is not Verity.OFF:
        plain = unverified_file(generation.layer, lower, userxattr=about.userxattr)
        if plain is not None:
            raise RefusedError(
                f"--verity {request.verity}: this file has no fs-verity, every open of it would fail",
                path=plain,
                hint="NFS has none; enable it on the volume's files, or leave --verity away",
            )
    return MountPlan(
        profile=request.profile or Profile.NESTED,  # until the kernel has been asked
        layer=generation.layer,
        lower=lower,
        short_id=generation.short_id.encode()[:SHORT_ID_DIGITS],
        userxattr=about.userxattr,
        verity=request.verity,
        extra=request.extra,
        flags=MountFlags.of(mount_of(lower, mounts()).flags) & _MASK,
    )


def _id_of(layer: bytes) -> bytes | None:
    try:
        with closing(os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            return layer_id(fd)
    except OSError:
        return None


def _is_overlay(path: bytes) -> bool:
    return mount_of(path, mounts()).fstype == b"overlay"


def _check_unshared(generation: Generation) -> None:
    """Raises RefusedError when files of the layer are files of another one too: written here, they change there."""
    with closing(os.open(generation.layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        if is_shared(fd):
            raise RefusedError(
                "files of this layer are shared with another one (build --base): writing here would change that too",
                path=generation.layer,
                hint="build it into a store of its own, without --base",
            )


def _check_unused(generation: Generation) -> None:
    """Raises RefusedError when a mount has the layer already: two writers, or a writer under readers, destroy it."""

    def has_it(mount: Mount) -> bool:
        layers = layers_of(mount)
        return generation.layer in (*layers.lowers, *layers.data, layers.upper)

    for process, table in namespace_mounts():
        for mount in table:
            if has_it(mount):
                raise RefusedError(
                    f"generation {generation.number} is mounted already, at {printable(mount.point)} "
                    f"(as process {process} sees it): a layer can be written through one mount only",
                    path=generation.layer,
                    hint="deactivate that, or build another generation to write into",
                )


@contextlib.contextmanager
def _moved(store: Store, generation: Generation) -> Iterator[None]:
    """`current` at a generation; back where it was if the block fails."""
    before = None
    with contextlib.suppress(StoreError):  # it names nothing: then there is nothing to go back to
        before = store.current()
    _follow_current(store, generation)
    try:
        yield
    except BaseException:
        if before is not None:
            store.set_current(before)
        raise
