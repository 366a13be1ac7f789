"""The number of lanes follows what trying shows, on simulated filesystems."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mkmeta.scanner.governor import LANES_MAX, Governor


def simulate(rate: Callable[[int], float], latency: float, seconds: float = 20.0) -> list[int]:
    """The numbers of lanes over time, where `rate(lanes)` requests a second get done."""
    now = 0.0
    governor = Governor(clock=lambda: now)
    history = []
    while now < seconds:
        now += 0.01
        governor.count(max(round(rate(governor.lanes) * 0.01), 1), latency)
        history.append(governor.lanes)
    return history


def test_fast_filesystem_keeps_one_lane() -> None:
    assert set(simulate(lambda lanes: 200_000 / lanes, latency=3e-6)) == {1}


def test_slow_server_gets_many_lanes_quickly() -> None:
    history = simulate(lambda lanes: lanes * 900, latency=1e-3)
    assert history[100] == LANES_MAX, "a second is enough to find out"
    assert min(history[200:]) >= LANES_MAX // 2


def test_server_that_saturates_is_not_flooded() -> None:
    history = simulate(lambda lanes: min(lanes, 8) * 900, latency=1e-3)
    late = history[len(history) // 2 :]
    assert sum(lanes == 8 for lanes in late) > 0.8 * len(late)


def test_busy_machine_is_not_taken_for_a_slow_server() -> None:
    """Requests take long because others use the processors: more lanes bring nothing."""
    history = simulate(lambda lanes: 5_000, latency=200e-6)
    assert sum(lanes == 1 for lanes in history) > 0.8 * len(history)


@pytest.mark.parametrize("first", [1, 4])
def test_fewer_lanes_again_when_the_server_becomes_fast(first: int) -> None:
    now = 0.0
    governor = Governor(clock=lambda: now)
    governor.lanes = first
    for _ in range(4000):
        now += 0.01
        governor.count(round(100_000 * 0.01 / governor.lanes), 50e-6)
    assert governor.lanes <= 2
