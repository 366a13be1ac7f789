"""When the watcher looks, and at what: docs/release.md, "On the file server itself".

Without events everything is looked at each time. With them (`mkmeta.publisher.hearing`), what names came or went in is
looked at shortly after, what waits when it can be complete, what failed after the usual time, and everything every
hour, in case that something was not heard. So an event can be lost, and is seen late; it cannot be wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from mkmeta.pattern import Patterns
from mkmeta.publisher.hearing import LEVELS_MAX, Hearing
from mkmeta.publisher.levels import Part
from mkmeta.publisher.watch import Pass

EVERYTHING_EVERY: Final = 3600.0  # seconds from one look at everything to the next, while changes are heard of
SETTLE: Final = 2.0  # seconds from a change until it is looked at: more come
FLOOD_PAUSE: Final = 60.0  # seconds at least between looks at everything that a flood of events asks for
_IDLE: Final = 4.0  # a pass is followed by so many times its length of rest

Listen = Callable[[], Hearing | None]


class Schedule:
    """That of one watcher. Each `next` is followed by an `ended`."""

    def __init__(self, every: float, listen: Listen, clock: Callable[[], float] = time.monotonic) -> None:
        """`every`: seconds from pass to pass without events. `listen` is called again while it gives None."""
        self._every = every
        self._listen = listen
        self._clock = clock
        self._hearing: Hearing | None = None
        self._select: Patterns | None = None  # of the last pass: what is heard is measured by it
        self._since_ns: int | None = None  # when the last look at everything began
        self._started = (clock(), time.time_ns())  # the pass that goes on
        self._all_due = self._tick = self._pause_until = clock()
        self._all_ended = clock() - FLOOD_PAUSE
        self._due: dict[bytes, float] = {}  # by level
        self._moved: set[bytes] = set()  # those of them into which directories were moved

    def next(self) -> Part | None:
        """Waits until there is something to do. None: everything is looked at; no levels: nothing, but some time is
        over, and who asks for figures should have new ones.
        """
        while True:
            now = self._clock()
            self._hear(now)
            if now >= self._all_due:
                self._due.clear()
                self._moved.clear()
                if self._hearing is None:  # before the look: what changes while it goes on is heard
                    self._hearing = self._listen()
                self._started = now, time.time_ns()
                return None
            levels = frozenset(level for level, due in self._due.items() if due <= now)
            if (levels and now >= self._pause_until) or now >= self._tick:
                for level in levels:
                    del self._due[level]
                moved = frozenset(self._moved & levels)
                self._moved -= moved
                self._started = now, time.time_ns()
                assert self._since_ns is not None
                return Part(levels, moved, self._since_ns)
            first = min(self._due.values(), default=self._all_due)
            self._wait(min(self._all_due, self._tick, max(first, self._pause_until)) - now)

    def ended(self, part: Part | None, done: Pass | None) -> None:
        """What came of it; None: it failed, and then the next one looks at everything."""
        now = self._clock()
        began, began_ns = self._started
        self._pause_until = now + _IDLE * (now - began)
        self._tick = now + self._every
        soon = max(now + 1.0, began + self._every)
        if part is None:
            self._all_ended = now
            self._all_due = soon if self._hearing is None else max(soon, began + EVERYTHING_EVERY)
        if done is None:
            self._all_due = min(self._all_due, soon)
            return
        if part is None:
            self._since_ns = began_ns
        if self._select is not None and self._select.sources != done.select.sources:
            self._all_due = now
        self._select = done.select
        if self._hearing is not None:
            for level, seconds in done.again.items():
                self._look_at(level, now + max(SETTLE, seconds))
            for path, _ in done.failed:
                self._look_at(os.path.dirname(path), now + self._every)

    def _hear(self, now: float) -> None:
        if self._hearing is None or self._select is None:
            return
        try:
            heard = self._hearing.collect(self._select)
            there = self._hearing.is_there()
        except OSError:  # the volume is not there
            there = False
        if not there:
            self._hearing.close()
            self._hearing = None
        if not there or heard.everything:
            self._all_due = min(self._all_due, max(now + SETTLE, self._all_ended + FLOOD_PAUSE))
            return
        for level, moved in heard.levels.items():
            self._look_at(level, now + SETTLE)
            if moved and level in self._due:
                self._moved.add(level)

    def _look_at(self, level: bytes, due: float) -> None:
        if len(self._due) < LEVELS_MAX or level in self._due:
            self._due[level] = min(due, self._due.get(level, due))
        else:
            self._all_due = min(self._all_due, max(due, self._all_ended + FLOOD_PAUSE))

    def _wait(self, seconds: float) -> None:
        if self._hearing is None:
            time.sleep(max(0.0, seconds))
        else:
            self._hearing.wait(seconds)
