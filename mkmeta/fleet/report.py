"""A host's report: one small file in a spool directory (formats/report.md)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from mkmeta.errors import StoreError, path_fields
from mkmeta.linux.descriptors import closing
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
_DAY: Final = len("2026-01-31")  # of a time
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

    def encode(self, reported: str | None = None) -> bytes:
        """The bytes of the file, written now unless it says when; what is too much is cut."""
        fields: dict[str, object] = {
            "host": self.host,
            "reported": reported or utc_now(),
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


def write_report(spool: bytes, report: Report, last: str | None = None) -> str:
    """Leaves a report in a spool, in the place of the host's last one. Raises MkmetaError.

    Returns a mark. It is `last` of the next call: where that has nothing else to say, and finds what this one left,
    only the time of the file is set.
    """
    if not os.path.isdir(spool):
        raise StoreError("there is no such directory", path=spool, hint="make it first, with mode 1777")
    path = os.path.join(spool, os.fsencode(report.host) + b".json")
    said = spool + b"\0" + report.encode(utc_now()[:_DAY])
    if last is not None and (mark := _renewed(path, said, last)) is not None:
        return mark
    with contextlib.ExitStack() as stack:
        with atomic_output(path, follow=False, crowded=True) as stream:  # thousands of hosts would list as many names
            os.fchmod(stream.fileno(), _MODE)
            stream.write(report.encode())
            written = stack.enter_context(closing(os.dup(stream.fileno())))
        return _mark(said, written)  # of what was written, whoever has put something else in its place meanwhile


def _renewed(path: bytes, said: bytes, last: str) -> str | None:
    """Sets the time of what is at `path`, and returns its new mark, if that is what the last mark was of."""
    try:
        with closing(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            if _mark(said, fd) != last:
                return None
            os.utime(b"/proc/self/fd/%d" % fd)  # of this very file; to what the server's clock says
            return _mark(said, fd)
    except OSError:
        return None  # gone, or not ours to touch: then it is written, and that says what is wrong


def _mark(said: bytes, fd: int) -> str:
    """Of what was said and the file it stands in, as it is now: any change to that sets its change time."""
    status = os.fstat(fd)
    file = f"{status.st_ino} {status.st_ctime_ns} {status.st_size} "
    return blake3(file.encode() + said).hexdigest()
