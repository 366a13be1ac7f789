"""The directory for what lives no longer than the mounts of this host: inner mounts, and the lock on changing them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from mkmeta.errors import MountError, reason
from mkmeta.linux.mount import MNT_DETACH, umount2
from mkmeta.linux.mountinfo import mounts, namespace_mounts, stack_at
from mkmeta.mounts.live import layers_of

_DEFAULT: Final = b"/run/mkmeta"
_NAME_BYTES = 8


@dataclass(frozen=True)
class RunDirectory:
    """RUN of formats/mounts.md."""

    path: bytes  # real and absolute

    @classmethod
    def open(cls, path: bytes | None, runtime_dir: bytes | None) -> Self:
        """Makes it, as given or by default; `runtime_dir` is the user's own, for those who cannot write to /run."""
        if path is None:
            ours = os.access(_DEFAULT, os.W_OK) or (not os.path.exists(_DEFAULT) and os.access(b"/run", os.W_OK))
            path = _DEFAULT if ours or runtime_dir is None else runtime_dir + b"/mkmeta"
        try:
            os.makedirs(path, 0o755, exist_ok=True)
            path = os.path.realpath(path)
            os.makedirs(path + b"/inner", 0o700, exist_ok=True)
        except OSError as error:
            raise MountError(
                f"cannot be made: {reason(error)}", path=path, hint="name a directory you may write to with --run-dir"
            ) from None
        return cls(path)

    @property
    def lock(self) -> bytes:
        """The file whose lock is held while mounts are changed."""
        return self.path + b"/lock"

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
        for _ in stack_at(directory, mounts()):
            umount2(directory, MNT_DETACH)
        os.rmdir(directory)

    def sweep(self) -> None:
        """Removes inner mounts and directories that no overlay of any mount namespace has as a lower.

        Under the lock: otherwise one that is about to be used would go.
        """
        left = {b"%b/inner/%b" % (self.path, name) for name in os.listdir(self.path + b"/inner")}
        if not left:
            return
        for _process, found in namespace_mounts():
            for mount in found:
                left.difference_update(layers_of(mount).lowers)
        for directory in left:
            self.remove_inner(directory)
