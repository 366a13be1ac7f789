"""The first process inside the guest: prepares it, runs a command, writes down its exit code, powers off.

Stands alone, since the guest starts it by its path: init of the kernel that tests/uml/__main__.py boots.
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

CONSOLE: Final = "/dev/tty1"
MODULES: Final = ("overlay", "nfs", "nfsv3", "nfsv4", "nfsd", "sch_netem")  # the guest loads none by itself
FOR_IMAGES: Final = ("erofs", "loop")  # a .cache from before .ci/kernels kept drivers has no loop devices
MOUNTS: Final = (
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("tmpfs", "/run", "mode=755"),
    ("tmpfs", "/srv", "mode=755,size=80%"),
    ("tmpfs", "/var/lib/nfs", "mode=755"),
)
RB_POWER_OFF: Final = 0x4321FEDC  # linux/reboot.h


def main() -> None:
    """What init does. Whatever happens, the guest ends."""
    try:
        _take_console()
        job = json.loads(Path(sys.argv[1]).read_text())
        os.environ.update(job["environment"])
        _prepare(Path(job["modules"]))
        _write(Path(job["status"]), str(_run(job)))
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


def _prepare(modules: Path) -> None:
    for fstype, where, options in MOUNTS:
        _call("mount", "-t", fstype, *(["-o", options] if options else []), fstype, where)
    os.mkdir("/dev/shm", 0o1777)
    _call("mount", "-t", "tmpfs", "tmpfs", "/dev/shm")
    for module in MODULES:
        _call("modprobe", "-d", str(modules), module)
    for module in FOR_IMAGES:
        subprocess.run(["modprobe", "-d", str(modules), module], check=False)
    _call("ip", "link", "set", "lo", "up")
    os.mkdir("/srv/tmp")


def _run(job: dict[str, Any]) -> int:
    """Runs the command and reaps what others leave behind, as init must."""
    os.chdir(job["top"])
    # Nothing is written beside the sources: they may belong to somebody else than who runs this
    environment = {
        **os.environ,
        "HOME": "/srv/tmp",
        "TMPDIR": "/srv/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/srv/tmp/hypothesis",
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


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
