"""Temporary files, which have no name. Where one cannot be made or written, that is said of the place it is in.

Whoever writes to it needs no handler of his own: an OSError that says nothing of its file would pass for one of the
output, which may be on another filesystem with room enough.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from typing import TYPE_CHECKING

from mkmeta.errors import MkmetaError, reason

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class TemporaryFile(io.BufferedRandom):
    """A file to write and to read back, in `$TMPDIR`. A context manager."""

    def __init__(self, buffer_bytes: int = io.DEFAULT_BUFFER_SIZE) -> None:
        """Raises MkmetaError, as does whatever writes it when there is no room: write, flush, seek."""
        super().__init__(_nameless(), buffer_bytes)

    def close(self) -> None:
        """Removes it. What could not be written was said then, or nobody needs it any more."""
        with contextlib.suppress(MkmetaError):
            super().close()


class _Raw(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _error(error) from None


def _nameless() -> _Raw:
    try:
        with tempfile.TemporaryFile(prefix="mkmeta-", buffering=0) as file:
            return _Raw(os.dup(file.fileno()), "r+b")
    except OSError as error:
        raise _error(error) from None


def _error(error: OSError) -> MkmetaError:
    return MkmetaError(
        f"temporary files cannot be written: {reason(error)}",
        path=os.fsencode(tempfile.gettempdir()),
        hint="make room there, or name another directory with TMPDIR",
    )
