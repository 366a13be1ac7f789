"""Which directories to select: the fewest inodes that answer for so many misses.

A directory answers for all below it, so what is chosen never lies in each other, and gains add up. Candidates are the
directories that were asked in vain, and within a release those above them. The best choice is found exactly, as all
pairs of cost and gain that nothing beats (a Pareto front, merged from the leaves up), as long as there are not too
many; beyond, by greedy cover: always what gains most for each inode it costs, and in the end what is not needed goes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from mkmeta.demand.reading import FIRST_MISSES, WRITES, Demand
from mkmeta.demand.shape import Measure, NoShape, Shape, release_of

_FRONT_MAX: Final = 2000  # pairs; more, and greedy is as good for practical purposes
_EXACT: Final = 1 - 2**-50  # takes back what a product of floats is too large by: 7 % of 100 are 7
_MERGES_MAX: Final = 100_000  # pairs looked at in all: a quarter of a second, 10 MB


@dataclass(slots=True)
class Candidate:
    """A directory that could be selected."""

    path: bytes
    gain: int  # misses in it and below
    cost: int  # inodes
    below: list[Candidate] = field(default_factory=list)


class Choice(NamedTuple):
    """A directory that is to be selected."""

    path: bytes
    gain: int
    cost: int


class Left(NamedTuple):
    """A directory whose misses stay, and why."""

    path: bytes
    misses: int
    why: str


@dataclass(frozen=True, slots=True)
class Cover:
    """What is to be selected, best first, and what is not."""

    chosen: list[Choice]
    left: list[Left]  # most misses first
    misses: int  # on the volume
    exact: bool
    others: list[Choice]  # what may be selected too, was asked in vain as well, and is not needed

    def with_others(self, added: Iterable[Choice]) -> Cover:
        """The same with some of the others."""
        more = {one.path: one for one in added}
        chosen = sorted([*self.chosen, *more.values()], key=_best_first)
        left = [one for one in self.left if not is_within(one.path, more)]
        return replace(self, chosen=chosen, left=left, others=[one for one in self.others if one.path not in more])

    def with_selection(self, selected: Iterable[Choice]) -> Cover:
        """The same with a selection of others: of these, what may be taken beside it."""
        chosen = sorted(selected, key=_best_first)
        tops = {one.path for one in chosen}
        around = with_above(tops)
        others = [one for one in self.others if one.path not in around and not is_within(one.path, tops)]
        return replace(self, chosen=chosen, others=others)

    @property
    def gain(self) -> int:
        """The misses that are covered."""
        return sum(choice.gain for choice in self.chosen)

    @property
    def cost(self) -> int:
        """The inodes that takes."""
        return sum(choice.cost for choice in self.chosen)


class Hot(NamedTuple):
    """Misses on the volume, where they are."""

    misses: dict[bytes, int]  # by directory that is there
    written: set[bytes]  # directories that something was written into


def settle(demand: Demand, shape: Shape) -> tuple[Hot, int]:
    """Misses by directory that is there, and how many lead out of the volume.

    A client asks for a directory that is missing once, whatever it was to find in there.
    """
    misses: dict[bytes, int] = {}
    written: set[bytes] = set()
    missing: set[tuple[bytes, bytes]] = set()
    out = 0
    for path, counts in demand.directories.items():
        place = shape.place(path)
        if place is None:
            out += counts[FIRST_MISSES]
            continue
        count = counts[FIRST_MISSES]
        if place.missing is not None and count:
            count = int((place.path, place.missing) not in missing)
            missing.add((place.path, place.missing))
        if count:
            misses[place.path] = misses.get(place.path, 0) + count
        if counts[WRITES] and place.missing is None:
            written.add(place.path)
    return Hot(misses, written), out


def choose(
    hot: Hot,
    shape: Shape,
    *,
    cover: float,
    max_cost: int | None,
    bonus: Mapping[bytes, float] | None = None,
    cost_of: Mapping[bytes, Measure] | None = None,
) -> Cover:
    """What to select so that a share of the misses is covered, and no more than `max_cost` inodes are held.

    `bonus` multiplies what paths that are selected already gain, so that a choice does not change for next to nothing.
    """
    measured = dict(cost_of or {})
    refused: dict[bytes, str] = {}
    written = with_above(hot.written)
    for path in sorted(_possible(hot.misses, shape)):
        measure = measured.get(path) or shape.measure(path)
        measured[path] = measure
        why = measure.refused
        if why is None and path in written:
            why = "it is written into: a home of files that change"
        if why is not None:
            refused[path] = why
    costs = {path: one.entries for path, one in measured.items() if path not in refused}
    roots = _forest(hot.misses, costs, bonus or {})
    total = sum(hot.misses.values())
    reachable = sum(root.gain for root in roots)
    loyal = sum(root.gain for root in roots) - sum(root.gain for root in _forest(hot.misses, costs, {}))
    wanted = min(math.ceil(cover * total * _EXACT) + max(loyal, 0), reachable)
    picked = _exact(roots, wanted, max_cost)
    exact = picked is not None
    if picked is None:
        picked = _greedy(roots, wanted, max_cost)
    gains = gains_of(hot.misses, {one.path for one in picked})
    chosen = [Choice(one.path, gains[one.path], one.cost) for one in picked]
    chosen.sort(key=_best_first)
    tops = {one.path for one in chosen}
    around = with_above(tops)
    others = [path for path in costs if path in hot.misses and path not in around and not is_within(path, tops)]
    more = gains_of(hot.misses, set(others))
    rest = [
        Choice(path, more[path], costs[path])
        for path in sorted(others)
        if not is_within(path.rpartition(b"/")[0], more)
    ]
    return Cover(chosen, _left(hot.misses, chosen, refused, max_cost), total, exact, rest)


def _best_first(choice: Choice) -> tuple[float, bytes]:
    return -choice.gain / choice.cost, choice.path


def is_within(path: bytes, tops: Container[bytes]) -> bool:
    """Whether a path is one of some directories, or in it."""
    return top_of(path, tops) is not None


def top_of(path: bytes, tops: Container[bytes]) -> bytes | None:
    """The one of some directories that a path is, or is in; the deepest. The root is none."""
    while path and path not in tops:
        path = path.rpartition(b"/")[0]
    return path or None


def with_above(paths: Iterable[bytes]) -> set[bytes]:
    """Paths, and the directories above them."""
    found: set[bytes] = set()
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _possible(misses: Mapping[bytes, int], shape: Shape) -> set[bytes]:
    """What could be selected: hot directories, and what is above them in the same release."""
    found = set(misses) - {b""}
    if isinstance(shape, NoShape):
        return found
    for path in misses:
        release = release_of(path)
        while release is not None and len(path) > len(release):
            path = path.rpartition(b"/")[0]
            found.add(path)
    return found


def _forest(misses: Mapping[bytes, int], costs: Mapping[bytes, int], bonus: Mapping[bytes, float]) -> list[Candidate]:
    """The candidates, each below the nearest that is above it, with their gains."""
    candidates = {path: Candidate(path, 0, costs[path]) for path in sorted(costs)}

    def add_up(counts: Mapping[bytes, int]) -> None:
        for path, count in counts.items():
            at = top_of(path, candidates)
            while at is not None:
                candidates[at].gain += count
                at = top_of(at.rpartition(b"/")[0], candidates)

    add_up(misses)
    add_up({path: int(candidates[path].gain * (factor - 1)) for path, factor in bonus.items() if path in candidates})
    roots: list[Candidate] = []
    for path, candidate in candidates.items():
        above = top_of(path.rpartition(b"/")[0], candidates)
        (roots if above is None else candidates[above].below).append(candidate)
    return roots


def gains_of(misses: Mapping[bytes, int], tops: set[bytes]) -> dict[bytes, int]:
    """The misses in and below directories that do not lie in each other."""
    gains = dict.fromkeys(tops, 0)
    for path, count in misses.items():
        at = top_of(path, gains)
        if at is not None:
            gains[at] += count
    return gains


class _Point(NamedTuple):
    """A set of candidates that no other beats in both."""

    cost: int
    gain: int
    one: Candidate | None  # the last one in it; or
    parts: tuple[_Point, _Point] | None  # what it is put together from


_NONE: Final = _Point(0, 0, None, None)


def _exact(roots: Sequence[Candidate], wanted: float, max_cost: int | None) -> list[Candidate] | None:
    """The cheapest choice that gains enough, or if none may, what gains most; None: too much to look at."""
    budget = [_MERGES_MAX]
    front = _merged([_front(root, budget) for root in roots], budget)
    if front is None:
        return None
    allowed = [point for point in front if max_cost is None or point.cost <= max_cost]
    point = next((point for point in allowed if point.gain >= wanted), allowed[-1])
    found, waiting = [], [point]
    while waiting:
        point = waiting.pop()
        if point.one is not None:
            found.append(point.one)
        waiting += point.parts or ()
    return found


def _front(top: Candidate, budget: list[int]) -> list[_Point] | None:
    """The front of a candidate and all below it, by a walk of its own: a volume may be deeper than Python's stack."""
    order, waiting = [], [top]
    while waiting:
        order.append(waiting.pop())
        waiting += order[-1].below
    fronts: dict[int, list[_Point] | None] = {}
    for candidate in reversed(order):
        below = _merged([fronts.pop(id(one)) for one in candidate.below], budget)
        whole = _Point(candidate.cost, candidate.gain, candidate, None)
        fronts[id(candidate)] = None if below is None else _best([*below, whole])
    return fronts[id(top)]


def _merged(fronts: Iterable[list[_Point] | None], budget: list[int]) -> list[_Point] | None:
    merged = [_NONE]
    for front in fronts:
        if front is None or budget[0] < 0:
            return None
        budget[0] -= len(front) * len(merged)
        if budget[0] < 0:
            return None
        merged = _best([_Point(a.cost + b.cost, a.gain + b.gain, None, (a, b)) for a in merged for b in front])
        if len(merged) > _FRONT_MAX:
            return None
    return merged


def _best(points: list[_Point]) -> list[_Point]:
    """Those that gain more than all that cost no more, by cost."""
    points.sort(key=lambda point: (point.cost, -point.gain))
    best: list[_Point] = []
    for point in points:
        if not best or point.gain > best[-1].gain:
            best.append(point)
    return best


def _greedy(roots: Sequence[Candidate], wanted: float, max_cost: int | None) -> list[Candidate]:
    """What gains most per inode first, on top of what is chosen; a directory takes the place of those below it."""
    above: dict[int, Candidate] = {}
    everything, waiting = [], list(roots)
    while waiting:
        one = waiting.pop()
        everything.append(one)
        waiting += one.below
        above.update((id(child), one) for child in one.below)
    inner: dict[int, tuple[int, int]] = {}  # gain and cost of what is chosen below
    gone: set[int] = set()
    picked: dict[int, Candidate] = {}
    heap = [(-one.gain / one.cost, one.path, one) for one in everything if one.gain]
    heapq.heapify(heap)
    gain = cost = 0
    while heap and gain < wanted:
        rate, _, one = heapq.heappop(heap)
        if id(one) in gone:
            continue
        gained, paid = inner.get(id(one), (0, 0))
        more, extra = one.gain - gained, max(one.cost - paid, 1)
        if more <= 0 or -rate > more / extra:
            if more > 0:
                heapq.heappush(heap, (-more / extra, one.path, one))
            continue
        if max_cost is not None and cost + one.cost - paid > max_cost:
            continue
        waiting = list(one.below)
        while waiting:
            lower = waiting.pop()
            gone.add(id(lower))
            picked.pop(id(lower), None)
            waiting += lower.below
        gone.add(id(one))
        picked[id(one)] = one
        gain, cost = gain + more, cost + one.cost - paid
        at = above.get(id(one))
        while at is not None:
            g, c = inner.get(id(at), (0, 0))
            inner[id(at)] = (g + more, c + one.cost - paid)
            if id(at) not in gone and at.gain > g + more:
                heapq.heappush(heap, (-(at.gain - g - more) / max(at.cost - c - one.cost + paid, 1), at.path, at))
            at = above.get(id(at))
    for one in sorted(picked.values(), key=lambda one: (-one.cost, one.path)):
        if gain - one.gain >= wanted:
            del picked[id(one)]
            gain -= one.gain
    return list(picked.values())


def _left(
    misses: Mapping[bytes, int], chosen: Sequence[Choice], refused: Mapping[bytes, str], max_cost: int | None
) -> list[Left]:
    tops = {choice.path for choice in chosen}
    left = []
    for path, count in misses.items():
        if not is_within(path, tops):
            why = refused.get(path) or ("the root always shows what the volume has as well" if not path else None)
            why = why or (
                "not needed for the share that was asked for"
                if max_cost is None
                else "not worth its inodes, of those allowed"
            )
            left.append(Left(path, count, why))
    return sorted(left, key=lambda one: (-one.misses, one.path))
