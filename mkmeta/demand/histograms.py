"""Lookups that an NFS server hears, by directory, summed in the kernel: ftrace's histogram triggers.

Kernel: Documentation/trace/histogram.rst, events.rst; fs/nfs/nfstrace.h. `nfs_lookup_exit` says 0 in `fileid` for a
name that is not there (its `error` is 0 then), `nfs_atomic_open_exit` says ENOENT in `error`; `dir` is the directory's
inode number. On 6.12 and 7.3 with NFS 3 and 4.2 the sums are mountstats' failed LOOKUPs and OPENs, less one for a file
that is deleted while the client knows it: the LOOKUP that tells it so is in no event with a directory and an error
(tests/nfs/test_histograms.py). Nothing is written per event; what the client answers itself is not seen, and costs
nothing.

All triggers are in a trace instance of our own, named after this process. What others trace is not touched, and
removing the instance removes them. A small process beside this one does that, when this one has ended, however that
was; where that was killed as well, the next run does. Until then the kernel goes on counting, in tables of fixed size.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mkmeta.demand.tally import MISS, OPEN, STAT
from mkmeta.errors import MkmetaError, reason
from mkmeta.linux.descriptors import closing

TRACEFS: Final = Path("/sys/kernel/tracing")
_ENTRIES: Final = 65536  # of a histogram: directories; the kernel's limit is twice that
# Its input ends when the one process does that holds the other end; signals to all of a service do not end it. An
# instance somebody reads in cannot be removed yet: it goes when they end, and nobody waits for that.
_GUARD: Final = (
    'trap "" HUP INT TERM; read -r _; {remove} "$0" || {{ while [ -d "$0" ] && ! {remove} "$0"; do sleep 1; done & }}'
)
_REMOVE: Final = "rmdir"
_NAME: Final = re.compile(r"mkmeta-(\d{1,10})-(\d{1,20})")
_TRIGGERS: Final = (
    ("nfs_lookup_exit", "fileid==0", MISS),
    ("nfs_lookup_exit", "fileid!=0", STAT),
    ("nfs_atomic_open_exit", "error==2", MISS),
    ("nfs_atomic_open_exit", "error==0", OPEN),
)
_KEY: Final = re.compile(r"^\{ dev: +(\d+), dir: +(\d+) \} hitcount: +(\d+)", re.MULTILINE)
_DROPPED: Final = re.compile(r"^ +Dropped: (\d+)", re.MULTILINE)
_FILTER: Final = re.compile(r"^# trigger info: hist:keys=dev,dir:\S* if (\S+)", re.MULTILINE)


class NoHistogramsError(MkmetaError):
    """This kernel has none, or this user may not have them."""


@dataclass(slots=True)
class Found:
    """What histograms hold."""

    counts: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)  # by st_dev and inode number; by kind
    dropped: int = 0  # events for which there was no entry left


@contextlib.contextmanager
def histograms(tracefs: Path = TRACEFS) -> Iterator[Histograms]:
    """Counts until the block ends, and leaves nothing. Raises NoHistogramsError."""
    sweep(tracefs)
    instance = tracefs / "instances" / f"mkmeta-{os.getpid()}-{_started(os.getpid())}"
    with _removed_at_the_end(instance):
        try:
            instance.mkdir()
        except OSError as error:
            hint = "as root, with tracefs at /sys/kernel/tracing, it counts by directory too"
            raise NoHistogramsError(reason(error), path=bytes(instance), hint=hint) from None
        for event, condition, _ in _TRIGGERS:
            _set(instance / "events/nfs" / event / "trigger", condition)
        yield Histograms(instance)


@contextlib.contextmanager
def _removed_at_the_end(instance: Path) -> Iterator[None]:
    """Removes an instance, which need not be there yet, at the end of the block or of this process."""
    command = ["/bin/sh", "-c", _GUARD.format(remove=_REMOVE), str(instance)]
    quiet = subprocess.DEVNULL
    guard = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True
    )
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def sweep(tracefs: Path = TRACEFS) -> None:
    """Removes instances of runs that were killed; those of living ones stay."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for path in (tracefs / "instances").iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None and _started(int(match[1])) != match[2]:
                with contextlib.suppress(OSError):  # another run has swept it, or somebody reads in it
                    path.rmdir()


def _started(process: int) -> str:
    """When a process began, in ticks since boot: a later one of the same number is another. Empty: it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _set(trigger: Path, condition: str) -> None:
    try:
        with closing(
            os.open(trigger, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        ) as fd:  # O_TRUNC would remove the others
            os.write(fd, f"hist:keys=dev,dir:size={_ENTRIES} if {condition}".encode())
    except FileNotFoundError:
        hint = "is the NFS client's module loaded? examples/observe.bt counts without these"
        raise NoHistogramsError("this kernel has no such event", path=bytes(trigger), hint=hint) from None
    except OSError as error:
        hint = "its CONFIG_HIST_TRIGGERS is off; examples/observe.bt counts without them"
        raise NoHistogramsError(
            f"this kernel takes no histogram: {reason(error)}", path=bytes(trigger), hint=hint
        ) from None


class Histograms:
    """The histograms of an instance."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    def read(self) -> Found:
        """What they hold now. Raises OSError."""
        found = Found()
        for event in dict.fromkeys(event for event, _, _ in _TRIGGERS):
            kinds = {condition: kind for name, condition, kind in _TRIGGERS if name == event}
            text = (self._instance / "events/nfs" / event / "hist").read_text()
            parse(text, kinds, found)
        return found


def parse(text: str, kinds: dict[str, int], found: Found) -> None:
    """Adds the histograms of one event, each with its filter above it; `kinds` says what a filter counts."""
    places = list(_FILTER.finditer(text))
    for number, place in enumerate(places):
        end = places[number + 1].start() if number + 1 < len(places) else None
        kind = kinds.get(place[1].replace(" ", ""))
        if kind is None:
            continue
        block = text[place.end() : end]
        for dev, directory, count in _KEY.findall(block):
            number = int(dev)  # as the kernel has it: 12 bits major, 20 bits minor
            key = (os.makedev(number >> 20, number & 0xFFFFF), int(directory))
            found.counts.setdefault(key, Counter())[kind] += int(count)
        found.dropped += sum(map(int, _DROPPED.findall(block)))
