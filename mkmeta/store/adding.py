"""Adding a generation to a store (formats/store.md section 3): one process builds, what it built appears complete."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from mkmeta.build import BuildOptions, BuildResult, Progress, build, check_id, sink_for
from mkmeta.digest import DIGEST_SIZE, VerityDigest
from mkmeta.errors import BuildError, StoreError, TooNewError, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.process import ending_signals_held
from mkmeta.linux.remove_tree import remove_tree
from mkmeta.linux.syscalls import RENAME_NOREPLACE, renameat2
from mkmeta.linux.verity import enable_verity
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName
from mkmeta.sinks.directory.staging import layer_id, make_locked
from mkmeta.sinks.erofs.inspection import image_digest
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.as_built import difference
from mkmeta.store.generation import ABOUT, GENERATIONS, LAYER, MANIFEST, PRIVATE, SHORT_ID_DIGITS, About, Generation
from mkmeta.store.record import NUMBER_MAX, write_file
from mkmeta.store.removal import NEW, remove_unfinished
from mkmeta.store.store import Note, Store

_LOCK_WAIT: Final = 60.0  # seconds at least, for `lock`: it is held for moments, and a whole build waits with us


@dataclass(frozen=True)
class Added:
    """What `add` did."""

    generation: Generation
    result: BuildResult | None  # None: it was there already
    leftovers: tuple[bytes, ...] = ()  # paths of what killed builds left and that could not be removed


def add(
    store: Store,
    reader: ManifestReader,
    options: BuildOptions,
    *,
    number: int | None,
    make_current: bool,
    wait: float,
    note: Note,
    progress: Progress = lambda _done, _total: None,
    purpose: str = "build",
) -> Added:
    """Builds the layer of a manifest as a generation, unless it is there.

    With a `number`, that becomes or is the generation's, as a client's which follows a pointer; else it is the next.
    Waits for another builder up to `wait` seconds. Raises IdMismatchError and FormatError before anything is written,
    LockedError, StoreError, BuildError; in each case the store has the generations it had. An interrupt may leave the
    new generation complete, but not current.
    """
    check_id(reader, options.expect_id)
    about = _about(reader, options)
    with store.build_lock(purpose, wait=wait, note=note):
        leftovers = tuple(os.path.join(store.path, GENERATIONS, name) for name in remove_unfinished(store))
        generation = _existing(store, about, number)
        if generation is not None:
            if make_current and not store.is_current(generation):
                with store.lock(purpose, wait=max(wait, _LOCK_WAIT), note=note):
                    store.set_current(generation)
            return Added(generation, None, leftovers)
        generation = _next(store, about, number)
        generation.check(about.encode(generation.number))  # what it would say of itself, before an hour's work
        try:
            with contextlib.ExitStack() as stack:
                with ending_signals_held():
                    unfinished = stack.enter_context(_Unfinished(store))
                result = _fill(unfinished, reader, options, about, generation, progress)
                with store.lock(purpose, wait=max(wait, _LOCK_WAIT), note=note):
                    unfinished.publish(generation, make_current=make_current)
        except OSError as error:
            raise StoreError(f"cannot be added to: {reason(error)}", path=store.path) from None
    return Added(generation, result, leftovers)


def _about(reader: ManifestReader, options: BuildOptions) -> About:
    """What a generation of this manifest, built now, says of itself."""
    plan = options.plan
    return About(
        id=reader.id,
        kind=options.kind,
        root=reader.info.root,
        redirect_prefix=plan.prefix,
        userxattr=plan.userxattr,
        verity=plan.verity and DigestName.VERITY in reader.root.digests,
        entries=reader.root.directory.entries,
        built_ns=0,  # not yet
        vouched=options.vouched,
        contents=reader.contents.id if plan.inline and reader.contents else None,
        image=VerityDigest(bytes(DIGEST_SIZE)) if options.kind is LayerKind.EROFS else None,  # not yet either
    )


def _existing(store: Store, about: About, number: int | None) -> Generation | None:
    """The generation that makes building needless. Raises StoreError when the number asked for is another's."""
    generations = store.generations()
    if number is None:
        return generations[-1] if generations and _is_as_built(generations[-1], about) else None
    if not any(generation.number == number for generation in generations):
        return None
    generation = store.generation(number)
    try:
        found = generation.about()
    except TooNewError:
        raise
    except StoreError as error:
        hint = "nothing can be built in its place: if it is not mounted, remove its directory"
        raise StoreError(error.message, path=error.path, hint=hint) from None
    about = replace(about, kind=found.kind)  # directory or image, both are that manifest
    if found.id != about.id:
        raise StoreError(
            f"generation {number} is manifest {generation.short_id}, not {about.id.hex()[:SHORT_ID_DIGITS]}: "
            "store and pointer disagree",
            path=store.path,
            hint="a store follows one pointer, and nobody else builds there: use another store",
        )
    if not _is_as_built(generation, about):
        how = "was mounted writable" if generation.written else "was built with other options, or changed since"
        hint = "use another store; or, if it is not mounted, remove its directory"
        raise StoreError(f"generation {number} {how}", path=store.path, hint=hint)
    return generation


def _is_as_built(generation: Generation, about: About) -> bool:
    with contextlib.suppress(StoreError, OSError):  # damaged: then it is worth another build
        found = generation.about()
        if generation.written or not found.is_alike(about) or (about.vouched and not found.vouched):
            return False
        if found.image is not None:
            return image_digest(generation.layer)[0] == found.image
        with closing(os.open(generation.layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            # or it has been copied without its attributes
            return layer_id(fd) == found.id and difference(generation, found) is None
    return False


def _next(store: Store, about: About, number: int | None) -> Generation:
    number = store.last_number() + 1 if number is None else number
    if not 1 <= number <= NUMBER_MAX:
        raise StoreError(f"generation numbers end at {NUMBER_MAX}", path=store.path, hint="use another store")
    return Generation(store.path, number, about.id.hex()[:SHORT_ID_DIGITS])


def _fill(
    unfinished: _Unfinished,
    reader: ManifestReader,
    options: BuildOptions,
    about: About,
    generation: Generation,
    progress: Progress,
) -> BuildResult:
    """Writes everything a generation holds, durably. The layer is built from the copy of the manifest that is kept."""
    path = os.path.join(unfinished.path, MANIFEST)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as copy:
        reader.file.copy_to(copy)
    os.mkdir(PRIVATE, 0o700, dir_fd=unfinished.fd)
    os.symlink(os.path.join(PRIVATE, LAYER), LAYER, dir_fd=unfinished.fd)
    with ManifestReader.open(path) as kept:
        check_id(kept, reader.id)
        dest = os.path.join(unfinished.path, PRIVATE, LAYER)
        try:
            result = build(kept, sink_for(dest, options), options, progress)  # ends with syncfs
        except BuildError as error:
            if error.path is not None and error.path.startswith(unfinished.path):
                error.path = unfinished.store.path  # a name nobody knows, and that is gone
            raise
    if options.kind is LayerKind.EROFS:
        protect_image(dest)
    about = replace(about, image=result.published.verity)
    write_file(ABOUT, about.encode(generation.number), dir_fd=unfinished.fd)
    os.fsync(unfinished.fd)
    return result


def protect_image(path: bytes) -> None:
    """Closes an image to others, and gives it fs-verity where its filesystem has that. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        enable_verity(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


class _Unfinished:
    """The directory of a generation being built. A context manager: left without `publish`, it is removed."""

    def __init__(self, store: Store) -> None:
        """Makes it. Raises OSError."""
        self.store = store
        directory = os.path.join(store.path, GENERATIONS)
        self._generations = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._name, self.fd = make_locked(NEW, dir_fd=self._generations)
        except BaseException:
            os.close(self._generations)
            raise
        self.path = os.path.join(directory, self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._name:
                with contextlib.suppress(
                    OSError
                ):  # there is something more important to say; the next build removes it
                    remove_tree(self._name, dir_fd=self._generations, fd=self.fd)
        finally:
            os.close(self.fd)
            os.close(self._generations)

    def publish(self, generation: Generation, *, make_current: bool) -> None:
        """Gives it its name. Hold the store's lock. Raises StoreError and OSError: then it has not got it."""
        try:
            if make_current:
                self.store.prepare_current(generation)  # the last thing to take room
            with ending_signals_held():  # what is removed when this ends must be known at any moment
                fds = {"source_dir_fd": self._generations, "target_dir_fd": self._generations}
                renameat2(self._name, generation.name, RENAME_NOREPLACE, **fds)
                self._name = b""
        except BaseException:
            self.store.drop_prepared()
            raise
        os.fchmod(self.fd, 0o755)  # not before: others could lock it, and it would never be removed
        os.fsync(self.fd)
        os.fsync(self._generations)
        if make_current:
            self.store.set_current(generation)
