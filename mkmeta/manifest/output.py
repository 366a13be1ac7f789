"""Outputs that appear complete or not at all: written beside the target, flushed, renamed over it.

The streams can be read back, also where the output is a pipe: then they are temporary files, copied to it at the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import IO, BinaryIO, Final

from mkmeta.errors import MkmetaError, UsageError, reason
from mkmeta.linux.names import list_names
from mkmeta.linux.replacing import replacing
from mkmeta.linux.temporary import TemporaryFile

_MARK: Final = b".mkmeta-"  # in the name of every unfinished output
_KEPT_NAME = 200  # bytes of the target's name in that of the unfinished one: leaves room below NAME_MAX
_BUFFER_SIZE = 1 << 20  # bytes


@contextlib.contextmanager
def atomic_output(path: bytes, *, follow: bool = True, crowded: bool = False) -> Iterator[BinaryIO]:
    """A binary stream whose content is at `path` once the block ends well, and nowhere if it does not.

    What a killed run left behind is removed first; a running one is known by its lock. A symbolic link at `path` is
    followed, and a pipe or device written to directly: they are the user's. Where others can write too, without
    `follow`, they are replaced. `crowded`: very many others have files in that directory, and it is not listed; then of
    two writers at once one fails. Raises MkmetaError when the output cannot be written.
    """
    directory, name = os.path.split(path)
    given = path
    path = os.path.realpath(path) if follow else os.path.join(os.path.realpath(directory), name)
    mode = stat.S_IFREG  # to be made, if that is possible
    if follow:
        with contextlib.suppress(OSError):
            mode = os.stat(given).st_mode
    if stat.S_ISDIR(mode):
        raise UsageError("is a directory", path=path, hint="name a file for the manifest")
    try:
        if stat.S_ISREG(mode):
            with _beside(path, crowded=crowded) as stream:
                yield stream
        else:
            # By its own name: /dev/fd/63, a pipe, has no other
            with open(given, "wb", buffering=0) as sink, spooled_output(sink) as stream:
                yield stream
    except OSError as error:
        where = b"" if error.filename is None else os.fsencode(error.filename)
        if where and not where.startswith(os.path.dirname(path)) and _MARK not in where:
            raise  # the user of the stream met it elsewhere
        hint = "make its directory first" if error.errno == errno.ENOENT else None
        raise MkmetaError(f"cannot be written: {reason(error)}", path=path, hint=hint) from None


@contextlib.contextmanager
def spooled_output(sink: IO[bytes]) -> Iterator[BinaryIO]:
    """A temporary file whose content goes to `sink` once the block ends well. Raises MkmetaError, OSError of `sink`."""
    with TemporaryFile() as spool:
        yield spool
        spool.seek(0)
        shutil.copyfileobj(spool, sink, _BUFFER_SIZE)
        sink.flush()


@contextlib.contextmanager
def _beside(path: bytes, *, crowded: bool) -> Iterator[BinaryIO]:
    parent, name = os.path.split(path)
    directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        prefix = b"." + name[:_KEPT_NAME] + _MARK
        if crowded:
            temporary = prefix + b"new"
            _remove_leftover(directory, temporary)
        else:
            temporary = prefix + secrets.token_hex(4).encode()
            for left in list_names(directory):
                if left.startswith(prefix):
                    _remove_leftover(directory, left)
        with replacing(name, temporary, dir_fd=directory) as stream:
            with contextlib.suppress(OSError):  # without locks on this filesystem nobody's leftovers are removed
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stream
    finally:
        os.close(directory)


def _remove_leftover(directory: int, name: bytes) -> None:
    """Unless it is somebody's who is at work, or cannot be removed."""
    with contextlib.suppress(OSError):  # for writing, or NFS has no such lock for it
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(fd)
