"""The names in a directory, as the bytes they are."""

from __future__ import annotations

import os
import sys
from typing import Final

# Python decodes names by the locale. In UTF-8, what is not valid becomes surrogates, and nothing is lost; in other
# encodings of several bytes, such as Big5, two names may become one.
_ERRORS: Final = sys.getfilesystemencodeerrors()
_IS_LOSSLESS: Final = sys.getfilesystemencoding() == "utf-8"


def listable(fd: int) -> int | bytes:
    """What os.listdir and os.scandir take for the directory open as `fd`, so that os.fsencode gives names as they are.

    Where decoding could lose some, that opens the directory once more: on NFS one more question to the server.
    """
    return fd if _IS_LOSSLESS else b"/proc/self/fd/%d" % fd


def list_names(fd: int) -> list[bytes]:
    """The names in the directory open as `fd`, in any order. Raises OSError."""
    if _IS_LOSSLESS:  # os.fsencode does the same, in three times the time
        return [name.encode("utf-8", _ERRORS) for name in os.listdir(fd)]
    return os.listdir(b"/proc/self/fd/%d" % fd)
