"""Temporary files that are appended to by one process, and read by the one that made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from mkmeta.linux.temporary import TemporaryFile

BUFFER_BYTES: Final = 256 << 10
_WRITE_BYTES: Final = 32 << 10  # each process has several
_LENGTH_BYTES: Final = 4


class Spool:
    """A temporary file that one process appends to, and another one reads later."""

    def __init__(self) -> None:
        """Raises MkmetaError when there is no room for temporary files."""
        self._file = TemporaryFile(_WRITE_BYTES)
        self.size = 0  # as far as this process knows
        self.fd = self._file.fileno()

    def append(self, data: bytes) -> int:
        """Returns where it is. Raises MkmetaError."""
        at = self.size
        self._file.write(data)
        self.size = at + len(data)
        return at

    def append_piece(self, data: bytes) -> None:
        """Appends what `pieces` gives back. Raises MkmetaError."""
        self._file.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
        self._file.write(data)
        self.size += _LENGTH_BYTES + len(data)

    def flush(self) -> None:
        """Others see what was appended. Raises MkmetaError."""
        self._file.flush()

    def close(self) -> None:
        """Removes it."""
        self._file.close()

    def read(self, at: int, size: int) -> bytes:
        """Raises OSError."""
        return os.pread(self.fd, size, at)

    def pieces(self, at: int = 0, size: int | None = None) -> Iterator[bytes]:
        """The pieces in a range of it, by default in all that there is."""
        if size is None:
            return self._pieces(at, os.fstat(self.fd).st_size)
        if size <= BUFFER_BYTES:  # mostly there is one
            data = os.pread(self.fd, size, at)
            if size == _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little"):
                return iter((data[_LENGTH_BYTES:],))
        return self._pieces(at, at + size)

    def _pieces(self, at: int, end: int) -> Iterator[bytes]:
        buffer, start = b"", 0
        while at < end or start < len(buffer):
            stop = start + _LENGTH_BYTES
            if stop <= len(buffer):
                stop += int.from_bytes(buffer[start:stop], "little")
            if start == len(buffer) or stop > len(buffer):
                more = os.pread(self.fd, min(max(BUFFER_BYTES, stop - len(buffer)), end - at), at)
                at += len(more)
                buffer, start = buffer[start:] + more, 0
                continue
            yield buffer[start + _LENGTH_BYTES : stop]
            start = stop
