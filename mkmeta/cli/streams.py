r"""The three standard streams of the process, made fit for any byte in a name, in any locale, open or closed.

- A stream that is closed is not given away: the next file to be opened would become it. Nothing can be read from it,
  what is written to it is gone.
- Text on stdout comes out in the locale's encoding, or the one of PYTHONIOENCODING. What that has no letter for is
  shown byte by byte, as `\xHH`; so is what a terminal would obey. No two names come out alike: of encodings that have
  several ways to write a letter only the ASCII is used.
- What cannot be written to stdout is an error that names it. What cannot be written to stderr is gone: there is nobody
  left to tell.
"""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import select
import sys
from typing import Any, Final

from mkmeta.errors import legible

STDIN: Final = "standard input"
STDOUT: Final = "standard output"
STDERR: Final = "standard error"
_HANDLER: Final = "mkmeta.bytes"
_ASCII: Final = codecs.lookup("ascii").name
_closed: set[int] = set()  # descriptors that were closed when the process began


def is_closed(fd: int) -> bool:
    """Whether the process began without one of the descriptors 0, 1 and 2."""
    return fd in _closed


def set_up() -> None:
    """Sets up the streams of this process; before anything is opened."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
            _closed.add(fd)
    codecs.register_error(_HANDLER, _escaped)
    sys.stdin = _Text(io.BufferedReader(_Input(0, STDIN)), encoding="utf-8", errors="surrogateescape")
    for fd, name in ((1, STDOUT), (2, STDERR)):
        raw = _Output(fd, name)
        encoding = _encoding(getattr(sys, raw.attribute))
        stream = _Text(
            io.BufferedWriter(raw), encoding=encoding, errors=_HANDLER, line_buffering=raw.isatty() or fd == 2
        )
        setattr(sys, raw.attribute, stream)


class _Input(io.FileIO):
    """A descriptor to read from, which may be one that others have made non-blocking."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "r", closefd=False)
        self._name = name

    def readinto(self, buffer: Any) -> int:
        if is_closed(self.fileno()):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._name)
        try:
            while (count := super().readinto(buffer)) is None:
                select.select([self], [], [])
        except OSError as error:
            raise type(error)(error.errno, error.strerror, self._name) from None
        return count


class _Output(io.FileIO):
    """A descriptor to write to, likewise."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self._name = name
        self.attribute = "stdout" if name == STDOUT else "stderr"

    def write(self, data: Any) -> int:
        try:
            while (count := super().write(data)) is None:
                select.select([], [self], [])
        except OSError as error:
            if self._name == STDERR:
                return len(data)
            raise type(error)(error.errno, error.strerror, self._name) from None
        return count


class _Text(io.TextIOWrapper):
    """Text of which a terminal obeys nothing, but for what is written to stderr, where a progress line moves about."""

    def write(self, text: str) -> int:
        """Writes text; of a line, what is not printable is shown byte by byte."""
        if not text.isprintable() and self is sys.stdout:
            text = "\n".join("\t".join(map(legible, line.split("\t"))) for line in text.split("\n"))
        return super().write(text)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What stands for text that an encoding has no letters for."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw), error.end


def _encoding(stream: Any) -> str:
    """What a stream is to be encoded in: what PYTHONIOENCODING says, or the locale."""
    wanted = locale.getencoding()
    asked = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    if asked and stream is not None:
        wanted = stream.encoding
    try:
        found = codecs.lookup(wanted)
    except LookupError:
        return "utf-8"
    if found.name.startswith("utf"):
        return found.name
    if found.name == _ASCII:  # LC_ALL=C: who says nothing of letters gets the bytes, as from other programs
        return _ASCII if asked else "utf-8"
    return found.name if _is_of_single_bytes(found.name) else _ASCII


def _is_of_single_bytes(encoding: str) -> bool:
    """Whether every byte is one letter, so that each text has one spelling at most."""
    return len(bytes(range(256)).decode(encoding, "replace")) == 256
