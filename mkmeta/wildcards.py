r"""One name with wildcards, as a regular expression: fnmatch(3), the same in every locale; see formats/patterns.md.

    *           any characters, none included
    ?           one character: one of UTF-8, or a byte that is none
    [a-z_]      one of a set; [!a-z] and [^a-z] one that is not of it; ] is one of the set where it comes first
    [[:digit:]] a class of characters, ASCII only; [[=a=]] and [[.a.]] are the character itself
    \c          c itself, in a set as well

What fnmatch(3) leaves open or never matches is read as the shells do, and `Wildcards.doubts` says so: whoever wrote
that meant something else, most of the time.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# POSIX's classes, in the POSIX locale: a pattern must not depend on whose Unicode tables are asked
_CLASSES: Final = {
    "alnum": string.ascii_letters + string.digits,
    "alpha": string.ascii_letters,
    "blank": " \t",
    "cntrl": "".join(map(chr, range(32))) + "\x7f",
    "digit": string.digits,
    "graph": string.ascii_letters + string.digits + string.punctuation,
    "lower": string.ascii_lowercase,
    "print": string.ascii_letters + string.digits + string.punctuation + " ",
    "punct": string.punctuation,
    "space": " \t\n\r\f\v",
    "upper": string.ascii_uppercase,
    "xdigit": string.hexdigits,
}
_CLASS: Final = re.compile(r"\[([:=.])(.*?)\1\]", re.DOTALL)
_CLASS_NAME: Final = re.compile(r"\[:([A-Za-z]*):\]")


class Doubt(NamedTuple):
    """Something in a pattern that is probably not meant: what it is, and what to write instead."""

    what: str
    hint: str


@dataclass(slots=True)
class Wildcards:
    """A name of a pattern, read."""

    expression: str = ""  # of all names that it matches
    literal: str | None = ""  # the only name that it matches; None: it has wildcards
    bare: str = ""  # the name without its sets, and without what follows a backslash
    doubts: list[Doubt] = field(default_factory=list)


def read_wildcards(text: str) -> Wildcards:
    """Reads a name of a pattern, which has no slash in it."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found = Wildcards()
        self._stretches = [""]  # expressions of so many characters each, with a `*` between one and the next

    def read(self) -> Wildcards:
        text, found = self._text, self._found
        while self._at < len(text):
            char = text[self._at]
            self._at += 1
            if char == "*":
                found.literal = None
                found.bare += char
                if self._stretches[-1] or len(self._stretches) == 1:
                    self._stretches.append("")
            elif char == "?":
                found.literal = None
                found.bare += char
                self._stretches[-1] += "."
            elif char == "[" and (expression := self._set()) is not None:
                found.literal = None
                self._stretches[-1] += expression
            else:
                found.bare += char
                self._literally(self._escaped() if char == "\\" else char)
        if len(self._stretches) == 1:
            found.expression = self._stretches[0]
        else:
            # What comes between two `*` is best taken where it comes first: never tried again, never exponential
            first, *between, last = self._stretches
            found.expression = first + "".join(f"(?>.*?{stretch})" for stretch in between) + ".*" + last
        return found

    def _literally(self, char: str) -> None:
        self._stretches[-1] += re.escape(char)
        if self._found.literal is not None:
            self._found.literal += char

    def _escaped(self) -> str:
        r"""The character after a `\`."""
        if self._at == len(self._text):
            self._doubt(r"ends with a \, which takes the meaning from what follows", r"write \\ for a \ in a name")
            return "\\"
        self._at += 1
        return self._text[self._at - 1]

    def _set(self) -> str | None:
        """The set after a `[`; None where it has no end, so that the `[` is itself."""
        start = self._at
        negated = self._text[start : start + 1] in ("!", "^")
        self._at += negated
        first = self._at
        members: list[str] = []  # of a regular expression's set
        doubts: list[Doubt] = []
        while self._at < len(self._text):
            if self._text[self._at] == "]" and self._at > first:
                self._at += 1
                self._found.doubts += doubts
                if not any(members):
                    return "." if negated else "(?!)"
                return f"[{'^' if negated else ''}{''.join(members)}]"
            members.append(self._member(doubts))
        self._at = start
        self._doubt("has a [ without a ]", r"write \[ for a [ in a name, and [abc] for one character of a set")
        return None

    def _member(self, doubts: list[Doubt]) -> str:
        """What comes next in a set: a class, a range, a character."""
        text = self._text
        if match := _CLASS_NAME.match(text, self._at):
            self._at = match.end()
            if match[1] not in _CLASSES:
                doubts.append(Doubt(f"has an unknown class, {match[0]}", f"there are {', '.join(_CLASSES)}"))
            return "".join(map(re.escape, _CLASSES.get(match[1], "")))
        first = self._single(doubts)
        if text[self._at : self._at + 1] != "-" or text[self._at + 1 : self._at + 2] in ("", "]"):
            return re.escape(first)
        self._at += 1
        last = self._single(doubts)
        if first > last:
            what = f"has a range without characters, {first}-{last}"
            doubts.append(Doubt(what, f"write {last}-{first}, or \\- for a - that is one of the set"))
            return ""
        return f"{re.escape(first)}-{re.escape(last)}"

    def _single(self, doubts: list[Doubt]) -> str:
        """One character of a set, at the end of a range as well."""
        text = self._text
        if (match := _CLASS.match(text, self._at)) and match[1] != ":" and match[2]:
            self._at = match.end()
            if len(match[2]) > 1:
                doubts.append(
                    Doubt(f"has {match[0]}, which is of some languages only", "name the characters one by one")
                )
            return match[2][0]
        self._at += 1
        char = text[self._at - 1]
        if char == "\\" and self._at < len(text):
            self._at += 1
            return text[self._at - 1]
        return char

    def _doubt(self, what: str, hint: str) -> None:
        self._found.doubts.append(Doubt(what, hint))
