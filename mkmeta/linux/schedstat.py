"""How long a thread waited for something other than a processor: thread clock and /proc/thread-self/schedstat.

The second field there is the time spent runnable, but waiting for a processor, in ns (Linux
Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import os
import time
from typing import Final, Self

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"


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

    def read(self) -> tuple[float, float]:
        """Seconds, from any two starting points: that have passed, and that this thread waited for no processor."""
        delay_ns = int(os.pread(self._fd, 64, 0).split()[1]) if self._fd >= 0 else 0
        now = time.perf_counter()
        return now, now - time.thread_time() - delay_ns * 1e-9
