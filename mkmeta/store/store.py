"""The store: a directory of generations, and the link that says which one is mounted (formats/store.md)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Self

from mkmeta.errors import NoGenerationError, StoreError, UsageError, reason
from mkmeta.linux.names import list_names
from mkmeta.linux.parents import make_directory
from mkmeta.linux.syscalls import open_beneath
from mkmeta.store.generation import GENERATIONS, Generation
from mkmeta.store.lock import changed, held
from mkmeta.store.record import Record, encode, write_file

__all__ = ["Generation", "Store"]

_KIND = "mkmeta-store"
_ABOUT: Final = b"store.json"
_CURRENT: Final = b"current"
_NEXT: Final = b".current"  # the link before it is renamed
_FOUND_IN_EMPTY: Final = re.compile(rb"lost\+found|generations|\.store\.json")  # by mkfs, by a killed `_make`
_NAMED_AT_MOST = 10  # generations in a message
_DIRECTORY_MODE: Final = 0o755  # what nobody else may see is deeper, in a generation's `private`
_UNFINISHED_MODE: Final = 0o700
_MAKING_TAKES: Final = 5.0  # seconds at most
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAKE = "mkmeta build MANIFEST --store STORE makes one"
_SET = "mkmeta activate --generation N, or the next mkmeta build --store, sets it anew"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Store:
    """An existing store."""

    path: bytes  # absolute, without links

    @classmethod
    def open(cls, path: bytes) -> Self:
        """Opens a store. Raises StoreError."""
        _check_named(path)
        store = cls(os.path.realpath(path))
        try:
            Record.read(store._about, _KIND, hint="this store.json is not from mkmeta, or damaged: name another store")
        except FileNotFoundError:
            if os.path.isdir(path):
                what = "is no store: it has no store.json"
            else:
                what = "is no store, which is a directory" if os.path.lexists(path) else "there is no such directory"
            raise StoreError(what, path=path, hint=_MAKE) from None
        return store

    @classmethod
    def open_or_create(cls, path: bytes) -> Self:
        """Opens a store; makes it first where nothing or an empty directory is, and the directory that it goes into.

        Raises StoreError.
        """
        _check_named(path)
        real = os.path.realpath(path)
        if not os.path.lexists(os.path.join(real, _ABOUT)):
            made = above = False
            try:
                above = make_directory(os.path.dirname(real))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(real, _UNFINISHED_MODE)
                    made = True
                _make(real, path, made=made)
            except OSError as error:
                if made:
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(real, GENERATIONS))
                        os.rmdir(real)
                if above:
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.dirname(real))
                missing = "make the directories above first; the last of them would be made"
                hint = missing if isinstance(error, FileNotFoundError) else None
                raise StoreError(f"cannot be made: {reason(error)}", path=path, hint=hint) from None
        return cls.open(path)

    @property
    def _about(self) -> bytes:
        return os.path.join(self.path, _ABOUT)

    @property
    def _lock(self) -> bytes:
        return os.path.join(self.path, b"lock")

    @property
    def _generations(self) -> bytes:
        return os.path.join(self.path, GENERATIONS)

    # --- generations ---

    def generations(self) -> list[Generation]:
        """All there are, by number. Raises StoreError when they cannot be listed."""
        found = []
        try:
            with os.scandir(self._generations) as entries:
                for entry in entries:
                    generation = Generation.named(self.path, os.fsencode(entry.name))
                    if generation is not None and entry.is_dir(follow_symlinks=False):
                        found.append(generation)
        except FileNotFoundError:
            return []  # the store was just made
        except OSError as error:
            raise StoreError(f"cannot be listed: {reason(error)}", path=self._generations) from None
        return sorted(found, key=lambda generation: (generation.number, generation.short_id))

    def generation(self, number: int) -> Generation:
        """The one with this number. Raises NoGenerationError, which names those there are."""
        there = self.generations()
        found = [generation for generation in there if generation.number == number]
        if len(found) > 1:
            raise StoreError(
                f"has two generations {number}", path=self.path, hint="remove the one that is not from mkmeta"
            )
        if not found:
            hint = None if there else "mkmeta build MANIFEST --store STORE adds one"
            raise NoGenerationError(f"has no generation {number}; {_enumerate(there)}", path=self.path, hint=hint)
        return found[0]

    # --- current ---

    def current(self) -> Generation | None:
        """The generation `current` names; None when there is no such link. Raises StoreError when it names nothing."""
        target = self._link(_CURRENT)
        if target is None:
            return None
        generation = self._named_by(target)
        if generation is None or not os.path.isdir(generation.path):
            raise StoreError("is not the link to a generation", path=os.path.join(self.path, _CURRENT), hint=_SET)
        return generation

    def last_number(self) -> int:
        """The highest number that a generation has or `current` names; 0 when there is none."""
        named = self._named_by(self._link(_CURRENT) or b"")
        there = self.generations()
        return max(named.number if named else 0, there[-1].number if there else 0)

    def is_current(self, generation: Generation) -> bool:
        """Whether `current` names it."""
        return self._link(_CURRENT) == _target(generation)

    def set_current(self, generation: Generation) -> None:
        """Has `current` name this generation, durably. Hold `lock`. Raises StoreError."""
        try:
            with self._opened() as fd:
                if self.is_current(generation):
                    _unlink(_NEXT, fd)
                    return
                self._prepare(generation, fd)
                os.rename(_NEXT, _CURRENT, src_dir_fd=fd, dst_dir_fd=fd)
                os.fsync(fd)
        except OSError as error:
            raise StoreError(f"cannot be set: {reason(error)}", path=os.path.join(self.path, _CURRENT)) from None

    def prepare_current(self, generation: Generation) -> None:
        """Does the part of `set_current` that takes room on the disk. Raises OSError."""
        with self._opened() as fd:
            self._prepare(generation, fd)

    def drop_prepared(self) -> None:
        """Undoes `prepare_current`."""
        with contextlib.suppress(OSError), self._opened() as fd:
            _unlink(_NEXT, fd)

    def _prepare(self, generation: Generation, fd: int) -> None:
        if self._link(_NEXT) != _target(generation):
            _unlink(_NEXT, fd)
            os.symlink(_target(generation), _NEXT, dir_fd=fd)

    def _link(self, name: bytes) -> bytes | None:
        """What a link in the store says; empty when it is no link, None when there is nothing."""
        try:
            return os.readlink(os.path.join(self.path, name))
        except FileNotFoundError:
            return None
        except OSError:
            return b""

    def _named_by(self, target: bytes) -> Generation | None:
        directory, _, name = target.rpartition(b"/")
        return Generation.named(self.path, name) if directory == GENERATIONS else None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self.path, _OPEN_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- locks: section 2; each raises LockedError after `wait` seconds ---

    def lock(self, purpose: str, *, wait: float, note: Note) -> AbstractContextManager[int]:
        """Held while generations or `current` change, or must not. Gives the `changed` of before."""
        return held(self._lock, purpose, wait=wait, note=note)

    def changed(self) -> int:
        """When `lock` was last taken or given back: while that stays, nothing was chosen, added or mounted."""
        return changed(self._lock)

    def build_lock(self, purpose: str, *, wait: float, note: Note) -> AbstractContextManager[int]:
        """Held by the one who builds."""
        return held(os.path.join(self.path, b"build.lock"), purpose, wait=wait, note=note)

    def publish_lock(self, purpose: str, *, wait: float, note: Note) -> AbstractContextManager[int]:
        """Held by the one who publishes."""
        return held(os.path.join(self.path, b"publish.lock"), purpose, wait=wait, note=note)


def _check_named(path: bytes) -> None:
    """Raises UsageError for the empty path, which would be the working directory."""
    if not path:
        raise UsageError("the path of the store is empty: was a variable not set?")


def _make(real: bytes, path: bytes, *, made: bool) -> None:
    """Makes an empty directory a store, once; `made`: we made it just now. Raises StoreError and OSError."""
    fd = os.open(real, _OPEN_DIRECTORY | os.O_NOFOLLOW)
    try:
        if made and os.fstat(fd).st_uid != os.geteuid():
            hint = "make it in a directory that only you can write to"
            raise StoreError("somebody else put another directory in its place", path=path, hint=hint)
        _lock_for_a_moment(fd)  # two first builds at once
        names = list_names(fd)
        if _ABOUT in names:
            return
        if not all(_FOUND_IN_EMPTY.fullmatch(name) for name in names):
            raise StoreError(
                "is no store and not empty", path=path, hint="name a store, an empty directory, or a new one"
            )
        with contextlib.suppress(FileExistsError):
            os.mkdir(GENERATIONS, _UNFINISHED_MODE, dir_fd=fd)
        generations = open_beneath(GENERATIONS, _OPEN_DIRECTORY, dir_fd=fd)
        try:
            os.fchmod(generations, _DIRECTORY_MODE)  # whatever the umask
        finally:
            os.close(generations)
        write_file(_ABOUT, encode(_KIND, {}), dir_fd=fd)
        if os.fstat(fd).st_mode & 0o777 == _UNFINISHED_MODE and made:
            os.fchmod(fd, _DIRECTORY_MODE)
    finally:
        os.close(fd)


def _lock_for_a_moment(fd: int) -> None:
    """Waits for who makes the same store, but not for ever: a directory can be locked by any user of the host."""
    deadline = time.monotonic() + _MAKING_TAKES
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)


def _target(generation: Generation) -> bytes:
    return GENERATIONS + b"/" + generation.name


def _enumerate(generations: list[Generation]) -> str:
    if not generations:
        return "it has none yet"
    newest = ", ".join(str(generation.number) for generation in generations[-_NAMED_AT_MOST:])
    older = len(generations) - _NAMED_AT_MOST
    return f"it has {newest}" + (f" and {older} older ones" if older > 0 else "")


def _unlink(name: bytes, dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)
