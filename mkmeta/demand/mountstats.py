"""What each NFS mount's server heard: /proc/self/mountstats (net/sunrpc/stats.c, fs/nfs/super.c), for any user.

Per operation and since it was mounted: requests, and since Linux 5.3 how many of them failed. A LOOKUP or OPEN that
fails is a miss, as good as always.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_MOUNT: Final = re.compile(rb"^device (.*?) mounted on (.*?) with fstype (nfs4?) ", re.MULTILINE)
_OPERATION: Final = re.compile(rb"^\s+([A-Z0-9_]{1,40}): (\d{1,19})(?: \d+){7}(?: (\d{1,19}))?\s*$", re.MULTILINE)

Totals = Mapping[str, tuple[int, int]]  # by operation: sent, failed


def read_totals() -> dict[bytes, Totals]:
    """By mount point; of several mounts at one, the last. Raises OSError."""
    return parse(Path("/proc/self/mountstats").read_bytes())


def parse(text: bytes) -> dict[bytes, Totals]:
    """The same of the file's text."""
    found: dict[bytes, Totals] = {}
    places = list(_MOUNT.finditer(text))
    for number, place in enumerate(places):
        end = places[number + 1].start() if number + 1 < len(places) else None
        block = text[place.end() : end].partition(b"\ndevice ")[0]
        operations = _OPERATION.findall(block.partition(b"per-op statistics")[2])
        point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), place[2])
        found[point] = {name.decode(): (int(sent), int(failed or 0)) for name, sent, failed in operations}
    return found


def difference(before: Totals, after: Totals) -> dict[str, tuple[int, int]]:
    """What was sent and failed meanwhile, of operations that were used; a mount made anew began at nothing."""
    found = {}
    for name, (sent, failed) in after.items():
        sent_before, failed_before = before.get(name, (0, 0))
        if sent < sent_before:
            sent_before = failed_before = 0
        if sent > sent_before:
            found[name] = (sent - sent_before, failed - failed_before)
    return found
