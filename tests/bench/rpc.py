"""What an NFS server gets to hear, with and without a layer: RPCs by operation, and seconds a millisecond away.

    python -m tests.bench.rpc                the table for people, then one line of JSON
    python -m tests.bench.rpc --json FILE    the JSON into a file

Any user, no network: it boots a kernel of its own (tests/uml) and serves a volume to itself. Every figure is of one use
of a volume mounted afresh, and nothing cached: `activate` comes before the counting. The four uses of the first tree
are then made once uncounted and at once another time. What a client sends by itself, now and then, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.bench.measure import Figure
from tests.nfs.hosts import NfsHost
from tests.nfs.server import VERSIONS, Client, Server, latency, round_trip
from tests.uml.__main__ import boot

DIRECTORIES, FILES, MISSES = 40, 20, 30  # files and misses are per directory
SEARCHED, NAMES = 200, 10  # entries of a search path, names that none of them has
PACKAGES: Final = 40  # in every fifth entry of PYTHONPATH one
PROGRAM: Final = "rsync"  # it has half a dozen libraries, and the guest needs it anyway
NO_TIMEOUT: Final = "actimeo=600"  # for the second round: otherwise it depends on how long the first one took
MOUNTS: Final = ("plain NFS", "merge", "data-only", "nested")

Use = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class UseFigure(Figure):
    """One use of one mount."""

    use: str


def main() -> int:
    """Runs the benchmark, or what of it is inside the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", metavar="VERSION", help="one of .cache/uml (default: the newest)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where the JSON goes (default: stdout)")
    parser.add_argument("--inside", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return _inside(args.inside)
    with tempfile.TemporaryDirectory(prefix="mkmeta-rpc-", dir="/var/tmp") as work:  # which the guest does not cover
        answer = Path(work) / "rpc.json"
        code = boot([sys.executable, "-m", "tests.bench.rpc", "--inside", str(answer)], kernel=args.kernel)
        if code == 0 and args.json:
            shutil.copyfile(answer, args.json)
        elif code == 0:
            print(json.dumps(json.loads(answer.read_text())))
    return code


def _inside(answer: Path) -> int:
    """Measures, prints the table, and writes the JSON to a file."""
    figures, measured = _measure()
    print(table(figures))
    print(f"Linux {os.uname().release}; a round trip took {measured * 1000:.2f} ms")
    result = {
        "kernel": os.uname().release,
        "round_trip_seconds": measured,
        "figures": [{**asdict(figure), "total": figure.total} for figure in figures],
    }
    answer.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def table(figures: list[UseFigure]) -> str:
    """For people: a line for each figure."""
    lines = ["| NFS | use | mount | RPCs | seconds | by operation |", "|---|---|---|---|---|---|"]
    for one in figures:
        operations = ", ".join(f"{count} {name}" for name, count in sorted(one.rpcs.items(), key=lambda item: -item[1]))
        lines.append(
            f"| {one.version} | {one.use} | {one.mount} | {one.total} | {one.seconds:.2f} | {operations or '-'} |"
        )
    return "\n".join(lines)


def _measure() -> tuple[list[UseFigure], float]:
    """All figures, and the seconds a round trip took."""
    server = Server()
    server.start()
    top = Path(tempfile.mkdtemp())
    volume = top / "volume"
    make_volume(volume)
    figures = []
    trips = []
    with server.exporting(volume):
        for version in VERSIONS:
            where = top / f"nfs{version}"
            where.mkdir()
            client = Client(version, volume, where, "")
            client.mount()
            host = NfsHost(top / f"host{version}", client=client)
            host.publish("sw/*", "search/*", "python/*", "libs/*", "bin")
            with latency():
                trips.append(round_trip(client))
                for name, use in USES.items():
                    for mount in MOUNTS:
                        client.options = NO_TIMEOUT if use is again else ""
                        with _mounted(host, mount) as root:
                            if use is again:
                                use(root)
                            figures.append(_figure(client, name, mount, use, root))
            client.unmount()
    return figures, sum(trips) / len(trips)


def _figure(client: Client, name: str, mount: str, use: Use, root: Path) -> UseFigure:
    with client.rpcs() as sent:
        started = time.perf_counter()
        use(root)
        seconds = time.perf_counter() - started
    rpcs = {key: count for key, count in sent.items() if count}
    return UseFigure(version=client.version, use=name, mount=mount, rpcs=rpcs, seconds=round(seconds, 3))


@contextlib.contextmanager
def _mounted(host: NfsHost, mount: str) -> Iterator[Path]:
    """Where the volume is to be used, all caches cold."""
    host.client.remount()
    if mount == MOUNTS[0]:
        yield host.volume
        return
    host.activate("--profile", mount)
    yield host.point
    host.call("deactivate", host.point)


def make_volume(root: Path) -> None:
    """The first tree, and what is searched along 200 directories: names, Python packages, libraries of a program."""
    for number in range(DIRECTORIES):
        directory = root / "sw" / f"d{number:02}"
        directory.mkdir(parents=True)
        for file in range(FILES):
            (directory / f"f{file:02}").write_bytes(b"x" * 1000)
    for number in range(SEARCHED):
        for kind in ("search", "python", "libs"):
            directory = root / kind / f"{number:03}"
            directory.mkdir(parents=True)
            (directory / "something").write_text("else")
    for number in range(PACKAGES):
        package = root / "python" / f"{number * SEARCHED // PACKAGES:03}" / f"package{number}"
        package.mkdir()
        (package / "__init__.py").write_text(f"NUMBER = {number}\n")
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileNotFoundError(PROGRAM)
    (root / "bin").mkdir()
    shutil.copy(program, root / "bin")
    for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow:
            shutil.copy(rest.split(" (")[0], root / "libs" / f"{SEARCHED - 1:03}" / name)


def _entries(root: Path, kind: str) -> list[Path]:
    return [root / kind / f"{number:03}" for number in range(SEARCHED)]


def misses(root: Path) -> None:
    """Names that are not there, in every directory of the first tree."""
    for directory in range(DIRECTORIES):
        for number in range(MISSES):
            _miss(root / "sw" / f"d{directory:02}" / f"none{number}")


def stats(root: Path) -> None:
    """Attributes of every file."""
    for directory in range(DIRECTORIES):
        for number in range(FILES):
            os.stat(root / "sw" / f"d{directory:02}" / f"f{number:02}")


def listings(root: Path) -> None:
    """Names in every directory."""
    for directory in range(DIRECTORIES):
        if len(os.listdir(root / "sw" / f"d{directory:02}")) != FILES:
            raise AssertionError("a listing is not complete")


def reads(root: Path) -> None:
    """Content of every file."""
    for directory in range(DIRECTORIES):
        for number in range(FILES):
            (root / "sw" / f"d{directory:02}" / f"f{number:02}").read_bytes()


def again(root: Path) -> None:
    """All of these."""
    for use in (misses, stats, listings, reads):
        use(root)


def storm(root: Path) -> None:
    """Names that no directory of a search path has."""
    for name in range(NAMES):
        for directory in _entries(root, "search"):
            _miss(directory / f"none{name}")


def imports(root: Path) -> None:
    """A Python that imports packages from a long PYTHONPATH."""
    names = ", ".join(f"package{number}" for number in range(PACKAGES))
    search = ":".join(map(str, _entries(root, "python")))
    environment = {"PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}
    subprocess.run([sys.executable, "-S", "-c", f"import {names}"], env=environment, check=True)


def program(root: Path) -> None:
    """A program whose libraries are in the last directory of a long LD_LIBRARY_PATH."""
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, _entries(root, "libs")))}
    command = [str(root / "bin" / PROGRAM), "--version"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def _miss(path: Path) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    raise AssertionError(f"{path} is there")


USES: Final[dict[str, Use]] = {
    f"{DIRECTORIES * MISSES:,} misses": misses,
    f"{DIRECTORIES * FILES} stats": stats,
    f"{DIRECTORIES} listings": listings,
    f"{DIRECTORIES * FILES} files opened and read": reads,
    f"all of these again ({NO_TIMEOUT})": again,
    f"{SEARCHED * NAMES:,} misses along {SEARCHED} directories": storm,
    f"Python imports {PACKAGES} packages, {SEARCHED} entries in PYTHONPATH": imports,
    f"a program starts, {SEARCHED} entries in LD_LIBRARY_PATH": program,
}

if __name__ == "__main__":
    sys.exit(main())
