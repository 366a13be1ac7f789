"""When the watcher looks, and at what, by a clock that does not tick by itself."""

from __future__ import annotations

import itertools
import time
from typing import cast

import pytest

from mkmeta.pattern import Patterns
from mkmeta.publisher.hearing import LEVELS_MAX, Heard, Hearing
from mkmeta.publisher.levels import Part
from mkmeta.publisher.schedule import EVERYTHING_EVERY, FLOOD_PAUSE, SETTLE, Schedule
from mkmeta.publisher.watch import Pass

EVERY = 600.0
SELECT = Patterns([b"grp/*"])


class Ear:
    """A clock, and what there is to be heard at which time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tells: list[tuple[float, Heard | OSError]] = []
        self.listening = 0  # how often it was asked to
        self.works = True
        self.there = True

    def clock(self) -> float:
        return self.now

    def listen(self) -> Hearing | None:
        self.listening += 1
        return cast("Hearing", self) if self.works else None

    def collect(self, select: Patterns) -> Heard:
        assert select.sources
        levels: dict[bytes, bool] = {}
        everything = False
        for _, heard in [one for one in self.tells if one[0] <= self.now]:
            if isinstance(heard, OSError):
                raise heard
            levels |= heard.levels
            everything |= heard.everything
        self.tells = [one for one in self.tells if one[0] > self.now]
        return Heard(levels, everything)

    def is_there(self) -> bool:
        return self.there

    def wait(self, seconds: float) -> None:
        assert seconds > 0, "it must not turn in place"
        self.now = min([self.now + seconds, *(when for when, _ in self.tells)])

    def close(self) -> None:
        self.tells = []


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Ear:
    ear = Ear()
    monkeypatch.setattr(time, "sleep", lambda seconds: ear.wait(seconds))
    return ear


@pytest.fixture
def schedule(ear: Ear) -> Schedule:
    """After a first look at everything."""
    schedule = Schedule(EVERY, ear.listen, ear.clock)
    assert schedule.next() is None
    schedule.ended(None, Pass(select=SELECT))
    return schedule


def took(schedule: Schedule, ear: Ear, done: Pass | None = None, seconds: float = 0.0) -> tuple[float, Part | None]:
    """When the next turn came, and what is to be looked at in it."""
    part = schedule.next()
    when = ear.now
    ear.now += seconds
    schedule.ended(part, done or Pass(select=SELECT))
    return when, part


def levels(part: Part | None) -> set[str]:
    return {"everything"} if part is None else {level.decode() for level in part.levels}


def test_without_events_everything_every_time(ear: Ear) -> None:
    ear.works = False
    schedule = Schedule(EVERY, ear.listen, ear.clock)
    for number in range(3):
        assert took(schedule, ear, seconds=7) == (1000.0 + number * EVERY, None)
    assert ear.listening == 3, "it may be there later"


def test_what_is_heard_is_looked_at_at_once_and_what_is_not_every_hour(schedule: Schedule, ear: Ear) -> None:
    ear.tells = [(1100.0, Heard({b"grp": False, b"": True})), (1101.0, Heard({b"grp": True, b"other": False}))]
    when, part = took(schedule, ear)
    assert part is not None
    assert (when, levels(part), part.moved) == (1100.0 + SETTLE, {"grp", ""}, frozenset({b"grp", b""}))
    assert (ear.now, levels(took(schedule, ear)[1])) == (1100.0 + SETTLE, {"other"})
    idle = [took(schedule, ear) for _ in range(5)]
    assert [levels(part) for _, part in idle] == [set()] * 5
    assert idle[-1][0] < 1000.0 + EVERYTHING_EVERY
    ear.now = 1000.0 + EVERYTHING_EVERY
    assert took(schedule, ear) == (1000.0 + EVERYTHING_EVERY, None)


def test_what_waits_is_looked_at_when_it_may_be_complete(schedule: Schedule, ear: Ear) -> None:
    ear.tells = [(1100.0, Heard({b"grp": False}))]
    waits = Pass(select=SELECT, again={b"grp": 60.0}, failed=[(b"grp/a/broken", "why")])
    assert took(schedule, ear, waits)[0] == 1100.0 + SETTLE
    assert took(schedule, ear)[0] == 1100.0 + SETTLE + 60.0
    when, part = took(schedule, ear)
    assert (when, levels(part)) == (1100.0 + SETTLE + EVERY, {"grp/a"})


def test_a_flood_makes_it_look_at_everything_but_not_all_the_time(schedule: Schedule, ear: Ear) -> None:
    ear.now += 1000.0
    took(schedule, ear)
    started = ear.now
    ear.tells = [(started + number, Heard({}, everything=True)) for number in range(1, 600)]
    found = [took(schedule, ear) for _ in range(5)]
    assert [part for _, part in found] == [None] * 5
    assert [later[0] - sooner[0] for sooner, later in itertools.pairwise(found)] == [FLOOD_PAUSE] * 4
    assert found[0][0] == started + 1 + SETTLE


def test_what_is_kept_is_bounded(schedule: Schedule, ear: Ear) -> None:
    ear.tells = [
        (1100.0 + number / 1000, Heard({b"%d" % (number * 100 + level): True for level in range(100)}))
        for number in range(LEVELS_MAX // 100 + 2)
    ]
    parts = [schedule.next()]
    while parts[-1] is not None and parts[-1].levels:
        schedule.ended(parts[-1], Pass(select=SELECT))
        parts.append(schedule.next())
    assert parts[-1] is None, "those beyond are in everything"
    assert ear.now < 1110.0
    assert sum(len(part.levels) for part in parts if part is not None) <= LEVELS_MAX


def test_a_pass_that_fails_is_made_good_by_one_at_everything(schedule: Schedule, ear: Ear) -> None:
    ear.tells = [(1100.0, Heard({b"grp": False}))]
    assert levels(schedule.next()) == {"grp"}
    schedule.ended(Part(frozenset({b"grp"}), frozenset(), 0), None)
    assert took(schedule, ear) == (1100.0 + SETTLE + EVERY, None)


def test_long_passes_leave_time_for_others(schedule: Schedule, ear: Ear) -> None:
    ear.tells = [(1100.0 + number, Heard({b"grp": False})) for number in range(200)]
    first, second = took(schedule, ear, seconds=10)[0], took(schedule, ear)[0]
    assert second - first == 50.0


def test_a_volume_that_is_mounted_anew(schedule: Schedule, ear: Ear) -> None:
    for problem in (False, True):
        before = ear.listening
        if problem:
            ear.tells = [(ear.now + 5, OSError("the volume is not there"))]
        else:
            ear.there = False
        assert took(schedule, ear)[1] is None
        ear.there = True
        assert ear.listening == before + 1
        assert ear.now - 1000.0 <= 2 * EVERY


def test_another_selection_has_everything_looked_at(schedule: Schedule, ear: Ear) -> None:
    took(schedule, ear, Pass(select=Patterns([b"*"])))
    assert schedule.next() is None
