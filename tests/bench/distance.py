"""Scan against find, on a volume whose every answer takes a millisecond; prints one JSON object.

    python -m tests.bench.distance

Root, /dev/fuse and gcc: the volume is a directory served by `distant.c`, compiled for the occasion. Nothing is cached
by names or attributes. `find -printf` asks for the attributes of each entry, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkmeta.linux.mount import umount2
from tests.bench.__main__ import MKMETA
from tests.bench.measure import run

SOURCE: Final = Path(__file__).with_name("distant.c")
SIZE: Final = 1000  # bytes of each file


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=int, default=1000, metavar="MICROSECONDS", help="until an answer (1000)")
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the volumes are made")
    args = parser.parse_args()
    result: dict[str, object] = {"delay_us": args.delay, "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="mkmeta-distance-", dir=args.dir) as work:
        program = compiled(Path(work))
        for shape, make in (("many_directories", make_many), ("one_directory", make_one)):
            volume, point = Path(work) / shape, Path(work) / f"{shape}.far"
            make(volume)
            point.mkdir()
            with served(program, volume, point, args.delay):
                result[shape] = _compare(point, Path(work) / "manifest.mkm")
    print(json.dumps(result, indent=1))


def make_many(root: Path) -> None:
    """21,440 entries in 1,440 directories: 40 of 35 directories, each with 14 files, and 10 files here and there."""
    for number in range(40):
        for inner in range(35):
            directory = root / f"group{number:02}" / f"package{inner:02}"
            directory.mkdir(parents=True)
            fill(directory, 14)
        fill(root / f"group{number:02}", 10)


def make_one(root: Path) -> None:
    """One directory of 3,000 files."""
    (root / "wide").mkdir(parents=True)
    fill(root / "wide", 3000)


def fill(directory: Path, files: int) -> None:
    """Files with other contents each."""
    for number in range(files):
        (directory / f"file{number:04}").write_bytes(f"{directory.name} {number} ".encode().ljust(SIZE, b"x"))


def compiled(work: Path) -> Path:
    """The server, made from its source."""
    program = work / "distant"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, SOURCE], check=True)
    return program


@contextlib.contextmanager
def served(program: Path, volume: Path, point: Path, delay: int, cached: int = 0) -> Iterator[None]:
    """`volume` at `point`, each of its answers `delay` microseconds away; names are believed for `cached` seconds."""
    with subprocess.Popen([program, volume, point, str(delay), str(cached)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            raise OSError("the server did not start")
        try:
            yield
        finally:
            umount2(os.fsencode(point))


def requests(point: Path) -> Counter[str]:
    """What the server at `point` was asked so far, by the number of the operation in linux/fuse.h."""
    lines = os.getxattr(point, "user.distant.requests").decode().splitlines()
    return Counter({number: int(count) for number, count in map(str.split, lines)})


def _compare(point: Path, manifest: Path) -> dict[str, object]:
    scan = [*MKMETA, "scan", str(point), "-q", "-o", str(manifest)]
    find = run(["find", str(point), "-printf", r"%p %s %m %T@\n"])
    names, both = run([*scan, "--digest", "none"]), run(scan)
    return {
        "find": round(find.seconds, 2),
        "names": round(names.seconds, 2),
        "both": round(both.seconds, 2),
        "find_to_names": round(find.seconds / names.seconds, 1),
        "find_to_both": round(find.seconds / both.seconds, 1),
    }


if __name__ == "__main__":
    main()
