"""A machine that can be booted, used, shut down and booted again: this one's own system, in namespaces of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

TOP: Final = Path(__file__).resolve().parents[2]
BOOT: Final = Path(__file__).with_name("boot.sh")
TARGET: Final = "machine.target"
NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
# Units that would set something for the kernel, and so for the machine that all this runs on; the last one tidies /tmp
_MASKED: Final = (
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-udev-trigger.service",
    "systemd-tmpfiles-setup.service",
)
_POWER_OFF: Final = signal.SIGRTMIN + 4  # systemd(1), SIGNALS
_SECONDS: Final = 120  # for whatever systemd does; an emulated machine is slow


class Machine:
    """A context manager; leaving it kills what runs. `disk` is where its files are."""

    def __init__(self, state: Path, binds: dict[Path, str]) -> None:
        """`binds`: directories that it sees where the value says, on filesystems of their own."""
        self._state = state
        self.disk = state / "disk"
        self._running: subprocess.Popen[bytes] | None = None
        self._init = 0  # process ID of its first process, here
        for name in ("disk", "work", "root"):
            (state / name).mkdir(parents=True)
        own = {path: str(path) for path in dict.fromkeys((TOP, Path(sys.prefix), Path(sys.base_prefix)))}
        lines = [f"{path}\t{where}\n" for path, where in (own | binds).items()]
        (state / "binds").write_text("".join(lines))
        self.write("etc/machine-id", "")
        (self.disk / "var/log/journal").mkdir(parents=True)
        self.write("etc/systemd/journald.conf.d/own.conf", "[Journal]\nReadKMsg=no\n")  # the kernel is not its alone
        for unit in _MASKED:
            (self.disk / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
            (self.disk / "etc/systemd/system" / unit).symlink_to("/dev/null")
        self.write(f"etc/systemd/system/{TARGET}", "[Unit]\nRequires=basic.target\nAfter=basic.target\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running is not None:
            self._running.kill()  # unshare kills its child, and with the first process goes the namespace
            self._running.wait()

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Puts a file on its disk."""
        file = self.disk / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def boot(self) -> None:
        """Starts it, and waits until it can be talked to."""
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "sh", str(BOOT), str(self._state), TARGET]
        log = (self._state / "boot.log").open("ab")
        with log:
            self._running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        children = Path(f"/proc/{self._running.pid}/task/{self._running.pid}/children")
        self._wait(lambda: bool(children.read_text().split()), "no first process")
        self._init = int(children.read_text().split()[0])
        self._wait(lambda: self.run("systemctl", "is-system-running", check=False) not in ("", "offline"), "no systemd")

    def run(self, *command: str, check: bool = True) -> str:
        """Runs something in it, and returns what that prints."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-C", "--", *command]
        done = subprocess.run(inside, capture_output=True, text=True, check=False, timeout=_SECONDS)
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr, self.log())
        return done.stdout.strip()

    def wait_for(self, unit: str, state: str) -> None:
        """Waits until a unit is in a state: active, failed, inactive."""
        self._wait(lambda: self.run("systemctl", "is-active", unit, check=False) == state, f"{unit} is not {state}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until something is so."""
        self._wait(condition, what)

    def shut_down(self) -> None:
        """Ends it in order."""
        assert self._running is not None
        os.kill(self._init, _POWER_OFF)
        self._running.wait(timeout=_SECONDS)
        self._running = None

    def log(self) -> str:
        """What its services said, and systemd of them, since it was first booted."""
        found = subprocess.run(
            ["journalctl", "-D", str(self.disk / "var/log/journal"), "-o", "short-monotonic", "--no-pager"],
            capture_output=True,
            text=True,
            check=False,
        )
        return found.stdout + (self._state / "boot.log").read_text(errors="replace")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not condition():
            assert time.monotonic() < deadline, (what, self.run("systemctl", "list-jobs", check=False), self.log())
            time.sleep(0.1)
