"""Chosen directories as selection lines: a pattern in place of many, where what it matches now is what was chosen.

Patterns also select what comes later: that is their use (tomorrow's release). Of what is there today, a pattern may
take what was not needed for the share of misses that was asked for, if it was asked in vain as well and may be
selected; not more of that than of what was chosen, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from typing import Final, NamedTuple

from mkmeta.demand.cover import Choice, Cover
from mkmeta.demand.shape import NoShape, Shape, is_version
from mkmeta.model import tree_order
from mkmeta.pattern import Patterns

_SPECIAL: Final = re.compile(rb"([*?\[\]\\{}!])")
_MATCHES_MAX: Final = 100_000  # directories looked at for one pattern
_CANDIDATES_MAX: Final = 10_000  # patterns tried


class Line(NamedTuple):
    """A selection line."""

    pattern: bytes
    chosen: list[Choice]  # what it selects now, all of it
    gain: int
    cost: int


def lines(cover: Cover, shape: Shape, *, max_cost: int | None = None) -> tuple[list[Line], list[Choice], Cover]:
    """Selection lines, best first; what cannot be written as one; and what is covered with what patterns take more."""
    unwritable = [one for one in cover.chosen if not is_writable(one.path)]
    by_path = {one.path: one for one in cover.chosen if is_writable(one.path)}
    groups = {tuple(map(_quoted, path.split(b"/"))): [path] for path in sorted(by_path, key=tree_order)}
    if not isinstance(shape, NoShape):
        others = {one.path: one for one in cover.others}
        taken = _collapse(groups, by_path, others, shape, None if max_cost is None else max_cost - cover.cost)
        cover = cover.with_others(taken)
    found = []
    for names, paths in groups.items():
        members = [by_path[path] for path in sorted(paths, key=tree_order)]
        found.append(
            Line(b"/".join(names), members, sum(one.gain for one in members), sum(one.cost for one in members))
        )
    return sorted(found, key=lambda line: (-line.gain / line.cost, line.pattern)), unwritable, cover


_Groups = dict[tuple[bytes, ...], list[bytes]]


def _collapse(
    groups: _Groups, chosen: dict[bytes, Choice], others: dict[bytes, Choice], shape: Shape, room: int | None
) -> list[Choice]:
    """Merges what differs in one name, again and again, from the last name to the first; returns what that takes more.

    What is taken is moved from `others` to `chosen`. `room`: the inodes it may cost.
    """
    taken: list[Choice] = []
    owners = {path: names for names, paths in groups.items() for path in paths}
    tried = 0
    changed = True
    while changed and tried < _CANDIDATES_MAX:
        changed = False
        for place in range(max(map(len, groups), default=0) - 1, -1, -1):
            alike: dict[tuple[bytes, ...], list[tuple[bytes, ...]]] = {}
            for names in groups:
                if place < len(names):
                    alike.setdefault((*names[:place], b"/", *names[place + 1 :]), []).append(names)
            for rest, together in alike.items():
                members = [names for names in together if names in groups]  # less what a pattern before took in
                if len(members) < 2 and not (members and is_version(members[0][place])):  # there will be a next version
                    continue
                pattern = (*rest[:place], _wildcard([names[place] for names in members]), *rest[place + 1 :])
                tried += 1
                matches = _matches(pattern, shape, chosen.keys() | others.keys())
                if matches is None:
                    continue
                more = [others[path] for path in sorted(matches) if path in others]
                cost = sum(one.cost for one in more)
                if 2 * len(more) > len(matches) or (room is not None and cost > room):
                    continue
                room = None if room is None else room - cost
                for one in more:
                    chosen[one.path] = others.pop(one.path)
                taken += more
                paths = {path for names in members for path in groups[names]} | matches
                for names in {*members, *(owners[path] for path in matches if path in owners)}:
                    if paths.issuperset(groups[names]):
                        del groups[names]
                groups[pattern] = sorted(paths)
                owners.update(dict.fromkeys(paths, pattern))
                changed = True
    return taken


def selected_by(patterns: Iterable[bytes], shape: Shape) -> set[bytes]:
    """The directories that patterns select now. Raises UsageError for what is no pattern."""
    found: set[bytes] = set()
    for pattern in patterns:
        found |= _matches(pattern.split(b"/"), shape, None) or set()
    return found


def _wildcard(names: Sequence[bytes]) -> bytes:
    """What all names match, and no more names than that needs."""
    if all(map(is_version, names)):
        first = {name[:1] for name in names}
        if len(first) == 1 and (first <= {b"v", b"V", b"r", b"R"}):
            return first.pop() + b"*"
        if all(name[:1].isdigit() for name in names):
            return b"[0-9]*"
    return b"*"


def _matches(pattern: Iterable[bytes], shape: Shape, chosen: Set[bytes] | None) -> set[bytes] | None:
    """What a pattern selects now; None: something was not chosen, be it a file, or too much was looked at."""
    patterns = Patterns([b"/".join(pattern)])
    waiting = [(b"", patterns.start())]
    found: set[bytes] = set()
    looked = 0
    while waiting:
        path, state = waiting.pop()
        names = patterns.names(state)
        directories, others = shape.directories(path), shape.others(path)
        for name in [*directories, *others] if names is None else sorted(names.intersection([*directories, *others])):
            looked += 1
            if looked > _MATCHES_MAX:
                return None
            inside = path + b"/" + name if path else name
            after, matched = patterns.advance(state, name)
            if matched and chosen is not None and inside not in chosen:
                return None
            if matched and (chosen is not None or name in directories):
                found.add(inside)
            elif after and name in directories:
                waiting.append((inside, after))
    return found


def _quoted(name: bytes) -> bytes:
    return _SPECIAL.sub(rb"\\\1", name)


def is_writable(path: bytes) -> bool:
    """Whether a line of `--select-from` can say it: no line break, no white space at its ends, no `#` first."""
    line = b"/".join(map(_quoted, path.split(b"/")))
    return b"\n" not in line and line.strip(b" \t\r") == line and not line.startswith(b"#")
