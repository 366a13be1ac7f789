"""The shape of a volume: what is where, how large, and whether it is still growing. Looked at on demand, and once.

A *release* is a directory whose name is a version (`v1.2`, `2024.1`, `3`) and what is below it: published once, never
changed. A directory that releases appear in grows, and so may one that is no part of a release and changed lately.
Neither may be recorded as a whole: what comes tomorrow would be hidden. (A layer shows it only after the next scan.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from mkmeta.errors import MkmetaError, reason
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Directory, DirectoryKind, Symlink

_VERSION: Final = re.compile(rb"[vVrR]?\d+(?:[._-]\d+)*(?:[._+-]?[a-z]{1,6}\d*)?")
_LINKS_MAX: Final = 40  # MAXSYMLINKS of the kernel
_PLACES_MAX: Final = 2_000_000  # remembered; more, and all are looked at anew
_LEVELS: Final = 2  # below a directory that is no release, a version's name there means that releases appear
_COPYING_NS: Final = 3600 * NS  # a release that changed within this may not be complete yet
LOOK_MAX: Final = 5_000_000  # entries looked at, in all


class Place(NamedTuple):
    """Where a path leads on the volume."""

    path: bytes  # the directory itself, or the last one on the way that is there
    missing: bytes | None  # the name in it that is not there; None: all of it is


@dataclass(frozen=True, slots=True)
class Measure:
    """A directory with all below."""

    entries: int  # inodes, itself included
    refused: str | None  # why it may not be recorded as a whole


class Shape(Protocol):
    """What `suggest` asks of a volume."""

    def place(self, path: bytes) -> Place | None:
        """Where a path leads, links followed; None: out of the volume."""

    def measure(self, path: bytes) -> Measure:
        """Of a directory that is there."""

    def directories(self, path: bytes) -> list[bytes]:
        """The names of directories in one."""

    def others(self, path: bytes) -> list[bytes]:
        """The other names in it."""

    def size(self, path: bytes) -> int | None:
        """Bytes in a file; None: it is none, or is not there."""


def is_version(name: bytes) -> bool:
    """Whether a name is a version's."""
    return _VERSION.fullmatch(name) is not None


def release_of(path: bytes) -> bytes | None:
    """The release that a path is in; None: it is in none."""
    names = path.split(b"/")
    for depth, name in enumerate(names, 1):
        if depth > 1 and is_version(name):
            return b"/".join(names[:depth])
    return None


def _is_step(name: bytes) -> bool:
    return name not in (b"", b".")


class VolumeShape:
    """A volume that can be looked at, and a manifest of it, which spares most of that where it has recorded things."""

    def __init__(self, root: bytes, base: ManifestReader | None, *, now_ns: int, settled_ns: int) -> None:
        """`now_ns`: by which `lately` is meant, less than `settled_ns` ago. Raises MkmetaError without such a root."""
        self._root = root.rstrip(b"/") or b"/"
        self._base = base
        self._now = now_ns
        self._settled = settled_ns
        self._modes: dict[bytes, int] = {}
        self._places: dict[bytes, Place | None] = {b"": Place(b"", None)}
        self._names: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
        self._left = LOOK_MAX
        try:
            if not stat.S_ISDIR(os.stat(root).st_mode):
                raise MkmetaError("is no directory", path=root)
        except OSError as error:
            raise MkmetaError(reason(error), path=root, hint="name the volume's root directory") from None

    def place(self, path: bytes) -> Place | None:
        """Where a path leads, links followed; None: out of the volume."""
        return self._lead(path, 0)

    def _lead(self, path: bytes, links: int) -> Place | None:
        """Remembers what is there, and the first name on the way that is not: of a path it was given, nothing more."""
        if path in self._places:
            return self._places[path]
        if len(self._places) > _PLACES_MAX:
            self._places.clear()
        at, found = b"", Place(b"", None)
        for name in path.split(b"/"):
            at = at + b"/" + name if at else name
            if at not in self._places:
                self._places[at] = self._step(found.path, name, links)
            step = self._places[at]
            if step is None or step.missing is not None:
                return step
            found = step
        return found

    def _step(self, directory: bytes, name: bytes, links: int) -> Place | None:
        path = directory + b"/" + name if directory else name
        try:
            mode = os.lstat(self._here(path)).st_mode
            target = os.readlink(self._here(path)) if stat.S_ISLNK(mode) else None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ESTALE, errno.ENAMETOOLONG):
                return Place(directory, name)
            raise
        if target is None:
            return Place(path, None) if stat.S_ISDIR(mode) else Place(directory, name)
        return self._follow(directory, target, links + 1) if links < _LINKS_MAX else None

    def _follow(self, directory: bytes, target: bytes, links: int) -> Place | None:
        """Where a link in a directory leads: `..` is what is above the directory that was reached."""
        if target[:1] == b"/":
            whole = os.path.normpath(target)
            if whole == self._root:
                return Place(b"", None)
            inside = self._root.rstrip(b"/") + b"/"
            return self._lead(whole[len(inside) :], links) if whole.startswith(inside) else None
        at = directory
        for name in filter(_is_step, target.split(b"/")):
            if name == b"..":
                if not at:
                    return None
                at = at.rpartition(b"/")[0]
                continue
            place = self._lead(at + b"/" + name if at else name, links)
            if place is None or place.missing is not None:
                return place
            at = place.path
        return Place(at, None)

    def measure(self, path: bytes) -> Measure:
        """Of a directory that is there. Raises MkmetaError when so much was looked at that something must be wrong."""
        if not path:
            return Measure(1, "the root always shows what the volume has as well")
        release = release_of(path)
        recorded = self._recorded(path)
        if recorded is not None and release is not None:
            return Measure(recorded + 1, None)  # it was recorded whole, and does not change
        quiet = self._now - (self._settled if release is None else min(_COPYING_NS, self._settled))
        entries, waiting = 1, [(path, 0)]
        refused = None
        while waiting:
            directory, depth = waiting.pop()
            try:
                status = os.lstat(self._here(directory))
                with os.scandir(self._here(directory)) as listing:
                    items = list(listing)
            except OSError as error:
                return Measure(entries, f"{os.fsdecode(directory)!a} cannot be read: {reason(error)}")
            if status.st_mtime_ns > quiet:
                refused = "it changed lately" if directory == path else "something in it changed lately"
            entries += len(items)
            self._left -= len(items) + 1
            if self._left < 0:
                raise MkmetaError(
                    f"has more than {LOOK_MAX} entries below hot directories", path=self._root, hint="give a --base"
                )
            below = [item.name for item in items if item.is_dir(follow_symlinks=False)]
            if release is None and depth < _LEVELS and any(map(is_version, below)):
                return Measure(entries, "releases appear in it")
            waiting += ((directory + b"/" + name, depth + 1) for name in below)
        return Measure(entries, refused)

    def _recorded(self, path: bytes) -> int | None:
        """The entries below a directory that the base has recorded whole."""
        if self._base is None:
            return None
        node = self._base.find(path)
        opaque = isinstance(node, Directory) and node.kind is DirectoryKind.OPAQUE
        return node.entries if opaque and isinstance(node, Directory) else None

    def directories(self, path: bytes) -> list[bytes]:
        """The names of directories in one; none where it cannot be read."""
        return self._listed(path)[0]

    def others(self, path: bytes) -> list[bytes]:
        """The other names in one."""
        return self._listed(path)[1]

    def _listed(self, path: bytes) -> tuple[list[bytes], list[bytes]]:
        if path not in self._names:
            found: tuple[list[bytes], list[bytes]] = ([], [])
            with contextlib.suppress(OSError), os.scandir(self._here(path)) as listing:
                for item in listing:
                    found[not item.is_dir(follow_symlinks=False)].append(item.name)
            self._names[path] = (sorted(found[0]), sorted(found[1]))
        return self._names[path]

    def size(self, path: bytes) -> int | None:
        """Bytes in a file; None: it is none, or is not there."""
        parent, _, name = path.rpartition(b"/")
        place = self.place(parent)
        if place is None or place.missing is not None:
            return None
        try:
            status = os.stat(self._here(place.path + b"/" + name if place.path else name))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _here(self, path: bytes) -> bytes:
        return os.path.join(self._root, path) if path else self._root


class ManifestShape:
    """What a manifest alone tells: of what it has not recorded, nothing."""

    def __init__(self, base: ManifestReader) -> None:
        self._base = base

    def place(self, path: bytes) -> Place | None:
        """Where a path leads; a link in it that is recorded is followed."""
        names = path.split(b"/") if path else []
        at, links = b"", 0
        names.reverse()
        while names:
            name = names.pop()
            if name == b"..":  # of a link: what is above the directory that was reached
                if not at:
                    return None
                at = at.rpartition(b"/")[0]
                continue
            inside = at + b"/" + name if at else name
            node = self._base.find(inside)
            if isinstance(node, Symlink):
                links += 1
                target = node.target
                if target[:1] == b"/" or links > _LINKS_MAX:
                    return None
                names += reversed(list(filter(_is_step, target.split(b"/"))))
                continue
            if not isinstance(node, Directory):
                return Place(at, name)
            at = inside
        return Place(at, None)

    def measure(self, path: bytes) -> Measure:
        """Of a directory that is recorded."""
        node = self._base.find(path)
        if not isinstance(node, Directory):
            return Measure(1, "the manifest does not have it")
        if node.kind is not DirectoryKind.OPAQUE:
            return Measure(1, "it is above what is recorded")
        return Measure(node.entries + 1, None)

    def directories(self, path: bytes) -> list[bytes]:
        """The names of recorded directories in one."""
        node = self._base.find(path)
        if not isinstance(node, Directory):
            return []
        return [name for name, child in self._base.entries(node, path) if isinstance(child, Directory)]

    def others(self, path: bytes) -> list[bytes]:
        """The other recorded names in one."""
        node = self._base.find(path)
        if not isinstance(node, Directory):
            return []
        return [name for name, child in self._base.entries(node, path) if not isinstance(child, Directory)]

    def size(self, path: bytes) -> int | None:
        """Bytes in a recorded file."""
        node = self._base.find(path)
        return getattr(node, "size", None)


class NoShape:
    """Where there is nothing to look at: every directory is there, costs one, and may be selected."""

    def place(self, path: bytes) -> Place | None:
        """The path itself."""
        return Place(path, None)

    def measure(self, path: bytes) -> Measure:
        """A guess."""
        return Measure(1, None if path else "the root always shows what the volume has as well")

    def directories(self, path: bytes) -> list[bytes]:
        """Not known."""
        return []

    def others(self, path: bytes) -> list[bytes]:
        """Not known."""
        return []

    def size(self, path: bytes) -> int | None:
        """Not known."""
        return None
