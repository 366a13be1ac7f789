"""The loop: what is hot is selected, what is cold is dropped, and nothing swings.

What is selected is answered locally, and a server hears of it no more: to `nfs` profiles, silence about it says
nothing. So the weight of what is selected does not fade. It is dropped on trial when nothing at all was seen in it for
`cold` (profiles of programs do see it), and when that was wrong, since it was hot again soon, the next trial comes
after twice the time. What is selected counts double when directories compete for the budget, so that a choice changes
only for something clearly better. What may not be selected whole (any more) goes at once: nothing is ever hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mkmeta.demand.cover import Choice, Hot, choose, gains_of, is_within, settle, top_of, with_above
from mkmeta.demand.history import TRIALS_MAX, Held, History, forget
from mkmeta.demand.patterns import Line, lines
from mkmeta.demand.reading import FIRST_MISSES, Demand
from mkmeta.demand.shape import Shape
from mkmeta.model import NS

PROFILE_MISSES_MAX: Final = 1_000_000  # that one profile counts for, whatever it claims
_LOYALTY: Final = 2.0  # what a selected directory's misses count, against others'
_ON_TRIAL: Final = 50  # one of so many selected directories may be dropped on trial in one run: most are hot still
_FORGOTTEN: Final = 0.5  # misses


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the administrator decides. Times in ns."""

    cover: float = 0.99
    budget: int = 1_000_000  # inodes
    half_life_ns: int = 7 * 86_400 * NS
    cold_ns: int = 90 * 86_400 * NS


class Change(NamedTuple):
    """A directory that is selected from now on, or no more."""

    path: bytes
    added: bool
    why: str


@dataclass(slots=True)
class Outcome:
    """What a run decides."""

    selected: list[Choice]
    lines: list[Line]
    unwritable: list[Choice]
    changes: list[Change] = field(default_factory=list)


def take(history: History, demand: Demand, shape: Shape) -> set[bytes]:
    """Adds what one profile counted; returns the directories that something was written into."""
    hot, _ = settle(demand, shape)
    total = sum(hot.misses.values())
    scale = min(1.0, PROFILE_MISSES_MAX / total) if total else 1.0
    tops = history.selected()
    for path, count in hot.misses.items():
        history.weights[path] = history.weights.get(path, 0.0) + count * scale
    for path in set(hot.misses) | {p for p, counts in demand.directories.items() if any(counts[:FIRST_MISSES])}:
        top = top_of(path, tops)
        if top is not None:
            history.held[top].seen_ns = history.updated_ns
    return hot.written


def fade(history: History, now_ns: int, policy: Policy) -> None:
    """Time has passed: what is not selected weighs less."""
    passed = max(now_ns - history.updated_ns, 0) if history.updated_ns else 0
    factor = 0.5 ** (passed / policy.half_life_ns)
    tops = history.selected()
    for path, weight in history.weights.items():
        if not is_within(path, tops):
            history.weights[path] = weight * factor
    history.updated_ns = max(now_ns, history.updated_ns)
    forget(history, _FORGOTTEN, now_ns - (policy.cold_ns << (TRIALS_MAX + 1)))


def decide(
    history: History, shape: Shape, written: set[bytes], policy: Policy, matched: Iterable[bytes] = ()
) -> Outcome:
    """What is selected from now on, noted in the history too.

    `matched`: what the lines that are in force select by now. What came since they were written is held like the rest.
    """
    now = history.updated_ns
    changes: list[Change] = []
    known = history.selected()
    for path in sorted(set(matched) - known):
        if shape.measure(path).refused is None and not is_within(path, known):
            history.held[path] = Held(since_ns=now, seen_ns=now)
            changes.append(Change(path, added=True, why="it came, and a line selects it"))
    before = history.selected()
    trials = max(len(before) // _ON_TRIAL, 1)
    for path in sorted(before, key=lambda path: (history.held[path].seen_ns, path)):
        held = history.held[path]
        place = shape.place(path)
        if place is None or place.missing is not None or place.path != path:
            changes.append(_drop(history, path, "it is gone"))
        elif trials and now - held.seen_ns > policy.cold_ns << held.trials:
            days = (now - held.seen_ns) // (86_400 * NS)
            changes.append(_drop(history, path, f"nothing was asked of it for {days} days"))
            held.dropped_ns = now
            trials -= 1
    gone = before - history.selected()
    for path in [path for path in history.weights if is_within(path, gone)]:
        del history.weights[path]
    kept = history.selected()
    misses = {path: round(weight) for path, weight in history.weights.items() if weight >= 1}
    measured = {path: shape.measure(path) for path in sorted(kept)}
    loyalty = dict.fromkeys(kept, _LOYALTY)
    cover = choose(
        Hot(misses, written), shape, cover=policy.cover, max_cost=policy.budget, bonus=loyalty, cost_of=measured
    )
    chosen = {one.path: one for one in cover.chosen}
    room = policy.budget - cover.cost
    above, touched = with_above(chosen), with_above(written)
    rest = {path for path in kept if path not in above and not is_within(path, chosen)}
    gains = gains_of(misses, rest)
    for path in sorted(rest, key=lambda path: (-gains[path] / measured[path].entries, path)):
        measure = measured[path]
        if measure.refused is None and path not in touched and measure.entries <= room:
            chosen[path] = Choice(path, gains[path], measure.entries)
            room -= measure.entries
    for path in sorted(kept - chosen.keys()):
        why = measured[path].refused or ("it is written into" if path in touched else None)
        changes.append(_drop(history, path, why or _why_not_kept(path, chosen, above)))
    found, unwritable, cover = lines(cover.with_selection(chosen.values()), shape, max_cost=policy.budget)
    chosen |= {one.path: one for one in cover.chosen}
    changes += [_add(history, path, chosen[path], policy) for path in sorted(chosen.keys() - kept)]
    return Outcome(cover.chosen, found, unwritable, changes)


def _why_not_kept(path: bytes, chosen: Mapping[bytes, Choice], above: set[bytes]) -> str:
    if is_within(path, chosen):
        return "a directory above it is selected"
    return "a directory in it is enough" if path in above else "others gain more for their inodes"


def _drop(history: History, path: bytes, why: str) -> Change:
    history.held[path].since_ns = 0
    return Change(path, added=False, why=why)


def _add(history: History, path: bytes, choice: Choice, policy: Policy) -> Change:
    now = history.updated_ns
    held = history.held.setdefault(path, Held())
    if held.dropped_ns and now - held.dropped_ns <= policy.cold_ns << held.trials:
        held.trials = min(held.trials + 1, TRIALS_MAX)
    held.since_ns = held.seen_ns = now
    return Change(path, added=True, why=f"{choice.gain} misses, {choice.cost} inodes")
