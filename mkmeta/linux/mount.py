"""The kernel's calls for mounts: fsopen(2) and its family, mount(2), umount2(2). Names are those of the man pages.

Each raises OSError with errno and path; where the kernel says more, through the filesystem context, it is in the text
of the error: `MountRefused`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from enum import IntFlag
from types import TracebackType
from typing import Final, Self

from mkmeta.errors import printable
from mkmeta.linux.descriptors import closing
from mkmeta.linux.syscalls import CLONE_NEWNS, setns, unshare

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)

# include/uapi/asm-generic/unistd.h; the same on every architecture but alpha
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h
_AT_RECURSIVE = 0x8000

# linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSPICK_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_FSCONFIG_CMD_RECONFIGURE = 7
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MOVE_MOUNT_BENEATH = 0x200
MS_REMOUNT: Final = 0x20
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
MNT_DETACH: Final = 2  # sys/mount.h
UMOUNT_NOFOLLOW: Final = 8
_MESSAGE_SIZE = 1024  # more than any message a filesystem writes to its context


class MountFlags(IntFlag):
    """Flags of one mount: linux/mount.h MOUNT_ATTR_* for fsmount(2), which have the values of MS_* for mount(2)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8

    @classmethod
    def of(cls, names: frozenset[bytes]) -> MountFlags:
        """Those of a mount, from the names mountinfo has for them."""
        known = {b"ro": cls.RDONLY, b"nosuid": cls.NOSUID, b"nodev": cls.NODEV, b"noexec": cls.NOEXEC}
        return cls(sum(flag for name, flag in known.items() if name in names))


class MountRefused(OSError):
    """The kernel refused a step of making a mount; `strerror` is its own message where it gave one."""


class FilesystemContext:
    """A filesystem being configured: fsopen(2) or fspick(2), then fsconfig(2). A context manager that closes it."""

    def __init__(self, fd: int, name: bytes) -> None:
        self._fd = fd
        self._name = name  # of what is configured, for errors

    @classmethod
    def open(cls, fstype: bytes) -> Self:
        """fsopen(2): a new filesystem of a type. Raises OSError: ENOSYS before Linux 5.2, ENODEV without the type."""
        return cls(_call(_SYS_FSOPEN, ctypes.c_char_p(fstype), ctypes.c_uint(_FSOPEN_CLOEXEC), path=fstype), fstype)

    @classmethod
    def pick(cls, path: bytes) -> Self:
        """fspick(2): the filesystem mounted at `path`."""
        fd = _call(
            _SYS_FSPICK, ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(path), ctypes.c_uint(_FSPICK_CLOEXEC), path=path
        )
        return cls(fd, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def set_flag(self, key: bytes) -> None:
        """An option without a value."""
        self._config(_FSCONFIG_SET_FLAG, key, None, 0)

    def set_string(self, key: bytes, value: bytes) -> None:
        """An option with a value: at most 255 bytes, without NUL."""
        self._config(_FSCONFIG_SET_STRING, key, value, 0)

    def set_fd(self, key: bytes, fd: int) -> None:
        """An option whose value is an open file."""
        self._config(_FSCONFIG_SET_FD, key, None, fd)

    def create(self) -> None:
        """Makes the filesystem from what was set. Raises MountRefused."""
        self._config(_FSCONFIG_CMD_CREATE, None, None, 0)

    def reconfigure(self) -> None:
        """Applies what was set to a filesystem that was picked."""
        self._config(_FSCONFIG_CMD_RECONFIGURE, None, None, 0)

    def mount(self, flags: MountFlags) -> int:
        """fsmount(2): a mount of the filesystem that is nowhere yet; gone when the descriptor returned is closed."""
        return _call(
            _SYS_FSMOUNT, ctypes.c_int(self._fd), ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(flags), path=self._name
        )

    def _config(self, command: int, key: bytes | None, value: bytes | None, aux: int) -> None:
        try:
            _call(
                _SYS_FSCONFIG,
                ctypes.c_int(self._fd),
                ctypes.c_uint(command),
                ctypes.c_char_p(key),
                ctypes.c_char_p(value),
                ctypes.c_int(aux),
                path=key or self._name,
            )
        except OSError as error:
            raise MountRefused(error.errno, self._messages() or error.strerror, key or self._name) from None

    def _messages(self) -> str:
        """What the filesystem wrote to the context: one message per read, "e overlay: no such option" for an error."""
        found = []
        with contextlib.suppress(OSError):  # ENODATA: no more
            while message := os.read(self._fd, _MESSAGE_SIZE):
                found.append(printable(message.strip()[2:]))
        return "; ".join(found)


def move_mount(mount_fd: int, target: bytes, *, beneath: bool = False) -> None:
    """move_mount(2): attaches a mount at a path; `beneath` (Linux 6.5): under the one that is there."""
    _call(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(target),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_BENEATH if beneath else 0)),
        path=target,
    )


def move_mount_to(mount_fd: int, directory_fd: int, path: bytes) -> None:
    """move_mount(2): attaches a mount at what is open as `directory_fd`, even where that is covered by another."""
    _call(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(directory_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH),
        path=path,
    )


def open_tree_clone(path: bytes, *, recursive: bool = False) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: a copy of the mount at `path`, nowhere yet; `recursive`: with all below it."""
    return _call(
        _SYS_OPEN_TREE,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(path),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)),
        path=path,
    )


def open_tree_clone_of(fd: int) -> int:
    """The same of the directory open as `fd`, with all mounts below: also of a tree that is in no namespace (6.15).

    Raises OSError: EINVAL for what was detached from its namespace, and before Linux 6.15 for such a tree.
    """
    return _call(
        _SYS_OPEN_TREE,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_OPEN_TREE_CLONE | _AT_EMPTY_PATH | _AT_RECURSIVE | os.O_CLOEXEC),
        path=b"",
    )


def mount(source: bytes, target: bytes, fstype: bytes | None, flags: int, data: bytes = b"") -> None:
    """mount(2). What the kernel has to say about a refusal is in its log only."""
    if _libc.mount(source, target, fstype, flags, data) < 0:
        _fail(target)


def leave_mount_namespace() -> None:
    """Gives this process a mount namespace of its own: what it mounts from now on ends with it, and nobody sees it."""
    unshare(CLONE_NEWNS)
    try:
        mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _make_all_private_from_a_chroot()


def _make_all_private_from_a_chroot() -> None:
    """In a chroot to a plain directory `/` is no mount: by entering the namespace anew, to its own root and back."""
    with contextlib.ExitStack() as stack:
        root, here, namespace = (
            stack.enter_context(closing(os.open(path, flags | os.O_CLOEXEC)))
            for path, flags in (("/", os.O_PATH), (".", os.O_PATH), ("/proc/self/ns/mnt", os.O_RDONLY))
        )
        setns(namespace, CLONE_NEWNS)
        try:
            mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
        finally:
            os.fchdir(root)
            os.chroot(".")
            os.fchdir(here)


def leave_mount_namespace_at(point: bytes) -> None:
    """The same, but only for what is mounted at `point` from now on: all of a chroot need not be a mount."""
    unshare(CLONE_NEWNS)
    mount(b"none", point, None, _MS_PRIVATE)


def umount2(target: bytes, flags: int = 0) -> None:
    """umount2(2); EBUSY while it is in use, unless with MNT_DETACH."""
    if _libc.umount2(target, flags) < 0:
        _fail(target)


def umount_fd(fd: int, flags: int = 0) -> None:
    """umount2(2) of exactly the mount whose root is open as `fd`, whatever is mounted above or below it."""
    umount2(b"/proc/self/fd/%d" % fd, flags)


def _call(number: int, *args: object, path: bytes) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result < 0:
        _fail(path)
    return result


def _fail(path: bytes) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)
