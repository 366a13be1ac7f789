"""Waiting for hosts to let go of what was retired, by their reports (formats/report.md)."""

from __future__ import annotations

import time
from typing import Final

from mkmeta.fleet.spool import holders_of_older, read_spool

_POLL_FIRST: Final = 1.0  # seconds
_POLL_LAST: Final = 60.0  # hosts look at the pointer every ten minutes
_LATER: Final = 0.25  # of what was waited so far: so much later than need be it may end


def wait_for_hosts(spool: bytes | None, published: int, seconds: float) -> list[str]:
    """Waits at most so long until no report tells of a generation older than the published one.

    Returns the hosts of those that do, or cannot be read. Without a spool, waits just so long. Raises StoreError when
    the spool cannot be listed.
    """
    deadline = time.monotonic() + seconds
    waited = 0.0
    while True:
        held = holders_of_older(read_spool(spool), published) if spool is not None else []
        left = deadline - time.monotonic()
        if left <= 0 or (spool is not None and not held):
            return held
        pause = min(max(_POLL_FIRST, _LATER * waited), _POLL_LAST, left)
        time.sleep(pause)
        waited += pause
