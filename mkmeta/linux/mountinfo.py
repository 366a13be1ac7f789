"""Where something is mounted: /proc/self/mountinfo (Linux Documentation/filesystems/proc.rst, section 3.5)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_MOUNT_POINT_FIELD: Final = 4


def mount_points_below(directory: bytes) -> frozenset[bytes]:
    """The mount points below a directory given as a real, absolute path; as paths relative to it."""
    prefix = directory.rstrip(b"/") + b"/"
    points = (_unescape(line.split(b" ")[_MOUNT_POINT_FIELD]) for line in _MOUNTINFO.read_bytes().splitlines() if line)
    return frozenset(point.removeprefix(prefix) for point in points if point.startswith(prefix) and point != prefix)


def _unescape(text: bytes) -> bytes:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)
