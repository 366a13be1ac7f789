"""Who uses a layer: mounts of any namespace, processes with files of a mount that is gone (formats/mounts.md 4)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from mkmeta.errors import printable
from mkmeta.linux.filesystem import is_overlay
from mkmeta.linux.mountinfo import Mount, mount_id, mounts, processes
from mkmeta.mounts.live import layers_of
from mkmeta.mounts.overlay import closing
from mkmeta.mounts.profile import INNER_SOURCE, SOURCE

_DELETED = b" (deleted)"  # what readlink of /proc/PID/fd appends
_WITNESSES = 1000  # directories looked into for a regular file


@dataclass(frozen=True)
class Held:
    """Something a process has open on an overlay mount."""

    process: int
    mount_id: int
    path: bytes  # from the root of the mount when that is mounted nowhere
    link: bytes  # in /proc, through which it can be reached


def uses(mount: Mount, short_id: str, directory: bytes, where: Mount) -> bool:
    """Whether a mount uses the generation in `directory`; `where` is the mount that directory is on."""
    if mount.source in (SOURCE + short_id.encode(), INNER_SOURCE + short_id.encode()):
        return True
    layers = layers_of(mount)
    named = (*layers.lowers, *layers.data, *([layers.upper] if layers.upper else ()))
    if any(_is_at_or_below(path, directory) for path in named):
        return True
    root = where.root.rstrip(b"/") + directory.removeprefix(where.point.rstrip(b"/"))
    return mount.device == where.device and _is_at_or_below(mount.root, root)


def held_on_overlays() -> Iterator[tuple[Held, bool]]:
    """What processes have open on overlays, and whether the mount is in the process's mount table.

    Descriptors, working directories, roots, executables, mappings. Processes that end meanwhile, or are not ours to
    look at, are passed over.
    """
    tables: dict[int, frozenset[int]] = {}
    boring: set[tuple[int, bytes]] = set()  # (namespace, path of a mapping) seen not to be on an overlay
    for process in processes():
        try:
            namespace = os.stat(f"/proc/{process}/ns/mnt").st_ino
            if namespace not in tables:
                tables[namespace] = frozenset(mount.id for mount in mounts(process))
            for held in _held_by(process, namespace, boring):
                yield held, held.mount_id in tables[namespace]
        except OSError:
            continue


def is_of_layer(held: Held, layer: bytes, witness: bytes | None) -> bool:
    """Whether what is held belongs to a mount of this layer, judged by inode numbers; `witness` is a file in it."""
    try:
        with closing(os.open(held.link, os.O_PATH | os.O_CLOEXEC)) as fd:
            status = os.fstat(fd)
            if not stat.S_ISDIR(status.st_mode):
                return os.lstat(layer + held.path.removesuffix(_DELETED)).st_ino == status.st_ino
            if witness is None:
                return False
            with closing(_root_of(fd)) as root:
                there = os.stat(witness, dir_fd=root, follow_symlinks=False)
                return there.st_ino == os.lstat(layer + b"/" + witness).st_ino
    except OSError:
        return False


def witness_of(layer: bytes) -> bytes | None:
    """The path, in a layer, of a regular file: its inode number tells mounts of this layer from others."""
    ahead = [b""]
    for _ in range(_WITNESSES):
        if not ahead:
            return None
        path = ahead.pop()
        with os.scandir(layer + b"/" + path) as entries:
            for entry in entries:
                below = path + b"/" + entry.name if path else entry.name
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(below)
                elif entry.is_file(follow_symlinks=False):
                    return below
    return None


def command_of(process: int) -> str:
    """The name of a process's command, printable: a process gives itself any; empty when it has ended."""
    try:
        with open(f"/proc/{process}/comm", "rb") as file:
            return printable(file.read().removesuffix(b"\n"))
    except OSError:
        return ""


def _held_by(process: int, namespace: int, boring: set[tuple[int, bytes]]) -> Iterator[Held]:
    top = b"/proc/%d" % process
    for name in (b"cwd", b"root", b"exe"):
        yield from _held(process, top + b"/" + name)
    for name in os.listdir(top + b"/fd"):
        yield from _held(process, top + b"/fd/" + name)
    for name in os.listdir(top + b"/map_files"):
        link = top + b"/map_files/" + name
        try:
            path = os.readlink(link)
        except OSError:
            continue
        if (namespace, path) in boring:
            continue
        found = list(_held(process, link))
        if not found:
            boring.add((namespace, path))
        yield from found


def _held(process: int, link: bytes) -> Iterator[Held]:
    try:
        path = os.readlink(link)
        if not path.startswith(b"/"):
            return
        with closing(os.open(link, os.O_PATH | os.O_CLOEXEC)) as fd:
            if is_overlay(fd):
                yield Held(process, mount_id(fd), path, link)
    except OSError:
        return  # closed, or gone


def _root_of(fd: int) -> int:
    """The root of the mount that a directory is on, however deep: `..` of a root is the root itself."""
    here = os.dup(fd)
    while True:
        above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        same = os.path.samestat(os.fstat(above), os.fstat(here))
        os.close(here)
        if same:
            return above
        here = above


def _is_at_or_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
