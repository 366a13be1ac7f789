"""From an errno to what an administrator needs: the cause in words, and what to do about it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import Enum, auto

from mkmeta.errors import BuildError, printable, reason
from mkmeta.linux.filesystem import filesystem_type


class Attempt(Enum):
    """What was being done to a node when the kernel said no."""

    CREATE = auto()
    DEVICE = auto()
    SIZE = auto()
    DATA = auto()
    OWNER = auto()
    XATTR = auto()
    MODE = auto()
    TIME = auto()
    LINK = auto()


_DOING = {
    Attempt.CREATE: "cannot be created",
    Attempt.DEVICE: "the device node cannot be made",
    Attempt.SIZE: "its size cannot be set",
    Attempt.DATA: "its data cannot be written",
    Attempt.OWNER: "its owner cannot be set",
    Attempt.XATTR: "an xattr cannot be set",
    Attempt.MODE: "its mode cannot be set",
    Attempt.TIME: "its mtime cannot be set",
    Attempt.LINK: "cannot be linked",
}

_NO_ROOM = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)
_DENIED = (errno.EPERM, errno.EACCES)
_USER_NAMESPACE = "in a user namespace (unshare --map-auto --map-root-user) with --userxattr"


@dataclass(frozen=True)
class Diagnosis:
    """Explains failures on the filesystem that `fd`, an open directory, is on."""

    fd: int

    def explain(self, error: OSError, path: bytes, step: Attempt, detail: str = "") -> BuildError:
        """The error for a node at `path` in the layer; `detail` says more of what was to be set."""
        doing = f"{detail} cannot be set" if detail else _DOING[step]
        return BuildError(f"{doing}: {reason(error)}", path=path or b"/", hint=self._hint(error, step))

    def explain_xattr(self, error: OSError, path: bytes, name: bytes, size: int) -> BuildError:
        """The error for an xattr `name` with a value of `size` bytes that could not be set."""
        what = f"xattr {printable(name)} of {size} bytes"
        if error.errno in _NO_ROOM and not self.is_full():
            return BuildError(f"{what} does not fit this filesystem", path=path or b"/", hint=self._roomier())
        if error.errno == errno.EOPNOTSUPP:
            return self.unsupported(name, path)
        hint = None
        if error.errno in _DENIED:
            if name.startswith(b"trusted."):
                hint = f"trusted.* takes CAP_SYS_ADMIN in the initial namespace: run as root, or {_USER_NAMESPACE}"
            elif name == b"security.capability":
                hint = "file capabilities take CAP_SETFCAP: run as root"
            elif name.startswith(b"security."):
                hint = "security.* takes CAP_SYS_ADMIN: run as root"
            else:
                hint = "user.* goes on files and directories only, and takes write permission"
            return BuildError(f"{what} cannot be set: {reason(error)}", path=path or b"/", hint=hint)
        return self.explain(error, path, Attempt.XATTR, what)

    def unsupported(self, name: bytes, path: bytes) -> BuildError:
        """The error for a filesystem that cannot hold xattrs of this name."""
        space = printable(name.split(b".")[0])
        return BuildError(
            f"{filesystem_type(self.fd)} cannot hold {space}.* xattrs ({printable(name)})",
            path=path or b"/",
            hint="put the layer on a local filesystem that can: ext4, xfs, btrfs, or tmpfs (user.*: Linux 6.6)",
        )

    def is_full(self) -> bool:
        """Whether blocks or inodes have run out."""
        counts = os.fstatvfs(self.fd)
        return counts.f_bavail == 0 or (counts.f_files != 0 and counts.f_favail == 0)

    def _hint(self, error: OSError, step: Attempt) -> str | None:
        match error.errno:
            case errno.ENOSPC:
                counts = os.fstatvfs(self.fd)
                if counts.f_files and not counts.f_favail:
                    return "no inodes are free: make room, or make a filesystem with more of them (mkfs.ext4 -N)"
                free = counts.f_bavail * counts.f_frsize >> 10
                return (
                    f"{free} KiB are free: make room, then build again; mkmeta build --dry-run says how much it takes"
                )
            case errno.EDQUOT:
                return "the quota is used up: make room or raise it, then build again"
            case errno.EFBIG:
                return "files of this size are beyond this filesystem: put the layer on xfs, btrfs or tmpfs"
            case errno.EROFS:
                return "the filesystem is mounted read-only"
            case errno.EMLINK:
                return "more hard links than this filesystem allows: put the layer on xfs or tmpfs"
            case errno.EINVAL if step is Attempt.OWNER:
                return "this user namespace does not map the id: map more (unshare --map-auto), or run as root"
            case errno.EPERM if step is Attempt.OWNER:
                return f"owners take CAP_CHOWN: run as root, or {_USER_NAMESPACE}"
            case errno.EPERM if step is Attempt.DEVICE:
                return "device nodes take CAP_MKNOD in the initial namespace: run as root, or scan without them"
            case errno.EACCES | errno.EPERM:
                return f"it takes write permission, or CAP_DAC_OVERRIDE: run as root, or {_USER_NAMESPACE}"
        return None

    def _roomier(self) -> str:
        match filesystem_type(self.fd):
            case "ext2" | "ext3" | "ext4":
                return (
                    "put the layer on an ext4 made with larger inodes (mkfs.ext4 -I 512) or with -O ea_inode, or on xfs"
                )
            case _:
                return "put the layer on xfs or tmpfs, which hold xattrs of up to 65536 bytes"
