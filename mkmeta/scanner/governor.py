"""How many threads, called lanes, a worker reads with: enough to fill the time one of them spends waiting.

A lane that waits for a file server nine tenths of its time leaves room for nine more. One that never waits does not:
memory answers, or it hashes, and lanes that all have something to do only fight for the GIL. So now and then a worker
runs with one lane, for a moment, and sees how much of the time that waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LANES_MAX: Final = 32  # hides 1 ms of round trip behind 30 us of work
_LOOK: Final = 0.05  # seconds of one lane's time that are looked at: dozens of round trips
_TRUST: Final = 2.0  # seconds until the next look, which may cost a fortieth of that


class Governor:
    """Decides on `lanes`. While `looking`, that is one, and `count` is to be called. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lanes = 1
        self._elapsed = 0.0
        self._waited = 0.0
        self._trusted_until = clock()

    @property
    def looking(self) -> bool:
        """Whether one lane runs alone, to be measured."""
        return self._clock() >= self._trusted_until

    @property
    def lanes(self) -> int:
        """How many lanes should run now."""
        return 1 if self.looking else self._lanes

    def count(self, elapsed: float, waited: float) -> None:
        """Takes note of `elapsed` seconds of a lane that ran alone, `waited` of them spent waiting for an answer."""
        self._elapsed += elapsed
        self._waited += waited
        if self._elapsed < _LOOK:
            return
        busy = max(1 - self._waited / self._elapsed, 1 / LANES_MAX)
        self._lanes = round(1 / busy)
        self._elapsed = self._waited = 0.0
        self._trusted_until = self._clock() + _TRUST
