"""Where an image goes: a file that appears there complete, and takes the place of no file but an image."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from mkmeta.codec.erofs import MAGIC, SUPERBLOCK_OFFSET
from mkmeta.errors import BuildError, reason
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.manifest.output import atomic_output

_MAGIC: Final = MAGIC.to_bytes(4, "little")


@dataclass(frozen=True)
class ImageDestination:
    """The name of an image to be."""

    path: bytes
    swap: bool  # an image that has the name gives it up

    def check(self) -> str:
        """The type of the filesystem that it is on. Raises BuildError when no image may appear there."""
        parent, _, name = self.path.rpartition(b"/")
        where = parent or (b"/" if self.path.startswith(b"/") else b".")
        if name in (b"", b".", b".."):
            raise BuildError("is not the name of a file that can be made", path=self.path, hint="name a new file")
        try:
            fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(reason(error), path=where, hint="the directory that DEST goes into must exist") from None
        try:
            self._check_name(name, fd)
            return filesystem_type(fd)
        finally:
            os.close(fd)

    def _check_name(self, name: bytes, directory: int) -> None:
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BuildError(reason(error), path=self.path) from None
        if not stat.S_ISREG(status.st_mode):
            what = "directory" if stat.S_ISDIR(status.st_mode) else "link or device"
            raise BuildError(f"exists and is a {what}", path=self.path, hint="name a file that does not exist yet")
        if not self.swap:
            raise BuildError("exists", path=self.path, hint="replace it with --swap, or name another file")
        if not self._is_image(name, directory):
            raise BuildError(
                "is not an EROFS image, and would be lost", path=self.path, hint="name a file that does not exist yet"
            )

    def _is_image(self, name: bytes, directory: int) -> bool:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            raise BuildError(reason(error), path=self.path) from None
        try:
            return os.pread(fd, len(_MAGIC), SUPERBLOCK_OFFSET) == _MAGIC
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def output(self) -> Iterator[BinaryIO]:
        """The file, which gets its name when the block ends well. Raises BuildError, MkmetaError."""
        self.check()
        with atomic_output(self.path, follow=False) as stream:
            yield stream
            self.check()  # it may have appeared meanwhile
