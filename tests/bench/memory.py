"""Peak memory of every verb, on trees and manifests made to need much of it; prints a table.

    python -m tests.bench.memory [--names 1000000] [--dir /dev/shm] [--cases flat,deep,hostile] [--limit 6]

`flat` is one directory with that many empty files, `deep` as many in a chain of directories. The hostile manifests are
small files that cost a careless reader a thousand times their size; refusing them is as good as handling them. A peak
is that of the largest process of a call, in MiB: ru_maxrss of wait4(2), which counts children that were waited for.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from mkmeta.codec.packing import array_header
from mkmeta.digest import ObjectKind
from tests.vectors.assemble import Draft, entry, file

MKMETA: Final = (sys.executable, "-m", "mkmeta")
_DEPTH: Final = 100  # directories in each other, in `deep`
_NESTED: Final = 40  # levels of the nested manifest
_OBJECT_SIZE: Final = 60 << 20  # bytes: a little less than the largest object that was ever allowed


@dataclass(frozen=True)
class Peak:
    """What one call took."""

    mib: int
    seconds: float
    code: int


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="holds trees and layers")
    parser.add_argument("--cases", default="flat,deep,hostile")
    parser.add_argument("--limit", type=float, default=6, help="GiB of address space for a process, as a guard")
    args = parser.parse_args()
    print(f"{'case':24}{'call':14}{'MiB':>7}{'s':>8}  exit", flush=True)
    with tempfile.TemporaryDirectory(prefix="mkmeta-memory-", dir=args.dir) as name:
        work = Path(name)
        for case in args.cases.split(","):
            for label, call, peak in _CASES[case](work / case, args):
                print(f"{label:24}{call:14}{peak.mib:7}{peak.seconds:8.1f}  {peak.code}", flush=True)
            shutil.rmtree(work / case)


Rows = Iterator[tuple[str, str, Peak]]


def _flat(work: Path, args: argparse.Namespace) -> Rows:
    volume = work / "volume"
    _apart(lambda: _make_files(volume / "d", range(args.names)))
    yield from _verbs("flat", work, volume, volume / "d" / "x", args)


def _deep(work: Path, args: argparse.Namespace) -> Rows:
    volume = work / "volume"
    per_level = args.names // _DEPTH

    def make() -> None:
        directory = volume
        for level in range(_DEPTH):
            directory /= f"d{level}"
            _make_files(directory, range(level * per_level, (level + 1) * per_level))

    _apart(make)
    yield from _verbs("deep", work, volume, volume / "d0" / "x", args)


def _verbs(label: str, work: Path, volume: Path, new: Path, args: argparse.Namespace) -> Rows:
    """Every verb on one tree; `new` is a file that appears in it halfway."""
    one, two, layer = work / "one.mkm", work / "two.mkm", work / "layer"
    scan = ("scan", volume, "--select", "*", "-q")
    yield label, "scan", _measure(args, *scan, "-o", one)
    yield label, "rescan", _measure(args, *scan, "--base", one, "-o", work / "again.mkm")
    new.touch()
    yield label, "rescan, 1 new", _measure(args, *scan, "--base", one, "-o", two)
    yield label, "show --check", _measure(args, "show", one, "--check")
    yield label, "ls", _measure(args, "ls", one)
    yield label, "dump", _measure(args, "dump", one)
    yield label, "diff", _measure(args, "diff", one, two, "-q")
    yield label, "merge", _measure(args, "merge", one, two, "--on-conflict", "later", "-q", "-o", work / "merged.mkm")
    yield label, "prune", _measure(args, "prune", two, "--drop", new.relative_to(volume), "-q", "-o", work / "p.mkm")
    yield label, "build", _measure(args, "build", one, layer, "-q")
    yield label, "verify", _measure(args, "verify", layer, "--manifest", one, "-q")
    yield label, "verify --lower", _measure(args, "verify", layer, "--manifest", one, "--lower", volume, "-q")


def _hostile(work: Path, args: argparse.Namespace) -> Rows:
    work.mkdir()
    manifest = work / "hostile.mkm"
    for name, make in _HOSTILE.items():
        _apart(partial(_write, manifest, make))
        label = f"{name}, {manifest.stat().st_size:,} B"
        for call in (
            ("show", manifest),
            ("show", manifest, "--check"),
            ("ls", manifest, "d"),
            ("dump", manifest),
            ("diff", manifest, manifest, "-q"),
            ("merge", manifest, manifest, "-q", "-o", work / "merged.mkm"),
            ("prune", manifest, "--drop", "nothing", "-q", "-o", work / "pruned.mkm"),
            ("build", manifest, work / "layer", "-q"),
        ):
            yield label, " ".join(str(word) for word in call if word in ("--check", call[0])), _measure(args, *call)
            shutil.rmtree(work / "layer", ignore_errors=True)


_CASES: Final[dict[str, Callable[[Path, argparse.Namespace], Rows]]] = {
    "flat": _flat,
    "deep": _deep,
    "hostile": _hostile,
}


def _array(element: bytes) -> bytes:
    """An array of as many equal elements as fit into an object."""
    count = _OBJECT_SIZE // len(element)
    return array_header(count) + element * count


def _directory_of(element: bytes) -> bytes:
    """A manifest whose one directory is an array of these."""
    draft = Draft()
    below = draft.add(ObjectKind.DIRECTORY, _array(element))
    return draft.finish(entry(b"d", 0o040755, below, 1, 1)).encode()


def _nested() -> bytes:
    """Directories in each other, each with so many entries that all of them at once are too much."""
    draft = Draft()
    files = [file(b"%05d" % number) for number in range(15_000)]
    folder = draft.folder(b"z", *files)
    for _ in range(_NESTED):
        folder = draft.folder(b"z", *files, folder)
    return draft.finish(folder).encode()


def _info() -> bytes:
    """An info record of empty rows; nothing of it is in the ID."""
    draft = Draft()
    record = b"\x81\xa8left_out" + array_header(15 << 20) + b"\x90" * (15 << 20)
    return draft.finish(file(), info=record).encode()


_HOSTILE: Final[dict[str, Callable[[], bytes]]] = {
    "empty arrays": lambda: _directory_of(b"\x90"),
    "nils": lambda: _directory_of(b"\xc0"),
    "empty maps": lambda: _directory_of(b"\x80"),
    "arrays of ten": lambda: _directory_of(b"\x9a" + b"\x00" * 10),
    "info": _info,
    "40 levels": _nested,
}


def _write(path: Path, make: Callable[[], bytes]) -> None:
    path.write_bytes(make())


def _make_files(directory: Path, numbers: range) -> None:
    directory.mkdir(parents=True)
    os.chdir(directory)
    for number in numbers:
        os.mknod(b"name-%09d" % number)


def _apart(work: Callable[[], object]) -> None:
    """Does something in a process of its own: what is started later inherits this one's peak (see getrusage(2))."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise OSError("making a tree or a manifest failed")


def _measure(args: argparse.Namespace, *call: str | Path) -> Peak:
    guard = int(args.limit * 2**30)
    started = time.perf_counter()
    process = subprocess.Popen(
        [*MKMETA, *map(str, call)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (guard, guard)),
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Peak(usage.ru_maxrss >> 10, time.perf_counter() - started, process.returncode)


if __name__ == "__main__":
    main()
