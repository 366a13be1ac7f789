"""Runs pytest in a virtual machine whose kernel, Debian's, has what this machine's may lack.

    python -m tests.vm                            what needs fs-verity or histograms, and the mount profiles
    python -m tests.vm --kernel 6.1               what needs histograms, on an older one
    python -m tests.vm -x -k require              what is not known here goes to pytest
    python -m tests.vm tests/mounts               other tests on that kernel

The guest's root directory is this machine's own, read-only, with the rights of whoever runs this: the same files,
interpreter and packages, no root, no network. `sh .ci/packages` gets what is needed, on a Debian, and names what it is.
Where the processor helps and /dev/kvm may be used the guest runs on that, else it is emulated, some ten times slower.
Prints what pytest prints and exits with its exit code; with 69 when something is missing, 70 when the guest broke, 124
when the time limit was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

TOP: Final = Path(__file__).resolve().parents[2]
KERNELS: Final = TOP / ".cache" / "vm"  # one directory per kernel, made by .ci/kernels
KERNEL: Final = "6.12"  # where none is named
QEMU: Final = "qemu-system-x86_64"
QEMU_MAJOR: Final = 8  # the emulation of 7.2 crashes the guest
_ATTEMPTS: Final = 3  # while qemu crashes: version 10.0, on a busy machine, fails an assertion of its own now and then
# With util-linux and coreutils, which every Debian has: what the tests call, so that none of them is skipped
TOOLS: Final = (
    ("fsverity", "fsverity"),
    ("mkfs.ext4", "e2fsprogs"),
    ("rsync", "rsync"),
    ("getfattr", "attr"),
    ("rpc.mountd", "nfs-kernel-server"),
    ("mount.nfs", "nfs-common"),
    ("rpcbind", "rpcbind"),
    ("ip", "iproute2"),
    ("bpftrace", "bpftrace"),
)
TESTS: Final = {  # where none are named; 6.12 does not take layers by descriptor, as the newest kernels do
    "6.1": ("tests/nfs/test_histograms.py",),
    KERNEL: (
        "tests/verity",
        "tests/nfs/test_histograms.py",
        "tests/host/test_doctor_verity.py",
        "tests/host/test_profiles.py",
        "tests/mounts/test_overlay.py",
        "tests/systemd",
    ),
}
# The guest mounts on these: nothing below them on this machine is seen inside
COVERED: Final = ("/dev", "/proc", "/sys", "/run", "/var/lib/nfs")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

EX_UNAVAILABLE, EX_SOFTWARE, TIMED_OUT = os.EX_UNAVAILABLE, os.EX_SOFTWARE, 124  # the last is that of timeout(1)


def main() -> int:
    """Runs the guest and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        usage="%(prog)s [--kernel VERSION] [--memory MIB] [--time-limit SECONDS] [pytest arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kernel", choices=TESTS, default=KERNEL, help="of Debian (%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the guest (%(default)s)")
    parser.add_argument(
        "--time-limit", type=float, default=900, metavar="SECONDS", help="then it is killed (%(default)s)"
    )
    args, pytest_args = parser.parse_known_args()
    color = "yes" if sys.stdout.isatty() else "no"
    tests = () if any((TOP / arg.partition("::")[0]).exists() for arg in pytest_args) else TESTS[args.kernel]
    options = ["-p", "no:cacheprovider", f"--color={color}", "-m", "not slow and not nfs"]
    command = [sys.executable, "-m", "pytest", *options, *pytest_args, *tests]
    return boot(command, kernel=args.kernel, memory=args.memory, time_limit=args.time_limit)


def boot(command: Sequence[str], *, kernel: str, memory: int, time_limit: float, options: Sequence[str] = ()) -> int:
    """Runs a command in a guest, in the project's directory, and returns its exit code. SystemExit: none can be had.

    `memory` is in MiB, `time_limit` in seconds; `options` go to qemu, which then emulates the processor.
    """
    _check(KERNELS / kernel)
    for _ in range(_ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="mkmeta-vm-", dir="/var/tmp") as work:
            code = _run(Path(work), KERNELS / kernel, command, memory, time_limit, options)
        if code is not None:
            return code
    return EX_SOFTWARE


def _check(kernel: Path) -> None:
    """Ends with one line that names all that is missing."""
    missing = [] if (kernel / "complete").exists() else [f"the kernel in {kernel}"]
    if not _qemu_major() >= QEMU_MAJOR:
        missing.append(f"{QEMU} {QEMU_MAJOR} or newer (package qemu-system-x86)")
    missing += [f"{tool} (package {package})" for tool, package in TOOLS if not shutil.which(tool, path=PATH)]
    if missing:
        _give_up(f"missing: {', '.join(missing)}; on a Debian, `sh .ci/packages` gets them")
    for path in (TOP, Path(sys.prefix), Path(sys.base_prefix)):
        if any(path.is_relative_to(covered) for covered in COVERED):
            _give_up(f"{path} is where the guest mounts something of its own: move it elsewhere")


def _qemu_major() -> int:
    """The first number of qemu's version; 0 when there is none."""
    try:
        told = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return 0
    version = re.match(r"QEMU emulator version (\d+)\.", told)
    return int(version[1]) if version else 0


def _give_up(why: str) -> NoReturn:
    print(f"tests.vm: {why}", file=sys.stderr)
    raise SystemExit(EX_UNAVAILABLE)


def _accelerator() -> str:
    """KVM where it can run any kernel: there is a kind that works without the processor's help, and this is not its."""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return "kvm" if flags and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def _run(
    work: Path, kernel: Path, command: Sequence[str], memory: int, time_limit: float, options: Sequence[str]
) -> int | None:
    """The command's exit code, or why there is none; None: qemu itself crashed, which says nothing of the guest."""
    job = {
        "top": str(TOP),
        "work": str(work),
        "command": list(command),
        "environment": {"PATH": f"{Path(sys.executable).parent}:{PATH}", "COLUMNS": "120", "LC_ALL": "C.UTF-8"},
    }
    (work / "job.json").write_text(json.dumps(job))
    # The command line of a kernel takes no space in a word
    (work / "guest").symlink_to(Path(__file__).with_name("guest.py"))
    (work / "python").write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    (work / "python").chmod(0o755)
    log = work / "kernel.log"
    deadline = time.monotonic() + time_limit
    reading, writing = os.pipe()
    share = "local,security_model=none,multidevs=remap"
    accelerator = "tcg" if options else _accelerator()
    qemu = [
        *(QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-machine", f"q35,accel={accelerator}"),
        *("-cpu", "max", "-smp", str(min(os.cpu_count() or 1, 4)), "-m", str(memory)),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd")),
        *("-append", f"console=ttyS0 quiet panic=-1 -- {work}/python {work}/guest {work}/job.json"),
        *("-serial", f"file:{log}", "-serial", f"file:/dev/fd/{writing}"),
        *("-fsdev", f"{share},id=root,path=/,readonly=on", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"{share},id=work,path={work}", "-device", "virtio-9p-pci,fsdev=work,mount_tag=work"),
        *options,
    ]
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without killing the guest
        with (work / "qemu.log").open("wb") as stream:
            guest = subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, pass_fds=(writing,))
        os.close(writing)
        try:
            finished = _copy(reading, deadline)
        finally:
            code = _reap(guest)
    finally:
        os.close(reading)
    if not finished:
        print(f"tests.vm: killed after {time_limit:g} seconds, the time limit", file=sys.stderr)
        return TIMED_OUT
    try:
        return int((work / "status").read_text())
    except (OSError, ValueError):
        print(f"tests.vm: the guest ended without a result (code {code}); qemu and its kernel said:", file=sys.stderr)
        for file in (work / "qemu.log", log):
            print(file.read_text(errors="replace")[-4000:] if file.exists() else "", file=sys.stderr)
        return None if code == -signal.SIGABRT else EX_SOFTWARE


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
    """Waits a moment for the guest, then kills it."""
    try:
        return guest.wait(timeout=5)
    except subprocess.TimeoutExpired:
        guest.kill()
        return guest.wait()


if __name__ == "__main__":
    sys.exit(main())
