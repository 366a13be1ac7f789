"""Selection patterns: compiled once, then driving the walk from directory to directory.

A pattern is a path relative to the root. In a component `*` stands for any characters, `?` for one, `[...]` for one of
a set (`[!...]` for none of it); a backslash takes the meaning from the next character. A component `**` stands for any
number of components, none included. Names starting with a dot are nothing special. Links are not followed.

A walk holds a *state*: how far each pattern has come on the way to a directory. A state without positions cannot lead
to a match any more.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mkmeta.errors import UsageError

State = tuple[tuple[int, int], ...]  # (pattern, number of its components matched so far), ascending
NOWHERE: Final[State] = ()

_ANY_DEPTH: Final = None
_Component = re.Pattern[str] | bytes | None  # a name with wildcards, a plain name, `**`


class Match(NamedTuple):
    """Where patterns match on the way to a path."""

    path: bytes
    sources: tuple[bytes, ...]  # the patterns that do


class Patterns:
    """A list of patterns, ready to be matched against paths name by name."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        """Raises UsageError for a pattern that is absolute or leaves the root."""
        self.sources = tuple(patterns)
        self._compiled = [_compile(pattern) for pattern in patterns]

    def start(self) -> State:
        """The state at the root."""
        return self._reached({(number, 0) for number in range(len(self.sources))})[0]

    def advance(self, state: State, name: bytes) -> tuple[State, list[int]]:
        """The state at `name` in a directory with `state`, and the patterns that match there."""
        reached = set()
        text: str | None = None
        for number, done in state:
            component = self._compiled[number][done]
            if component is _ANY_DEPTH:
                reached.add((number, done))
            elif isinstance(component, bytes):
                if component == name:
                    reached.add((number, done + 1))
            else:
                text = _text(name) if text is None else text
                if component.match(text):
                    reached.add((number, done + 1))
        return self._reached(reached) if reached else (NOWHERE, [])

    def first_match(self, path: bytes) -> Match | None:
        """The highest place on the way to `path`, itself included, that a pattern matches; the root is none."""
        state = self.start()
        names = path.split(b"/") if path else []
        for depth, name in enumerate(names, 1):
            state, matched = self.advance(state, name)
            if matched:
                return Match(b"/".join(names[:depth]), tuple(self.sources[number] for number in matched))
            if not state:
                break
        return None

    def names(self, state: State) -> set[bytes] | None:
        """The only names that can lead on from a directory with `state`; None when it has to be listed."""
        names = set()
        for number, done in state:
            component = self._compiled[number][done]
            if not isinstance(component, bytes):
                return None
            names.add(component)
        return names

    def _reached(self, positions: set[tuple[int, int]]) -> tuple[State, list[int]]:
        """Splits positions in those with something to come and those at their pattern's end. `**` may be nothing."""
        todo = list(positions)
        matched = set()
        while todo:
            number, done = todo.pop()
            compiled = self._compiled[number]
            if done == len(compiled):
                matched.add(number)
                positions.discard((number, done))
            elif compiled[done] is _ANY_DEPTH and (number, done + 1) not in positions:
                positions.add((number, done + 1))
                todo.append((number, done + 1))
        return tuple(sorted(positions)), sorted(matched)


def _compile(pattern: bytes) -> list[_Component]:
    if pattern.startswith(b"/"):
        raise UsageError("a pattern is relative to ROOT", path=pattern, hint="leave out the leading slash, and ROOT")
    names = [name for name in pattern.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in pattern:
        raise UsageError("a pattern cannot contain '..' or NUL", path=pattern)
    components: list[_Component] = []
    for name in names:
        if name != b"**":
            components.append(_component(name))
        elif components[-1:] != [_ANY_DEPTH]:
            components.append(_ANY_DEPTH)
    return components or [_component(b"*")]  # `.` is the root, which always merges: everything in it


def _component(name: bytes) -> _Component:
    if not re.search(rb"[*?[]", re.sub(rb"\\.", b"", name)):
        return re.sub(rb"\\(.)", rb"\1", name)
    # fnmatch knows no backslash, but a set of one character
    text = re.sub(r"\\(.)", lambda match: f"[{match[1]}]" if match[1] in "*?[" else match[1], _text(name))
    return re.compile(fnmatch.translate(text))


def _text(name: bytes) -> str:
    """Text in which `?` can match a character of several bytes, whatever the locale."""
    return name.decode("utf-8", "surrogateescape")
