"""The first process in the guest's root directory: prepares it, runs a command, writes down its exit code, powers off.

Stands alone, since the guest starts it by its path: tests/vm/init hands over to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import termios
import traceback
from pathlib import Path
from typing import Any, Final

CONSOLE: Final = "/dev/ttyS1"
MOUNTS: Final = (
    ("devtmpfs", "/dev", ""),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("tmpfs", "/run", "mode=755,size=80%"),
    ("tmpfs", "/var/lib/nfs", "mode=755"),
)
TEMPORARY: Final = "/run/tmp"
# tests/conftest.py: without these most tests would be skipped, and nobody would notice
MUST_HAVE: Final = (
    "root",
    "trusted xattrs",
    "overlay",
    "loop mounts",
    "fs-verity",
    "rsync",
    "living systemd",
    "NFS sandbox",
    "histogram triggers",
    "bpftrace",
    *(["user xattrs"] if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 6) else []),  # of tmpfs
)
RB_POWER_OFF: Final = 0x4321FEDC  # linux/reboot.h


def main() -> None:
    """What init does. Whatever happens, the guest ends."""
    try:
        for fstype, where, options in MOUNTS:
            _mount(fstype, fstype, where, options)
        _take_console()
        job = json.loads(Path(sys.argv[1]).read_text())
        os.environ.update(job["environment"])
        for directory in ("/dev/shm", "/dev/pts", TEMPORARY):
            os.makedirs(directory, exist_ok=True)
        os.chmod(TEMPORARY, 0o755)  # some tests become ordinary users
        _mount("tmpfs", "tmpfs", "/dev/shm")
        _mount("devpts", "devpts", "/dev/pts")
        _mount("9p", "work", job["work"], "trans=virtio,version=9p2000.L,cache=none")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        _write(Path(job["work"]) / "status", str(_run(job)))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(termios.error):
            termios.tcdrain(1)
        os.sync()
        ctypes.CDLL(None).reboot(RB_POWER_OFF)


def _take_console() -> None:
    """Makes the console that leads out of the guest stdin, stdout and stderr, bytes passed on as they are."""
    fd = os.open(CONSOLE, os.O_RDWR | os.O_NOCTTY)
    settings = termios.tcgetattr(fd)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    for number in range(3):
        os.dup2(fd, number)


def _run(job: dict[str, Any]) -> int:
    """Runs the command and reaps what others leave behind, as init must."""
    os.chdir(job["top"])
    environment = {
        **os.environ,
        "MKMETA_TESTS_MUST_HAVE": ",".join(MUST_HAVE),
        "HOME": TEMPORARY,
        "TMPDIR": TEMPORARY,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{TEMPORARY}/hypothesis",
        "MKMETA_NFS_SANDBOX": "1",  # tests/conftest.py: this kernel's NFS server belongs to the tests
    }
    command = subprocess.Popen(job["command"], env=environment)
    while True:
        pid, status = os.wait()
        if pid == command.pid:
            return os.waitstatus_to_exitcode(status)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _mount(fstype: str, source: str, where: str, options: str = "") -> None:
    subprocess.run(["mount", "-t", fstype, *(["-o", options] if options else []), source, where], check=True)


if __name__ == "__main__":
    main()
