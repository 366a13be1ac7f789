"""The loop settles: the law of mkmeta/demand/promotion.py, in months of sites and against random demand."""

from __future__ import annotations

import sys
from random import Random

import pytest

from mkmeta.demand.cover import is_within
from mkmeta.demand.promotion import Change, Policy
from tests.demand.profiles import DAY_NS
from tests.demand.site import FILES, Loop, Month, Site, simulate


def mean(shares: list[float]) -> float:
    return sum(shares) / len(shares)


def tell(month: Month) -> None:
    sys.stdout.write(str(month))


def test_a_month_of_a_site() -> None:
    month = simulate(products=60, releases=4, apps=6, hosts=20, budget=5)
    tell(month)
    assert min(month.shares[1:]) >= 0.8 and mean(month.shares[1:]) > 0.95, "a new program is news for some days"
    assert sum(month.releases) <= 8 and max(month.flips.values()) <= 3


def test_a_month_with_too_little_room() -> None:
    month = simulate(products=60, releases=4, apps=6, hosts=20, budget=0.25)
    tell(month)
    assert mean(month.shares[1:]) > 0.2, "what is held is used"
    assert sum(month.releases) <= 8 and max(month.flips.values()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("budget", [5, 0.25])
def test_a_month_of_a_large_site(budget: float) -> None:
    month = simulate(products=3000, releases=10, apps=50, hosts=2000, budget=budget)
    tell(month)
    assert mean(month.shares[1:]) > (0.9 if budget > 1 else 0.2)
    assert sum(month.releases) <= 8 and max(month.flips.values()) <= 3


PRODUCTS = 4
LIBS = [b"grp/p%d/v%d/lib" % (p, v) for p in range(PRODUCTS) for v in range(2)]
TROUBLE = 3  # on one day of so many


def some(chance: Random) -> dict[bytes, int]:
    """Misses of a day, in some directories."""
    return {path: int(1000 ** chance.random()) for path in LIBS if chance.randrange(3)}


@pytest.mark.parametrize("seed", range(50))
def test_any_history_keeps_the_law(seed: int) -> None:
    """Demand of any kind, day by day; directories that change, are written into, go and come; a budget for a part."""
    chance = Random(seed)
    loop = Loop(Site(PRODUCTS, 2), Policy(budget=FILES * chance.randint(1, len(LIBS) + 2), residence_ns=4 * DAY_NS))
    came: dict[bytes, int] = {}
    left: dict[bytes, tuple[int, float]] = {}  # the day, and the demand then
    released = 0
    for day in range(1, 40):
        trouble = chance.randrange(TROUBLE) == 0  # of some kind: rule 1 or 2 may be at work today
        if trouble:
            loop.site.unsettled = {path for path in LIBS if not chance.randrange(6)}
            loop.site.releases[chance.randrange(PRODUCTS)] = chance.choice(([0], [0, 1]))
        written = {path for path in LIBS if not chance.randrange(8)} if trouble else set()
        before, served = loop.text, loop.served()
        reports = [{path: count for path, count in some(chance).items() if path not in served} for _ in range(2)]
        outcome = loop.run(day * DAY_NS, reports, written)  # which looks whether something is hidden, or too much
        demand = {path: weight.a_day for path, weight in loop.history.weights.items()}
        for change in outcome.changes:
            path = change.path
            if change.added:
                if path in left and day - left[path][0] < 4:
                    twice = 1.9 * left[path][1] - 1  # both are rounded
                    assert demand[path] >= twice, "it was dropped lately, and is asked for no more now"
                came[path] = day
            elif change.why == "others gain more":
                if not trouble:
                    assert day - came[path] >= 4, "it came lately"
                    assert gained(outcome.changes, demand) >= 1.9 * demand.get(path, 0), "not for twice as much"
                left[path] = (day, demand.get(path, 0))
        if loop.text != before and not trouble and released:
            enough = gained(outcome.changes, demand) >= 0.04 * sum(demand.values())
            assert enough or day - released >= 7, "a release for next to nothing"
        if outcome.lines is not None:
            released = day


def gained(changes: list[Change], demand: dict[bytes, float]) -> float:
    """The misses a day of what came."""
    came = {change.path for change in changes if change.added}
    return sum(count for path, count in demand.items() if is_within(path, came))


@pytest.mark.parametrize("seed", range(6))
def test_steady_demand_settles(seed: int) -> None:
    """Whatever was before: in the end nothing changes, though each day asks for up to a third more or less."""
    chance = Random(seed)
    loop = Loop(Site(PRODUCTS, 2), Policy(budget=FILES * chance.randint(1, len(LIBS)), cold_ns=1000 * DAY_NS))
    steady, changed = some(chance), []
    for day in range(1, 240):
        today = some(chance) if day < 12 else {p: round(n * chance.uniform(0.67, 1.33)) for p, n in steady.items()}
        served, before = loop.served(), loop.text
        loop.run(day * DAY_NS, [{path: count for path, count in today.items() if path not in served}])
        if loop.text != before:
            changed.append(day)
    assert not changed or changed[-1] < 180


def test_what_was_heard_for_longer_weighs_no_more() -> None:
    """The same demand everywhere, and room for half: what is not selected is heard day by day, and wins nothing."""
    loop = Loop(Site(PRODUCTS, 2), Policy(budget=FILES * len(LIBS) // 2, cold_ns=1000 * DAY_NS))
    texts = set()
    for day in range(1, 90):
        served = loop.served()
        loop.run(day * DAY_NS, [{path: 100 for path in LIBS if path not in served}])
        texts.add(loop.text)
    assert len(texts) == 1


def test_what_the_budget_has_no_room_for_goes_even_if_it_is_young() -> None:
    """A release that came is selected by its line: what is held in all never exceeds the budget for that."""
    loop = Loop(Site(1, 2), Policy(budget=2 * FILES))
    loop.run(DAY_NS, [{b"grp/p0/v0/lib": 100, b"grp/p0/v1/lib": 50}])
    assert loop.served() == {b"grp/p0/v0/lib", b"grp/p0/v1/lib"} and b"*" in loop.text
    loop.site.releases[0].append(2)
    outcome = loop.run(2 * DAY_NS, [])
    assert sum(one.cost for one in outcome.selected) <= 2 * FILES
    assert b"grp/p0/v0/lib" in loop.served()
