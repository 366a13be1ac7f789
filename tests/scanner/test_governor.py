"""The number of lanes follows how much of its time a lane waits, and not how busy the machine is."""

from __future__ import annotations

import random

import pytest

from mkmeta.scanner.governor import LANES_MAX, Governor

TELLING = 0.01  # seconds between two tellings of a lane


class Worker:
    """A worker whose lanes wait for answers for a share of their time, on a machine that others may use as well.

    Only one lane at a time can have the GIL. Lanes that want more of it than there is wait for each other.
    """

    def __init__(self, waiting: float, *, delayed: float = 0.0) -> None:
        self.waiting = waiting  # share of a lane's time, were it alone on an idle machine
        self.delayed = delayed  # share of its time in which a lane that could work gets no processor
        self.now = 100.0
        self.governor = Governor(clock=lambda: self.now)
        self._random = random.Random(1)

    def run(self, seconds: float) -> list[int]:
        """The numbers of lanes from one telling to the next."""
        history = []
        for _ in range(round(seconds / TELLING)):
            self.now += TELLING
            lanes = self.governor.lanes
            delayed = TELLING * self.delayed
            wanted = (1 - self.waiting) * (TELLING - delayed)  # of a processor, by each
            worked = min(wanted, TELLING * (1 - self.delayed) / lanes)
            taken = min((1 - self.waiting) * (lanes - 1), 1.0)  # of the time, by the others
            for _ in range(lanes):
                self.governor.count(TELLING, worked, delayed, crowded=self._random.random() < taken)
            history.append(self.governor.lanes)
        return history


@pytest.mark.parametrize("delayed", [0, 0.5, 0.9])
@pytest.mark.parametrize(("waiting", "lanes"), [(0, 1), (0.05, 1), (0.3, 1), (0.98, 50), (0.99, LANES_MAX)])
def test_lanes_fill_the_time_one_waits(waiting: float, lanes: int, delayed: float) -> None:
    history = Worker(waiting, delayed=delayed).run(2)
    assert 0.4 * lanes <= min(history[20:]) <= max(history) <= lanes


def test_a_few_looks_are_enough() -> None:
    assert Worker(0.98).run(0.15)[-1] > 15


def test_it_never_stops_the_others_to_look() -> None:
    assert min(Worker(0.98).run(20)[20:]) > 15


@pytest.mark.parametrize("delayed", [0, 0.5, 0.9])
def test_lanes_follow_when_answers_come_from_memory(delayed: float) -> None:
    """Then each waits nearly all the time: for the others."""
    worker = Worker(0.99, delayed=delayed)
    assert worker.run(1)[-1] > 20
    worker.waiting = 0
    assert worker.run(3)[-1] == 1
