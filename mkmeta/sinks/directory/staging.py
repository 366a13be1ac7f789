"""The directory a layer is written to before it is DEST: made beside it, locked, published by one rename.

Names and crash behaviour are those of formats/upper.md section 5.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mkmeta.digest import DIGEST_SIZE, ObjectId
from mkmeta.errors import BuildError, printable, reason
from mkmeta.linux.names import list_names
from mkmeta.linux.process import ending_signals_held
from mkmeta.linux.remove_tree import remove_tree
from mkmeta.linux.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, open_beneath, renameat2, syncfs
from mkmeta.overlay_xattrs import NAMESPACES, OverlayXattrs
from mkmeta.sinks.directory.inspection import LABEL_XATTRS

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_RANDOM_BYTES = 4  # eight hexadecimal digits in the name
_ID_DIGITS = 12  # of the manifest ID, in the name of an old layer
_ATTEMPTS: Final = 10  # to make a directory that others may take for a leftover, or take away
_OLD_NAMES_MAX: Final = 1000  # generations of one ID kept beside each other, before something must be wrong


def layer_id(fd: int) -> ObjectId | None:
    """The ID of the manifest that the layer open as `fd` was built from; None when mkmeta did not build it."""
    for names in NAMESPACES:
        with contextlib.suppress(OSError):
            value = os.getxattr(fd, names.manifest_id)
            if len(value) == DIGEST_SIZE:
                return ObjectId(value)
    return None


def make_locked(prefix: bytes, *, dir_fd: int) -> tuple[bytes, int]:
    """Makes a directory in `dir_fd`, mode 0700, and locks it against `remove_if_free`. Raises BuildError and OSError.

    Returns its name, `prefix` and eight hexadecimal digits, and a descriptor; the lock is free when that and all it was
    passed on to are closed. What it took over from where it is (group, ACLs, btrfs's compression) is removed.

    Between being made and being opened, whoever may write to `dir_fd` can put something else in its place: so what was
    opened must be ours, and empty. From then on nobody but us can enter it, and its name is believed no more.
    """
    for _ in range(_ATTEMPTS):
        name = prefix + os.urandom(_RANDOM_BYTES).hex().encode()
        os.mkdir(name, 0o700, dir_fd=dir_fd)
        try:
            fd = open_beneath(name, _OPEN_DIRECTORY, dir_fd=dir_fd)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it was taken for a leftover before it was locked, or taken away
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EXDEV):
                raise
            continue
        try:
            if not _is_new(fd) or not _lock(fd, name, dir_fd):
                os.close(fd)
                continue
            # Set-group-id and group come from the parent. Without the first and with ours as the second, what is made
            # inside belongs to us and our group, whatever the mount's grpid says.
            os.fchown(fd, -1, os.getegid())
            os.fchmod(fd, 0o700)
            for name_there in _inherited(fd):  # which would pass on to everything inside
                with contextlib.suppress(OSError):
                    os.removexattr(fd, name_there)
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(name, dir_fd=dir_fd, fd=fd)
            os.close(fd)
            raise
        return name, fd
    raise BuildError(
        "somebody else takes away what is made there",
        path=os.readlink(b"/proc/self/fd/%d" % dir_fd),
        hint="put the layer into a directory that only you can write to",
    )


def _is_others(fd: int) -> bool:
    """Whether others may rename and remove what we make in a directory: theirs, or open to them and not sticky."""
    status = os.fstat(fd)
    writable = status.st_mode & 0o002 or (status.st_mode & 0o020 and status.st_gid != os.getegid())
    return status.st_uid not in (0, os.geteuid()) or bool(writable and not status.st_mode & stat.S_ISVTX)


def _is_new(fd: int) -> bool:
    """Whether a directory is ours, closed to others and empty."""
    status = os.fstat(fd)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o077 and not os.listdir(fd)


def check_what_passes_on(fd: int, path: bytes) -> None:
    """Raises BuildError when what is made in the directory `fd` is not just what was asked for. Raises OSError.

    Makes a file and a directory, and removes them.
    """
    file, directory = b"mkmeta-probe-f", b"mkmeta-probe-d"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd))
    try:
        os.mkdir(directory, 0o700, dir_fd=fd)
        try:
            for name in (file, directory):
                inside = open_beneath(name, os.O_RDONLY, dir_fd=fd)
                try:
                    found = _inherited(inside)
                finally:
                    os.close(inside)
                if found:
                    raise BuildError(
                        f"what is made there gets {printable(found[0])} from its directory",
                        path=path,
                        hint="put the layer into a directory that passes on no attributes",
                    )
            with contextlib.suppress(FileNotFoundError):
                os.stat(file.upper(), dir_fd=fd, follow_symlinks=False)
                raise BuildError(
                    "names there are the same in upper and lower case: no layer can be exact",
                    path=path,
                    hint="put the layer into a directory without case folding (chattr -F)",
                )
        finally:
            os.rmdir(directory, dir_fd=fd)
    finally:
        os.unlink(file, dir_fd=fd)


def _inherited(fd: int) -> list[bytes]:
    """The xattrs of a new file or directory, but for labels, which it has wherever it is made."""
    try:
        return [name for name in map(os.fsencode, os.listxattr(fd)) if name not in LABEL_XATTRS]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def remove_if_free(
    name: bytes, fd: int, *, dir_fd: int, lock: int | None = None, removed: Callable[[], None] = lambda: None
) -> None:
    """Removes the directory `name`, open as `fd`, unless somebody living has locked it, or `lock`. Raises OSError."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd if lock is None else lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(name, dir_fd=dir_fd, fd=fd, removed=removed)


def _lock(fd: int, name: bytes, dir_fd: int) -> bool:
    """Takes the lock. False when somebody else has it, or has removed the directory, as a leftover."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    return os.path.samestat(there, os.fstat(fd))


@dataclass(frozen=True)
class Destination:
    """Where a layer goes: a name in an open directory."""

    path: bytes  # as the user gave it
    name: bytes
    parent_fd: int

    @classmethod
    def open(cls, path: bytes) -> Self:
        """Opens the directory DEST is in. Raises BuildError."""
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise BuildError("is not the name of a directory that can be made", path=path, hint="name a new directory")
        where = parent or (b"/" if path.startswith(b"/") else b".")
        try:
            return cls(path, name, os.open(where, _OPEN_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise BuildError(reason(error), path=where, hint="the directory that DEST goes into must exist") from None

    def close(self) -> None:
        """Closes the parent directory."""
        os.close(self.parent_fd)

    def check(self, *, swap: bool) -> None:
        """Raises BuildError unless DEST may be replaced as asked."""
        try:
            fd = open_beneath(self.name, _OPEN_DIRECTORY, dir_fd=self.parent_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            what = {
                errno.ENOTDIR: "exists and is not a directory",
                errno.ELOOP: "is a symbolic link",
                errno.EXDEV: "is a mount point",
            }.get(error.errno or 0, reason(error))
            raise BuildError(what, path=self.path, hint="name a directory that does not exist yet") from None
        try:
            if not swap:
                raise BuildError("exists", path=self.path, hint="replace it with --swap, or name another directory")
            if layer_id(fd) is None and os.listdir(fd):
                store = os.path.lexists(b"/proc/self/fd/%d/store.json" % fd)
                raise BuildError(
                    "is a store, which keeps several layers" if store else "is not a layer that mkmeta built",
                    path=self.path,
                    hint="add to it with --store" if store else "name another directory, or move this one away",
                )
            self._check_in_no_store()
        finally:
            os.close(fd)

    def _check_in_no_store(self) -> None:
        """Raises BuildError when DEST is a part of a store: what that has never changes."""
        here = b"/proc/self/fd/%d" % self.parent_fd
        above = (here, os.path.join(here, b".."))
        if any(
            os.path.lexists(os.path.join(one, name)) for one in above for name in (b"generation.json", b"store.json")
        ):
            raise BuildError(
                "is part of a store, in which nothing is replaced",
                path=self.path,
                hint="build --store STORE adds another generation",
            )

    def remove_leftovers(self) -> list[bytes]:
        """Removes what killed builds of this DEST left beside it, and returns the names of what cannot be removed.

        Nothing where others can give any directory such a name.
        """
        pattern = re.compile(
            b"(\\." + re.escape(self.name) + b"\\.mkmeta-[0-9a-f]{8})|" + re.escape(self.name) + b"\\.old-.+", re.DOTALL
        )
        stubborn = []
        for name in list_names(self.parent_fd):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            try:
                self._remove_if_left(name, pending_only=match[1] is None)
            except OSError:
                stubborn.append(name)
        return stubborn

    def _remove_if_left(self, name: bytes, *, pending_only: bool) -> None:
        try:
            fd = open_beneath(name, _OPEN_DIRECTORY, dir_fd=self.parent_fd)
        except OSError:
            if pending_only:
                return  # somebody's file, or an old layer that only root may look at
            raise
        try:
            if pending_only and not _is_pending(fd):
                return
            if os.fstat(fd).st_uid != os.geteuid() or _is_others(self.parent_fd):
                raise PermissionError(errno.EPERM, "others may have put it there", name)
            remove_if_free(name, fd, dir_fd=self.parent_fd)
        finally:
            os.close(fd)


class Staging:
    """The staging directory of one build. A context manager: left without `publish`, it is removed.

    The lock on it belongs to the open file, which worker processes share: it is free when the last of them has ended.
    """

    def __init__(self, destination: Destination, names: OverlayXattrs) -> None:
        """Makes it. Raises OSError."""
        self._destination = destination
        self._pending_xattr = names.pending  # of a tree that is not DEST yet, but has the name the old one will have
        self._name, self.fd = make_locked(b".%b.mkmeta-" % destination.name, dir_fd=destination.parent_fd)
        self._left = self.fd  # what has our name, and goes when this ends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        try:
            if self._name:
                remove_tree(self._name, dir_fd=self._destination.parent_fd, fd=self._left)
        except OSError as problem:
            if kind is None:  # or there is something more important to say; the next build removes it
                raise BuildError(
                    f"the new layer is in place, but the old one cannot be removed: {reason(problem)}", path=self._name
                ) from None
        finally:
            if self._left != self.fd:
                os.close(self._left)
            os.close(self.fd)

    def publish(self, *, swap: bool, discard: bool) -> bytes | None:
        """Flushes the filesystem and gives the tree its name. Returns the name the old tree has now, if it was kept.

        Raises BuildError when DEST appeared meanwhile or is not what was built, and OSError.
        """
        destination = self._destination
        destination.check(swap=swap)
        syncfs(self.fd, destination.path)
        with ending_signals_held():  # what is removed when this ends must be known at any moment
            exchanged, old = self._exchange(discard) if swap else (False, None)
            if not exchanged:
                try:
                    self._rename(destination.name, RENAME_NOREPLACE)
                except FileExistsError:
                    raise BuildError("appeared while the layer was built", path=destination.path) from None
                self._name = b""
        os.fsync(destination.parent_fd)
        if not os.path.samestat(os.fstat(self.fd), _stat(destination.name, destination.parent_fd)):
            raise BuildError(
                "somebody else put something in the place of the layer",
                path=destination.path,
                hint="build into a directory that only you can write to",
            )
        return old

    def _exchange(self, discard: bool) -> tuple[bool, bytes | None]:
        """Exchanges the tree with DEST, if that exists. Returns whether it did, and the name of an old tree it kept."""
        destination = self._destination
        try:
            old_fd = open_beneath(destination.name, _OPEN_DIRECTORY, dir_fd=destination.parent_fd)
        except FileNotFoundError:
            return False, None
        try:
            if discard:
                with contextlib.suppress(OSError):  # or another build would see a leftover, and help remove it
                    fcntl.flock(old_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._rename(destination.name, RENAME_EXCHANGE)
                self._left = os.dup(old_fd)
                return True, None  # our name is now the old tree's, which goes when this ends
            # The tree first takes the name the old one will have. So both get their final names in one call, and
            # whenever the build is killed, the only tree that can be taken for a leftover is the one that was not DEST.
            _clear_pending(old_fd)
            os.setxattr(self.fd, self._pending_xattr, b"")
            os.fsync(self.fd)  # or a crash could leave the tree under the old one's name, without the mark
            self._take_old_name(layer_id(old_fd))
            self._rename(destination.name, RENAME_EXCHANGE)
            old, self._name = self._name, b""
            os.fsync(destination.parent_fd)  # the mark goes when the names are safe, not before
            _clear_pending(self.fd)
            return True, old
        finally:
            os.close(old_fd)

    def _take_old_name(self, old_id: ObjectId | None) -> None:
        base = self._destination.name + b".old-" + (old_id.hex()[:_ID_DIGITS] if old_id else "unknown").encode()
        for number in range(_OLD_NAMES_MAX):
            name = base + b"-%d" % number if number else base
            with contextlib.suppress(FileExistsError):
                self._rename(name, RENAME_NOREPLACE)
                self._name = name
                return
        raise BuildError("exists, and so do all names beside it", path=base, hint="remove layers no longer needed")

    def _rename(self, name: bytes, flags: int) -> None:
        parent = self._destination.parent_fd
        try:
            renameat2(self._name, name, flags, source_dir_fd=parent, target_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise BuildError(
                f"this filesystem cannot rename without replacing or exchange atomically ({reason(error)})",
                path=self._destination.path,
                hint="put the layer on a local filesystem: ext4, xfs, btrfs or tmpfs",
            ) from None


def _stat(name: bytes, dir_fd: int) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _is_pending(fd: int) -> bool:
    for names in NAMESPACES:
        with contextlib.suppress(OSError):
            os.getxattr(fd, names.pending)
            return True
    return False


def _clear_pending(fd: int) -> None:
    for names in NAMESPACES:
        with contextlib.suppress(OSError):
            os.removexattr(fd, names.pending)
