"""Activating a generation: from what is asked for to what is mounted, refusing what would show wrong data."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from mkmeta.digest import VerityDigest
from mkmeta.errors import (
    MountError,
    NoGenerationError,
    NotActiveError,
    RefusedError,
    StoreError,
    UsageError,
    printable,
    reason,
)
from mkmeta.host.checks import ImageProof, check_as_built, check_image, check_layer, check_writable, id_of
from mkmeta.host.loose import LooseImage, LooseStore, source_of
from mkmeta.host.place import check_place, check_uncovered, make_point, real_path, real_point
from mkmeta.host.volume import Volume, check_is_the_one, look, shows_through
from mkmeta.linux.asking import reused
from mkmeta.linux.filesystem import is_overlay
from mkmeta.linux.mount import MountFlags
from mkmeta.linux.mountinfo import mount_id, mounts, visible_at
from mkmeta.linux.process import ending_signals_held
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.probe import Abilities, probe
from mkmeta.mounts.profile import EXTRA_OPTIONS, SHORT_ID_DIGITS, MountPlan, Profile, Verity
from mkmeta.mounts.run import Placed, RunDirectory
from mkmeta.mounts.switch import NewMount, check_room, layers_at, made, place, settle
from mkmeta.mounts.users import command_of
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.generation import About, generation_of
from mkmeta.store.lock import held
from mkmeta.store.store import Generation, Store

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be mounted where. None: as it is now, or by default."""

    point: bytes
    store: bytes  # or an image that is in none
    lower: bytes | None = None
    profile: Profile | None = None
    generation: int | None = None
    verity: Verity = Verity.OFF
    extra: tuple[tuple[bytes, bytes], ...] = ()
    allow_gap: bool = False
    allow_setid: bool = False  # what the layer says of set-ID bits and devices counts, whoever made its manifest
    other_root: bool = False  # the manifest may have been scanned from a directory of another name
    over: bool = False  # what is at the mount point may be hidden
    image_digest: VerityDigest | None = None  # which an image that is in no store must have
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
    generation: Generation | LooseImage
    profile: Profile
    lower: bytes
    flags: MountFlags
    before: LiveMount | None
    seconds: float  # between the old mount and the new one being complete


@reused()
def activate(request: Request, run: RunDirectory, note: Note) -> Activated:
    """Mounts a generation of a store, or switches what is mounted to it, or finds it there already.

    The volume is asked before any lock is taken: who waits for a server that is dead stands in nobody's way. Raises
    RefusedError, GapError, StoreError, LockedError, other MountErrors: then what was mounted still is.
    """
    point = real_point(request.point)
    live = next(reversed(layers_at(point, run)), None)
    volume = _volume(request, point, live)
    check_place(point, store=real_path(request.store), lower=volume.path, run=run)
    # one that is remembered had a layer a moment ago, and somebody has removed it: he may not want it back
    made_it = live is None and not run.remembers(point) and make_point(request.point, point)
    try:
        if live is None:
            check_uncovered(point, note, over=request.over)
        stale = live is not None and not shows_through(live)
        source = source_of(request.store, request.image_digest)
        request = replace(request, point=point, other_root=request.other_root or isinstance(source, LooseStore))
        proof = _proof(source, request.generation, live)
        with held(run.lock, "activate", wait=request.wait, note=note):
            now = settle(point, run)
            if now is None and live is not None:  # it went meanwhile, and what was below it has not been looked at
                check_uncovered(point, note, over=request.over)
            done = _activate(request, now, source, volume, run, note, stale=stale, proof=proof)
    except BaseException:
        if made_it:
            with contextlib.suppress(OSError):  # somebody has put something there
                os.rmdir(point)
        raise
    if made_it:
        note(f"note: {printable(point)}: made, as a mount point")
    return done


def _activate(
    request: Request,
    live: LiveMount | None,
    store: Store | LooseStore,
    volume: Volume,
    run: RunDirectory,
    note: Note,
    *,
    proof: ImageProof | None,
    stale: bool = False,
) -> Activated:
    """The same, under the lock of `run`, over a volume that has answered. `stale`: but not through what is mounted."""
    started = time.monotonic()
    run.sweep()
    with store.lock("activate", wait=request.wait, note=note):
        generation = _chosen(store, request.generation, live)
        flags = _flags(request, generation, volume)
        if live is not None and not stale and _is_there(request, live, generation, volume, flags, run):
            _follow_current(store, generation)
            action, profile = Action.UNCHANGED, live.profile
        else:
            mounting = _Mounting(request, run, note, store, generation, live, volume, flags, proof)
            profile = mounting.mount()
            action = Action.SWITCHED if live else Action.MOUNTED
    run.sweep()
    if action is not Action.UNCHANGED:
        _note_if_alone(request.point, note)
    return Activated(
        action=action,
        point=request.point,
        generation=generation,
        profile=profile,
        lower=volume.path,
        flags=flags,
        before=live,
        seconds=time.monotonic() - started,
    )


@reused()
def rollback(
    point: bytes, run: RunDirectory, note: Note, *, to: int | None, allow_gap: bool = False, wait: float = 60.0
) -> Activated:
    """Goes back to the generation before the mounted one, or to `to`. Raises NotActiveError and as `activate`."""
    live = live_mount(point, run)
    lower = live.lower
    volume = look(lower)
    store, number = store_of(live)
    proof = _proof(Store.open(store), _earlier(store, number) if to is None else to, live)
    with held(run.lock, "rollback", wait=wait, note=note):
        live = live_mount(point, run)
        if live.lower != lower:
            raise MountError("was switched meanwhile, to another volume", path=live.point, hint="try again")
        store, number = store_of(live)
        again = Request(
            point=live.point,
            store=store,
            profile=live.profile,
            generation=_earlier(store, number) if to is None else to,
            verity=live.verity,
            extra=tuple(option for option in live.mount.options if option[0] in EXTRA_OPTIONS),
            allow_gap=allow_gap,
            allow_setid=b"nosuid" not in live.mount.flags,
            other_root=True,  # it was accepted for this volume before
            wait=wait,
        )
        return _activate(again, live, Store.open(store), volume, run, note, proof=proof)


def _earlier(path: bytes, number: int) -> int:
    """The generation before one, of those that can be mounted as they were built. Raises NoGenerationError."""
    earlier = [one.number for one in Store.open(path).generations() if one.number < number and not one.written]
    if not earlier:
        raise NoGenerationError(f"there is no generation before {number} to go back to", path=path)
    return earlier[-1]


def _proof(store: Store | LooseStore, number: int | None, live: LiveMount | None) -> ImageProof | None:
    """Compares the image that is to be mounted with its digest. Takes no lock: reading it may take a minute.

    None where it is no image, or mounted already. Raises RefusedError, MountError, StoreError, NoGenerationError.
    """
    generation = _chosen(store, number, live)
    about = generation.about()
    if about.image is None or (live is not None and _is_layer_of(live, generation)):
        return None
    return check_image(generation.layer, about.image)


def live_mount(point: bytes, run: RunDirectory) -> LiveMount:
    """What is mounted at a path, left-overs of a killed switch removed. Raises NotActiveError."""
    live = settle(real_point(point), run)
    if live is None:
        raise NotActiveError("no layer is mounted here", path=point, hint="`mkmeta status` lists those of this host")
    return live


def store_of(live: LiveMount) -> tuple[bytes, int]:
    """The store and the number of the generation that is mounted. Raises StoreError when it is not in a store."""
    generation = generation_of(live.layer)
    if generation is None:
        raise StoreError("is mounted from a layer that is in no store", path=live.point)
    return generation.store, generation.number


def _flags(request: Request, generation: Generation | LooseImage, volume: Volume) -> MountFlags:
    """The flags of the volume; and unless somebody here answers for the manifest, no set-ID bits and no devices."""
    trusted = request.allow_setid or generation.about().vouched
    return volume.flags if trusted else volume.flags | MountFlags.NOSUID | MountFlags.NODEV


def _volume(request: Request, point: bytes, live: LiveMount | None) -> Volume:
    lower = request.lower or (live.lower if live else None)
    if lower is None:
        raise UsageError("--lower is needed: nothing is mounted here yet that would tell the volume", path=point)
    volume = look(lower)
    if volume.path == point or volume.path.startswith(point.rstrip(b"/") + b"/"):
        raise UsageError(
            "the volume must be reachable when the layer is mounted: it cannot be at or below the mount point",
            path=lower,
            hint="mount the volume elsewhere, such as /mnt/sw for a layer at /sw",
        )
    return volume


def _chosen(store: Store | LooseStore, number: int | None, live: LiveMount | None) -> Generation | LooseImage:
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
                    hint=f"to stay, as after a call that was killed: --generation {mounted}; "
                    f"to go back: `mkmeta rollback`, or --generation {current.number}",
                )
    return current


def _is_there(
    request: Request,
    live: LiveMount,
    generation: Generation | LooseImage,
    volume: Volume,
    flags: MountFlags,
    run: RunDirectory,
) -> bool:
    """Whether what is mounted is what is asked for, so that nothing needs to be done."""
    placed = run.placed(live.mount.device)
    read_only = MountFlags.RDONLY
    return (
        live.short_id == generation.short_id
        and live.lower == volume.path
        and (placed is None or volume.is_of(placed))
        and live.profile is (request.profile or live.profile)
        and live.verity is request.verity
        and MountFlags.of(live.mount.flags) & ~read_only == flags
        and (live.profile is not Profile.NESTED or live.inner is not None)
        and all(option in live.mount.options for option in request.extra)
        and _is_layer_of(live, generation)
    )


def _is_layer_of(live: LiveMount, generation: Generation | LooseImage) -> bool:
    """Whether the layer that is mounted is the generation's, or a directory of the same manifest beside a directory."""
    about = generation.about()
    if about.kind is LayerKind.EROFS or live.image is not None:
        return live.image is not None and live.layer == generation.layer and live.short_id == generation.short_id
    return id_of(live.layer) == about.id


def _note_if_alone(point: bytes, note: Note) -> None:
    """Has a word when whoever called us does not see what was mounted: it was done in a mount namespace apart."""
    shown = visible_at(point, mounts())
    for process in (os.getppid(), 1):
        with contextlib.suppress(OSError):  # it ended, or is not ours to look at
            if os.path.samestat(os.stat(f"/proc/{process}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
                continue
            if shown and shown[-1].device not in {mount.device for mount in mounts(process)}:
                note(
                    f"note: {printable(point)}: mounted in a mount namespace of our own: process {process} "
                    f"({command_of(process)}) and those in its namespace do not see it"
                )
                return


def _follow_current(store: Store | LooseStore, generation: Generation | LooseImage) -> None:
    if isinstance(store, Store) and isinstance(generation, Generation) and not store.is_current(generation):
        store.set_current(generation)


@dataclass(frozen=True)
class _Mounting:
    """One mount being made."""

    request: Request
    run: RunDirectory
    note: Note
    store: Store | LooseStore
    generation: Generation | LooseImage
    live: LiveMount | None
    volume: Volume
    flags: MountFlags
    proof: ImageProof | None  # of an image, from before any lock was taken

    def mount(self) -> Profile:
        """Makes it, moves `current`, then attaches it. If anything fails, all is as it was."""
        request, generation = self.request, self.generation
        about = generation.about()
        check_layer(
            generation,
            about,
            self.volume.path,
            other_root=request.other_root,
            verity=request.verity,
            proof=self.proof,
        )
        if request.profile is not Profile.UPPER and generation.written:
            raise RefusedError(
                f"generation {generation.number} was mounted writable, and is no longer what its manifest says",
                path=generation.layer,
                hint="`mkmeta build --store` adds an unchanged one; --profile upper mounts this one again",
            )
        check_is_the_one(self.volume, generation.layer, about, self.note)
        if isinstance(generation, Generation) and about.kind is LayerKind.DIRECTORY and not generation.written:
            check_as_built(generation, about)
        plan = MountPlan(
            profile=request.profile or Profile.NESTED,  # until the kernel has been asked
            layer=generation.layer,
            image=generation.layer if about.kind is LayerKind.EROFS else None,
            lower=self.volume.path,
            short_id=generation.short_id.encode()[:SHORT_ID_DIGITS],
            userxattr=about.userxattr,
            verity=request.verity,
            extra=request.extra,
            flags=self.flags,
        )
        if request.profile is not None:
            self._check_able(request.profile, self._abilities(request.profile, about))
            return self._as(plan, request.profile)
        return self._as_best(plan, self._abilities(Profile.NESTED, about))

    def _abilities(self, wanted: Profile, about: About) -> Abilities:
        """What this kernel can do. Of the profile of a layer that is mounted now, that is known."""
        live = self.live
        if live is not None and live.profile is wanted and live.userxattr == about.userxattr:
            return Abilities(profiles=frozenset([wanted]))
        return probe(self.run, userxattr=about.userxattr)

    def _check_able(self, profile: Profile, abilities: Abilities) -> None:
        if profile not in abilities.profiles:
            cause = abilities.failures.get(profile, "unknown")
            hint = "--profile auto picks what works"
            raise MountError(f"this kernel cannot mount profile {profile}: {cause}", hint=hint)
        if profile is Profile.UPPER:
            check_writable(self.generation)
            self.generation.mark_written()

    def _as_best(self, plan: MountPlan, abilities: Abilities) -> Profile:
        """`auto`: nested where the kernel takes it, for this store and this volume; else merge."""
        profile = abilities.best()
        why = abilities.failures.get(Profile.NESTED, "unknown")
        if profile is Profile.NESTED:
            try:
                return self._as(plan, profile)
            except _NotMadeError as error:
                profile, why, nested = Profile.MERGE, self._why_not_nested(error), error
            try:
                self._as(plan, profile)
            except _NotMadeError:
                raise nested from None  # it is not the profile
        else:
            self._as(plan, profile)
        self.note(f"note: profile {profile}, as nested does not work here ({why}): {profile.lacks}")
        return profile

    def _why_not_nested(self, error: MountError) -> str:
        """The kernel stacks two overlays; its own words for a third are "invalid argument"."""
        with closing(os.open(self.generation.layer, os.O_PATH | os.O_CLOEXEC)) as fd:
            below = [("the volume", self.volume.overlay), ("the store", is_overlay(fd))]
        names = [name for name, overlay in below if overlay]
        return f"{' and '.join(names)}: on an overlay, which makes one too many" if names else error.message

    def _as(self, plan: MountPlan, profile: Profile) -> Profile:
        """Raises MountError; a subclass of it of its own when the mount could not even be made."""
        work = self.generation.work if profile is Profile.UPPER else None
        with contextlib.ExitStack() as stack:
            try:
                new = stack.enter_context(made(replace(plan, profile=profile, work=work), self.run, self.live))
            except RefusedError:
                raise
            except MountError as error:
                raise _NotMadeError(error.message, path=error.path, hint=error.hint) from None
            check_room(new, self.request.point)
            with ending_signals_held(), self._remembered(new), _moved(self.store, self.generation):
                place(new, self.request.point, self.live, allow_gap=self.request.allow_gap)
            if self.live is not None:
                self.run.left(self.live.mount.device)
        return profile

    @contextlib.contextmanager
    def _remembered(self, new: NewMount) -> Iterator[None]:
        """Has RUN know what the mount does not show; no more, if the block fails."""
        device = os.fstat(new.fd).st_dev
        try:
            volume = self.volume
            self.run.remember(device, Placed(self.request.point, volume.device, volume.inode, mount_id(new.fd)))
            yield
        except BaseException:
            self.run.forget(device)
            raise


class _NotMadeError(MountError):
    """No mount came about, so another profile may."""


@contextlib.contextmanager
def _moved(store: Store | LooseStore, generation: Generation | LooseImage) -> Iterator[None]:
    """`current` at a generation once the block has ended well; what may fail of that is done before.

    Killed in between, the next `activate` finds an older generation mounted, and mounts the current one.
    """
    if not isinstance(store, Store) or not isinstance(generation, Generation) or store.is_current(generation):
        yield
        return
    try:
        store.prepare_current(generation)
    except OSError as error:
        raise StoreError(f"cannot take another link: {reason(error)}", path=store.path) from None
    try:
        yield
    except BaseException:
        store.drop_prepared()
        raise
    store.set_current(generation)
