"""The MANIFEST argument that verbs share: a file, or `-` for standard input."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile

from mkmeta.errors import FormatError, MkmetaError, reason
from mkmeta.manifest.reader import ManifestReader


def add_manifest_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the positional argument; its value is for `open_manifest`."""
    parser.add_argument("manifest", metavar="MANIFEST", help="file made by mkmeta scan; - reads standard input")


def open_manifest(argument: str | bytes) -> ManifestReader:
    """Opens the manifest an argument names; the caller closes it.

    A manifest is read from its end, so standard input is first copied to an unlinked file in `$TMPDIR`.
    Raises FormatError, and MkmetaError when the manifest cannot be opened or copied.
    """
    if argument != "-":
        return ManifestReader.open(argument)
    try:
        with tempfile.TemporaryFile(prefix="mkmeta-") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            fd = os.dup(copy.fileno())
    except OSError as error:
        hint = f"it is copied to {tempfile.gettempdir()} first; set TMPDIR to a directory with more space"
        raise MkmetaError(reason(error), path=b"standard input", hint=hint) from None
    try:
        return ManifestReader(fd)
    except FormatError as error:
        os.close(fd)
        error.path = b"standard input"
        raise
