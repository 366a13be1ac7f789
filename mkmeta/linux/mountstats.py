"""What NFS clients count per mount, in /proc/self/mountstats: any user may read it, and it asks no server.

The format is that of net/sunrpc/stats.c, rpc_clnt_show_stats, and fs/nfs/super.c, nfs_show_stats: a line `device SOURCE
mounted on POINT with fstype TYPE statvers=1.1`, paths escaped as in the mount table, then lines that begin with a tab.
Those below `per-op statistics` are `OP: ops transmissions timeouts sent received queue rtt execute errors`; errors are
counted since Linux 5.3, "no such file" among them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_PATH: Final = "/proc/self/mountstats"
_DEVICE: Final = re.compile(rb"device \S+ mounted on (\S+) with fstype (nfs4?)(?: .*)?")
_OPERATION: Final = re.compile(rb"\t\s*([A-Z0-9_]+): ((?:[0-9]+ ?){8,32})")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_ERRORS: Final = 8  # its place among the numbers


class Operation(NamedTuple):
    """One kind of request, since the mount was made."""

    requests: int
    errors: int | None  # None: this kernel does not count them


def nfs_operations() -> dict[bytes, dict[str, Operation]]:
    """By mount point, of the mount on top there: each operation that was sent at all. Raises OSError."""
    with open(_PATH, "rb") as stream:
        return parse_mountstats(stream.read())


def parse_mountstats(data: bytes) -> dict[bytes, dict[str, Operation]]:
    """The same, of the bytes of that file."""
    found: dict[bytes, dict[str, Operation]] = {}
    current: dict[str, Operation] | None = None
    for line in data.split(b"\n"):
        if line.startswith(b"device "):
            device = _DEVICE.fullmatch(line)
            current = {} if device else None
            if device and current is not None:
                found[_unescaped(device[1])] = current
        elif current is not None and (match := _OPERATION.fullmatch(line.rstrip())):
            numbers = [int(word) for word in match[2].split()]
            if numbers[0]:
                errors = numbers[_ERRORS] if len(numbers) > _ERRORS else None
                current[match[1].decode()] = Operation(numbers[0], errors)
    return found


def _unescaped(raw: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), raw)
