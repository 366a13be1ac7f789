"""What becomes of memory that is not needed any more."""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  # malloc.h of glibc
_LARGE: Final = 128 << 10  # bytes; glibc's own value to begin with


def give_back_large_buffers() -> None:
    """From now on what has at least 128 KiB, as frames of a manifest do, goes back to the kernel when it is freed.

    glibc takes the first such piece that is freed for a sign to keep all that are not larger (mallopt(3), "dynamic mmap
    threshold"), between what is small and stays: a process then grows to twice what it holds. Other C libraries have no
    such habit, and no mallopt that knows it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_LARGE))
