"""A directory into which hosts put profiles. Whoever can write there is a stranger: all is bounded and checked.

A host copies a profile under a name that begins with a dot, and renames it to one that ends in `.profile`. Only such
are taken, and removed once they are counted or found to be none. Anything else stays, and is not looked at; nor are
directories, which nobody could remove.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container
from typing import BinaryIO, Final

from mkmeta.demand.history import KEPT_MAX, TAKEN_MAX, Taken
from mkmeta.errors import MkmetaError, reason
from mkmeta.linux.descriptors import closing
from mkmeta.linux.names import list_names

SIZE_MAX: Final = 256 << 20  # bytes of one profile
_SUFFIX: Final = b".profile"


class Spool:
    """An open spool directory; a context manager."""

    def __init__(self, path: bytes) -> None:
        """Raises MkmetaError when it is none."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise MkmetaError(
                reason(error), path=path, hint="name the directory that hosts put profiles into"
            ) from None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def profiles(self, counted: Container[Taken] = ()) -> list[Taken]:
        """What of `counted` is still there, and then what is new: the oldest, as many as one run takes.

        No more than KEPT_MAX in all: what is counted and cannot be removed must be remembered. Raises OSError.
        """
        found: list[Taken] = []
        known: list[Taken] = []
        for name in list_names(self._fd):
            if name.endswith(_SUFFIX) and not name.startswith(b"."):
                try:
                    status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    continue
                profile = (name, status.st_ino, status.st_mtime_ns)
                (known if profile in counted else found).append(profile)
        found.sort(key=lambda one: (one[2], one[0]))
        return (sorted(known) + found[:TAKEN_MAX])[:KEPT_MAX]

    def read(self, profile: Taken, use: Callable[[BinaryIO], None]) -> None:
        """Has a profile read. Raises MkmetaError for what is no file of a size that can be one."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            with closing(os.open(profile[0], flags, dir_fd=self._fd)) as fd:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_MAX:
                    raise MkmetaError(f"is no file of at most {SIZE_MAX >> 20} MiB", path=profile[0])
                with open(fd, "rb", buffering=1 << 20, closefd=False) as stream:
                    use(stream)
        except OSError as error:
            raise MkmetaError(reason(error), path=profile[0]) from None

    def remove(self, profile: Taken) -> bool:
        """Removes one that was taken, unless another has its name by now. Whether nothing of it is left."""
        try:
            status = os.stat(profile[0], dir_fd=self._fd, follow_symlinks=False)
            if (status.st_ino, status.st_mtime_ns) == profile[1:] and not stat.S_ISDIR(status.st_mode):
                os.unlink(profile[0], dir_fd=self._fd)
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True
