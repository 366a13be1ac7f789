"""What each NFS mount's server heard meanwhile, for any user: differences of what the kernel counts.

Per operation and since it was mounted: requests, and since Linux 5.3 how many of them failed. A LOOKUP or OPEN that
fails is a miss, as good as always.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mkmeta.linux.mountstats import parse_mountstats

Totals = Mapping[str, tuple[int, int]]  # by operation: sent, failed


def read_totals() -> dict[bytes, Totals]:
    """By mount point; of several mounts at one, the last. Raises OSError."""
    return parse(Path("/proc/self/mountstats").read_bytes())


def parse(text: bytes) -> dict[bytes, Totals]:
    """The same of the file's text."""
    return {
        point: {name: (operation.requests, operation.errors or 0) for name, operation in operations.items()}
        for point, operations in parse_mountstats(text).items()
    }


def difference(before: Totals, after: Totals) -> dict[str, tuple[int, int]]:
    """What was sent and failed meanwhile, of operations that were used; a mount made anew began at nothing."""
    found = {}
    for name, (sent, failed) in after.items():
        sent_before, failed_before = before.get(name, (0, 0))
        if sent < sent_before or failed < failed_before:
            sent_before = failed_before = 0
        if sent > sent_before:
            found[name] = (sent - sent_before, failed - failed_before)
    return found
