"""Every error mkmeta foresees, and the exit code each one ends the program with.

    MkmetaError                 1   something could not be done
    ├── InterruptedByUser     130   Ctrl-C
    ├── TerminatedError      128+   another signal
    ├── UsageError              2   the command line asks for something impossible
    ├── FormatError            10   these bytes are not a valid manifest
    ├── IdMismatchError        11   a valid manifest, but not the expected one
    ├── ScanError               1   the scan cannot go on; nothing was written
    │   ├── NothingSelectedError 12   no pattern matched
    │   └── LeftOutError       13   `--on-error fail`: the first entry that could not be recorded
    ├── BuildError              1   the layer cannot be written; nothing was left behind
    ├── StoreError              1   the store is none, is damaged, or does not go with what was asked
    │   ├── NoGenerationError  15   it has no such generation
    │   └── TooNewError         1   it is written by a later version of its format than this mkmeta knows
    ├── LockedError            14   another process holds the lock, and did not release it in time
    ├── ChangedError            4   (publisher) a release changed while it was published
    ├── UnfinishedError        24   (publisher) a release is not completely on the volume
    └── MountError              1   a mount cannot be made, exchanged or removed; what was mounted still is
        ├── RefusedError       16   it could be mounted, and would show wrong data or harm a layer
        ├── GapError           17   the old mount would have to go before the new one comes
        └── NotActiveError     20   nothing of mkmeta's is mounted there

Errors carry facts (`path`, `hint`); only `mkmeta.cli.main` turns one into a line and a status.
The table of codes users may rely on is in formats/cli.md.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import signal
from enum import IntEnum
from typing import Final

_LIKE_AN_ESCAPE: Final = re.compile(rb"\\(?=x[0-9a-fA-F]{2})")


class ExitCode(IntEnum):
    """Exit codes of the command line; formats/cli.md explains them. Codes may be added."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    DIFFERENT = 4
    BAD_MANIFEST = 10
    ID_MISMATCH = 11
    NOTHING_SELECTED = 12
    LEFT_OUT = 13
    LOCKED = 14
    NO_GENERATION = 15
    REFUSED = 16
    GAP = 17
    NOT_ACTIVE = 20
    BEHIND = 21
    DEGRADED = 22
    UNFIT = 23
    UNFINISHED = 24
    HELD = 25
    INTERRUPTED = 130


class MkmetaError(Exception):
    """Base of all foreseen errors: what happened, where (`path`, bytes as on disk), what to do (`hint`)."""

    exit_code: int = ExitCode.FAILED

    def __init__(self, message: str, *, path: bytes | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.path is None else f"{printable(self.path)}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross from worker processes to their parent."""
        return (_rebuild, (type(self), self.message, self.path, self.hint))


class InterruptedByUser(MkmetaError):
    """SIGINT, which is Ctrl-C."""

    exit_code = ExitCode.INTERRUPTED


class TerminatedError(MkmetaError):
    """Another signal that ends the process; its exit code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class UsageError(MkmetaError):
    """The arguments contradict each other or the machine."""

    exit_code = ExitCode.USAGE


class FormatError(MkmetaError):
    """Bytes that are not a valid manifest; the message names the place in the file and the reason."""

    exit_code = ExitCode.BAD_MANIFEST


class IdMismatchError(MkmetaError):
    """The manifest is not the one `--expect-id` asked for."""

    exit_code = ExitCode.ID_MISMATCH


class ScanError(MkmetaError):
    """The scan as a whole failed; no manifest was written."""


class NothingSelectedError(ScanError):
    """No pattern matched anything."""

    exit_code = ExitCode.NOTHING_SELECTED


class LeftOutError(ScanError):
    """An entry cannot be recorded and the caller asked to stop at the first."""

    exit_code = ExitCode.LEFT_OUT


class BuildError(MkmetaError):
    """A layer could not be written; its staging directory is gone."""


class StoreError(MkmetaError):
    """A store or a pointer is none, is damaged, is for another version, or contradicts what was asked."""


class NoGenerationError(StoreError):
    """The store has no such generation."""

    exit_code = ExitCode.NO_GENERATION


class TooNewError(StoreError):
    """A file of a store is of a later version of its format: not damaged, and not ours to judge."""


class LockedError(MkmetaError):
    """Another process held a lock for longer than the caller wanted to wait."""

    exit_code = ExitCode.LOCKED


class MountError(MkmetaError):
    """A mount could not be made, exchanged, refreshed or removed; what was mounted before still is."""


class RefusedError(MountError):
    """The kernel would take this mount, and it would show wrong data or harm a layer."""

    exit_code = ExitCode.REFUSED


class GapError(MountError):
    """The kernel cannot exchange mounts without an instant in which there is none, and that was not allowed."""

    exit_code = ExitCode.GAP


class NotActiveError(MountError):
    """Nothing of mkmeta's is mounted there."""

    exit_code = ExitCode.NOT_ACTIVE


def printable(raw: bytes) -> str:
    r"""A name or path as one line of text that shows every byte: what is not printable becomes `\xHH`, byte by byte.

    So does a backslash that would look like one of these, so that no two names are shown alike.

    >>> printable(b"a\xff\nb\\c\\x0a")
    'a\\xff\\x0ab\\c\\x5cx0a'
    """
    if b"\\" in raw:
        raw = _LIKE_AN_ESCAPE.sub(rb"\\x5c", raw)
    return legible(raw)


def legible(text: bytes | str) -> str:
    """Words, or a pattern as it was typed, as one line of text: `printable`, but for backslashes, which stay as they
    are. Of an argument, which Python has decoded, the bytes.
    """
    if isinstance(text, str):
        if text.isprintable():
            return text
        text = _encoded(text)
    shown = text.decode("utf-8", "backslashreplace")
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode()) for c in shown)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as in no argument, but in JSON
        return text.encode("utf-8", "surrogatepass")


def path_fields(path: bytes, key: str = "path") -> dict[str, str]:
    """A name or path for JSON: as text, and when it is not UTF-8 also exactly, in base64."""
    try:
        return {key: path.decode()}
    except UnicodeDecodeError:
        return {key: printable(path), f"{key}_b64": base64.b64encode(path).decode()}


def reason(error: OSError) -> str:
    """The kernel's word for an errno, in lower case as the rest of a message: "no space left on device"."""
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EMFILE:
        text += " (ulimit -n)"
    return text[:1].lower() + text[1:]


def _rebuild(kind: type[MkmetaError], message: str, path: bytes | None, hint: str | None) -> MkmetaError:
    return kind(message, path=path, hint=hint)


def human_bytes(count: int) -> str:
    """A number of bytes with a binary unit: `1.5 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} EiB"
