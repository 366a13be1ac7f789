"""How many requests to keep in flight: found by trying, since nothing tells a slow server from a busy machine.

Doubling the lanes on a network filesystem nearly doubles what gets done. Doubling them on a filesystem that answers
from memory, or on a machine with no processor to spare, does not, and costs: the lanes share one GIL.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LANES_MAX: Final = 32  # hides 1 ms of round trip behind 30 us of work per request
_WINDOW: Final = 0.05  # seconds over which work is counted: some ten time slices
_SLOW: Final = 20e-6  # seconds per request; memory answers in a tenth of it
_GAIN_UP: Final = 1.25  # what twice the lanes must bring to be kept
_GAIN_DOWN: Final = 0.95  # what half the lanes must leave
_PATIENCE_MAX: Final = 64  # windows between two trials that fail


class Governor:
    """Counts finished requests and adjusts `lanes`. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.lanes = 1
        self._before = 1
        self._up = True
        self._base: float | None = None  # requests per second before the trial that is under way
        self._rest = 0
        self._patience = 1
        self.restart()

    def restart(self) -> None:
        """Forgets the current window: there was nothing to do in part of it."""
        self._since = self._clock()
        self._requests = 0

    def count(self, requests: int, seconds_per_request: float) -> None:
        """Takes note of finished requests and how long they took; may change `lanes`."""
        self._requests += requests
        elapsed = self._clock() - self._since
        if elapsed < _WINDOW:
            return
        rate = self._requests / elapsed
        self.restart()
        if self._base is not None:
            self._judge(rate / self._base)
        elif self._rest:
            self._rest -= 1
        else:
            self._try(rate, seconds_per_request)

    def _try(self, rate: float, seconds_per_request: float) -> None:
        if self.lanes == 1:
            self._up = True
        elif self.lanes == LANES_MAX:
            self._up = False
        if self._up and seconds_per_request < _SLOW:
            return
        self._base = rate
        self._before = self.lanes
        self.lanes = self.lanes * 2 if self._up else self.lanes // 2

    def _judge(self, gain: float) -> None:
        self._base = None
        if gain >= (_GAIN_UP if self._up else _GAIN_DOWN):
            self._patience = 1
            return
        self.lanes = self._before
        self._up = not self._up
        self._rest = self._patience
        self._patience = min(2 * self._patience, _PATIENCE_MAX)
