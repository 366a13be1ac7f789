"""System calls Python has no function for. Each raises OSError with the errno and the path.

Numbers from include/uapi/asm-generic/unistd.h, which x86_64 shares for those newer than 2019; renameat2 and syncfs go
through the C library, which names them on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from typing import Any, Final

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE: Final = 1  # linux/fs.h
RENAME_EXCHANGE: Final = 2
RESOLVE_NO_XDEV: Final = 0x01  # linux/openat2.h
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
CLONE_FS: Final = 0x200  # linux/sched.h
CLONE_NEWNS: Final = 0x20000

_SYS_OPENAT2 = 437
_SYS_PIDFD_GETFD = 438
_SYS_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}
_KCMP_FILES = 2  # linux/kcmp.h


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE_OF_OPEN_HOW: Final = ctypes.sizeof(_OpenHow)
_libc.syscall.restype = ctypes.c_long
_OPENAT2 = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
    use_errno=True,
)
_openat2 = _OPENAT2(("syscall", _libc))  # declared once: a scan opens each directory with it
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


def openat2(path: bytes, flags: int, *, dir_fd: int, resolve: int) -> int:
    """openat2(2), Linux 5.6: opens `path` below `dir_fd` as `resolve` allows. The descriptor is close-on-exec."""
    result: int = _openat2(_SYS_OPENAT2, dir_fd, path, _open_how(flags | os.O_CLOEXEC, resolve), _SIZE_OF_OPEN_HOW)
    if result < 0:
        _check(result, path)
    return result


@lru_cache(maxsize=8)
def _open_how(flags: int, resolve: int) -> Any:
    """A pointer to what the kernel only reads."""
    return ctypes.pointer(_OpenHow(flags, 0, resolve))


def renameat2(source: bytes, target: bytes, flags: int, *, source_dir_fd: int, target_dir_fd: int) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _check(_libc.renameat2(source_dir_fd, source, target_dir_fd, target, flags), target)


def syncfs(fd: int, path: bytes) -> None:
    """syncfs(2): flushes the filesystem `fd` is on; `path` names it in errors, among them late write errors."""
    _check(_libc.syncfs(fd), path)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc.unshare(flags), None)


def setns(fd: int, kind: int) -> None:
    """setns(2): puts this thread into the namespace open as `fd`; one of mounts brings its root along."""
    _check(_libc.setns(fd, kind), None)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """pidfd_getfd(2), Linux 5.6: a descriptor of another process, as one of ours; nobody is asked about the file."""
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_GETFD), ctypes.c_int(pidfd), ctypes.c_int(number), ctypes.c_uint(0)
    )
    _check(result, None)
    return result


def shares_files(process: int, task: int) -> bool:
    """kcmp(2): whether two tasks have the same table of descriptors; False too where the kernel does not tell."""
    number = _SYS_KCMP.get(os.uname().machine)
    return number is not None and bool(
        _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_int(process),
            ctypes.c_int(task),
            ctypes.c_int(_KCMP_FILES),
            ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        )
        == 0
    )


def open_beneath(path: bytes, flags: int, *, dir_fd: int) -> int:
    """Opens `path` (empty: the directory itself) below `dir_fd`, following no link and crossing no mount point.

    Raises OSError: ELOOP for a link on the way, EXDEV for a mount point. Kernels before 5.6 are walked name by name,
    where a mount point is not noticed here but by the device number of what is found.
    """
    try:
        return openat2(
            path or b".",
            flags,
            dir_fd=dir_fd,
            resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    *parents, last = path.split(b"/")
    fd = os.dup(dir_fd)
    try:
        for name in parents:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
        return os.open(last or b".", flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _check(result: int, path: bytes | None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
