"""A host to try mkmeta on: a volume, a store, a mount point, a run directory, all below one temporary directory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mkmeta.linux.mount import MNT_DETACH, umount2
from mkmeta.linux.mountinfo import Mount, mounts, visible_at
from mkmeta.mounts.live import LiveMount, live_at
from tests.calling import Result, call

_WITH_RUN_DIR = ("activate", "rollback", "deactivate", "refresh", "doctor", "status")


@dataclass
class Host:
    """Calls are those of a user; in this process, which is faster, unless `command` is run as a program of its own."""

    top: Path
    userxattr: bool = False
    kind: str = "directory"  # of layers that are built: may change at any time

    def __post_init__(self) -> None:
        for directory in (self.volume, self.point, self.run):
            directory.mkdir(parents=True)

    @property
    def volume(self) -> Path:
        return self.top / "volume"

    @property
    def served(self) -> Path:
        """The volume where it can be written to: on a file server, when there is one."""
        return self.volume

    @property
    def store(self) -> Path:
        return self.top / "store"

    @property
    def point(self) -> Path:
        return self.top / "sw"

    @property
    def run(self) -> Path:
        return self.top / "run"

    def command(self, verb: str, *args: str | Path) -> list[str]:
        """The program and its arguments."""
        own = ["--run-dir", str(self.run)] if verb in _WITH_RUN_DIR else []
        return [sys.executable, "-m", "mkmeta", verb, *map(str, args), *own]

    def call(self, verb: str, *args: str | Path, check: int | None = 0) -> Result:
        """Calls a verb; `check` is the exit code it must have."""
        return call(self.command(verb, *args)[3:], check=check)

    def release(self, version: str, files: dict[str, str]) -> None:
        """Puts a release on the volume: `grp/paint/VERSION` with files in it."""
        for name, text in files.items():
            path = self.served / "grp" / "paint" / version / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def publish(self, *select: str) -> str:
        """Scans the volume and adds a generation; returns its manifest ID."""
        manifest = self.top / "sw.mkm"
        patterns = [argument for pattern in select or ("grp/*/v*",) for argument in ("--select", pattern)]
        self.call("scan", self.volume, *patterns, "-o", manifest)
        namespace = ["--userxattr"] if self.userxattr else []
        built = self.call("build", manifest, "--store", self.store, "--format", self.kind, *namespace)
        return built.out.split()[-1]

    def activate(self, *args: str | Path, check: int | None = 0) -> Result:
        """`mkmeta activate`, with what it always needs."""
        return self.call("activate", self.store, self.point, "--lower", self.volume, *args, check=check)

    def live(self) -> LiveMount:
        """The one layer mounted."""
        (found,) = live_at(os.fsencode(self.point), mounts())
        return found

    def stack(self) -> list[Mount]:
        """The mounts at the mount point."""
        return visible_at(os.fsencode(self.point), mounts())

    def leftovers(self) -> list[str]:
        """Inner directories and mounts that nothing mounted at the mount point needs."""
        needed = {os.fsdecode(one.inner_path) for one in live_at(os.fsencode(self.point), mounts()) if one.inner_path}
        inner = self.run / "inner"
        found = {str(path) for path in inner.iterdir()} if inner.exists() else set()
        found |= {os.fsdecode(mount.point) for mount in mounts() if mount.point.startswith(os.fsencode(inner))}
        return sorted(found - needed)

    def unmount_all(self) -> None:
        """Unmounts everything below the host's directory."""
        below = os.fsencode(self.top) + b"/"
        while found := [mount.point for mount in mounts() if mount.point.startswith(below)]:
            umount2(found[-1], MNT_DETACH)


def mounts_below(top: Path) -> list[Mount]:
    """The mounts below a directory: others on this machine come and go."""
    return [mount for mount in mounts() if mount.point.startswith(os.fsencode(top) + b"/")]


def host_in(top: Path, *, userxattr: bool = False) -> Iterator[Host]:
    """A host with one release and one generation, unmounted in the end."""
    host = Host(top, userxattr=userxattr)
    try:
        host.release("v1", {"lib/one": "first\n", "bin/tool": "#!/bin/sh\necho one\n", "lib/empty": ""})
        (host.volume / "grp/paint/v1/bin/tool").chmod(0o755)
        (host.volume / "notes").write_text("not selected\n")
        host.publish()
        yield host
    finally:
        host.unmount_all()


def kill_sometimes(command: list[str], delay: float) -> int:
    """Runs a program and kills it after `delay` seconds, unless it has ended; its exit code."""
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        program.wait(delay)
    except subprocess.TimeoutExpired:
        program.kill()
    return program.wait()


def took(command: list[str]) -> float:
    """The seconds that a program took, which must succeed."""
    started = time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started
