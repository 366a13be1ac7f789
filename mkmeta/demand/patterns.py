"""Chosen directories as selection lines: a pattern in place of many, where what it matches now is what was chosen.

Patterns also select what comes later: that is their use (tomorrow's release), and no reason to select more today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mkmeta.demand.cover import Choice
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


def lines(chosen: Sequence[Choice], shape: Shape) -> tuple[list[Line], list[Choice]]:
    """Selection lines, best first, and what cannot be written as one."""
    unwritable = [one for one in chosen if not _is_writable(one.path)]
    by_path = {one.path: one for one in chosen if _is_writable(one.path)}
    groups = {tuple(map(_quoted, path.split(b"/"))): [path] for path in sorted(by_path, key=tree_order)}
    if not isinstance(shape, NoShape):
        groups = _collapsed(groups, set(by_path), shape)
    found = []
    for names, paths in groups.items():
        members = [by_path[path] for path in sorted(paths, key=tree_order)]
        found.append(
            Line(b"/".join(names), members, sum(one.gain for one in members), sum(one.cost for one in members))
        )
    return sorted(found, key=lambda line: (-line.gain / line.cost, line.pattern)), unwritable


_Groups = dict[tuple[bytes, ...], list[bytes]]


def _collapsed(groups: _Groups, chosen: set[bytes], shape: Shape) -> _Groups:
    """Merges what differs in one name, again and again, from the last name to the first."""
    tried = 0
    changed = True
    while changed and tried < _CANDIDATES_MAX:
        changed = False
        for place in range(max(map(len, groups), default=0) - 1, -1, -1):
            alike: dict[tuple[bytes, ...], list[tuple[bytes, ...]]] = {}
            for names in groups:
                if place < len(names):
                    alike.setdefault((*names[:place], b"/", *names[place + 1 :]), []).append(names)
            for rest, members in alike.items():
                if len(members) < 2 and not is_version(members[0][place]):  # of a version there will be a next one
                    continue
                wildcard = _wildcard([names[place] for names in members])
                pattern = (*rest[:place], wildcard, *rest[place + 1 :])
                tried += 1
                matches = _matches(pattern, shape, chosen)
                if matches is None:
                    continue
                paths = {path for names in members for path in groups[names]} | matches
                for names in [names for names in groups if set(groups[names]) <= paths]:
                    del groups[names]
                groups[pattern] = sorted(paths)
                changed = True
    return groups


def _wildcard(names: Sequence[bytes]) -> bytes:
    """What all names match, and no more names than that needs."""
    if all(map(is_version, names)):
        first = {name[:1] for name in names}
        if len(first) == 1 and (first <= {b"v", b"V", b"r", b"R"}):
            return first.pop() + b"*"
        if all(name[:1].isdigit() for name in names):
            return b"[0-9]*"
    return b"*"


def _matches(pattern: Iterable[bytes], shape: Shape, chosen: set[bytes]) -> set[bytes] | None:
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
            if matched and inside not in chosen:
                return None
            if matched:
                found.add(inside)
            elif after and name in directories:
                waiting.append((inside, after))
    return found


def _quoted(name: bytes) -> bytes:
    return _SPECIAL.sub(rb"\\\1", name)


def _is_writable(path: bytes) -> bool:
    """Whether a line of `--select-from` can say it: no line break, no white space at its ends, no `#` first."""
    line = b"/".join(map(_quoted, path.split(b"/")))
    return b"\n" not in line and line.strip(b" \t\r") == line and not line.startswith(b"#")
