"""What glibc's loader wrote with LD_DEBUG=libs (ld.so(8)), to stderr or LD_DEBUG_OUTPUT.

It names the files it tries, not how that went: one that is followed by another, or by another place to search, was not
there; the last one was, since a program that lacks a library does not start.
"""

from __future__ import annotations

import re
from typing import BinaryIO, Final

from mkmeta.demand.importers.strace import blocks
from mkmeta.demand.tally import MISS, OPEN, Tally

_LINE: Final = re.compile(rb"^ *(\d+):\t(.*)$", re.MULTILINE)
_TRYING: Final = b"trying file="
_GOES_ON: Final = (b"search path=", b"search cache=")
_PROCESSES_MAX: Final = 1 << 16


def read(tally: Tally, stream: BinaryIO) -> None:
    """Counts what a log tells. Raises OSError."""
    tried: dict[bytes, bytes] = {}  # by process: the last file, of which the outcome is to come
    for block in blocks(stream, tally.lost):
        for process, text in _LINE.findall(block):
            text = text.strip(b" \t")
            before = tried.pop(process, None)
            if text.startswith(_TRYING):
                path = text[len(_TRYING) :]
                if path[:1] == b"/":
                    if len(tried) < _PROCESSES_MAX:
                        tried[process] = path
                else:
                    tally.lost["relative"] += 1
            if before is not None:
                tally.add(before, MISS if text.startswith((_TRYING, *_GOES_ON)) else OPEN)
    for path in tried.values():
        tally.add(path, OPEN)
