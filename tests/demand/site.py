"""A site in memory, for as many days as are asked for: its volume, its programs that come and go, its hosts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mkmeta.cli.pattern_file import parse_patterns
from mkmeta.demand.cover import with_above
from mkmeta.demand.history import History
from mkmeta.demand.patterns import selected_by
from mkmeta.demand.promotion import Outcome, Policy, decide, fade, take
from mkmeta.demand.reading import Demand
from mkmeta.demand.shape import Measure, Place
from tests.demand.profiles import DAY_NS

FILES: Final = 40  # below a lib
PRODUCTS_OF_APP: Final = 30


class Site:
    """A volume: products with releases, each with lib and bin; a shape as `suggest` sees it."""

    def __init__(self, products: int, releases: int) -> None:
        self.releases = {p: list(range(releases)) for p in range(products)}
        self.products = [b"p%d" % p for p in range(products)]
        self.unsettled: set[bytes] = set()  # what changed lately

    def place(self, path: bytes) -> Place | None:
        names = path.split(b"/") if path else []
        for depth in range(len(names)):
            if names[depth] not in self.directories(b"/".join(names[:depth])):
                return Place(b"/".join(names[:depth]), names[depth])
        return Place(path, None)

    def measure(self, path: bytes) -> Measure:
        depth = path.count(b"/")
        if depth < 2 or not path:
            return Measure(1, "releases appear in it")
        if self.place(path) != Place(path, None):
            return Measure(1, "it cannot be read")
        return Measure(FILES * (4 - depth), "it changed lately" if path in with_above(self.unsettled) else None)

    def directories(self, path: bytes) -> list[bytes]:
        names = path.split(b"/") if path else []
        if len(names) == 2:
            return [b"v%d" % n for n in self.releases[int(names[1][1:])]]
        if len(names) == 3:
            return [b"bin", b"lib"]
        return {0: [b"grp"], 1: self.products}.get(len(names), [])

    def others(self, path: bytes) -> list[bytes]:
        return []

    def size(self, path: bytes) -> int | None:
        return None


@dataclass
class Loop:
    """What promote does day by day, with the lines it wrote last in force."""

    site: Site
    policy: Policy
    history: History = field(default_factory=History)
    text: bytes = b""

    def served(self) -> set[bytes]:
        """What the lines select by now."""
        return selected_by(parse_patterns(self.text), self.site)

    def run(self, now_ns: int, reports: Iterable[dict[bytes, int]], written: set[bytes] | None = None) -> Outcome:
        """One run, with misses by directory of some profiles."""
        fade(self.history, now_ns, self.policy)
        for report in reports:
            take(self.history, Demand({p: [n, 0, 0, 0, 0, n, *[0] * 6] for p, n in report.items()}), self.site)
        outcome = decide(self.history, self.site, written or set(), self.policy, self.served())
        assert sum(one.cost for one in outcome.selected) <= self.policy.budget
        assert all(self.site.measure(one.path).refused is None for one in outcome.selected)
        if outcome.lines is not None:
            self.text = b"".join(sorted(line.pattern + b"\n" for line in outcome.lines))
        assert self.served() == {one.path for one in outcome.selected}, "the lines say what is selected"
        return outcome


@dataclass
class Month:
    """What was measured, by day."""

    shares: list[float] = field(default_factory=list)  # of the misses, answered locally
    inodes: list[int] = field(default_factory=list)  # held
    releases: list[bool] = field(default_factory=list)
    flips: Counter[bytes] = field(default_factory=Counter)  # how often each directory came or went
    wanted: int = 0  # inodes of what the programs of the last day ask

    def __str__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.shares)
        days = " ".join(str(day) for day, released in enumerate(self.releases, 1) if released)
        held = f"inodes {self.inodes} of {self.wanted} wanted"
        return f"local {shares}\n{held}\nreleases {sum(self.releases)}: days {days}\n"


def simulate(
    products: int, releases: int, apps: int, hosts: int, *, budget: float, days: int = 30, seed: int = 13
) -> Month:
    """A site for so long; every day its hosts report what their servers heard. `budget`: in parts of what is wanted."""
    chance = random.Random(seed)
    site, month = Site(products, releases), Month()

    def app() -> list[tuple[int, int]]:
        some = chance.sample(sorted(site.releases), min(products, PRODUCTS_OF_APP))
        return [(p, chance.choice(site.releases[p])) for p in some]

    running = [app() for _ in range(apps)]
    asked_for = len({one for parts in running for one in parts}) * FILES
    loop = Loop(site, Policy(budget=int(budget * asked_for), cold_ns=20 * DAY_NS))
    for day in range(1, days + 1):
        if day % 5 == 0:
            running[chance.randrange(apps)] = app()
        if day % 3 == 0:
            product = chance.randrange(products)
            site.releases[product].append(site.releases[product][-1] + 1)
        served, before = loop.served(), loop.text
        asked = local = 0
        reports = []
        for number, times in sorted(Counter(chance.randrange(apps) for _ in range(hosts)).items()):
            report: dict[bytes, int] = {}
            for product, release in running[number]:
                path = b"grp/p%d/v%d/lib" % (product, release)
                asked += 100 * times  # hosts with the same program report the same
                if path in served or path.rpartition(b"/")[0] in served:
                    local += 100 * times
                else:
                    report[path] = 100 * times
            reports.append(report)
        month.shares.append(local / asked)
        outcome = loop.run(day * DAY_NS, reports)
        month.flips.update(change.path for change in outcome.changes)
        month.inodes.append(sum(one.cost for one in outcome.selected))
        month.releases.append(loop.text != before)
    month.wanted = len({one for parts in running for one in parts}) * FILES
    return month
