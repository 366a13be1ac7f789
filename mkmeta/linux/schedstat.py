"""What a thread did with its time: thread clock and /proc/thread-self/schedstat.

The second field there is the time spent runnable, but waiting for a processor, in ns (Linux
Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple, Self

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"
_MOMENT: Final = 100e-6  # seconds
_LATE: Final = 300e-6  # seconds: several times what timers and waking up take


class Times(NamedTuple):
    """Seconds."""

    passed: float
    worked: float  # on a processor
    delayed: float  # runnable, but waiting for a processor


class WaitClock:
    """Measures the thread it was made in. A context manager."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without CONFIG_SCHED_INFO: then a busy machine looks like a slow filesystem
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self) -> Times:
        """The times so far, each from a starting point of its own."""
        delayed = self._delayed()
        return Times(time.perf_counter(), time.thread_time(), delayed)

    def is_crowded(self) -> bool:
        """Whether a thread that sleeps for a moment has to wait for the GIL then.

        It has to sleep: the GIL that is released for less than another takes to wake up is not lost.
        """
        delayed, started = self._delayed(), time.perf_counter()
        time.sleep(_MOMENT)
        passed = time.perf_counter() - started
        return passed - (self._delayed() - delayed) > _MOMENT + _LATE

    def _delayed(self) -> float:
        return int(os.pread(self._fd, 64, 0).split()[1]) * 1e-9 if self._fd >= 0 else 0.0
