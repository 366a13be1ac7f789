"""Runs pytest inside a user-mode-linux kernel, which has the NFS server and client this machine may lack.

    python -m tests.uml                               the NFS tests but for the slow, newest kernel
    python -m tests.uml -m nfs                        all of them
    python -m tests.uml --kernel 6.1 -x -k scan       another kernel; what is not known here goes to pytest
    python -m tests.uml --kernel 5.10 -m oldest       the oldest kernel that Debian's mirrors have, and what it gains
    python -m tests.uml -m 'not slow' tests/layer  other tests on that kernel

The guest's root filesystem is this machine's own, so the same files, interpreter and packages are used, with the rights
of whoever runs this: no root, no network. `sh .ci/packages` gets what is needed, on a Debian, and names what it is.
Prints what pytest prints and exits with its exit code; with 69 when something is missing, 70 when the guest broke, 124
when the time limit was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

TOP: Final = Path(__file__).resolve().parents[2]
KERNELS: Final = TOP / ".cache" / "uml"  # one directory per kernel, made by .ci/kernels
# With util-linux and coreutils, which every Debian has: what the guest and the tests call
TOOLS: Final = (
    ("exportfs", "nfs-kernel-server"),
    ("rpc.mountd", "nfs-kernel-server"),
    ("rpc.nfsd", "nfs-kernel-server"),
    ("nfsdcld", "nfs-kernel-server"),
    ("mount.nfs", "nfs-common"),
    ("rpcbind", "rpcbind"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("modprobe", "kmod"),
    ("rsync", "rsync"),
    ("setpriv", "util-linux"),
    ("getfattr", "attr"),
)
# The guest mounts on these: nothing below them on this machine is seen inside
COVERED: Final = ("/dev", "/proc", "/sys", "/run", "/srv", "/var/lib/nfs")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

EX_UNAVAILABLE, EX_SOFTWARE, TIMED_OUT = os.EX_UNAVAILABLE, os.EX_SOFTWARE, 124  # the last is that of timeout(1)


def main() -> int:
    """Runs the guest and returns the exit code."""
    kernels = _kernels()
    parser = argparse.ArgumentParser(
        prog="python -m tests.uml",
        usage="%(prog)s [--kernel VERSION] [--memory MIB] [--time-limit SECONDS] [pytest arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kernel", metavar="VERSION", help=f"one of: {', '.join(kernels) or 'none is here'}")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the guest (%(default)s)")
    parser.add_argument(
        "--time-limit", type=float, default=1800, metavar="SECONDS", help="then it is killed (%(default)s)"
    )
    args, pytest_args = parser.parse_known_args()
    color = "yes" if sys.stdout.isatty() else "no"
    options = ["-p", "no:cacheprovider", f"--color={color}", "-m", "nfs and not slow"]
    command = [sys.executable, "-m", "pytest", *options, *pytest_args]
    return boot(command, kernel=args.kernel, memory=args.memory, time_limit=args.time_limit)


def boot(command: list[str], *, kernel: str | None = None, memory: int = 2048, time_limit: float = 1800) -> int:
    """Runs a command in a guest, in the project's directory, and returns its exit code. SystemExit: none can be had.

    `kernel` None is the newest there is; `memory` is in MiB, `time_limit` in seconds.
    """
    kernels = _kernels()
    kernel = kernel or (kernels[-1] if kernels else "any")
    _check(kernel, kernels)
    with tempfile.TemporaryDirectory(prefix="mkmeta-uml-", dir="/var/tmp") as work:
        return _run(Path(work), KERNELS / kernel, command, memory, time_limit)


def _kernels() -> list[str]:
    """Those that are here, the newest last."""
    return sorted((path.parent.name for path in KERNELS.glob("*/linux.uml")), key=_version)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def _check(kernel: str, kernels: list[str]) -> None:
    """Ends with one line that names all that is missing."""
    missing = [] if kernel in kernels else [f"kernel {kernel} in {KERNELS}"]
    missing += [f"{tool} (package {package})" for tool, package in TOOLS if not shutil.which(tool, path=PATH)]
    missing += [f"the directory {path}" for path in COVERED if not os.path.isdir(path)]
    if missing:
        _give_up(f"missing: {', '.join(missing)}; on a Debian, `sh .ci/packages` gets them")
    for path in (TOP, Path(sys.prefix), Path(sys.base_prefix)):
        if any(path.is_relative_to(covered) for covered in COVERED):
            _give_up(f"{path} is where the guest mounts something of its own: move it elsewhere")


def _give_up(why: str) -> NoReturn:
    print(f"tests.uml: {why}", file=sys.stderr)
    raise SystemExit(EX_UNAVAILABLE)


def _run(work: Path, kernel: Path, inside: list[str], memory: int, time_limit: float) -> int:
    job = {
        "top": str(TOP),
        "modules": str(kernel),
        "status": str(work / "status"),
        "command": inside,
        "environment": {"PATH": f"{Path(sys.executable).parent}:{PATH}", "COLUMNS": "120", "LC_ALL": "C.UTF-8"},
    }
    (work / "job.json").write_text(json.dumps(job))
    # The command line of a kernel takes no space in a word
    (work / "top").symlink_to(TOP)
    (work / "python").write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    (work / "python").chmod(0o755)
    log = work / "kernel.log"
    deadline = time.monotonic() + time_limit
    reading, writing = os.pipe()
    try:
        with log.open("wb") as stream:
            command = [
                *("./linux.uml", "rootfstype=hostfs", "rw", "quiet", "panic=1", f"mem={memory}M"),
                *("con=null", "con0=null,fd:1", f"con1=null,fd:{writing}"),
                *(f"init={work}/python", "--", f"{work}/top/tests/uml/guest.py", f"{work}/job.json"),
            ]
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without killing the guest
            guest = subprocess.Popen(
                command,
                cwd=kernel,  # its loader is named relative to this directory (.ci/kernels)
                env={"LD_LIBRARY_PATH": "lib", "PATH": PATH, "HOME": str(work)},  # it keeps a directory .uml there
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        try:
            finished = _copy(reading, deadline)
        finally:
            finished_itself = _reap(guest)
    finally:
        os.close(reading)
    if not finished:
        print(f"tests.uml: killed after {time_limit:g} seconds, the time limit", file=sys.stderr)
        return TIMED_OUT
    try:
        return int((work / "status").read_text())
    except (OSError, ValueError):
        print(
            f"tests.uml: the guest ended without a result (code {finished_itself}); its kernel said:", file=sys.stderr
        )
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        return EX_SOFTWARE


def _copy(source: int, deadline: float) -> bool:
    """Copies what the guest prints to stdout until it closes; False when the deadline came first."""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                piece = os.read(source, 65536)
                if not piece:
                    return True
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
    return False


def _reap(guest: subprocess.Popen[bytes]) -> int:
    """Waits a moment for the guest, then kills it: the kernel and each of its processes is one of this machine's."""
    try:
        return guest.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(guest.pid, signal.SIGKILL)
        return guest.wait()


if __name__ == "__main__":
    sys.exit(main())
