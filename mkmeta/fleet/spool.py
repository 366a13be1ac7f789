"""All reports of a spool, and what they come to: who is behind, who was never heard of again, what is still held."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from mkmeta.errors import MkmetaError, StoreError, reason
from mkmeta.fleet.report import REPORT_SIZE_MAX, Report, decode_report

FILES_MAX: Final = 20_000  # FORMAT: of a spool that are read; ten times the hosts of a large site


class Standing(StrEnum):
    """How a host stands to what is published."""

    CURRENT = "current"
    BEHIND = "behind"
    DEGRADED = "degraded"
    INACTIVE = "inactive"
    LOST = "lost"  # not heard of for too long


class Heard(NamedTuple):
    """A report and when it was written, in seconds since the epoch, by the server's clock."""

    report: Report
    when: float


@dataclass(frozen=True)
class Spool:
    """What was in a spool."""

    heard: list[Heard]
    unreadable: list[tuple[bytes, str]]  # names, and what is wrong
    ignored: list[bytes] = field(default_factory=list)  # names beyond the number that are read


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The sum of all reports."""

    published: int  # the generation all should have; 0: nobody has any
    hosts: dict[str, tuple[Standing, Heard]]
    counts: Counter[Standing] = field(default_factory=Counter)

    def holders(self) -> dict[int, list[str]]:
        """By generation other than the published one: the hosts that have it, mounted or in use."""
        found: dict[int, list[str]] = {}
        for host, (_, heard) in sorted(self.hosts.items()):
            for number in sorted({heard.report.generation, *heard.report.held} - {0, self.published}):
                found.setdefault(number, []).append(host)
        return found


def read_spool(path: bytes) -> Spool:
    """Reads the reports of a spool. Raises StoreError when it cannot be listed; what cannot be read in it is told."""
    try:
        names = sorted(os.fsencode(name) for name in os.listdir(path))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = "name the directory that hosts report to: mkmeta status --report"
        raise StoreError(f"cannot be listed: {reason(error)}", path=path, hint=hint) from None
    names = [name for name in names if name.endswith(b".json") and not name.startswith(b".")]
    heard, unreadable = [], []
    try:
        for name in names[:FILES_MAX]:
            try:
                heard.append(_read(fd, name))
            except FileNotFoundError:
                continue  # replaced, or removed, just now
            except OSError as error:
                unreadable.append((name, reason(error)))
            except MkmetaError as error:
                unreadable.append((name, error.message))
    finally:
        os.close(fd)
    return Spool(heard, unreadable, names[FILES_MAX:])


def _read(spool: int, name: bytes) -> Heard:
    if not stat.S_ISREG(os.stat(name, dir_fd=spool, follow_symlinks=False).st_mode):
        raise StoreError("is no regular file")  # opening a device may do something
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=spool)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError("is no regular file")
        return Heard(decode_report(os.read(fd, REPORT_SIZE_MAX + 1), name), status.st_mtime)
    finally:
        os.close(fd)


def judge(heard: Iterable[Heard], *, published: int | None, now: float, lost: float) -> Fleet:
    """How each host stands. `lost`: seconds without a word. Without `published`: the newest that a host has."""
    all_heard = list(heard)
    if published is None:
        published = max((one.report.generation for one in all_heard), default=0)
    hosts: dict[str, tuple[Standing, Heard]] = {}
    for one in all_heard:
        hosts[one.report.host] = (_standing(one, published, now, lost), one)
    return Fleet(published=published, hosts=hosts, counts=Counter(standing for standing, _ in hosts.values()))


def _standing(heard: Heard, published: int, now: float, lost: float) -> Standing:
    report = heard.report
    if now - heard.when > lost:
        return Standing.LOST
    if report.state == "inactive":
        return Standing.INACTIVE
    if report.state == "degraded":
        return Standing.DEGRADED
    return Standing.CURRENT if report.generation == published else Standing.BEHIND


def holders_of_older(spool: Spool, published: int) -> list[str]:
    """Hosts that have, or may have, a generation older than the published one; those that were not read among them."""
    found = []
    for report, _ in spool.heard:
        mounted = [] if report.state == "inactive" else [report.generation]
        if any(number < published for number in (*mounted, *report.held)):
            found.append(report.host)
    unread = [name for name, _ in spool.unreadable] + spool.ignored
    return sorted({*found, *(os.fsdecode(name).removesuffix(".json") for name in unread)})
