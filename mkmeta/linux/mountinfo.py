"""What is mounted where: /proc/PID/mountinfo (Linux Documentation/filesystems/proc.rst, section 3.5)."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mkmeta.errors import printable
from mkmeta.linux.asking import watched
from mkmeta.linux.descriptors import closing
from mkmeta.linux.syscalls import CLONE_NEWNS, setns

_LINE: Final = re.compile(
    rb"(?P<id>\d{1,10}) (?P<parent>\d{1,10}) (?P<major>\d{1,4}):(?P<minor>\d{1,7}) (?P<root>[^ ]+) (?P<point>[^ ]+) "
    rb"(?P<flags>[^ ]+)(?: [^ ]+)*? - (?P<fstype>[^ ]+) (?P<source>[^ ]*) (?P<options>.*)",
    re.DOTALL,
)


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
    return parse(Path(f"/proc/{process}/mountinfo").read_bytes())


def parse(table: bytes) -> list[Mount]:
    """The mounts in the text of a mountinfo. Names in it are anybody's, and may hold any byte but NUL.

    The kernel escapes what separates lines and fields, `\\n` and space; of other white space it leaves some as it is.
    A line of another form is passed over: it can only be the rest of one whose filesystem does not escape its options.
    """
    return [mount for line in table.split(b"\n") if (mount := _mount(line)) is not None]


def visible_at(path: bytes, among: list[Mount]) -> list[Mount]:
    """The mounts on top of each other at a real, absolute path that lookups come to, bottom first; the last is seen.

    None where nothing is mounted at that path, or where a mount on a directory above it hides what is. From the table
    alone: no filesystem is asked, so none can hang.

    >>> visible_at(b"/", [])
    []
    """
    return _walked(path, among)[0]


def seen_at(path: bytes, among: list[Mount]) -> Mount | None:
    """The mount that a lookup of a real, absolute path ends on; None for that of a root that is no mount point."""
    return _walked(path, among)[1]


def _walked(path: bytes, among: list[Mount]) -> tuple[list[Mount], Mount | None]:
    """The mounts at the end of a path, and the one its last component is on, as path_resolution(7) finds them."""
    known = {mount.id for mount in among}
    at = {(mount.parent if mount.parent in known else None, mount.point): mount for mount in among}
    at |= {(None, mount.point): mount for mount in among if mount.parent == mount.id}
    here: Mount | None = None
    stack: list[Mount] = []
    walked: set[int] = set()
    names = [name for name in path.split(b"/") if name]
    for depth in range(len(names) + 1):
        stack = []
        point = b"/" + b"/".join(names[:depth])
        while (above := at.get((here.id if here else None, point))) is not None and above.id not in walked:
            walked.add(above.id)
            stack.append(above)
            here = above
    return stack, here


def mount_id(fd: int, process: int | str = "self") -> int:
    """The mount an open file is on: `mnt_id` of /proc/PID/fdinfo/FD. Raises OSError."""
    return mount_id_in(Path(f"/proc/{process}/fdinfo/{fd}").read_bytes())


def mount_id_in(fdinfo: bytes) -> int:
    """The `mnt_id` in the text of a /proc/PID/fdinfo/FD: of nobody but the kernel is anything asked. Raises OSError."""
    for line in fdinfo.split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    raise OSError("no mnt_id in the kernel's fdinfo")


def mount_of(path: bytes, among: list[Mount]) -> Mount:
    """The mount that what is at `path` is on. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_behind(fd, among)
    finally:
        os.close(fd)


def mount_behind(fd: int, among: list[Mount]) -> Mount:
    """The mount that an open file is on; in a chroot also one that is mounted further up. Raises OSError."""
    wanted = mount_id(fd)
    for mount in among:
        if mount.id == wanted:
            return mount
    for mount in _whole_table():
        if mount.id == wanted:
            return mount
    raise OSError(f"{printable(os.readlink(b'/proc/self/fd/%d' % fd))} is on a mount that is in no mount table")


def _whole_table() -> list[Mount]:
    """All mounts of this namespace, those outside of this process's root too, where that may be left (root may)."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(name: str) -> bytes:
        with contextlib.suppress(OSError):
            with closing(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as own:
                setns(own, CLONE_NEWNS)  # its root is that of the namespace
            with open(os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc), "rb") as table:
                return table.read()
        return b""

    with closing(proc):
        return [mount for _, table in watched(read, ["self/ns/mnt"], keep=[proc]) for mount in parse(table or b"")]


def mount_points_below(directory: bytes) -> frozenset[bytes]:
    """The mount points below a directory given as a real, absolute path; as paths relative to it."""
    prefix = directory.rstrip(b"/") + b"/"
    points = (mount.point for mount in mounts())
    return frozenset(point.removeprefix(prefix) for point in points if point.startswith(prefix) and point != prefix)


def _mount(line: bytes) -> Mount | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    return Mount(
        id=int(match["id"]),
        parent=int(match["parent"]),
        device=os.makedev(int(match["major"]), int(match["minor"])),
        root=_unescape(match["root"]),
        point=_unescape(match["point"]),
        flags=frozenset(match["flags"].split(b",")),
        fstype=_unescape(match["fstype"]),
        source=_unescape(match["source"]),
        options=tuple(_option(item) for item in match["options"].split(b",")),
    )


def _option(text: bytes) -> tuple[bytes, bytes]:
    key, _, value = text.partition(b"=")
    return _unescape(key), _unescape(value)


def _unescape(text: bytes) -> bytes:
    """The kernel writes space, tab, newline, backslash, and commas in options, as three octal digits."""
    if b"\\" not in text:
        return text
    return re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), text)
