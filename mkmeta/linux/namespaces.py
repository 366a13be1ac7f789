"""The mount namespaces of this host, each with all its mounts: also one that only a mount or a descriptor keeps.

A process's own mountinfo ends at its root. So each namespace is entered, by a child process (setns(2): it takes the
namespace's root along), and its table is read there. What could not be looked at is told, never passed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mkmeta.errors import printable, reason
from mkmeta.linux.asking import watched
from mkmeta.linux.descriptors import closing
from mkmeta.linux.mountinfo import Mount, mount_id_in, parse
from mkmeta.linux.syscalls import CLONE_NEWNS, setns

CAP_SYS_PTRACE: Final = 19  # linux/capability.h
AS_ROOT: Final = "run it as root, with all capabilities, in the initial pid namespace of the host"
# linux/nsfs.h, Linux 6.12: _IOR(0xb7, number, struct mnt_ns_info), which has 16 bytes
_NS_MNT_GET_NEXT: Final = 0x8010B70B
_NS_MNT_GET_PREV: Final = 0x8010B70C
_MNT_NS_INFO_SIZE: Final = 16
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # linux/proc_ns.h: PROC_PID_INIT_INO, the same on every host
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO
TOO_LONG: Final = b"/\0"  # the path of something, of more than a page: nothing has this one
_NEWLINE: Final = b"\n"
_NAMESPACE = re.compile(rb"mnt:\[(\d+)\]")


@dataclass(frozen=True)
class Unseen:
    """Something that could not be looked at, and may be anything."""

    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what}: {self.way_out}"


@dataclass(frozen=True)
class Table:
    """The mounts of one mount namespace, from its root."""

    who: str  # sees it: "process 17 (bash)", or what else keeps the namespace
    process: int | None
    mounts: list[Mount]
    own: bool = False  # this process is in it too


@dataclass
class Tables:
    """Those of the whole host, as far as it could be looked at."""

    tables: list[Table]
    unseen: list[Unseen]  # whole namespaces, perhaps
    partly: list[Unseen]  # of which only what is below the root of a task was seen


@dataclass(frozen=True)
class _Found:
    """A namespace, and the names in /proc under which it can be entered: any, as long as that task lives."""

    inode: int | None  # None: of a task that may not be looked into, which can be in any
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Seen:
    """What was read in one; `problem`: why it is not all, or nothing."""

    who: str
    process: int | None = None
    table: bytes = b""
    problem: str | None = None


class Proc:
    """/proc, held open: what is looked at here does not depend on this process's root, nor on namespaces entered."""

    def __init__(self) -> None:
        """Raises OSError when /proc is not that of a pid namespace this process is in."""
        self.fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.stat("self/mountinfo", dir_fd=self.fd)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Closes it."""
        os.close(self.fd)

    def read(self, name: str) -> bytes:
        """The text of a file. Raises OSError."""
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd), "rb") as file:
            return file.read()

    def link(self, name: str) -> bytes:
        """What a link says, of which nobody but the kernel is asked; TOO_LONG where it leads deeper than that can be
        said (any user can go there). Raises OSError.
        """
        try:
            return os.fsencode(os.readlink(name, dir_fd=self.fd))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return TOO_LONG

    def names(self, name: str) -> list[str]:
        """The names in a directory; none when it is gone. Raises PermissionError."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except (FileNotFoundError, ProcessLookupError):
            return []
        try:
            return os.listdir(fd)
        except (FileNotFoundError, ProcessLookupError):
            return []
        finally:
            os.close(fd)

    def processes(self) -> list[int]:
        """The processes there are."""
        return sorted(int(name) for name in os.listdir(self.fd) if name.isdecimal())

    def mount_id(self, fd: int) -> int:
        """The mount that a file of this process is on. Raises OSError."""
        return mount_id_in(self.read(f"self/fdinfo/{fd}"))

    def command(self, process: int) -> str:
        """The name of a process's command, printable, after its number."""
        with contextlib.suppress(OSError):
            return f"{process} ({printable(self.read(f'{process}/comm').removesuffix(_NEWLINE))})"
        return str(process)

    def is_gone(self, process: int) -> bool:
        """Whether nothing is left of a process but its number."""
        try:
            state = self.read(f"{process}/stat").rpartition(b")")[2].split()
        except OSError:
            return True
        return state[:1] in ([b"Z"], [b"X"])


@contextlib.contextmanager
def open_proc() -> Iterator[Proc]:
    """/proc, for the time of a block. Raises OSError."""
    proc = Proc()
    try:
        yield proc
    finally:
        proc.close()


def host_tables(proc: Proc) -> Tables:
    """The mount tables of every mount namespace of the host. Raises OSError."""
    found = _namespaces(proc)
    known = {one.inode for one in found if one.inode is not None}
    host = Tables([], [], [])
    work: list[_Found | None] = [*found, None]

    def look(namespace: _Found | None) -> list[_Seen]:
        return list(_read_all(proc, namespace, known))

    own = os.stat("self/ns/mnt", dir_fd=proc.fd).st_ino
    for namespace, seen in watched(look, work, keep=[proc.fd]):
        is_own = namespace is not None and namespace.inode == own
        if seen is None:
            who = "of the host" if namespace is None else f"that /proc/{namespace.names[0]} is"
            host.unseen.append(Unseen(f"a mount namespace {who} gives no answer", AS_ROOT))
        for one in seen or ():
            if one.problem is not None:
                what = f"all mounts that {one.who} sees cannot be listed ({one.problem})"
                (host.partly if one.table else host.unseen).append(Unseen(what, AS_ROOT))
            host.tables.append(Table(one.who, one.process, parse(one.table), is_own))
            is_own = False  # others come from mounts in it
    host.unseen.extend(_limits(proc, host.tables))
    return host


def whole_path(proc: Proc, fd: int) -> bytes:
    """The path of what is open as `fd` from the root of this mount namespace, as its table has it: also in a chroot.

    Raises OSError.
    """

    def look(fd: int) -> bytes:
        own = os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc.fd)
        with closing(own), contextlib.suppress(OSError):  # EPERM: then it is as good as can be had
            setns(own, CLONE_NEWNS)
        return proc.link(f"self/fd/{fd}")

    for _, path in watched(look, [fd], keep=[proc.fd, fd]):
        if path is not None and path != TOO_LONG:
            return path
    raise OSError("a namespace of this process's own gives no answer")


def denied(proc: Proc, processes: list[int]) -> list[Unseen]:
    """The word for processes that this one may not look into.

    Not process 1 of the host, when even root with every right may not: it is what starts everything, stays in `/`, and
    is kept from all by those who run the machine. Nothing would ever be removed there.
    """
    left = [
        one for one in processes if not (one == 1 and has_capability(proc, CAP_SYS_PTRACE)) and not proc.is_gone(one)
    ]
    if not left:
        return []
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return [Unseen(f"process {proc.command(left[0])}{more} may not be looked into", AS_ROOT)]


def has_capability(proc: Proc, number: int) -> bool:
    """Whether this process has a capability in the initial user namespace: linux/capability.h."""
    match = re.search(rb"^CapEff:\s*([0-9a-f]+)$", proc.read("self/status"), re.MULTILINE)
    return (
        match is not None
        and bool(int(match[1], 16) >> number & 1)
        and os.stat("self/ns/user", dir_fd=proc.fd).st_ino == _INITIAL_USER_NAMESPACE
    )


def _namespaces(proc: Proc) -> list[_Found]:
    """Those that tasks are in, or hold open."""
    found: dict[int, _Found] = {}
    apart = []
    for process in proc.processes():
        tasks = [f"{process}/task/{task}" for task in proc.names(f"{process}/task")]
        try:
            for task in tasks:
                for name in _names_of(proc, task):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        inode = os.stat(name, dir_fd=proc.fd).st_ino
                        found.setdefault(inode, _Found(inode)).names.append(name)
        except PermissionError:
            apart += [_Found(None, [f"{task}/mountinfo"]) for task in tasks]
    return [*found.values(), *apart]


def _names_of(proc: Proc, task: str) -> Iterator[str]:
    yield f"{task}/ns/mnt"
    for name in proc.names(f"{task}/fd"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if _NAMESPACE.fullmatch(proc.link(f"{task}/fd/{name}")):
                yield f"{task}/fd/{name}"


def _read_all(proc: Proc, namespace: _Found | None, known: set[int]) -> Iterator[_Seen]:
    """In a child: the table of a namespace, and of those that only mounts in it keep; None: of all that are left."""
    ahead = list(_unheld(proc, known)) if namespace is None else []
    if namespace is not None:
        entered = _enter(proc, namespace)
        if entered is None:
            return
        yield entered
        ahead = list(_kept_by_mounts(entered, known))
    while ahead:
        fd, who = ahead.pop()
        if fd is None:
            yield _Seen(who, problem="it cannot be opened")
            continue
        try:
            setns(fd, CLONE_NEWNS)
            entered = _Seen(who, table=proc.read("self/mountinfo"))
        except OSError as error:
            yield _Seen(who, problem=reason(error))
            continue
        finally:
            os.close(fd)
        yield entered
        ahead += _kept_by_mounts(entered, known)


def _enter(proc: Proc, namespace: _Found) -> _Seen | None:
    """The table of a namespace that a task is in or holds; None: none does any more."""
    last = None
    for name in namespace.names:
        process = int(name.partition("/")[0])
        who = f"process {proc.command(process)}"
        try:
            if namespace.inode is None:  # what is below the root of that task can be read even so
                return _Seen(who, process, proc.read(name))
            with closing(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc.fd)) as fd:
                if os.fstat(fd).st_ino == namespace.inode:
                    setns(fd, CLONE_NEWNS)
                    return _Seen(who, process, proc.read("self/mountinfo"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            if proc.is_gone(process):
                continue
            last = _Seen(who, process, problem=reason(error))
            with contextlib.suppress(OSError):
                return _Seen(who, process, proc.read(f"{process}/mountinfo"), reason(error))
    return last


def _unheld(proc: Proc, known: set[int]) -> Iterator[tuple[int | None, str]]:
    """The namespaces of the host that are not known, from Linux 6.12 on; before, those that only mounts keep are."""
    with (
        contextlib.suppress(OSError),
        closing(os.open("self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc.fd)) as own,
    ):
        for direction in (_NS_MNT_GET_NEXT, _NS_MNT_GET_PREV):
            here = own
            with contextlib.suppress(OSError):  # ENOENT: the last one; ENOTTY: before Linux 6.12
                while True:
                    before, here = here, fcntl.ioctl(here, direction, bytearray(_MNT_NS_INFO_SIZE))
                    if before != own:
                        os.close(before)
                    inode = os.fstat(here).st_ino
                    if inode not in known:
                        known.add(inode)
                        yield os.dup(here), "a namespace without a process"
            if here != own:
                os.close(here)


def _kept_by_mounts(seen: _Seen, known: set[int]) -> Iterator[tuple[int | None, str]]:
    """The namespaces that are mounted in the one that this process is in now, as those of `unshare --mount=FILE`."""
    for mount in parse(seen.table):
        match = _NAMESPACE.fullmatch(mount.root) if mount.fstype == b"nsfs" else None
        if match is None or int(match[1]) in known:
            continue
        known.add(int(match[1]))
        who = f"the namespace mounted at {printable(mount.point)}"
        try:
            fd = os.open(mount.point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            yield None, who
            continue
        if os.fstat(fd).st_ino != int(match[1]):
            os.close(fd)
            yield None, who
        else:
            yield fd, who


def _limits(proc: Proc, tables: list[Table]) -> Iterator[Unseen]:
    """What is wrong with this /proc: processes that it does not have."""
    inode = os.stat("self/ns/pid", dir_fd=proc.fd).st_ino
    with contextlib.suppress(OSError):
        inode = os.stat("1/ns/pid", dir_fd=proc.fd).st_ino
    if inode != _INITIAL_PID_NAMESPACE:
        yield Unseen("processes outside of this pid namespace cannot be seen", AS_ROOT)
    own = proc.mount_id(proc.fd)
    hidden = {
        value for table in tables for mount in table.mounts if mount.id == own for value in mount.values(b"hidepid")
    }
    if hidden - {b"0", b"off"} and not has_capability(proc, CAP_SYS_PTRACE):
        yield Unseen("/proc is mounted with hidepid, and does not show the processes of others", AS_ROOT)
