"""What was hot on a volume and is selected for it, from run to run: the file of `mkmeta promote` (formats/profile.md).

Written aside and renamed. It is our own, and read like anybody's: whoever can write beside it may have.
"""

from __future__ import annotations

import base64
import heapq
import io
import json
import os
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, NamedTuple

from mkmeta.demand.profile import COUNT_MAX, PATHS_MAX, is_plain
from mkmeta.errors import MkmetaError, path_fields, reason
from mkmeta.manifest.output import atomic_output
from mkmeta.model import PATH_LIMIT

_MAGIC: Final = "mkmeta_history"
_VERSION: Final = 1
_LINE_MAX: Final = 4 << 20  # bytes: KEPT_MAX names of 255 bytes in base64, each with two numbers
TAKEN_MAX: Final = 1000  # profiles that one run counts
_DAYS: Final = 10.0  # of a weight in a history that does not say
KEPT_MAX: Final = 8000  # profiles remembered as counted
TRIALS_MAX: Final = 6

Taken = tuple[bytes, int, int]  # a profile: name, inode number, mtime in ns


class HistoryError(MkmetaError):
    """A file that is not a valid history."""


class Weight(NamedTuple):
    """What was asked in vain in a directory. Both numbers fade while it can be heard."""

    misses: float
    days: float  # in which it could be heard, since it was first; at least 1

    @property
    def a_day(self) -> float:
        """Misses a day."""
        return self.misses / self.days


@dataclass(slots=True)
class Held:
    """A directory that is selected, or was."""

    since_ns: int = 0  # selected since; 0: it is not any more
    seen_ns: int = 0  # when something in it was last asked for
    dropped_ns: int = 0  # when it was last dropped for being cold; 0: never
    trials: int = 0  # how often that was wrong
    left_ns: int = 0  # when it last made room for others; 0: never
    left_demand: int = 0  # the misses a day it had then


@dataclass(slots=True)
class History:
    """All of it."""

    updated_ns: int = 0
    weights: dict[bytes, Weight] = field(default_factory=dict)  # by directory
    held: dict[bytes, Held] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)  # profiles that are counted, and may not be removed yet
    unreleased: bool = False  # the selection was written, and what releases it has not ended well yet
    changed_ns: int = 0  # when what is selected was last changed
    heard: set[bytes] = field(default_factory=set, compare=False)  # directories first heard of in this run

    def selected(self) -> set[bytes]:
        """The directories that are selected."""
        return {path for path, held in self.held.items() if held.since_ns}


def read_history(path: bytes) -> History:
    """The history at a path; an empty one where there is none. Raises HistoryError."""
    try:
        with open(path, "rb", opener=_open) as stream:
            return decode(stream)
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise HistoryError(reason(error), path=path) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        hint = "move it away to begin anew; what is selected is then found again from profiles"
        raise HistoryError("is no history of mkmeta promote, or damaged", path=path, hint=hint) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def decode(stream: BinaryIO) -> History:
    """A history. Raises ValueError, TypeError, KeyError, OverflowError or RecursionError for anything else."""
    head = _line(stream)
    if head[_MAGIC] != _VERSION:
        raise ValueError(head[_MAGIC])
    history = History(updated_ns=_count(head["updated_ns"]), unreleased=head["unreleased"] is True)
    history.changed_ns = _count(head.get("changed_ns", 0))
    for name, inode, mtime in head["taken"][:KEPT_MAX]:
        history.taken.append((base64.b64decode(name), _number(inode), _number(mtime)))
    while True:
        record = _line(stream)
        if "rows" in record:
            if record["rows"] != len(history.weights) + len(history.held) or stream.read(1):
                raise ValueError("rows")
            return history
        path = base64.b64decode(record["path_b64"]) if "path_b64" in record else _text(record["path"]).encode()
        if len(path) > PATH_LIMIT or b"\0" in path or (path and not is_plain(path)):
            raise ValueError("path")
        if "weight" in record:
            weight = Weight(float(record["weight"]), float(record.get("days", _DAYS)))
            if not (0 <= weight.misses <= COUNT_MAX and 1 <= weight.days <= COUNT_MAX):  # NaN is neither
                raise ValueError("weight")
            history.weights[path] = weight
        else:
            since, seen, dropped, trials = (_count(record[key]) for key in Held.__slots__[:4])
            left = (_count(record.get(key, 0)) for key in Held.__slots__[4:])
            history.held[path] = Held(since, seen, dropped, min(trials, TRIALS_MAX), *left)
        if len(history.weights) + len(history.held) > 2 * PATHS_MAX:
            raise ValueError("rows")


def _line(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline(_LINE_MAX + 1)
    record = json.loads(line) if line.endswith(b"\n") else None
    if type(record) is not dict:
        raise ValueError("no line")
    return record


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("no text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ValueError("no count")
    return value


def _number(value: object) -> int:
    """An inode number may have 64 bits, and a file's owner gives it any mtime."""
    if type(value) is not int or not -(2**63) <= value < 2**64:
        raise ValueError("no number of a file")
    return value


def encode(history: History) -> bytes:
    """The bytes of a history: the same for the same."""
    out = io.BytesIO()

    def put(record: dict[str, object]) -> None:
        out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    taken = [[base64.b64encode(name).decode(), inode, mtime] for name, inode, mtime in history.taken]
    times = {"updated_ns": history.updated_ns, "changed_ns": history.changed_ns}
    put({_MAGIC: _VERSION, **times, "unreleased": history.unreleased, "taken": taken})
    for path, weight in sorted(history.weights.items()):
        put({**path_fields(path), "weight": round(weight.misses, 3), "days": round(weight.days, 3)})
    for path, held in sorted(history.held.items()):
        put({**path_fields(path), **{key: getattr(held, key) for key in Held.__slots__}})
    put({"rows": len(history.weights) + len(history.held)})
    return out.getvalue()


def write_history(path: bytes, history: History) -> None:
    """Writes it, without what would be too much to be read again. Raises MkmetaError."""
    if len(history.weights) > PATHS_MAX:
        heaviest = heapq.nsmallest(PATHS_MAX, history.weights.items(), key=lambda item: (-item[1].misses, item[0]))
        history.weights = dict(heaviest)
    if len(history.held) > PATHS_MAX:  # what is selected first, then what was last
        latest = heapq.nsmallest(
            PATHS_MAX,
            history.held.items(),
            key=lambda item: (not item[1].since_ns, -max(item[1].dropped_ns, item[1].left_ns), item[0]),
        )
        history.held = dict(latest)
    with atomic_output(path, follow=False) as stream:
        stream.write(encode(history))


def forget(history: History, least: float, until_ns: int) -> None:
    """Forgets what has fewer misses than `least`, and directories that were dropped before a time."""
    history.weights = {path: weight for path, weight in history.weights.items() if weight.misses >= least}
    last = {path: max(held.dropped_ns, held.left_ns) for path, held in history.held.items() if not held.since_ns}
    gone = [path for path, at_ns in last.items() if at_ns < until_ns]
    for path in gone:
        del history.held[path]
