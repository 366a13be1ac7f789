"""Paths of directories whose inode numbers are known: from a manifest's facts, and one listing of the rest."""

from __future__ import annotations

import contextlib
import os
from collections import deque

from mkmeta.demand.shape import LOOK_MAX
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory


def paths_of(point: bytes, wanted: set[int], base: ManifestReader | None) -> dict[int, bytes]:
    """Paths relative to a mount point by inode number, as far as they are found. Raises FormatError of the base.

    What a manifest says of an inode number is asked of the volume once more: it may be another directory by now. Lists
    directories, nearest first, until all are found, and no more than LOOK_MAX entries.
    """
    top = os.stat(point).st_ino
    found = {top: b""} if top in wanted else {}
    if base is not None:
        for path, inode in _recorded(base, wanted):
            with contextlib.suppress(OSError):
                if os.lstat(os.path.join(point, path)).st_ino == inode:
                    found[inode] = path
    missing = wanted - found.keys()
    left = LOOK_MAX
    waiting = deque([b""])
    while waiting and left > 0 and missing:
        directory = waiting.popleft()
        with contextlib.suppress(OSError), os.scandir(os.path.join(point, directory)) as listing:
            for item in listing:
                left -= 1
                if item.is_dir(follow_symlinks=False):
                    path = directory + b"/" + item.name if directory else item.name
                    waiting.append(path)
                    if (inode := item.inode()) in missing:
                        missing.remove(inode)
                        found[inode] = path
    return found


def _recorded(base: ManifestReader, wanted: set[int]) -> list[tuple[bytes, int]]:
    if base.facts_place is None:
        return []
    found = []
    waiting = [(b"", base.root.directory, base.facts_place)]
    while waiting:
        path, directory, facts = waiting.pop()
        for entry in base.recorded(directory, path, facts):
            if not isinstance(entry.node, Directory):
                continue
            below = path + b"/" + entry.name if path else entry.name
            if entry.inode in wanted:
                found.append((below, entry.inode))
            if entry.facts is not None:
                waiting.append((below, entry.node, entry.facts))
    return found
