"""Types of arguments that verbs share."""

from __future__ import annotations

import argparse
import os


def filled(text: str) -> bytes:
    """A name, path or pattern: not the empty one that an unset variable of a script gives."""
    if not text:
        raise argparse.ArgumentTypeError("is empty: was a variable not set?")
    return os.fsencode(text)
