"""How many threads, called lanes, a worker reads with: enough to fill the time one of them spends waiting.

A lane that waits for a file server nine tenths of its time leaves room for nine more. One that never waits does not:
memory answers, or it hashes, and lanes that all have something to do only fight for the GIL. So each lane measures
itself while it works. Time in which a busy machine kept it from a processor says nothing, and is not counted. A lane
that waits for the GIL seems to wait for an answer: so there are fewer lanes when most find it taken. Whoever holds it
may be kept from a processor as well, which is why the time they spend on one does not tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LANES_MAX: Final = 64  # hides 1 ms of round trip behind 15 us of work
_LOOK: Final = 0.02  # seconds between decisions: dozens of round trips
_ENOUGH: Final = 8  # samples of lanes that are not alone
_STEP: Final = 8  # times as many lanes at most: a machine that stumbles for a moment looks like a slow filesystem
_BUSY: Final = 0.5  # share of samples that found the GIL taken: then there are lanes enough
_CROWDED: Final = 0.8  # then there are too many


class Governor:
    """Decides on `lanes`, given what they `count`. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.lanes = 1  # how many should run
        self._begin(clock())

    def _begin(self, now: float) -> None:
        self._since = now
        self._able = self._worked = 0.0  # seconds of lanes in which they were not kept from a processor, or were on one
        self._samples = self._crowded = 0

    def count(self, passed: float, worked: float, delayed: float, *, crowded: bool) -> None:
        """Takes note of what a lane did until now, in seconds: `worked` on a processor, `delayed` for want of one.

        `crowded` says whether it found the GIL taken.
        """
        now = self._clock()
        self._able += max(passed - delayed, worked)
        self._worked += worked
        self._samples += 1
        self._crowded += crowded
        if now - self._since < _LOOK or (self.lanes > 1 and self._samples < _ENOUGH) or not self._able:
            return
        taken = self._crowded / self._samples
        enough = round(1 / max(self._worked / self._able, 1 / LANES_MAX))
        if taken >= _CROWDED:
            self.lanes = max(self.lanes * 3 // 4, 1)
        elif taken < _BUSY or enough < self.lanes:
            self.lanes = min(enough, self.lanes * _STEP)
        self._begin(now)
