"""What a switch costs by the size of the layer, a refresh by the number of names in the cache; prints one JSON object.

    python -m tests.bench.mounts --dir /dev/shm --sizes 1000 10000 100000 --names 1000000

Needs root. A switch is timed as `mkmeta activate` does it, from the lock to the end. Each size is switched --rounds
times, in turn with the others; figures are medians.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from unittest.mock import patch

from mkmeta.host.activation import Request, activate
from mkmeta.host.deactivation import deactivate
from mkmeta.linux.mount import move_mount, umount_fd
from mkmeta.linux.mountinfo import mounts
from mkmeta.mounts import switch
from mkmeta.mounts.live import live_at
from mkmeta.mounts.refresh import refresh
from mkmeta.mounts.run import RunDirectory
from tests.bench.tree import make_tree
from tests.host.hosts import Host


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="files in the layer")
    parser.add_argument("--names", type=int, default=1_000_000, help="names in the cache when it is refreshed")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix="mkmeta-bench-", dir=args.dir))
    hosts = {size: _host(top / str(size), size) for size in args.sizes}
    try:
        result = {"switch": _switches(hosts, args.rounds), "refresh": _refreshes(hosts[min(hosts)], args.names)}
        print(json.dumps(result, indent=1))
    finally:
        for host in hosts.values():
            host.unmount_all()
        shutil.rmtree(top)


def _host(top: Path, files: int) -> Host:
    """A host with two generations that differ in one release."""
    host = Host(top)
    make_tree(host.volume, files, files * 20)
    host.publish("grp*/*")
    (host.volume / "grp000" / "new").mkdir()
    host.publish("grp*/*")
    return host


def _switches(hosts: dict[int, Host], rounds: int) -> dict[str, object]:
    """Alternates between two generations; all names of the layer are in the cache of the mount that goes."""
    times: dict[int, list[tuple[float, float, float]]] = {size: [] for size in hosts}
    exchange = [0.0, 0.0]

    def moved(fd: int, target: bytes, *, beneath: bool = False) -> None:
        exchange[0] = time.perf_counter()
        move_mount(fd, target, beneath=beneath)

    def unmounted(fd: int, flags: int = 0) -> None:
        umount_fd(fd, flags)
        exchange[1] = time.perf_counter()

    with patch.object(switch, "move_mount", moved), patch.object(switch, "umount_fd", unmounted):
        for number in range(rounds + 1):
            for size, host in hosts.items():
                started = time.perf_counter()
                _activate(host, 1 + number % 2)
                ended = time.perf_counter()
                times[size].append((exchange[1] - started, exchange[1] - exchange[0], ended - exchange[1]))
                _walk(host.point)
    for host in hosts.values():
        deactivate(os.fsencode(host.point), _run(host), print, detach=False)
    return {f"{size} files": _medians(found[1:]) for size, found in times.items()}


def _medians(rounds: list[tuple[float, float, float]]) -> dict[str, str]:
    names = ("until the new one is visible", "of it the exchange", "to forget the old one")
    columns = zip(*rounds, strict=True)
    return {name: f"{_milliseconds(list(column))} ms" for name, column in zip(names, columns, strict=True)}


def _refreshes(host: Host, names: int) -> dict[str, object]:
    """An idle mount and one that two processes use: how long it takes, and the longest lookup meanwhile."""
    _activate(host, 2)
    figures: dict[str, object] = {"names": names}
    for users in (0, 2):
        _ask(host.point, names)
        stop = multiprocessing.Event()
        worst = multiprocessing.Array("d", max(users, 1), lock=False)
        programs = [multiprocessing.Process(target=_use, args=(host.point, stop, worst, one)) for one in range(users)]
        for program in programs:
            program.start()
        time.sleep(0.3)
        for number in range(users):
            worst[number] = 0.0
        done = refresh(live_at(os.fsencode(host.point), mounts())[-1])
        stop.set()
        for program in programs:
            program.join()
        figures[f"with {users} users"] = {
            "milliseconds": round(done.seconds * 1000, 1),
            "names_dropped": done.names,
            **({"longest_lookup_milliseconds": round(max(worst) * 1000, 1)} if users else {}),
        }
    again = [refresh(live_at(os.fsencode(host.point), mounts())[-1]).seconds for _ in range(5)]
    figures["of a cache that is empty"] = {"milliseconds": _milliseconds(again)}
    return figures


def _use(point: Path, stop: Event, worst: ctypes.Array[ctypes.c_double], number: int) -> None:
    path = point / "grp000"
    while not stop.is_set():
        started = time.perf_counter()
        os.stat(path)
        worst[number] = max(worst[number], time.perf_counter() - started)


def _ask(point: Path, names: int) -> None:
    top = os.fspath(point)
    for number in range(names):
        os.access(f"{top}/nothing-{number}", os.F_OK)


def _walk(point: Path) -> None:
    for _ in os.walk(point):
        pass


def _activate(host: Host, generation: int) -> None:
    request = Request(
        point=os.fsencode(host.point),
        store=os.fsencode(host.store),
        lower=os.fsencode(host.volume),
        generation=generation,
    )
    activate(request, _run(host), print)


def _run(host: Host) -> RunDirectory:
    return RunDirectory.open(os.fsencode(host.run), None)


def _milliseconds(values: list[float]) -> float:
    return round(statistics.median(values) * 1000, 2)


if __name__ == "__main__":
    main()
