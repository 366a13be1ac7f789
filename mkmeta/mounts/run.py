"""The directory for what lives no longer than this host runs: inner mounts, the lock on changing them, and notes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from blake3 import blake3

from mkmeta.errors import MountError, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.mount import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from mkmeta.linux.mountinfo import Mount, mounts, visible_at
from mkmeta.linux.replacing import replacing
from mkmeta.mounts.image import INNER_PLACE, is_placed_image
from mkmeta.mounts.live import is_inner, layers_of
from mkmeta.mounts.users import mount_tables

_DEFAULT: Final = b"/run/mkmeta"
_NAME_BYTES: Final = 8
_INNER: Final = re.compile(rb"[0-9a-f]{%d}" % (2 * _NAME_BYTES))
_PLACED_SIZE_MAX: Final = 65536  # bytes; one path, each byte at most six in JSON
_MARK_SIZE_MAX: Final = 256  # bytes; a digest


class Placed(NamedTuple):
    """What was true when a layer was mounted, and its mount does not show."""

    point: bytes  # where; a bind mount of it is elsewhere
    device: (
        int  # st_dev of the root of the volume below it: the kernel holds that filesystem, so no other gets the number
    )
    inode: int  # st_ino of the same
    mount: int = 0  # its ID, which it keeps wherever it is moved to; 0: nobody knows, or it was detached since

    def is_here(self, mount: Mount) -> bool:
        """Whether a mount of that overlay is the one that was made then, and not one made from it by bind.

        It may be elsewhere by now: moved, or a directory above it renamed. In copies of the mount namespace mounts have
        other IDs, and the same places.
        """
        return mount.point == self.point or mount.id == self.mount


@dataclass(frozen=True)
class RunDirectory:
    """RUN of formats/mounts.md."""

    path: bytes  # real and absolute

    @classmethod
    def open(cls, path: bytes | None, runtime_dir: bytes | None) -> Self:
        """Makes it, as given or by default; `runtime_dir` is the user's own, for those who cannot write to /run."""
        path = cls.at(path, runtime_dir).path
        try:
            os.makedirs(path, 0o755, exist_ok=True)
            path = os.path.realpath(path)
            os.makedirs(path + b"/inner", 0o700, exist_ok=True)
        except OSError as error:
            raise MountError(
                f"cannot be made: {reason(error)}", path=path, hint="name a directory you may write to with --run-dir"
            ) from None
        if not os.access(path + b"/inner", os.W_OK | os.X_OK):
            hint = "name a directory of your own with --run-dir, or set $XDG_RUNTIME_DIR"
            raise MountError("is not for you to write to", path=path, hint=hint)
        return cls(path)

    @classmethod
    def at(cls, path: bytes | None, runtime_dir: bytes | None) -> Self:
        """The same for those who only look: it need not exist."""
        if path is None:
            ours = os.access(_DEFAULT, os.W_OK) or (not os.path.exists(_DEFAULT) and os.access(b"/run", os.W_OK))
            path = _DEFAULT if ours or runtime_dir is None else runtime_dir + b"/mkmeta"
        return cls(os.path.abspath(path))

    @property
    def lock(self) -> bytes:
        """The file whose lock is held while mounts are changed."""
        return self.path + b"/lock"

    # --- inner mounts ---

    def new_inner(self) -> bytes:
        """A new directory to mount at."""
        directory = b"%b/inner/%b" % (self.path, secrets.token_hex(_NAME_BYTES).encode())
        os.mkdir(directory, 0o700)
        return directory

    @contextlib.contextmanager
    def scratch(self) -> Iterator[bytes]:
        """A directory to mount at for a moment; what is mounted there is the caller's to unmount."""
        directory = self.new_inner()
        try:
            yield directory
        finally:
            os.rmdir(directory)

    def remove_inner(self, directory: bytes) -> None:
        """Detaches what is mounted at an inner directory and removes it. Raises OSError."""
        for _ in visible_at(directory, mounts()):
            umount2(directory, MNT_DETACH | UMOUNT_NOFOLLOW)
        os.rmdir(directory)

    def sweep(self) -> list[bytes]:
        """Removes inner mounts and directories that no overlay of any mount namespace has as a lower; in doubt, none.

        Under the lock: otherwise one that is about to be used would go. What else lies there is left alone. Returns
        those that cannot be removed.
        """
        left = {b"%b/inner/%b" % (self.path, name) for name in self._names(b"inner") if _INNER.fullmatch(name)}
        records = {name for name in self._names(b"mounts") if _device(name) is not None}

        def keep_used(table: list[Mount]) -> None:
            for mount in table:
                # one that covers its own lower is the inner one over an image, which needs nobody else's place
                left.difference_update(lower for lower in layers_of(mount).lowers if lower != mount.point)
                if mount.fstype == b"overlay":  # the number of one that is gone may be another filesystem's now
                    records.discard(_name(mount.device))

        keep_used(mounts())
        if not left and not records:
            return []  # as mostly: no need to look at other namespaces
        host = mount_tables()
        if host.unseen:
            return []
        for table in host.tables:
            keep_used(table.mounts)
        for name in records:
            with contextlib.suppress(OSError):  # it is of no device, so it says nothing
                os.unlink(self.path + b"/mounts/" + name)
        stubborn = []
        for directory in left:
            try:
                self.remove_inner(directory)
            except OSError:
                stubborn.append(directory)
        return stubborn

    def _names(self, directory: bytes) -> list[bytes]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.path + b"/" + directory)
        return []

    # --- what was true when a layer was mounted ---

    def remember(self, device: int, placed: Placed) -> None:
        """Writes down what is true of the layer whose overlay has this st_dev. Raises OSError."""
        volume = [placed.device, placed.inode]
        fields = {"point": os.fsdecode(placed.point), "volume": volume, "mount": placed.mount}
        self._write(b"mounts", _name(device), json.dumps(fields).encode())

    def left(self, device: int) -> None:
        """Writes down that the mount is detached: its ID is the next one's, and what is left of it are copies."""
        placed = self.placed(device)
        if placed is not None and placed.mount:
            with contextlib.suppress(OSError):  # no room: a copy that gets this very number is taken for the layer
                self.remember(device, placed._replace(mount=0))

    def forget(self, device: int) -> None:
        """Takes it back."""
        with contextlib.suppress(OSError):
            os.unlink(self.path + b"/mounts/" + _name(device))

    def placed(self, device: int) -> Placed | None:
        """What was written down; None when nothing was, or it cannot be read: then nothing is known."""
        try:
            with open(self.path + b"/mounts/" + _name(device), "rb") as file:
                fields = json.loads(file.read(_PLACED_SIZE_MAX))
            point, (volume, inode) = fields["point"], fields["volume"]
            mount = fields.get("mount", 0)
            if not isinstance(point, str) or not all(type(number) is int for number in (volume, inode, mount)):
                return None
            return Placed(os.fsencode(point), volume, inode, mount)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remembers(self, point: bytes) -> bool:
        """Whether a layer was mounted at a real path, as far as is still written down: a sweep forgets one that is gone
        from everywhere, and keeps one of which another namespace has a copy.
        """
        devices = map(_device, self._names(b"mounts"))
        return any(
            (placed := self.placed(device)) is not None and placed.point == point
            for device in devices
            if device is not None
        )

    # --- what was reported ---

    def remember_report(self, spool: bytes, mark: str) -> None:
        """Writes down what `write_report` returned, for the next report to a spool. Raises OSError."""
        self._write(b"reports", _spool_name(spool), mark.encode())

    def last_report(self, spool: bytes) -> str | None:
        """What was written down; None when nothing was, or it cannot be read."""
        try:
            with open(self.path + b"/reports/" + _spool_name(spool), "rb") as file:
                return file.read(_MARK_SIZE_MAX).decode("ascii", "replace")
        except OSError:
            return None

    def _write(self, directory: bytes, name: bytes, data: bytes) -> None:
        path = self.path + b"/" + directory
        os.makedirs(self.path, 0o755, exist_ok=True)
        os.makedirs(path, 0o755, exist_ok=True)
        with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(b"." + name, dir_fd=fd)
            with replacing(name, b"." + name, dir_fd=fd) as stream:
                stream.write(data)


def run_directories(table: Iterable[Mount]) -> list[RunDirectory]:
    """Those that the layers and inner mounts of a mount table belong to, as their places say."""
    found = {}
    for mount in table:
        ours = is_inner(mount) or is_placed_image(mount)
        for place in (mount.point, *layers_of(mount).lowers) if ours else layers_of(mount).lowers:
            match = INNER_PLACE.fullmatch(place)
            if match and (ours or mount.source.startswith(b"mkmeta:")):
                found[match["run"]] = RunDirectory(match["run"])
    return list(found.values())


def _name(device: int) -> bytes:
    return b"%d:%d" % (os.major(device), os.minor(device))


def _spool_name(spool: bytes) -> bytes:
    return blake3(spool).hexdigest(length=_NAME_BYTES).encode()


def _device(name: bytes) -> int | None:
    match = re.fullmatch(rb"([0-9]{1,10}):([0-9]{1,10})", name)
    return os.makedev(int(match[1]), int(match[2])) if match else None
