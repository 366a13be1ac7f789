"""Removing from a store: generations that were given up, and what killed builds left (formats/store.md section 4)."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Final

from mkmeta.errors import StoreError, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.names import list_names
from mkmeta.linux.syscalls import RENAME_NOREPLACE, open_beneath, renameat2
from mkmeta.sinks.directory.staging import remove_if_free
from mkmeta.store.generation import GENERATIONS, PRIVATE, Generation
from mkmeta.store.store import Store

NEW: Final = b".new-"  # and eight hexadecimal digits: being built
_GONE = re.compile(rb"\.gone-[0-9]{6,16}-[0-9a-f]{12}-[0-9a-f]{8}")
_UNFINISHED = re.compile(re.escape(NEW) + rb"[0-9a-f]{8}")
_BATCH_ENTRIES: Final = 1000  # removed between two looks at the clock: some milliseconds, whatever the disk
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def retire(store: Store, generation: Generation) -> bytes:
    """Takes a generation out of the store, durably, for `remove_gone`; returns the name it has now.

    Hold the store's lock, and know that nobody uses it. Raises StoreError.
    """
    if store.is_current(generation):
        raise StoreError(f"generation {generation.number} is current", path=store.path)
    gone = b".gone-%b-%b" % (generation.name, os.urandom(4).hex().encode())
    try:
        with _generations(store) as fd:
            renameat2(generation.name, gone, RENAME_NOREPLACE, source_dir_fd=fd, target_dir_fd=fd)
            os.fsync(fd)
    except OSError as error:
        raise StoreError(f"cannot be removed: {reason(error)}", path=generation.path) from None
    return gone


def remove_gone(store: Store, *, pace: float, progress: Callable[[int], None]) -> None:
    """Removes all retired generations, at work only the part `pace` of the time; 0 < `pace` <= 1.

    What another process removes is left to it. Ended at any moment, the next call goes on. Calls `progress` with the
    number of entries removed so far. Raises StoreError at the end when some could not be removed.
    """
    removed = _Paced(pace, progress)
    stubborn = _remove(store, _GONE, removed)
    progress(removed.entries)
    if stubborn:
        name, problem = stubborn[0]
        raise StoreError(
            f"cannot be removed: {problem}",
            path=os.path.join(store.path, GENERATIONS, name),
            hint="unmount what is mounted in it, if anything; the next mkmeta gc tries again",
        )


def remove_unfinished(store: Store) -> list[bytes]:
    """Removes what killed builds left. Returns the names, in `generations`, of what cannot be removed."""
    return [name for name, _ in _remove(store, _UNFINISHED, lambda: None)]


def _remove(store: Store, pattern: re.Pattern[bytes], removed: Callable[[], None]) -> list[tuple[bytes, str]]:
    """Removes every directory with such a name that nobody has locked. Returns those that stay, and why."""
    stubborn = []
    try:
        with _generations(store) as generations:
            for name in filter(pattern.fullmatch, list_names(generations)):
                try:
                    fd = open_beneath(name, _OPEN_DIRECTORY, dir_fd=generations)
                    with closing(fd), closing(_lockable(fd)) as lock:
                        remove_if_free(name, fd, dir_fd=generations, lock=lock, removed=removed)
                except FileNotFoundError:
                    continue  # somebody else was faster
                except OSError as error:
                    stubborn.append((name, reason(error)))
    except FileNotFoundError:
        return []  # the store was just made
    except OSError as error:
        raise StoreError(f"cannot be listed: {reason(error)}", path=os.path.join(store.path, GENERATIONS)) from None
    return stubborn


def _lockable(fd: int) -> int:
    """What of a generation, or of a part of one, is to be locked: what no other user of the host can lock, for ever."""
    try:
        return open_beneath(PRIVATE, _OPEN_DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        return os.dup(fd)


class _Paced:
    """Called after each entry: counts, and after each batch sleeps in proportion to the time it took."""

    def __init__(self, pace: float, progress: Callable[[int], None]) -> None:
        if not 0 < pace <= 1:
            raise ValueError("pace is not above 0 and at most 1")
        self.entries = 0
        self._rest = 1 / pace - 1  # seconds of sleep for each second of work
        self._progress = progress
        self._since = time.monotonic()

    def __call__(self) -> None:
        self.entries += 1
        if self.entries % _BATCH_ENTRIES:
            return
        self._progress(self.entries)
        if self._rest:
            time.sleep((time.monotonic() - self._since) * self._rest)
            self._since = time.monotonic()


@contextlib.contextmanager
def _generations(store: Store) -> Iterator[int]:
    fd = os.open(os.path.join(store.path, GENERATIONS), _OPEN_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
