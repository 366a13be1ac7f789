"""The maps that examples/observe.bt prints, as bpftrace's text: `@misses[/sw/lib/name]: 12`, `@calls: 12`.

bpftrace cuts strings at BPFTRACE_STRLEN and stops adding to a map at BPFTRACE_MAP_KEYS_MAX, without a word. The script
counts all calls once more without a key, which tells of the second; the longest key tells of the first.
"""

from __future__ import annotations

import re
from typing import BinaryIO, Final

from mkmeta.demand.importers.strace import blocks
from mkmeta.demand.tally import MISS, OPEN, STAT, Tally

_KINDS: Final = {b"misses": MISS, b"stats": STAT, b"opens": OPEN}
_LINE: Final = re.compile(
    rb"^@(misses|stats|opens)\[(.*)\]: (\d{1,18})$|^@(calls): (\d{1,18})$|^Lost (\d{1,18}) events", re.M
)
_LIMITS: Final = (63, 127, 199, 255, 511, 1023)  # usual values of BPFTRACE_STRLEN, less the NUL


def read(tally: Tally, stream: BinaryIO) -> None:
    """Counts what the maps hold. Raises OSError."""
    counted = calls = 0
    longest: dict[int, int] = {}  # calls by length of a path that may have been cut
    cut_at = 0
    for block in blocks(stream, tally.lost):
        for kind, path, count, total, totalled, overrun in _LINE.findall(block):
            if overrun:
                tally.lost["overruns"] += int(overrun)
            elif total:
                calls += int(totalled)
            else:
                counted += int(count)
                cut_at = max(cut_at, len(path))
                if len(path) in _LIMITS:
                    longest[len(path)] = longest.get(len(path), 0) + int(count)
                if path[:1] == b"/":
                    tally.add(path, _KINDS[kind], int(count))
                else:  # a path that could not be read is printed as none
                    tally.lost["relative" if path else "cut"] += int(count)
    tally.lost["cut"] += longest.get(cut_at, 0)
    tally.lost["drops"] += max(calls - counted, 0)
