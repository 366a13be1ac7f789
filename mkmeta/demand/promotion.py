"""The loop: what is hot is selected, what is cold is dropped, and nothing swings.

What is selected is answered locally, and a server hears of it no more: to `nfs` profiles, silence about it says
nothing. So demand is a rate, misses a day, of the days in which it could be heard: it fades while a directory is not
selected, and stands still while it is. The law (docs/observe.md has it in words):

1. At once goes what is gone, written into, or may not be selected whole any more: nothing is ever hidden.
2. The budget always holds.
3. A directory stays for `residence` whatever else is hot. After that it makes room for what gains `LOYALTY` times as
   much. What made room is not taken again within `residence`, unless it is asked for `LOYALTY` times as often as then.
4. What is selected is dropped on trial when nothing at all was seen in it for `cold` (profiles of programs do see it),
   a few at a time; where that was wrong, since it was hot again soon, the next trial comes after twice the time.
5. Changes are made together, in one release of the layer: when they gain `worth` of all misses, when they have waited
   for `patience`, or when 1 or 2 needs a release anyway.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mkmeta.demand.cover import Choice, Cover, Hot, choose, gains_of, is_within, settle, top_of, with_above
from mkmeta.demand.history import TRIALS_MAX, Held, History, Weight, forget
from mkmeta.demand.patterns import Line, is_writable, lines
from mkmeta.demand.reading import FIRST_MISSES, Demand
from mkmeta.demand.shape import Measure, Shape
from mkmeta.model import NS

PROFILE_MISSES_MAX: Final = 1_000_000  # that one profile counts for, whatever it claims
LOYALTY: Final = 2.0  # what a selected directory's misses count, against others'
_ON_TRIAL: Final = 50  # one of so many selected directories may be dropped on trial in one release: most are hot still
_FORGOTTEN: Final = 0.5  # misses
_DAY_NS: Final = 86_400 * NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the administrator decides. Times in ns."""

    cover: float = 0.99
    budget: int = 1_000_000  # inodes
    half_life_ns: int = 7 * _DAY_NS
    cold_ns: int = 90 * _DAY_NS
    worth: float = 0.05  # the share of all misses that changes must gain to be released at once
    patience_ns: int = 7 * _DAY_NS  # after which they are released if they gain less
    residence_ns: int = 14 * _DAY_NS


class Change(NamedTuple):
    """A directory that is selected from now on, or no more."""

    path: bytes
    added: bool
    why: str


@dataclass(slots=True)
class Outcome:
    """What a run decides."""

    selected: list[Choice]
    lines: list[Line] | None  # None: those in force stay
    unwritable: list[Choice]
    changes: list[Change] = field(default_factory=list)
    waiting: int = 0  # changes that are not worth a release yet


def take(history: History, demand: Demand, shape: Shape) -> set[bytes]:
    """Adds what one profile counted; returns the directories that something was written into."""
    hot, _ = settle(demand, shape)
    total = sum(hot.misses.values())
    scale = min(1.0, PROFILE_MISSES_MAX / total) if total else 1.0
    tops = history.selected()
    for path, count in hot.misses.items():
        known = history.weights.get(path)
        if known is None:
            history.weights[path] = Weight(count * scale, 1.0)
            history.heard.add(path)
        elif path in history.heard or not is_within(path, tops):
            history.weights[path] = Weight(known.misses + count * scale, known.days)
    for path in set(hot.misses) | {p for p, counts in demand.directories.items() if any(counts[:FIRST_MISSES])}:
        top = top_of(path, tops)
        if top is not None:
            history.held[top].seen_ns = history.updated_ns
    return hot.written


def fade(history: History, now_ns: int, policy: Policy) -> None:
    """Time has passed: what is not selected weighs less, and was heard for longer."""
    passed = max(now_ns - history.updated_ns, 0) if history.updated_ns else 0
    factor = 0.5 ** (passed / policy.half_life_ns)
    longest = policy.half_life_ns / _DAY_NS / math.log(2)  # days that count, of one that was always heard
    tops = history.selected()
    for path, weight in history.weights.items():
        if not is_within(path, tops):
            days = weight.days * factor + longest * (1 - factor)
            history.weights[path] = Weight(weight.misses * factor, days)
    history.updated_ns = max(now_ns, history.updated_ns)
    history.heard.clear()
    forget(history, _FORGOTTEN, now_ns - max(policy.cold_ns << (TRIALS_MAX + 1), policy.residence_ns))


def decide(
    history: History, shape: Shape, written: set[bytes], policy: Policy, matched: Iterable[bytes] | None = None
) -> Outcome:
    """What is selected from now on, noted in the history too.

    `matched`: what the lines that are in force select by now; None: what was decided before. What came since they were
    written is held like the rest.
    """
    now = history.updated_ns
    changes = _came(history, shape, matched or ())
    gone = _gone(history, shape, written)
    changes += gone
    kept = history.selected()
    cold = _cold(history, kept, policy)
    misses = {
        path: round(weight.a_day)
        for path, weight in history.weights.items()
        if weight.a_day >= 1 and not is_within(path, cold)
    }
    plan = _Plan(history, shape, written, policy, misses, kept - cold.keys())
    chosen, cover = plan.best()
    won, lost = plan.difference(kept, chosen)
    forced = bool(gone) or plan.cost(kept) > policy.budget or (matched is not None and _tops(matched) != kept)
    waiting = len(chosen.keys() ^ kept)
    late = now - history.changed_ns >= policy.patience_ns and (won > lost or cold)
    if not forced and not (waiting and (late or won - lost >= max(policy.worth * sum(misses.values()), 1))):
        return Outcome(plan.choices(kept), None, plan.unwritable, changes, waiting)
    for path, days in cold.items():
        changes.append(_drop(history, path, f"nothing was asked of it for {days} days"))
        history.held[path].dropped_ns = now
        history.weights = {one: weight for one, weight in history.weights.items() if not is_within(one, {path})}
    for path in sorted(plan.kept - chosen.keys()):
        above = is_within(path, chosen)
        if not above:
            history.held[path].left_ns = now
            history.held[path].left_demand = plan.gain(path)
        changes.append(_drop(history, path, "a directory above it is selected" if above else "others gain more"))
    found, _, cover = lines(cover.with_selection(chosen.values()), shape, max_cost=policy.budget)
    chosen |= {one.path: one for one in cover.chosen}
    changes += [_add(history, path, chosen[path], policy) for path in sorted(chosen.keys() - plan.kept)]
    history.changed_ns = now
    return Outcome(cover.chosen, found, plan.unwritable, changes)


def _tops(paths: Iterable[bytes]) -> set[bytes]:
    """Those that lie in no other."""
    found = set(paths)
    return {path for path in found if not is_within(path.rpartition(b"/")[0], found)}


def _came(history: History, shape: Shape, matched: Iterable[bytes]) -> list[Change]:
    """What a line in force selects, and is new."""
    known = history.selected()
    changes = []
    for path in sorted(_tops(matched) - known):
        if shape.measure(path).refused is None and not is_within(path, known):
            held = history.held.setdefault(path, Held())
            held.since_ns = held.seen_ns = history.updated_ns
            changes.append(Change(path, added=True, why="it came, and a line selects it"))
    return changes


def _gone(history: History, shape: Shape, written: set[bytes]) -> list[Change]:
    """Drops what must not be selected any more."""
    touched = with_above(written)
    changes = []
    for path in sorted(history.selected()):
        place = shape.place(path)
        if place is None or place.missing is not None or place.path != path:
            why: str | None = "it is gone"
        else:
            why = shape.measure(path).refused or ("it is written into" if path in touched else None)
        if why is not None:
            changes.append(_drop(history, path, why))
    tops = {change.path for change in changes}
    history.weights = {path: weight for path, weight in history.weights.items() if not is_within(path, tops)}
    return changes


def _cold(history: History, kept: set[bytes], policy: Policy) -> dict[bytes, int]:
    """What is to be dropped on trial, and the days in which nothing was asked of it: longest first."""
    found: dict[bytes, int] = {}
    for path in sorted(kept, key=lambda path: (history.held[path].seen_ns, path)):
        held = history.held[path]
        silent = history.updated_ns - held.seen_ns
        if silent > policy.cold_ns << held.trials and len(found) < max(len(kept) // _ON_TRIAL, 1):
            found[path] = silent // _DAY_NS
    return found


class _Plan:
    """What would best be selected, whatever a release costs."""

    def __init__(
        self,
        history: History,
        shape: Shape,
        written: set[bytes],
        policy: Policy,
        misses: dict[bytes, int],
        kept: set[bytes],
    ) -> None:
        self.kept = kept  # of what is selected, what is not dropped on trial
        self._history, self._shape, self._policy, self._written = history, shape, policy, written
        self._misses = misses
        self._measured = {path: shape.measure(path) for path in sorted(kept)}
        self._gains = gains_of(misses, kept)
        self.unwritable = [Choice(path, misses[path], 1) for path in sorted(misses) if not is_writable(path)]
        barred = {one.path: "it cannot be written as a line" for one in self.unwritable}
        since = history.updated_ns - policy.residence_ns
        out = {p: held for p, held in history.held.items() if not held.since_ns and held.left_ns > max(since, 0)}
        gains = gains_of(misses, set(out))
        for path in (path for path, held in out.items() if gains[path] < LOYALTY * held.left_demand):
            barred[path] = "it made room for others lately"
        self._barred = {path: Measure(1, why) for path, why in barred.items()}

    def cost(self, paths: Iterable[bytes]) -> int:
        """The inodes that directories take."""
        return sum((self._measured.get(path) or self._shape.measure(path)).entries for path in paths)

    def gain(self, path: bytes) -> int:
        """The misses a day in a directory that is selected."""
        return self._gains.get(path, 0)

    def choices(self, paths: Iterable[bytes]) -> list[Choice]:
        """Directories that are selected, as what they gain and cost."""
        return [Choice(path, self.gain(path), self.cost([path])) for path in sorted(paths)]

    def difference(self, before: set[bytes], after: Container[bytes]) -> tuple[int, int]:
        """The misses a day that one selection answers more than another, and those that it answers no more."""
        won = lost = 0
        for path, count in self._misses.items():
            was, will = is_within(path, before), is_within(path, after)
            won += count * (will and not was)
            lost += count * (was and not will)
        return won, lost

    def best(self) -> tuple[dict[bytes, Choice], Cover]:
        """The best selection; one in which nothing makes room, when what does would not be worth it altogether."""
        now = self._history.updated_ns
        if self.cost(self.kept) > self._policy.budget:  # something came: what is asked for more stays, old or young
            return self._choose(set())
        young = {path for path in self.kept if now - self._history.held[path].since_ns < self._policy.residence_ns}
        chosen, cover = self._choose(young)
        won, lost = self.difference(self.kept, chosen)
        return self._choose(self.kept) if won < LOYALTY * lost else (chosen, cover)

    def _choose(self, stay: set[bytes]) -> tuple[dict[bytes, Choice], Cover]:
        """The best selection of those in which some directories stay."""
        budget = self._policy.budget
        cover = choose(
            Hot({path: count for path, count in self._misses.items() if not is_within(path, stay)}, self._written),
            self._shape,
            cover=self._policy.cover,
            max_cost=budget - self.cost(stay),
            bonus=dict.fromkeys(self.kept - stay, LOYALTY),
            cost_of={**self._measured, **self._barred},
        )
        chosen = {one.path: one for one in cover.chosen}
        above = with_above(chosen)
        rest = sorted(self.kept - chosen.keys(), key=lambda path: (path not in stay, -self._density(path), path))
        room = budget - cover.cost
        for path in rest:
            entries = self._measured[path].entries
            if entries <= room and path not in above and not is_within(path, chosen):
                chosen[path] = Choice(path, self.gain(path), entries)
                room -= entries
        return chosen, cover

    def _density(self, path: bytes) -> float:
        return self.gain(path) / self._measured[path].entries


def _drop(history: History, path: bytes, why: str) -> Change:
    history.held[path].since_ns = 0
    return Change(path, added=False, why=why)


def _add(history: History, path: bytes, choice: Choice, policy: Policy) -> Change:
    now = history.updated_ns
    held = history.held.setdefault(path, Held())
    if held.dropped_ns and now - held.dropped_ns <= policy.cold_ns << held.trials:
        held.trials = min(held.trials + 1, TRIALS_MAX)
    held.since_ns = held.seen_ns = now
    return Change(path, added=True, why=f"{choice.gain} misses a day, {choice.cost} inodes")
