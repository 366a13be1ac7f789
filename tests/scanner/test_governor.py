"""The number of lanes follows how much of its time a lane waits."""

from __future__ import annotations

import pytest

from mkmeta.scanner.governor import LANES_MAX, Governor


class Worker:
    """A worker whose lanes wait for a share of their time that can be changed."""

    def __init__(self, waiting: float) -> None:
        self.waiting = waiting
        self.now = 100.0
        self.governor = Governor(clock=lambda: self.now)

    def run(self, seconds: float) -> list[int]:
        """The numbers of lanes from one hundredth of a second to the next."""
        history = []
        for _ in range(round(seconds * 100)):
            self.now += 0.01
            if self.governor.looking:
                self.governor.count(0.01, 0.01 * self.waiting)
            history.append(self.governor.lanes)
        return history


@pytest.mark.parametrize(
    ("waiting", "lanes"), [(0, 1), (0.05, 1), (0.3, 1), (0.5, 2), (0.9, 10), (0.97, LANES_MAX), (1, LANES_MAX)]
)
def test_lanes_fill_the_time_one_waits(waiting: float, lanes: int) -> None:
    assert Worker(waiting).run(0.1)[-1] == lanes


def test_a_twentieth_of_a_second_is_enough() -> None:
    assert Worker(0.9).run(0.06)[-1] == 10


def test_measuring_costs_little() -> None:
    history = Worker(0.9).run(20)
    assert set(history) == {1, 10}
    assert history.count(1) < 0.05 * len(history)


def test_lanes_follow_when_answers_come_from_memory() -> None:
    worker = Worker(0.97)
    worker.run(1)
    worker.waiting = 0
    assert worker.run(3)[-1] == 1
