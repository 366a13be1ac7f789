"""What lanes of a worker do by turns, and how long each waited for its turn.

A lane that waits for another one of its process is no sign of a slow filesystem: more lanes would only wait as well.
"""

from __future__ import annotations

import threading
import time


class _Waited(threading.local):
    seconds = 0.0


_waited = _Waited()


def note_wait(seconds: float) -> None:
    """This thread waited so long for what other threads of its process, or its parent, do."""
    _waited.seconds += seconds


def waited() -> float:
    """How many seconds this thread waited since it was asked last."""
    seconds, _waited.seconds = _waited.seconds, 0.0
    return seconds


class Turns:
    """A lock: a context manager."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            started = time.perf_counter()
            self._lock.acquire()
            note_wait(time.perf_counter() - started)

    def __exit__(self, *_: object) -> None:
        self._lock.release()
