"""A host's report: one small file in a spool directory (formats/report.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mkmeta.errors import StoreError, path_fields
from mkmeta.manifest.output import atomic_output
from mkmeta.store.record import NUMBER_MAX, Record, encode, utc_now

REPORT_SIZE_MAX: Final = 64 << 10  # bytes; FORMAT: path and texts, with every character escaped, take 46 KiB
HELD_MAX: Final = 64  # FORMAT
PROBLEMS_MAX: Final = 8  # FORMAT
PROBLEM_SIZE_MAX: Final = 200  # characters; FORMAT
STATES: Final = ("current", "behind", "degraded", "unknown", "inactive")  # FORMAT
_HOST_SIZE_MAX: Final = 200
_MODE: Final = 0o644  # FORMAT: whoever adds up is another user
_KIND: Final = "mkmeta-report"
_SHORT_ID: Final = re.compile(r"(?:[0-9a-f]{12})?")
_HINT: Final = "mkmeta status --report writes it anew"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one host says."""

    host: str
    mountpoint: bytes
    state: str  # one of STATES
    generation: int  # 0: nothing is mounted, or it is not known what
    short_id: str
    profile: str
    held: tuple[int, ...] = ()  # other generations
    problems: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The bytes of the file, written now; what is too much is cut."""
        fields: dict[str, object] = {
            "host": self.host,
            "reported": utc_now(),
            **path_fields(self.mountpoint, "mountpoint"),
            "state": self.state,
            "generation": self.generation,
            "short_id": self.short_id,
            "profile": self.profile,
            "held": sorted(set(self.held))[:HELD_MAX],
            "problems": [text[:PROBLEM_SIZE_MAX] for text in self.problems[:PROBLEMS_MAX]],
        }
        return encode(_KIND, fields)


def host_name(name: str) -> str:
    """A host's name as reports have it."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:_HOST_SIZE_MAX] or "_"
    return "_" + safe[1:] if safe.startswith(".") else safe


def decode_report(data: bytes, path: bytes) -> Report:
    """What the bytes of a report say; `path` is that of the file. Raises StoreError, whatever they are."""
    if len(data) > REPORT_SIZE_MAX:
        raise StoreError(f"damaged: more than {REPORT_SIZE_MAX} bytes", path=path, hint=_HINT)
    record = Record.decode(data, _KIND, path=path, hint=_HINT)
    host = record.fields.get("host")
    if not isinstance(host, str) or os.fsencode(host_name(host)) + b".json" != os.path.basename(path):
        record.damaged("'host' is not the name of the file")
    state = record.word("state", default="")
    if state not in STATES:
        record.damaged("'state' is none")
    short_id = record.fields.get("short_id")
    if not isinstance(short_id, str) or not _SHORT_ID.fullmatch(short_id):
        record.damaged("'short_id' is not the beginning of an ID")
    profile = record.fields.get("profile")
    if not isinstance(profile, str) or not re.fullmatch(r"[a-z-]{1,32}", profile):
        record.damaged("'profile' is not a word")
    record.time("reported")
    held = _list(record, "held", HELD_MAX)
    problems = _list(record, "problems", PROBLEMS_MAX)
    if not all(type(number) is int and 1 <= number <= NUMBER_MAX for number in held):
        record.damaged("'held' has what is no generation")
    if not all(isinstance(text, str) and len(text) <= PROBLEM_SIZE_MAX for text in problems):
        record.damaged("'problems' has what is no short text")
    return Report(
        host=host,
        mountpoint=record.path_of("mountpoint"),
        state=state,
        generation=record.integer("generation", low=0),
        short_id=short_id,
        profile=profile,
        held=tuple(number for number in held if isinstance(number, int)),
        problems=tuple(map(str, problems)),
    )


def _list(record: Record, key: str, most: int) -> Sequence[object]:
    value = record.fields.get(key)
    if not isinstance(value, list) or len(value) > most:
        record.damaged(f"'{key}' is not a list of at most {most}")
    return value


def write_report(spool: bytes, report: Report) -> None:
    """Leaves a report in a spool, in the place of the host's last one. Raises MkmetaError."""
    if not os.path.isdir(spool):
        raise StoreError("there is no such directory", path=spool, hint="make it first, with mode 1777")
    path = os.path.join(spool, os.fsencode(report.host) + b".json")
    with atomic_output(path, follow=False, crowded=True) as stream:  # thousands of hosts would list thousands of names
        os.fchmod(stream.fileno(), _MODE)
        stream.write(report.encode())
