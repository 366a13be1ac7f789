"""What a host that is observed does more: instructions of the same work, with `observe` counting and without.

    python -m tests.bench.observing                   Debian's 6.12, NFS 4.2 and 3
    python -m tests.bench.observing --kernel 6.1
    python -m tests.bench.observing --only loader shell --rounds 1   minutes instead of an hour: Python compiles much
    python -m tests.bench.observing --bpftrace        beside it examples/observe.bt

Any user, no network; a virtual machine (tests/vm) with one processor whose clock counts the instructions it executes:
what else this machine does cannot touch a figure. Client and server are one. A process that runs only when nobody else
would, and the clock of it, tell what is left over. What is observed are starts of the three programs of tests/nfs/
test_applications.py with 200 directories in their search path, on a mount made anew for each round: alone, and with
other work beside them, which takes the processor whenever they wait. With and without by turns.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from mkmeta.demand.histograms import histograms
from mkmeta.linux.mount import leave_mount_namespace
from mkmeta.linux.mountinfo import mounts
from tests.demand.applications import APPLICATIONS, Application
from tests.nfs.server import VERSIONS, Client, Server
from tests.vm.__main__ import KERNEL, TESTS, boot

EMULATION: Final = ("-icount", "shift=0,sleep=off", "-smp", "1")  # an instruction takes a nanosecond, and idling none
SCRIPT: Final = Path(__file__).parents[2] / "examples/observe.bt"
WORK: Final = (  # of a host that has something to do: four times what the loader and the shell do
    "head -c 1000000 /bin/bash | gzip -9 | wc -c",
    "seq 50000 | sort -R --random-source=/bin/bash | sort -n | md5sum",
    "gcc -O2 -x c -c -o /dev/null - <<<'int f(int a) { return a * a; }'",
)


def main() -> int:
    """Runs the benchmark, or what of it is inside the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=TESTS, default=KERNEL, help="of Debian (%(default)s)")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(reversed(VERSIONS)))
    names = [kind.name for kind in APPLICATIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="which programs (all)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="with and without (3)")
    parser.add_argument("--bpftrace", action="store_true", help="as well")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return _inside(args.versions, args.only, args.rounds, args.bpftrace)
    command = [sys.executable, "-m", "tests.bench.observing", "--inside", *sys.argv[1:]]
    return boot(command, kernel=args.kernel, memory=3072, time_limit=7200, options=EMULATION)


class Meter:
    """Instructions that were executed for anybody, but for those of a process that has what is left over."""

    def __init__(self) -> None:
        idle = "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
        self._idle = subprocess.Popen([sys.executable, "-S", "-c", idle])
        time.sleep(1)
        self._idle.send_signal(signal.SIGSTOP)

    def __call__(self, work: Callable[[], object]) -> int:
        self._idle.send_signal(signal.SIGCONT)
        clock, idle = time.monotonic_ns(), self._left_over()
        work()
        executed = time.monotonic_ns() - clock - (self._left_over() - idle)
        self._idle.send_signal(signal.SIGSTOP)
        return executed

    def _left_over(self) -> int:
        return int(Path(f"/proc/{self._idle.pid}/schedstat").read_text().split()[0])

    def end(self) -> None:
        """Nothing is left over any more."""
        self._idle.kill()
        self._idle.wait()


def _inside(versions: list[str], names: list[str], rounds: int, bpftrace: bool) -> int:
    """In the guest: measures and prints."""
    leave_mount_namespace()
    server = Server()
    server.start()
    top = Path(tempfile.mkdtemp())
    volume = top / "volume"
    applications = [kind() for kind in APPLICATIONS if kind.name in names]
    for application in applications:
        (volume / application.name).mkdir(parents=True)
        application.make(volume / application.name)
    meter = Meter()
    try:
        with server.exporting(volume):
            for version in versions:
                where = top / f"nfs{version}"
                where.mkdir()
                client = Client(version, volume, where, "")
                client.mount()
                _work(where, applications, WORK)  # reads programs from the disk
                _compare(meter, client, applications, rounds, bpftrace)
                _ends(meter, client, top)
                client.unmount()
    finally:
        meter.end()
    return 0


def _compare(meter: Meter, client: Client, applications: Sequence[Application], rounds: int, bpftrace: bool) -> None:
    ways: dict[str, Callable[[], contextlib.AbstractContextManager[None]]]
    ways = {"without": contextlib.nullcontext, "with": functools.partial(_counting, client)}
    if bpftrace:
        ways["bpftrace"] = _tracing
    for name, other in (("starts alone", ()), ("and other work", WORK)):
        figures: dict[str, list[int]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, counting in ways.items():
                client.unmount()
                client.mount()
                with counting():
                    before = client.sent()
                    executed = meter(functools.partial(_work, client.where, applications, other))
                    requests = (client.sent() - before).total()
                figures[way].append(executed)
        plain = statistics.median(figures["without"])
        print(
            f"NFS {client.version}, {name}: {requests} requests, {plain / 1e6:.0f} million instructions without",
            flush=True,
        )
        for way, found in figures.items():
            more = [one - plain for one in found]
            print(
                f"    {way}: {statistics.median(more) / plain * 100:+.2f} % ({min(more) / plain * 100:+.2f} to"
                f" {max(more) / plain * 100:+.2f}), {statistics.median(more) / requests:.0f} per request",
                flush=True,
            )


def _work(where: Path, applications: Sequence[Application], other: tuple[str, ...]) -> None:
    """Starts the programs, with the other work beside them, until all has ended."""
    beside = [subprocess.Popen(["bash", "-c", one], stdout=subprocess.DEVNULL) for one in other]
    for application in applications:
        quiet = subprocess.DEVNULL
        subprocess.run(application.command(where / application.name), check=False, stdout=quiet, stderr=quiet)
    if any(process.wait() for process in beside):
        raise OSError("the other work failed")


@contextlib.contextmanager
def _counting(client: Client) -> Iterator[None]:
    """As `observe` does, which sleeps meanwhile."""
    (mount,) = (mount for mount in mounts() if mount.point == bytes(client.where))
    with histograms({mount.device: mount.fstype}) as counting:
        yield
        if not counting.read().counts:
            raise OSError("nothing was counted")


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    limits = {"BPFTRACE_STRLEN": "200", "BPFTRACE_MAP_KEYS_MAX": "100000"}
    limits |= {"BPFTRACE_MAX_STRLEN": "200", "BPFTRACE_MAX_MAP_KEYS": "100000"}
    process = subprocess.Popen(["bpftrace", SCRIPT], stdout=subprocess.PIPE, env={**os.environ, **limits})
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it attaches
        time.sleep(20)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _ends(meter: Meter, client: Client, top: Path) -> None:
    """What a run of `observe` itself takes: beginning, end, and the listing that finds the directories' names."""
    command = [sys.executable, "-m", "mkmeta", "observe", str(client.where), "--seconds", "0", "-o", f"{top}/profile"]
    executed = meter(functools.partial(subprocess.run, command, check=True, stderr=subprocess.DEVNULL))
    print(f"NFS {client.version}, a run of `observe` itself: {executed / 1e6:.0f} million instructions", flush=True)


if __name__ == "__main__":
    sys.exit(main())
