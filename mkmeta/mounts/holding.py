"""What one process has open: descriptors, directories, mappings, of all its threads; and mounts that are nowhere else.

The kernel's fdinfo and maps say which mount and device something is on, and ask nobody. Only what is on a mount that no
namespace has is opened, through a descriptor of its own (pidfd_getfd(2)) where that is possible.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mkmeta.errors import reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.mount import (
    MNT_DETACH,
    leave_mount_namespace_at,
    move_mount,
    open_tree_clone,
    open_tree_clone_of,
    umount2,
)
from mkmeta.linux.mountinfo import mount_id_in, parse
from mkmeta.linux.namespaces import AS_ROOT, TOO_LONG, Proc, Table, Unseen
from mkmeta.linux.syscalls import pidfd_getfd, shares_files
from mkmeta.mounts.likeness import Layer, Like, Likeness

_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EBADF)
_NEWER: Final = "end it, or use Linux 6.15 or newer"
_MAPPING = re.compile(rb"([0-9a-f]+-[0-9a-f]+) \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)")
_MAPS_TELL: Final = (6, 8)  # the Linux from which maps shows the device of an overlay, not that of the file inside


@dataclass(frozen=True)
class Held:
    """Something a process has open on an overlay."""

    process: int
    mounts: frozenset[int]  # IDs: it is on one of these; that of a mount that is gone is nowhere else
    attached: bool  # these are in some namespace's table
    layers: frozenset[bytes] | None  # of those compared with: it is of these; None: it may be of any


@dataclass
class Found:
    """What one process has open, as far as it could be looked at."""

    held: list[Held] = field(default_factory=list)
    trees: list[Table] = field(default_factory=list)  # of mounts that only a descriptor keeps
    unseen: list[Unseen] = field(default_factory=list)
    closed: bool = False  # it may not be looked into


class Looker:
    """Looks at processes, in a `watched` child."""

    def __init__(self, proc: Proc, tables: Sequence[Table], layers: Sequence[Layer]) -> None:
        mounts = [mount for table in tables for mount in table.mounts]
        self._proc = proc
        self._overlays = {mount.id for mount in mounts if mount.fstype == b"overlay"}
        self._others = {mount.id for mount in mounts if mount.fstype != b"overlay"}
        self._devices = {mount.device for mount in mounts if mount.fstype != b"overlay"}
        self._likeness = Likeness(proc, layers)
        self._maps_tell = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= _MAPS_TELL
        self._on_device: dict[int, set[int]] = {}  # IDs of the mounts of each overlay
        for mount in mounts:
            if mount.fstype == b"overlay":
                self._on_device.setdefault(mount.device, set()).add(mount.id)
        self._judged: dict[tuple[int, bytes], Like | None] = {}  # by mount and path
        self._apart = False  # this process has a mount namespace of its own

    def look(self, process: int) -> Found:
        """All of one process; one that ends meanwhile holds nothing."""
        found = Found()
        if process == os.getpid():
            return found
        try:
            tasks = self._proc.names(f"{process}/task")
            for task in tasks:
                top = f"{process}/task/{task}"
                for name in ("cwd", "root"):
                    self._linked(found, process, f"{top}/{name}")
                if task == str(process) or not shares_files(process, int(task)):
                    for name in self._proc.names(f"{top}/fd"):
                        self._descriptor(found, process, top, name)
            self._linked(found, process, f"{process}/exe")
            self._mapped(found, process, tasks)
        except PermissionError:
            found.closed = True
        except OSError as error:
            if error.errno not in _GONE:
                what = f"process {self._proc.command(process)} cannot be looked into ({reason(error)})"
                found.unseen.append(Unseen(what, AS_ROOT))
        return found

    def _linked(self, found: Found, process: int, name: str) -> None:
        """A directory or program, of which only a link in /proc tells; opening that asks only NFS and its like."""
        try:
            path = self._proc.link(name)
            with closing(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._proc.fd)) as fd:
                self._on_mount(found, process, self._proc.mount_id(fd), path, fd)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _descriptor(self, found: Found, process: int, top: str, name: str) -> None:
        try:
            mount_id = mount_id_in(self._proc.read(f"{top}/fdinfo/{name}"))
            if mount_id in self._others:
                return
            path = self._proc.link(f"{top}/fd/{name}")
            if path.startswith(b"/"):  # or it is a pipe, a socket and the like
                with closing(self._taken(process, top, name)) as fd:
                    self._on_mount(found, process, mount_id, path, fd)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _taken(self, process: int, top: str, name: str) -> int:
        """A descriptor of a process, as one of ours: as it is where the kernel can do that (5.6), else opened anew."""
        if top.endswith(f"/{process}"):
            with contextlib.suppress(OSError), closing(os.pidfd_open(process)) as pidfd:
                return pidfd_getfd(pidfd, int(name))
        return os.open(f"{top}/fd/{name}", os.O_PATH | os.O_CLOEXEC, dir_fd=self._proc.fd)

    def _mapped(self, found: Found, process: int, tasks: list[str]) -> None:
        seen = set()
        for line in self._maps(process, tasks).split(b"\n"):
            match = _MAPPING.fullmatch(line)
            if match is None or match[4] == b"0":
                continue
            device = os.makedev(int(match[2], 16), int(match[3], 16))
            if (device, match[5]) in seen or (self._maps_tell and device in self._devices):
                continue
            seen.add((device, match[5]))
            if self._maps_tell and device in self._on_device:
                self._hold(found, process, frozenset(self._on_device[device]))
                continue
            span = "-".join(f"{int(end, 16):x}" for end in match[1].split(b"-"))
            self._linked(found, process, f"{process}/map_files/{span}")

    def _maps(self, process: int, tasks: list[str]) -> bytes:
        """The mappings of a process: of any of its threads, the first of which may have ended."""
        for task in tasks:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if text := self._proc.read(f"{process}/task/{task}/maps"):
                    return text
        return b""

    def _on_mount(self, found: Found, process: int, mount_id: int, path: bytes, fd: int) -> None:
        if mount_id in self._others:
            return
        if mount_id in self._overlays:
            self._hold(found, process, frozenset([mount_id]))
            return
        key = (mount_id, path)
        if key not in self._judged or path == TOO_LONG:
            self._judged[key] = self._likeness.of_open(fd, path)
        like = self._judged[key]
        if like is not None:
            found.held.append(Held(process, frozenset([mount_id]), False, like.layers))
        else:
            self._tree(found, process, fd)

    def _hold(self, found: Found, process: int, mounts: frozenset[int]) -> None:
        held = Held(process, mounts, True, frozenset())
        if held not in found.held:
            found.held.append(held)

    def _tree(self, found: Found, process: int, fd: int) -> None:
        """The mounts in a tree that is in no namespace, copied to where this process, and nobody else, can see them.

        There are none below what was detached: that comes apart.
        """
        who = f"process {self._proc.command(process)}, by a descriptor,"
        try:
            tree = open_tree_clone_of(fd)
        except OSError as error:
            is_path = _flags(self._proc.read(f"self/fdinfo/{fd}")) & os.O_PATH
            if is_path and (error.errno != errno.EINVAL or not _shows_trees()):
                found.unseen.append(Unseen(f"the mounts that {who} has cannot be listed ({reason(error)})", _NEWER))
            return
        with closing(tree):
            if not self._apart:
                leave_mount_namespace_at(b"/proc")
                self._apart = True
            before = {mount.id for mount in parse(self._proc.read("self/mountinfo"))}
            try:
                move_mount(tree, b"/proc")
            except NotADirectoryError:
                return  # a file, and nothing can be below that
            mounts = [mount for mount in parse(self._proc.read("self/mountinfo")) if mount.id not in before]
            umount2(b"/proc", MNT_DETACH)
        found.trees.append(Table(who, None, mounts))


def _flags(fdinfo: bytes) -> int:
    match = re.search(rb"^flags:\s*([0-7]+)$", fdinfo, re.MULTILINE)
    return int(match[1], 8) if match else 0


def _shows_trees() -> bool:
    """Whether the kernel copies trees that are in no namespace (Linux 6.15)."""
    with contextlib.suppress(OSError), closing(open_tree_clone(b"/proc")) as one, closing(open_tree_clone_of(one)):
        return True
    return False
