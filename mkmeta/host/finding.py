"""What `mkmeta doctor` finds: one sentence each, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mkmeta.errors import MkmetaError, reason


class Level(StrEnum):
    """How bad it is, best first."""

    OK = "ok"
    NOTE = "note"  # good to know
    WARNING = "warning"  # works, and will hurt somebody
    FAILURE = "failure"  # does not work

    @property
    def rank(self) -> int:
        """Larger is worse."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    id: str  # stable, for scripts: words with hyphens
    level: Level
    message: str  # one sentence, without its full stop
    hint: str | None = None  # what to do; all but `ok` have one
    path: bytes | None = None  # what it is about, if not the whole host


class Check(NamedTuple):
    """A check: the identifier its findings begin with, and how to look."""

    id: str
    look: Callable[[], Iterable[Finding]]


def ok(identifier: str, message: str, path: bytes | None = None) -> Finding:
    """All is well."""
    return Finding(id=identifier, level=Level.OK, message=message, path=path)


def note(identifier: str, message: str, hint: str, path: bytes | None = None) -> Finding:
    """Good to know."""
    return Finding(id=identifier, level=Level.NOTE, message=message, hint=hint, path=path)


def warning(identifier: str, message: str, hint: str, path: bytes | None = None) -> Finding:
    """It works, and will hurt somebody."""
    return Finding(id=identifier, level=Level.WARNING, message=message, hint=hint, path=path)


def failure(identifier: str, message: str, hint: str, path: bytes | None = None) -> Finding:
    """It does not work."""
    return Finding(id=identifier, level=Level.FAILURE, message=message, hint=hint, path=path)


def findings_of(check: Check) -> Iterator[Finding]:
    """What a check finds; an error it did not foresee is a finding too, and the end of it."""
    try:
        yield from check.look()
    except MkmetaError as error:
        hint = error.hint or "mend that, then run doctor again"
        yield failure(check.id, error.message, hint, path=error.path)
    except OSError as error:
        path = error.filename.encode("utf-8", "surrogateescape") if isinstance(error.filename, str) else error.filename
        yield warning(
            check.id,
            f"could not be checked: {reason(error)}",
            "run doctor as root on the host itself; `dmesg` may say more",
            path=path if isinstance(path, bytes) else None,
        )
