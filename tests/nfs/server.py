"""The kernel's NFS server and client, on a machine that is the tests' own (tests/uml): they change all of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSIONS: Final = ("3", "4.2")
HOST: Final = "127.0.0.1"
ROUND_TRIP: Final = 0.001  # seconds, of `latency`
# What the client sends by itself, now and then, whatever is asked of it
BACKGROUND: Final = frozenset(
    {"RENEW", "SEQUENCE", "RECLAIM_COMPLETE", "EXCHANGE_ID", "DELEGRETURN", "BIND_CONN_TO_SESSION"}
)


def call(*command: str | Path) -> str:
    """Runs a command and returns what it prints. Raises OSError with its complaint when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {result.stderr.strip() or f'exit code {result.returncode}'}")
    return result.stdout


class Server:
    """The NFS server. Exports one directory, as the root of NFSv4 and under its own path for NFSv3."""

    THREADS: Final = "8"

    def start(self) -> None:
        """Starts the daemons, which end with the machine, and serves."""
        for directory in ("/run/rpcbind", "/run/rpc_pipefs", "/var/lib/nfs/nfsdcld"):
            os.makedirs(directory, exist_ok=True)
        for file in ("etab", "rmtab"):
            Path("/var/lib/nfs", file).touch()
        call("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        call("mount", "-t", "rpc_pipefs", "rpc_pipefs", "/run/rpc_pipefs")
        call("rpcbind", "-w")
        subprocess.run(["rpc.mountd"], check=True, stderr=subprocess.DEVNULL)  # complains that there is no IPv6
        call("nfsdcld", "-p", "/run/rpc_pipefs")  # remembers clients; without it nobody can end a grace period
        self.resume()

    def resume(self) -> None:
        """Serves, and at once: there is no state of clients from before to be reclaimed."""
        call("rpc.nfsd", "--grace-time", "10", self.THREADS)
        grace_ended = Path("/proc/fs/nfsd/v4_end_grace")
        if grace_ended.read_text() != "Y\n":
            grace_ended.write_text("Y\n")

    def stop(self) -> None:
        """Stops serving: connections are refused."""
        call("rpc.nfsd", "0")

    @contextlib.contextmanager
    def exporting(self, root: Path, options: str = "no_root_squash") -> Iterator[None]:
        """Exports `root` to everybody, read-only for clients."""
        call("exportfs", "-o", f"ro,no_subtree_check,fsid=0,{options}", f"*:{root}")
        try:
            yield
        finally:
            call("exportfs", "-ua")
            call("exportfs", "-f")


@dataclass
class Client:
    """A mount of what the server exports."""

    version: str
    root: Path  # as the server knows it
    where: Path  # the mount point
    options: str

    def mount(self) -> None:
        """Mounts; nothing is cached then."""
        source = f"{HOST}:{self.root if self.version == '3' else '/'}"
        locking = ",nolock,mountproto=tcp" if self.version == "3" else ""
        options = f"ro,vers={self.version},sec=sys{locking}{',' if self.options else ''}{self.options}"
        call("mount", "-t", "nfs", "-o", options, source, self.where)

    def unmount(self) -> None:
        """Unmounts."""
        call("umount", self.where)

    def remount(self) -> None:
        """Mounts anew: the caches are cold, those of the server are not."""
        self.unmount()
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        self.mount()

    @contextlib.contextmanager
    def rpcs(self) -> Iterator[Counter[str]]:
        """Counts the RPCs sent meanwhile, by operation; the counter is filled at the end."""
        sent: Counter[str] = Counter()
        before = self.sent()
        yield sent
        sent.update(self.sent() - before)
        for operation in BACKGROUND:
            del sent[operation]

    def sent(self) -> Counter[str]:
        """The RPCs of this mount since it was mounted (/proc/self/mountstats: per operation, the first figure)."""
        devices = Path("/proc/self/mountstats").read_text().split("device ")
        (mine,) = (text for text in devices if f" mounted on {self.where} with fstype nfs" in text)
        lines = mine.partition("per-op statistics")[2].splitlines()
        pairs = (line.split(":") for line in lines if ":" in line)
        return Counter({name.strip(): int(figures.split()[0]) for name, figures in pairs})


@contextlib.contextmanager
def latency(seconds: float = ROUND_TRIP) -> Iterator[None]:
    """Every answer takes this long."""
    with _netem("delay", f"{seconds / 2 * 1e6:.0f}us", "limit", "100000"):
        yield


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing sent arrives."""
    with _netem("loss", "100%"):
        yield


_netem_in_force: list[tuple[str, ...]] = []


@contextlib.contextmanager
def _netem(*what: str) -> Iterator[None]:
    """The network behaves like this; then as it did before."""
    _netem_in_force.append(what)
    _apply_netem()
    try:
        yield
    finally:
        _netem_in_force.pop()
        _apply_netem()


def _apply_netem() -> None:
    device = ("dev", "lo", "root")
    if _netem_in_force:
        call("tc", "qdisc", "replace", *device, "netem", *_netem_in_force[-1])
    else:
        call("tc", "qdisc", "del", *device)


def round_trip(client: Client) -> float:
    """Seconds one RPC takes, the median of some: a miss of a name nobody asked for."""
    times = []
    for number in range(20):
        started = time.perf_counter()
        with contextlib.suppress(FileNotFoundError):
            os.stat(client.where / f"no such name {number} {started}")
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]
