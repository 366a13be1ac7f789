"""Types of arguments that verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Final

from mkmeta.digest import DIGEST_SIZE, VerityDigest
from mkmeta.errors import UsageError

_STDIN: Final = frozenset({"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
_STDOUT: Final = frozenset({"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def input_file(text: str) -> bytes:
    """A file to read; `-` is standard input, whatever it is called."""
    return b"-" if text in _STDIN else filled(text)


def input_name(text: str) -> str:
    """The same as text."""
    return os.fsdecode(input_file(text))


def output_file(text: str) -> bytes:
    """A file to write; `-` is standard output, whatever it is called."""
    if text.endswith("/"):
        raise argparse.ArgumentTypeError(f"{text} names a directory: add the name of a file")
    return b"-" if text in _STDOUT else filled(text)


def filled(text: str) -> bytes:
    """A name, path or pattern: not the empty one that an unset variable of a script gives."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: was a variable not set?")
    return os.fsencode(text)


def check_stdin_once(files: Sequence[bytes]) -> None:
    """Raises UsageError when `-` is among files more than once: the second would be empty."""
    if files.count(b"-") > 1:
        raise UsageError("standard input can be read only once", hint="give - once")


def verity_digest(text: str) -> VerityDigest:
    """An fs-verity digest, in hexadecimal digits."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a digest of {2 * DIGEST_SIZE} hexadecimal digits")
    return VerityDigest(raw)
