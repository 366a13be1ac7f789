"""Whether a release has arrived: all of it is on the volume, and nobody is copying into it any more.

Change times are the server's, and nobody can set them back, whatever copies with the old mtimes. So they are compared
with the server's clock, which the lock beside the pointer shows when it is touched; where the pointer is on another
filesystem, with ours, and then clocks may be five minutes apart.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from mkmeta.errors import ExitCode, MkmetaError, StoreError, UsageError, printable, reason
from mkmeta.linux.names import list_names
from mkmeta.linux.syscalls import open_beneath
from mkmeta.model import NS, PATH_LIMIT
from mkmeta.pattern import Patterns
from mkmeta.store.lock import touched
from mkmeta.store.pointer import lock_of

CLOCKS_APART: Final = 300.0  # seconds; as for scan --base
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnfinishedError(MkmetaError):
    """A release is not completely on the volume yet."""

    exit_code = ExitCode.UNFINISHED


@dataclass(frozen=True)
class Rules:
    """How one knows that a release is complete."""

    staging: Patterns = field(default_factory=lambda: Patterns(()))  # what is never one: places to copy to first
    marker: bytes | None = None  # name of a file that appears in a release when it is complete
    quiet: float = 0.0  # seconds for which nothing in it has changed


class Unfinished(NamedTuple):
    """Why a release is not complete."""

    why: str
    seconds: float | None = None  # it is not before these are over; None: before something comes or goes in it


class Coverage(StrEnum):
    """What a selection makes of a path."""

    WHOLE = "recorded"
    PARTS = "parts of it may be recorded"
    THROUGH = "falls through"
    HIDDEN = "hidden"


def coverage(path: bytes, select: Patterns, hide: Patterns, *, is_directory: bool = True) -> Coverage:
    """What becomes of a path on the volume."""
    if hide.first_match(path, is_directory=is_directory) is not None:
        return Coverage.HIDDEN
    if select.first_match(path, is_directory=is_directory) is not None:
        return Coverage.WHOLE
    state = select.start()
    for name in path.split(b"/"):
        state, _ = select.advance(state, name)
    return Coverage.PARTS if state and is_directory else Coverage.THROUGH


def release_of(path: bytes, select: Patterns) -> bytes:
    """The release that a path is in, which is what is complete or not: docs/release.md.

    Where a pattern matches at or above the path, what the last name with wildcards on the way there matches, or without
    any the match itself. Elsewhere the path itself.
    """
    state = select.start()
    names = path.split(b"/")
    depth = 0  # of the release; 0: nothing but plain names so far
    for at, name in enumerate(names, 1):
        depth = at if select.names(state) is None else depth
        state, matched = select.advance(state, name)
        if matched:
            return b"/".join(names[: depth or at])
    return path


def relative(given: bytes, root: bytes) -> bytes:
    """A path as named by a user, on the volume: relative to its root, or absolute below it. Raises UsageError."""
    path = given
    if given.startswith(b"/"):
        for top in (root, os.path.realpath(root)):
            if given.startswith(top.rstrip(b"/") + b"/"):
                path = given[len(top.rstrip(b"/")) :]
                break
        else:
            hint = "name it below the volume, or relative to it"
            raise UsageError(f"is not on the volume {printable(root)}", path=given, hint=hint)
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if not names or b".." in names or b"\0" in path or len(path) > PATH_LIMIT:
        raise UsageError("is not the path of a release on the volume", path=given)
    return b"/".join(names)


def topmost(paths: Sequence[bytes]) -> tuple[bytes, ...]:
    """Paths without those that are below others of them, sorted."""
    found: list[bytes] = []
    for path in sorted(set(paths), key=lambda path: path.split(b"/")):
        if not found or not path.startswith(found[-1] + b"/"):
            found.append(path)
    return tuple(found)


def literal(path: bytes) -> bytes:
    """The pattern that matches a path and nothing else."""
    return b"".join(b"\\" + byte if byte in (b"*", b"?", b"[", b"\\") else byte for byte in _bytes_of(path))


def _bytes_of(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]


@dataclass(frozen=True)
class Clock:
    """The time by which what is on the volume changes."""

    now_ns: int  # since the epoch, when it was asked
    margin: float  # seconds by which it may be wrong


def clock_of(device: int, pointer: bytes) -> Clock:
    """The clock of the server of the volume, which is the filesystem `device`, by the lock beside a pointer on it.

    Ours where the pointer is elsewhere, or its lock is not ours to touch. Nothing is made but that lock, which stays.
    """
    lock = lock_of(pointer)
    with contextlib.suppress(OSError, StoreError):
        if os.stat(os.path.dirname(lock)).st_dev == device:
            return Clock(touched(lock).st_ctime_ns, 0.0)
    return Clock(time.time_ns(), CLOCKS_APART)


def why_unfinished(volume_fd: int, path: bytes, release: bytes, rules: Rules, clock: Clock) -> Unfinished | None:
    """Why a path that is on the volume, in a release, is not complete; None: it is, or cannot be looked at.

    What cannot be looked at is for the scan to say. Follows no link, crosses no mount point.
    """
    try:
        status = _look(volume_fd, path)
        match = rules.staging.first_match(path, is_directory=stat.S_ISDIR(status.st_mode))
        if match is not None:
            pattern = printable(match.sources[0])
            return Unfinished(f"is a place to copy to: '{printable(match.path)}' matches '{pattern}' of 'staging'")
        top = _look(volume_fd, release)
        if rules.marker is not None and stat.S_ISDIR(top.st_mode):
            places = [release] + ([path] if stat.S_ISDIR(status.st_mode) else [])
            if not any(_is_there(volume_fd, os.path.join(place, rules.marker)) for place in places):
                return Unfinished(f"has no '{printable(rules.marker)}', which 'marker' says a complete release has")
        if rules.quiet <= 0:
            return None
        return _why_not_quiet(volume_fd, release, top, rules.quiet + clock.margin, clock.now_ns)
    except FileNotFoundError:
        return Unfinished("went away while it was looked at")
    except OSError:
        return None


def _is_there(volume_fd: int, path: bytes) -> bool:
    try:
        _look(volume_fd, path)
    except FileNotFoundError:
        return False
    return True


def _look(volume_fd: int, path: bytes) -> os.stat_result:
    fd = open_beneath(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=volume_fd)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _why_not_quiet(volume_fd: int, path: bytes, status: os.stat_result, quiet: float, now_ns: int) -> Unfinished | None:
    """Looks at all of it, until something has changed too lately. Raises OSError."""
    before_ns = now_ns - int(quiet * NS)
    waiting = [path]
    if status.st_ctime_ns > before_ns:
        return _changed(path, status, quiet, now_ns)
    while waiting and stat.S_ISDIR(status.st_mode):
        directory = waiting.pop()
        fd = open_beneath(directory, _DIRECTORY, dir_fd=volume_fd)
        try:
            for name in list_names(fd):
                seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
                below = os.path.join(directory, name)
                if seen.st_ctime_ns > before_ns:
                    return _changed(below, seen, quiet, now_ns)
                if stat.S_ISDIR(seen.st_mode):
                    waiting.append(below)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                return Unfinished(f"changes: something went away ({reason(error)})", quiet)
            raise
        finally:
            os.close(fd)
    return None


def _changed(path: bytes, status: os.stat_result, quiet: float, now_ns: int) -> Unfinished:
    ago = max(0, now_ns - status.st_ctime_ns) / NS
    return Unfinished(f"was changed {ago:.0f} s ago: {printable(path)}", max(0.0, quiet - ago))
