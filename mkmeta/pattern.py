r"""Selection patterns: compiled once, then driving the walk from directory to directory.

A pattern is a path relative to the root; formats/patterns.md has the rules, `mkmeta.wildcards` those for one name. A
name `**` stands for any number of names, none included. A pattern with a slash at its end matches directories alone.
Names starting with a dot are nothing special. Links are not followed.

A walk holds a *state*: how far each pattern has come on the way to a directory. A state without positions cannot lead
to a match any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mkmeta.errors import UsageError, legible
from mkmeta.wildcards import Doubt, read_wildcards

State = tuple[tuple[int, int], ...]  # (pattern, number of its components matched so far), ascending
NOWHERE: Final[State] = ()

_ANY_DEPTH: Final = None
_Component = re.Pattern[str] | bytes | None  # a name with wildcards, a plain name, `**`
_PATTERN_MAX: Final = 64 << 10  # bytes: a path has 4095, and no spelling of one takes more
# Pieces of a pattern: `\/` is a slash, as no name has one
_PIECE: Final = re.compile(rb"\\/|/|\\.|[^\\/]+|\\", re.DOTALL)
_BRACES: Final = re.compile(r"(?<!\\)\{[^{}]*(?:,|\.\.)[^{}]*\}", re.DOTALL)


class Match(NamedTuple):
    """Where patterns match on the way to a path."""

    path: bytes
    sources: tuple[bytes, ...]  # the patterns that do


class Patterns:
    """A list of patterns, ready to be matched against paths name by name."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        """Raises UsageError for a pattern that is absolute or leaves the root. What is in doubt is a name."""
        self.sources = tuple(patterns)
        self._compiled = [_compile(pattern) for pattern in patterns]
        self._of_directories = frozenset(
            number for number, pattern in enumerate(patterns) if _is_of_directories(pattern)
        )

    def start(self) -> State:
        """The state at the root."""
        return self._reached({(number, 0) for number in range(len(self.sources))})[0]

    def advance(self, state: State, name: bytes) -> tuple[State, list[int]]:
        """The state at `name` in a directory with `state`, and the patterns that match there: `fitting` says which
        of them do if it is no directory.
        """
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
                if component.fullmatch(text):
                    reached.add((number, done + 1))
        return self._reached(reached) if reached else (NOWHERE, [])

    def fitting(self, matched: list[int], *, is_directory: bool) -> list[int]:
        """Those of the patterns that match a name if it is a directory, or if it is something else."""
        if is_directory or not self._of_directories:
            return matched
        return [number for number in matched if number not in self._of_directories]

    def first_match(self, path: bytes, *, is_directory: bool) -> Match | None:
        """The highest place on the way to `path`, itself included, that a pattern matches; the root is none."""
        state = self.start()
        names = path.split(b"/") if path else []
        for depth, name in enumerate(names, 1):
            state, matched = self.advance(state, name)
            matched = self.fitting(matched, is_directory=is_directory or depth < len(names))
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

    def is_deep(self, state: State) -> bool:
        """Whether what matches may be further down than the names in a directory with `state`."""
        return any(
            self._compiled[number][done] is _ANY_DEPTH or done + 1 < len(self._compiled[number])
            for number, done in state
        )

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


def check_pattern(pattern: bytes, is_there: Callable[[bytes], bool], *, root: bytes = b"") -> None:
    """Raises UsageError for a pattern that says something else than most people think it does.

    `{a,b}` or `[a` is a name, and matches a file of that name; hardly anybody means that. So it is taken only where
    there is such a path: `is_there` is asked. `root` is the directory that patterns are relative to.
    """
    if root and (pattern + b"/").startswith(root.rstrip(b"/") + b"/"):
        relative = legible(pattern[len(root) :].strip(b"/") or b".")
        raise UsageError(
            f"the pattern '{legible(pattern)}' is relative to ROOT, so it does not begin with it",
            hint=f"write '{relative}'",
        )
    Patterns([pattern])
    doubts = _doubts(pattern)
    if doubts and not ((name := literal(pattern)) and is_there(name)):
        raise UsageError(f"the pattern '{legible(pattern)}' {doubts[0].what}", hint=doubts[0].hint)


def literal(pattern: bytes) -> bytes | None:
    """The only path that a pattern can match; None: it has wildcards."""
    found = []
    for name in _names(pattern):
        if name == b"**" or (plain := read_wildcards(_text(name)).literal) is None:
            return None
        found.append(_bytes(plain))
    return b"/".join(name for name in found if name not in (b"", b"."))


def remark(pattern: bytes) -> str | None:
    """Why a pattern may have matched nothing, and what to write instead."""
    names = [name for name in _names(pattern) if name not in (b"", b".")]
    if len(names) == 1 and names != [b"**"]:
        slash = "/" if _is_of_directories(pattern) else ""
        return f"it is relative to ROOT; '**/{legible(names[0])}{slash}' matches at any depth"
    if _is_of_directories(pattern):
        return "with a slash at its end it matches directories alone"
    return None


def _doubts(pattern: bytes) -> list[Doubt]:
    doubts = []
    if pattern[:1] == b"!" and pattern.strip(b"!"):
        hint = rf"select what you want instead; write \{legible(pattern)} for a name that begins with !"
        doubts.append(Doubt("begins with !, and there are no exceptions from patterns", hint))
    names = [read_wildcards(_text(name)) for name in _names(pattern)]
    if braces := _BRACES.search("/".join(name.bare for name in names)):
        what = f"has braces, {legible(braces[0])}, which a shell expands where they are not quoted, and mkmeta does not"
        doubts.append(Doubt(what, r"give a pattern for each; write \{ for a { in a name"))
    return doubts + [doubt for name in names for doubt in name.doubts]


def _compile(pattern: bytes) -> list[_Component]:
    shown = legible(pattern if len(pattern) <= 100 else pattern[:97] + b"...")
    if pattern.startswith(b"/"):
        raise UsageError(
            f"the pattern '{shown}' begins with a slash, and patterns are relative to ROOT",
            hint="leave out the slash, and ROOT",
        )
    if len(pattern) > _PATTERN_MAX:
        raise UsageError(f"the pattern '{shown}' has {len(pattern)} bytes; no path is that long")
    components: list[_Component] = []
    for name in _names(pattern):
        if name == b"**":
            if components[-1:] != [_ANY_DEPTH]:
                components.append(_ANY_DEPTH)
            continue
        component = _component(name)
        if component == b".." or b"\0" in name:
            raise UsageError(f"the pattern '{shown}' has a '..' or a NUL in it, and so matches nothing below ROOT")
        if component not in (b"", b"."):
            components.append(component)
    return components or [_component(b"*")]  # `.` is the root, which always merges: everything in it


def _is_of_directories(pattern: bytes) -> bool:
    """Whether there is a slash behind its last name. (`.` is the root, which stands for everything in it.)"""
    names = _names(pattern)
    return names[-1] in (b"", b".") and not {b"", b"."}.issuperset(names)


def _names(pattern: bytes) -> list[bytes]:
    """The names of a pattern as they are written. The last one is empty behind a slash at the end."""
    names = [b""]
    for piece in _PIECE.findall(pattern):
        if piece in (b"/", rb"\/"):
            names.append(b"")
        else:
            names[-1] += piece
    return names


def _component(name: bytes) -> _Component:
    found = read_wildcards(_text(name))
    return re.compile(found.expression, re.DOTALL) if found.literal is None else _bytes(found.literal)


def _text(name: bytes) -> str:
    """Text in which `?` can match a character of several bytes, whatever the locale."""
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
