"""Types of arguments that verbs share."""

from __future__ import annotations

import argparse
import os

from mkmeta.digest import DIGEST_SIZE, VerityDigest


def filled(text: str) -> bytes:
    """A name, path or pattern: not the empty one that an unset variable of a script gives."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: was a variable not set?")
    return os.fsencode(text)


def verity_digest(text: str) -> VerityDigest:
    """An fs-verity digest, in hexadecimal digits."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a digest of {2 * DIGEST_SIZE} hexadecimal digits")
    return VerityDigest(raw)
