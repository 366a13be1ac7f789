"""What is mounted where: /proc/PID/mountinfo (Linux Documentation/filesystems/proc.rst, section 3.5)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo. Names are bytes, without the kernel's octal escapes."""

    id: int  # unique while the mount exists
    parent: int
    device: int  # st_dev of the filesystem
    root: bytes  # the directory of the filesystem that the mount shows, as a path in it
    point: bytes  # where, as seen from the root of the process
    flags: frozenset[bytes]  # of the mount: ro, nosuid, nodev, noexec, relatime ...
    fstype: bytes
    source: bytes
    options: tuple[tuple[bytes, bytes], ...]  # of the filesystem, in its order; without a value: empty

    def values(self, key: bytes) -> list[bytes]:
        """The values of one option, in order."""
        return [value for name, value in self.options if name == key]


def mounts(process: int | str = "self") -> list[Mount]:
    """The mounts of the mount namespace a process is in, below its root. Raises OSError when it is gone."""
    return [_parse(line) for line in Path(f"/proc/{process}/mountinfo").read_bytes().splitlines() if line]


def stack_at(point: bytes, among: list[Mount]) -> list[Mount]:
    """The mounts on top of each other at one mount point, the visible one last.

    >>> stack_at(b"/", [])
    []
    """
    here = {mount.id: mount for mount in among if mount.point == point}
    covered = {mount.parent for mount in here.values()}
    stack: list[Mount] = []
    top = next((mount for mount in here.values() if mount.id not in covered), None)
    while top is not None:
        stack.insert(0, top)
        top = here.get(top.parent)
    return stack


def mount_id(fd: int, process: int | str = "self") -> int:
    """The mount an open file is on: `mnt_id` of /proc/PID/fdinfo/FD. Raises OSError."""
    for line in Path(f"/proc/{process}/fdinfo/{fd}").read_bytes().splitlines():
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    raise OSError(f"no mnt_id in /proc/{process}/fdinfo/{fd}")


def mount_of(path: bytes, among: list[Mount]) -> Mount:
    """The mount that what is at `path` is on. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        wanted = mount_id(fd)
    finally:
        os.close(fd)
    for mount in among:
        if mount.id == wanted:
            return mount
    raise OSError(f"{os.fsdecode(path)} is on a mount that is in no mount table")


def mount_points_below(directory: bytes) -> frozenset[bytes]:
    """The mount points below a directory given as a real, absolute path; as paths relative to it."""
    prefix = directory.rstrip(b"/") + b"/"
    points = (mount.point for mount in mounts())
    return frozenset(point.removeprefix(prefix) for point in points if point.startswith(prefix) and point != prefix)


def namespace_mounts() -> Iterator[tuple[int, list[Mount]]]:
    """For every mount namespace that a process is in: one of these, and the mounts. Others' need root."""
    seen = set()
    for process in processes():
        try:
            namespace = os.stat(f"/proc/{process}/ns/mnt").st_ino
            if namespace in seen:
                continue
            found = mounts(process)
        except OSError:
            continue  # it ended, or is not ours to look at
        seen.add(namespace)
        yield process, found


def processes() -> list[int]:
    """The processes there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    number, parent, device, root, point, flags, *_tags = before.split(b" ")
    fstype, source, options = [*after.split(b" "), b""][:3]
    major, minor = device.split(b":")
    return Mount(
        id=int(number),
        parent=int(parent),
        device=os.makedev(int(major), int(minor)),
        root=_unescape(root),
        point=_unescape(point),
        flags=frozenset(flags.split(b",")),
        fstype=fstype,
        source=_unescape(source),
        options=tuple(_option(item) for item in options.split(b",")),
    )


def _option(text: bytes) -> tuple[bytes, bytes]:
    key, _, value = text.partition(b"=")
    return _unescape(key), _unescape(value)


def _unescape(text: bytes) -> bytes:
    """The kernel writes space, tab, newline, backslash, and commas in options, as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)
