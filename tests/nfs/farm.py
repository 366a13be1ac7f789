"""A small farm in one guest: a file server, a publisher who writes over NFS, and hosts that follow what it publishes.

Each host has a mount namespace, a name and an NFS mount of its own (`nosharecache`), at the same path as the
publisher's. (Not a network of its own: these kernels have no device that would connect it with the server's.)
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mkmeta.store.pointer import Pointer, read_pointer
from tests.calling import Result
from tests.calling import call as mkmeta
from tests.nfs.conftest import KERNEL
from tests.nfs.server import HOST, Server, call

CACHED: Final = 1  # seconds for which clients believe what they know: actimeo
EVERY: Final = 3.0  # seconds from poll to poll, of hosts and of the watcher
QUIET: Final = 120  # seconds: longer than copying takes, however slow this machine is
GIVE_UP: Final = 240.0  # seconds; nothing here takes more than some, on a machine that has time
SELECT: Final = ("rez/*/*", "spack/*")
NO_GAP: Final = KERNEL >= (6, 5)


def wait_until(what: str, is_so: Callable[[], object], *, say: Callable[[], object] = lambda: "") -> None:
    """Waits for something that happens within seconds. `say`: what to tell when it does not."""
    deadline = time.monotonic() + GIVE_UP
    while not is_so():
        assert time.monotonic() < deadline, (f"not within {GIVE_UP:g} s: {what}", say())
        time.sleep(0.1)


def rows(path: Path) -> list[dict[str, Any]]:
    """What was written down so far; a line that is being written is not."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.startswith("{")]


@dataclass
class FarmHost:
    """A host: its namespaces, and what it wrote down."""

    name: str
    top: Path
    process: subprocess.Popen[str]  # the first process of its namespaces

    @property
    def polls(self) -> list[dict[str, Any]]:
        return rows(self.top / "polls")

    @property
    def starts(self) -> list[dict[str, Any]]:
        return rows(self.top / "starts")

    def call(self, *command: str | Path) -> str:
        """Runs a command on the host. Raises OSError when it fails."""
        return call("nsenter", "-t", str(self.process.pid), "-m", "-u", *command)


@dataclass
class Farm:
    """All of it. Paths are those of the publisher, which is where the test runs."""

    top: Path
    version: str
    served: Path  # the volume, on the server
    hosts: list[FarmHost] = field(default_factory=list)

    @property
    def volume(self) -> Path:
        """Where everybody has the volume mounted."""
        return self.top / "sw-volume"

    @property
    def point(self) -> Path:
        """Where hosts have the layer."""
        return self.top / "sw"

    @property
    def config(self) -> Path:
        """The publisher's layer file."""
        return self.top / "publisher.toml"

    @property
    def pointer(self) -> Pointer:
        return read_pointer(os.fsencode(self.volume / ".mkmeta/sw.json"))

    @property
    def announced(self) -> Path:
        return self.top / "announced"

    def options(self, more: str) -> str:
        locking = ",nolock,mountproto=tcp" if self.version == "3" else ""
        return f"vers={self.version},sec=sys,actimeo={CACHED},nosharecache{locking},{more}"

    def source(self, below: str = "") -> str:
        return f"{HOST}:{self.served if self.version == '3' else ''}/{below}"

    def tell(self, event: str, release: str) -> None:
        """Writes down when something happened, for those who start programs and for the verdict."""
        with self.announced.open("a") as stream:
            stream.write(json.dumps({"event": event, "release": release, "at": time.monotonic()}) + "\n")

    @property
    def events(self) -> dict[tuple[str, str], float]:
        return {(row["event"], row["release"]): row["at"] for row in rows(self.announced)}

    def mkmeta(self, verb: str, *arguments: str, check: int | None = 0) -> Result:
        """The program, as the publisher calls it, with its layer file."""
        return mkmeta([verb, *arguments, "--config", str(self.config)], check=check)

    def fleet(self) -> dict[str, Any]:
        """The sum of what hosts reported."""
        done = self.mkmeta("fleet", "--json", check=None)
        return done.messages[-1] | {"code": done.code, "all": done.out}

    def boot(self, name: str) -> FarmHost:
        """Starts a host: mounts in namespaces of its own, then what runs on it all the time."""
        top = self.top / name
        reports = top / "reports"
        for directory in (reports, self.point, self.volume):
            directory.mkdir(parents=True, exist_ok=True)
        keys = {
            "volume": str(self.volume),
            "pointer": str(self.volume / ".mkmeta/sw.json"),
            "store": str(top / "store"),
            "mount-point": str(self.point),
            "run-dir": str(top / "run"),
        }
        lines = [f'{key} = "{value}"' for key, value in keys.items()]
        lines += [] if NO_GAP else ["allow-gap = true"]
        (top / "sw.toml").write_text("\n".join(lines) + "\n")
        job = {
            "config": str(top / "sw.toml"),
            "reports": str(reports),
            "every": EVERY,
            "point": str(self.point),
            "package": "rez/paint",
            "announced": str(self.announced),
            **{kind: str(top / kind) for kind in ("polls", "starts")},
        }
        (top / "job.json").write_text(json.dumps(job))
        script = (
            f"set -e; hostname {name}\n"
            f"mount -t nfs -o {self.options('ro')} {self.source()} {self.volume}\n"
            f"mount -t nfs -o {self.options('rw')} {self.source('.mkmeta/reports')} {reports}\n"
            f"echo up; exec {sys.executable} -m tests.nfs.host_agent {top}/job.json 2>{top}/complaints"
        )
        process = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n", name
        self.hosts.append(FarmHost(name, top, process))
        return self.hosts[-1]

    def stop(self) -> None:
        """Has the hosts end what they do, their mounts with them."""
        for host in self.hosts:
            (host.top / "stop").touch()
        for host in self.hosts:
            try:
                host.process.wait(timeout=GIVE_UP)
            except subprocess.TimeoutExpired:
                host.process.kill()
                host.process.wait()
            if host.process.stdout is not None:
                host.process.stdout.close()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Path]:
        """`mkmeta watch` runs meanwhile, as its unit has it. Where it writes what each pass came to."""
        said = self.top / "watched"
        command = [sys.executable, "-m", "mkmeta", "watch", "--config", str(self.config), "--json"]
        with said.open("w") as out, (self.top / "watch-complaints").open("w") as err:
            process = subprocess.Popen([*command, "--every", f"{EVERY:g}"], stdout=out, stderr=err)
            try:
                yield said
                assert process.poll() is None, (self.top / "watch-complaints").read_text()
            finally:
                process.terminate()
                process.wait()


@contextlib.contextmanager
def farm(server: Server, served: Path, top: Path, version: str) -> Iterator[Farm]:
    """A farm without hosts and releases; its volume is served, and mounted by the publisher."""
    made = Farm(top, version, served)
    for name in (".mkmeta/reports", "rez", "spack"):
        (served / name).mkdir(parents=True)
    (served / ".mkmeta/reports").chmod(0o1777)
    made.volume.mkdir()
    made.announced.touch()
    select = ", ".join(f'"{pattern}"' for pattern in SELECT)
    made.config.write_text(
        f'volume = "{made.volume}"\nselect = [{select}]\nquiet = {QUIET}\n'
        f'manifest = "{top}/sw.mkm"\npointer = "{made.volume}/.mkmeta/sw.json"\n'
        f'reports = "{made.volume}/.mkmeta/reports"\n'
    )
    with server.exporting(served, "rw,no_root_squash"):
        call("mount", "-t", "nfs", "-o", made.options("rw"), made.source(), made.volume)
        try:
            yield made
        finally:
            made.stop()
            call("umount", made.volume)
