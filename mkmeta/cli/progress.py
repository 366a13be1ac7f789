"""How far a verb is: a line that is rewritten on a terminal, a line now and then elsewhere, messages with --json."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

from mkmeta.cli.output import emit, note

if TYPE_CHECKING:
    from tqdm import tqdm

# Seconds between two updates. On a terminal more is flicker; a log is read by people, later; messages by programs.
TERMINAL_SECONDS: Final = 0.2
LOG_SECONDS: Final = 30.0
JSON_SECONDS: Final = 5.0


class ProgressLine:
    """Says how many entries are done, with whatever else there is to say. A context manager.

    Nothing is said with --quiet. What is over before the first interval is, says nothing but on a terminal.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        what: str,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total`: the number of entries to come, if it is known; then there is a time to wait as well."""
        self.visible = not args.quiet
        self._what = what
        self._total = total
        self._clock = clock
        self._began = clock()
        is_terminal = self.visible and not args.json and sys.stderr.isatty()
        self._bar = _bar(what, total) if is_terminal else None
        self._as_json = args.json
        self._interval = TERMINAL_SECONDS if is_terminal else JSON_SECONDS if args.json else LOG_SECONDS
        self._next = self._began if is_terminal else self._began + self._interval

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, details: str = "") -> None:
        """Says that `done` entries are done; called as often as one likes."""
        now = self._clock()
        if not self.visible or now < self._next:
            return
        self._next = now + self._interval
        if self._bar is not None:
            self._bar.set_postfix_str(details, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        passed = now - self._began
        left = self._left(done, passed)
        if self._as_json:
            emit("progress", done=done, total=self._total, seconds=round(passed, 1), seconds_left=left)
            return
        of = f" of {self._total:,}" if self._total is not None else ""
        wait = f", about {_span(left)} left" if left is not None else ""
        note(f"{self._what}: {done:,}{of} entries in {_span(passed)}{wait}{'; ' + details if details else ''}")

    def _left(self, done: int, passed: float) -> int | None:
        """Seconds to wait; None where that is not known."""
        if self._total is None or not 0 < done <= self._total:
            return None
        return round(passed * (self._total - done) / done)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes}:{rest:02} min"


def _bar(what: str, total: int | None) -> tqdm[NoReturn]:
    from tqdm import tqdm  # imported when there is something to see: it takes a fifth of the program's start

    tqdm.monitor_interval = 0  # no thread: worker processes are forked
    return tqdm(desc=what, total=total, unit=" entries", unit_scale=True, leave=False, dynamic_ncols=True)
