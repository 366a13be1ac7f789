"""The MANIFEST argument that verbs share: a file, or `-` for standard input."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import stat
import sys
import tempfile
from typing import IO

from mkmeta.cli.arguments import input_name
from mkmeta.errors import FormatError, MkmetaError, reason
from mkmeta.manifest.reader import ManifestReader


def add_manifest_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument; its value is for `open_manifest`."""
    parser.add_argument(
        "manifest", metavar="MANIFEST", type=input_name, help="file made by mkmeta scan; - reads standard input"
    )


def open_manifest(argument: str | bytes) -> ManifestReader:
    """Opens the manifest an argument names; the caller closes it.

    A manifest is read from its end, so standard input is first copied to an unlinked file in `$TMPDIR`.
    Raises FormatError, and MkmetaError when the manifest cannot be opened or copied.
    """
    if argument == "-":
        return _copied(sys.stdin.buffer, b"standard input")
    name = os.fsencode(argument)
    if name.startswith((b"/dev/fd/", b"/proc/self/fd/")) and _is_pipe(name):  # `<(command)` of a shell
        with open(name, "rb") as stream:
            return _copied(stream, name)
    return ManifestReader.open(argument)


def _is_pipe(name: bytes) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(name).st_mode)
    except OSError:
        return False


def _copied(stream: IO[bytes], name: bytes) -> ManifestReader:
    try:
        with tempfile.TemporaryFile(prefix="mkmeta-") as copy:
            shutil.copyfileobj(stream, copy)
            copy.flush()
            fd = os.dup(copy.fileno())
    except OSError as error:
        space = f"it is copied to {tempfile.gettempdir()} first; set TMPDIR to a directory with more space"
        hint = space if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS) else None
        raise MkmetaError(reason(error), path=name, hint=hint) from None
    try:
        return ManifestReader(fd)
    except FormatError as error:
        os.close(fd)
        error.path = name
        raise
