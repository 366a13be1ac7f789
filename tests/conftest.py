"""What this machine can do, found out by trying; fixtures that mount and always unmount again.

Tests say what they need with `@pytest.mark.needs("root", "overlay")`; the header of every run lists what was found, and
a skip names what was missing. The probes run once, before collection.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from mkmeta.linux.mount import MNT_DETACH, leave_mount_namespace, umount2
from mkmeta.linux.mountinfo import mounts

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("deep", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("MKMETA_HYPOTHESIS", "deterministic"))

UNPACKED = Path(__file__).parent.parent / ".cache/composefs/bin"  # by .ci/composefs, where this release has none
if shutil.which("mkcomposefs") is None and UNPACKED.is_dir():
    os.environ["PATH"] += f"{os.pathsep}{UNPACKED}"


def _works(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _trusted_xattrs(scratch: Path) -> bool:
    try:
        os.setxattr(scratch, "trusted.mkmeta.probe", b"1")
    except OSError:
        return False
    os.removexattr(scratch, "trusted.mkmeta.probe")
    return True


def _user_xattrs(scratch: Path) -> bool:
    try:
        os.setxattr(scratch, "user.mkmeta.probe", b"1")
    except OSError:
        return False
    return True


def _overlay(scratch: Path, *namespace: str) -> bool:
    """Whether a read-only overlay of two lowers mounts, in a mount namespace of its own."""
    one, two, top = scratch / "one", scratch / "two", scratch / "top"
    for directory in (one, two, top):
        directory.mkdir(exist_ok=True)
    script = f"mount -t overlay probe -o ro,lowerdir={one}:{two} {top}"
    return _works("unshare", *namespace, "--mount", "sh", "-c", script)


def _data_only_userxattr(scratch: Path) -> bool:
    """Whether a user namespace can mount a data-only lower with userxattr (Linux 6.16)."""
    one, two, top = scratch / "one", scratch / "two", scratch / "top"
    script = f"mount -t overlay probe -o ro,userxattr,lowerdir={one}::{two} {top}"
    return _works("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script)


def _loop(scratch: Path) -> bool:
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    return _works("mkfs.ext4", "-q", image) and _works(
        "unshare", "--mount", "mount", "-t", "ext4", "-o", "loop", image, scratch / "top"
    )


def _erofs(scratch: Path) -> bool:
    image, empty = scratch / "erofs", scratch / "empty"
    empty.mkdir()
    return _works("mkfs.erofs", image, empty) and _works(
        "unshare", "--mount", "mount", "-t", "erofs", "-o", "loop", image, scratch / "top"
    )


def _fs_verity(scratch: Path) -> bool:
    """Whether a file of an ext4 can be given fs-verity, which takes the kernel and fsverity-utils."""
    image = scratch / "verity"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    script = f"mount -o loop {image} {scratch}/top && : >{scratch}/top/file && fsverity enable {scratch}/top/file"
    return _works("mkfs.ext4", "-q", "-b", "4096", "-O", "verity", image) and _works(
        "unshare", "--mount", "sh", "-c", script
    )


def _histogram_triggers() -> bool:
    """Whether this kernel counts in histograms what its NFS client asks: CONFIG_HIST_TRIGGERS, and the modules."""
    return Path("/sys/kernel/tracing/events/nfs/nfs_lookup_exit/hist").exists()


def _traceable_calls() -> bool:
    """Whether system calls are trace events here (CONFIG_FTRACE_SYSCALLS), and tracefs is where it is looked for."""
    return Path("/sys/kernel/tracing/events/syscalls/sys_enter_openat/id").exists()


def _living_systemd(scratch: Path) -> bool:
    """Whether systemd can be the first process of namespaces of its own, as tests/systemd/boot.sh makes them."""
    script = f"mount -t cgroup2 cgroup {scratch}/top"
    namespaces = ("--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork")
    return Path("/lib/systemd/systemd").exists() and _works("unshare", *namespaces, "sh", "-c", script)


def _probe() -> dict[str, bool]:
    with tempfile.TemporaryDirectory(prefix="mkmeta-probe-") as name:
        scratch = Path(name)
        root = os.geteuid() == 0
        found = {
            "root": root,
            "user xattrs": _user_xattrs(scratch),
            "trusted xattrs": _trusted_xattrs(scratch),
            "overlay": root and _overlay(scratch),
            "user namespaces": _works("unshare", "--user", "--map-root-user", "true"),
            "overlay in user namespaces": _overlay(scratch, "--user", "--map-root-user"),
            "data-only userxattr": _data_only_userxattr(scratch),
            "loop mounts": root and _loop(scratch),
            "EROFS mounts": root and _erofs(scratch),
            "fs-verity": root and _fs_verity(scratch),
            "living systemd": root and _living_systemd(scratch),
            "rez": Path(sys.executable).with_name("rez-release").exists(),
            "NFS sandbox": root and "MKMETA_NFS_SANDBOX" in os.environ,  # set by tests/uml/guest.py, tests/vm/guest.py
            "histogram triggers": root and _histogram_triggers(),
            "bpftrace": root and shutil.which("bpftrace") is not None and _traceable_calls(),
        }
        tools = (
            "rsync",
            "getfattr",
            "setfacl",
            "setcap",
            "fsverity",
            "debootstrap",
            "mkcomposefs",
            "unshare",
            "setpriv",
            "strace",
            "systemd-analyze",
            "promtool",
            "mandoc",
            "gcc",
            "fish",
            "zsh",
            "chromedriver",
        )
        return found | {
            tool: shutil.which(tool) is not None
            for tool in (*tools, "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.erofs", "fsck.erofs")
        }


CAPABILITIES = _probe()
MUST_HAVE = "MKMETA_TESTS_MUST_HAVE"  # capabilities, comma-separated: what tests are run for must not be skipped


def _leave_mounts_of_others() -> None:
    """A mount namespace of the tests' own: they see no layer of this host, and what they leave ends with them."""
    leave_mount_namespace()
    for mounted in reversed(mounts()):
        if mounted.source.startswith(b"mkmeta"):
            umount2(mounted.point, MNT_DETACH)


def pytest_configure(config: pytest.Config) -> None:
    if CAPABILITIES["root"]:
        _leave_mounts_of_others()
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
    ):  # `nohup pytest &` ignores them, and so would programs
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    lacking = [name for name in os.environ.get(MUST_HAVE, "").split(",") if name and not CAPABILITIES[name]]
    if lacking:
        raise pytest.UsageError(f"this machine lacks what {MUST_HAVE} says it has: {', '.join(lacking)}")
    config.addinivalue_line("markers", "needs(*capabilities): what the machine must be able to do; see the header")


def pytest_report_header() -> list[str]:
    able = [name for name, works in CAPABILITIES.items() if works]
    unable = [name for name, works in CAPABILITIES.items() if not works]
    return [f"kernel: {os.uname().release}", f"can: {', '.join(able)}", f"cannot: {', '.join(unable) or '-'}"]


# What looks at the whole host, as gc does, and what makes mounts and processes that such a look meets: one at a time
WHOLE_HOST = {"cli", "docs", "field", "host", "layer", "model", "mounts", "publisher", "real", "store", "systemd"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Has what is about the whole host run one after the other, and beside it the rest, file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class Apart(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "the whole host" if WHOLE_HOST.intersection(file.split("/")) else file

    return Apart(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            unknown = set(mark.args) - set(CAPABILITIES)
            if unknown:
                raise pytest.UsageError(f"{item.nodeid} needs {unknown}, which conftest does not probe")
            missing = [name for name in mark.args if not CAPABILITIES[name]]
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"this machine lacks: {', '.join(missing)}"))


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount(type, options, source="none")` mounts on a new directory and returns it; unmounted after the test."""
    with contextlib.ExitStack() as stack:

        def do_mount(
            fstype: str, options: str = "", source: str | Path = "mkmeta-test", at: Path | None = None
        ) -> Path:
            where = at or Path(tempfile.mkdtemp(prefix="mnt-", dir=tmp_path))
            # mount(2) as it is: util-linux 2.39 and newer limits lowerdir= to 255 bytes
            environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
            command = ["mount", "-t", fstype, *(["-o", options] if options else []), str(source), str(where)]
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if result.returncode:
                raise OSError(f"{' '.join(command)}: {result.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", str(where)], check=True, capture_output=True)
            return where

        yield do_mount


@pytest.fixture
def overlay(mount: Mount) -> Mount:
    """`overlay(layer, lower, how="merge"|"data-only"|"nested")` mounts a layer over a volume as users would."""

    def do_mount(layer: Path, lower: Path, how: str = "merge") -> Path:
        if how == "merge":
            return mount("overlay", f"ro,metacopy=on,redirect_dir=follow,lowerdir={layer}:{lower}")
        inner = mount("overlay", f"ro,metacopy=on,redirect_dir=follow,lowerdir={layer}::{lower}")
        if how == "data-only":
            return inner
        return mount("overlay", f"ro,lowerdir={inner}:{lower}")

    return do_mount
