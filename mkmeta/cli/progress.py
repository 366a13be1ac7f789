"""Progress on a terminal: a line that is rewritten, on stderr, and only there."""

from __future__ import annotations

import argparse
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

if TYPE_CHECKING:
    from tqdm import tqdm

_INTERVAL: Final = 0.2  # seconds between two updates: more is flicker


class ProgressLine:
    """A line saying how many entries are done, with whatever else there is to say. A context manager.

    Prints nothing unless stderr is a terminal and neither --quiet nor --json was given.
    """

    def __init__(self, args: argparse.Namespace, what: str, total: int | None = None) -> None:
        """`total`: the number of entries to come, if it is known; then there is a bar and a time to wait."""
        self.visible = sys.stderr.isatty() and not args.quiet and not args.json
        self._bar = _bar(what, total) if self.visible else None
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, details: str = "") -> None:
        """Shows that `done` entries are done; called as often as one likes."""
        now = time.monotonic()
        if self._bar is None or now < self._next:
            return
        self._next = now + _INTERVAL
        self._bar.set_postfix_str(details, refresh=False)
        self._bar.update(done - self._bar.n)


def _bar(what: str, total: int | None) -> tqdm[NoReturn]:
    from tqdm import tqdm  # imported when there is something to see: it takes a fifth of the program's start

    tqdm.monitor_interval = 0  # no thread: worker processes are forked
    return tqdm(desc=what, total=total, unit=" entries", unit_scale=True, leave=False, dynamic_ncols=True)
