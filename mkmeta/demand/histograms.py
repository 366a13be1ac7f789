"""Lookups that an NFS server hears, by directory, summed in the kernel: ftrace's histogram triggers.

Kernel: Documentation/trace/histogram.rst, events.rst; fs/nfs/nfstrace.h, nfs4trace.h. `dir` is the inode number of a
directory. Which events say what a server answered:

    NFS 4   OPEN      `nfs_atomic_open_exit`: 0 or ENOENT in `error`
            LOOKUP    `nfs4_lookup`, once for each request: the same
    NFS 3   LOOKUP    `nfs_lookup_exit`: 0 in `fileid` for a name that is not there; its `error` is 0 then. Linux 6.1
                      does not say `fileid`. There `nfs_xdr_status` comes before it, in the same thread, where the
                      server said ENOENT, without a directory: a variable of that thread, which the other one takes,
                      makes a synthetic event of the two. What is not followed by one is there.

On 6.1 and 6.12 the sums are mountstats' failed LOOKUPs and OPENs, with NFS 3 less one for a file that is deleted while
the client knows it: the LOOKUP that tells it so is in no event with a directory (tests/nfs/test_histograms.py). Nothing
is written per event; what the client answers itself, and other mounts are told, is not seen.

All triggers are in a trace instance of our own, named after this process, as the synthetic event is. What others trace
is not touched. A small process beside this one removes both, when this one has ended, however that was; where that was
killed as well, the next run does. Until then the kernel goes on counting, in tables of fixed size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mkmeta.demand.tally import MISS, OPEN, STAT
from mkmeta.errors import MkmetaError, reason
from mkmeta.linux.descriptors import closing

TRACEFS: Final = Path("/sys/kernel/tracing")
_ENTRIES: Final = 65536  # of a table: directories, or threads that asked; the kernel's limit is twice that
_RMDIR: Final = "rmdir"
# Of tracefs, the instance and the event that are named. Histograms go first, in this order: variables keep an instance,
# and those of an event that go with an instance keep the event, forever. What somebody reads in cannot be removed yet.
# True once nothing is left.
_REMOVE: Final = """
instance=$0/instances/$1 event=$2
remove() {
    for name in nfs/nfs_lookup_exit nfs/nfs_xdr_status "synthetic/$event"; do
        true >"$instance/events/$name/trigger"
    done
    %s "$instance"
    [ ! -d "$0/events/synthetic/$event" ] || echo "!$event" >>"$0/synthetic_events"
    [ ! -d "$instance" ] && [ ! -d "$0/events/synthetic/$event" ]
} 2>/dev/null
"""
# Its input ends when the one process does that holds the other end; signals to all of a service do not end it. What
# cannot be removed yet goes when it can, and nobody waits for that.
_GUARD: Final = 'trap "" HUP INT TERM; read -r _; remove || { while ! remove; do sleep 1; done & }'
_NAME: Final = re.compile(r"mkmeta[-_](\d{1,10})[-_](\d{1,20})")
_KEY: Final = re.compile(r"^\{ dev: +(\d+), dir: +(\d+) \} hitcount: +(\d+)", re.MULTILINE)
_DROPPED: Final = re.compile(r"^ +Dropped: (\d+)", re.MULTILINE)
_BLOCK: Final = re.compile(r"^# trigger info: hist:\S*(?: if (\S+))?", re.MULTILINE)
_FOUND_OR_NOT, _JOIN = -1, -2  # beside the kinds: STAT or MISS; by thread, not by directory
_LOOKUP, _OPEN, _LOOKUP_4 = "nfs/nfs_lookup_exit", "nfs/nfs_atomic_open_exit", "nfs4/nfs4_lookup"


class NoHistogramsError(MkmetaError):
    """This kernel has none, or this user may not have them."""


@dataclass(slots=True)
class Found:
    """What histograms hold."""

    counts: dict[tuple[int, int], Counter[int]] = field(default_factory=dict)  # by st_dev and inode number; by kind
    dropped: int = 0  # events for which there was no entry left


@dataclass(frozen=True, slots=True)
class _Trigger:
    """A histogram of an event."""

    event: str  # as a path in `events`
    condition: str
    kind: int
    what: str = "hist:keys=dev,dir"

    def __str__(self) -> str:
        return f"{self.what}:size={_ENTRIES}" + (f" if {self.condition}" if self.condition else "")


@contextlib.contextmanager
def histograms(devices: Mapping[int, bytes], tracefs: Path = TRACEFS) -> Iterator[Histograms]:
    """Counts until the block ends, and leaves nothing. Raises NoHistogramsError.

    `devices`: type of the filesystem, `nfs` or `nfs4`, by st_dev.
    """
    sweep(tracefs)
    name = f"mkmeta-{os.getpid()}-{_started(os.getpid())}"
    instance = tracefs / "instances" / name
    with _removed_at_the_end(tracefs, name):
        try:
            instance.mkdir()
        except OSError as error:
            hint = "as root, with tracefs at /sys/kernel/tracing, it counts by directory too"
            raise NoHistogramsError(reason(error), path=bytes(instance), hint=hint) from None
        triggers = []
        if fours := [device for device, kind in devices.items() if kind == b"nfs4"]:
            triggers += _of_version_4(_one_of(fours))
        if threes := [device for device in devices if device not in fours]:
            if "fileid" in _read(instance / "events" / _LOOKUP / "format"):
                triggers += [_Trigger(_LOOKUP, f"fileid==0&&{_one_of(threes)}", MISS)]
                triggers += [_Trigger(_LOOKUP, f"fileid!=0&&{_one_of(threes)}", STAT)]
            else:
                triggers += _joined(tracefs, instance, _one_of(threes))
        for trigger in triggers:
            _write(instance / "events" / trigger.event / "trigger", str(trigger))
        yield Histograms(instance, triggers)


def _of_version_4(where: str) -> list[_Trigger]:
    return [
        _Trigger(event, f"error=={error}&&{where}", kind)
        for event, found in ((_LOOKUP_4, STAT), (_OPEN, OPEN))
        for error, kind in ((errno.ENOENT, MISS), (0, found))
    ]


def _joined(tracefs: Path, instance: Path, where: str) -> list[_Trigger]:
    """Makes one event of two, where that which knows the directory does not say what was found in it."""
    name = instance.name.replace("-", "_")
    _write(tracefs / "synthetic_events", f"{name} u32 dev; u64 dir")
    # In an expression, a variable is taken: the next event has none, unless it is told as well
    taken = f"hist:keys=common_pid:taken=$told*1:onmatch(nfs.nfs_xdr_status).trace({name},dev,dir)"
    failed = f'error=={errno.ENOENT}&&procedure=="LOOKUP"'
    return [
        _Trigger(f"synthetic/{name}", where, MISS),
        _Trigger("nfs/nfs_xdr_status", failed, _JOIN, "hist:keys=common_pid:told=error"),
        _Trigger(_LOOKUP, "", _JOIN, taken),
        _Trigger(_LOOKUP, f"error==0&&{where}", _FOUND_OR_NOT),
    ]


def _one_of(devices: Iterable[int]) -> str:
    numbers = sorted(os.major(device) << 20 | os.minor(device) for device in devices)  # as the kernel has them
    return f"({'||'.join(f'dev=={number}' for number in numbers)})"


def _shell(tracefs: Path, name: str, command: str) -> list[str]:
    """A command in which `remove` removes what is called so."""
    return ["/bin/sh", "-c", _REMOVE % _RMDIR + command, str(tracefs), name, name.replace("-", "_")]


@contextlib.contextmanager
def _removed_at_the_end(tracefs: Path, name: str) -> Iterator[None]:
    """Removes an instance and its event, which need not be there yet, at the end of the block or of this process."""
    quiet = subprocess.DEVNULL
    guard = subprocess.Popen(
        _shell(tracefs, name, _GUARD),
        stdin=subprocess.PIPE,
        stdout=quiet,
        stderr=quiet,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def sweep(tracefs: Path = TRACEFS) -> None:
    """Removes what runs left that were killed; what living ones use, or somebody reads in, stays."""
    left = set()
    for directory in (tracefs / "instances", tracefs / "events/synthetic"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            left |= {match.groups() for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))}
    for process, start in left:
        if _started(int(process)) != start:
            subprocess.run(_shell(tracefs, f"mkmeta-{process}-{start}", "remove"), check=False)


def _started(process: int) -> str:
    """When a process began, in ticks since boot: a later one of the same number is another. Empty: it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _read(file: Path) -> str:
    """What the kernel says. Raises NoHistogramsError."""
    try:
        return file.read_text()
    except OSError as error:
        hint = "is the NFS client's module loaded? examples/observe.bt counts without these"
        raise NoHistogramsError(f"cannot be read: {reason(error)}", path=bytes(file), hint=hint) from None


def _write(file: Path, line: str) -> None:
    """Asks the kernel for something. Raises NoHistogramsError."""
    hint = "examples/observe.bt counts without these"
    try:
        with closing(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)) as fd:  # O_TRUNC would remove the others
            os.write(fd, line.encode())
    except FileNotFoundError:
        raise NoHistogramsError("this kernel has no such event", path=bytes(file), hint=hint) from None
    except OSError as error:
        why = f"this kernel does not take {line!r}: {reason(error)}"
        raise NoHistogramsError(why, path=bytes(file), hint=hint) from None


class Histograms:
    """The histograms of an instance."""

    def __init__(self, instance: Path, triggers: Sequence[_Trigger]) -> None:
        self._instance = instance
        self._triggers = triggers

    def read(self) -> Found:
        """What they hold now. Raises NoHistogramsError: the events went away with the client's module."""
        found = Found()
        kinds = {(trigger.event, trigger.condition): trigger.kind for trigger in self._triggers}
        either: dict[tuple[int, int], int] = {}
        left_out = 0  # of these; of the same calls as what `found.dropped` is of
        for event in dict.fromkeys(event for event, _ in kinds):
            for condition, counts, dropped in parse(_read(self._instance / "events" / event / "hist")):
                kind = kinds.get((event, condition), _JOIN)
                if kind == _FOUND_OR_NOT:
                    either, left_out = counts, dropped
                    continue
                found.dropped += dropped
                for key, count in counts.items():
                    found.counts.setdefault(key, Counter())[kind] += count
        for key, count in either.items():
            known = found.counts.setdefault(key, Counter())
            known[STAT] = max(0, count - known[MISS])  # more may have failed since the one was read
        found.dropped = max(found.dropped, left_out)
        return found


def parse(text: str) -> Iterator[tuple[str, dict[tuple[int, int], int], int]]:
    """The histograms of one event: of each its filter, counts by st_dev and directory, and what it had no room for."""
    places = list(_BLOCK.finditer(text))
    for number, place in enumerate(places):
        end = places[number + 1].start() if number + 1 < len(places) else None
        block = text[place.end() : end]
        counts = {}
        for dev, directory, count in _KEY.findall(block):
            device = int(dev)  # 12 bits major, 20 bits minor
            counts[os.makedev(device >> 20, device & 0xFFFFF), int(directory)] = int(count)
        yield place[1] or "", counts, sum(map(int, _DROPPED.findall(block)))
