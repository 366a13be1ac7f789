"""Figures of mounts; and commands run in turn and compared: ratios of neighbours in time, since machines are noisy."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One run of a command."""

    seconds: float
    processor_seconds: float  # user and system, of all its processes
    peak: int  # bytes resident, the largest of its processes


def run(command: Sequence[str], *, accepted: tuple[int, ...] = (0,)) -> Run:
    """Runs a command to its end, output thrown away. Raises OSError when its exit code is not an accepted one."""
    started = time.perf_counter()
    with open(os.devnull, "w") as nothing:
        process = subprocess.Popen(command, stdout=nothing, stderr=nothing)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in accepted:
        raise OSError(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


@dataclass(frozen=True)
class Comparison:
    """Two commands, run in turn; medians, and the median of the ratios of neighbours."""

    ours: Run
    theirs: Run
    ratio: float


def compare(
    ours: Sequence[str], theirs: Sequence[str], *, rounds: int, before: Callable[[], object] = lambda: None
) -> Comparison:
    """Runs both commands `rounds` times in turn after one round that does not count; `before` precedes each run."""
    pairs = []
    for number in range(rounds + 1):
        pair = []
        for command in (ours, theirs):
            before()
            pair.append(run(command))
        if number:
            pairs.append(pair)
    mine, other = ([pair[side] for pair in pairs] for side in (0, 1))
    return Comparison(_median(mine), _median(other), statistics.median(a.seconds / b.seconds for a, b in pairs))


def _median(runs: list[Run]) -> Run:
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.processor_seconds for run in runs),
        max(run.peak for run in runs),
    )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one use of one mount took."""

    version: str  # of NFS, or what else stands for it
    mount: str
    rpcs: dict[str, int]  # by operation
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.rpcs.values())
