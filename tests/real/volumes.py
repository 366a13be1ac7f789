"""Real trees: a Python installation and a Debian root file system, made with the tools that ship them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

# Python packages with compiled modules, data files and very many small ones
PACKAGES: Final = ("numpy", "ansible")
VERSION: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"


def make_python(root: Path, packages: tuple[str, ...]) -> None:
    """Copies the interpreter that runs this, with its standard library, to `root`, and installs packages into it."""
    binary = Path(sys.base_prefix) / "bin" / VERSION
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    (root / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    shutil.copy2(binary.resolve(), root / "bin" / VERSION)
    for name in ("python3", "python"):
        (root / "bin" / name).symlink_to(VERSION)
    # The small one, to be quick: neither the tests of the standard library nor what pip has installed.
    left_out = [] if packages else ["test", "site-packages", "dist-packages", "idlelib", "ensurepip"]
    shutil.copytree(
        library, root / "lib" / VERSION, symlinks=True, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True
    )
    for shared in Path(sys.base_prefix, "lib").glob("libpython3*.so*"):
        shutil.copy2(shared, root / "lib", follow_symlinks=False)
    site = root / "lib" / VERSION / "site-packages"
    for package in packages:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*install, "--root-user-action=ignore", "--target", site, "--upgrade", package], check=True)


def run_python(root: Path, code: str) -> str:
    """What the Python installed at `root` prints."""
    environment = {"PYTHONPATH": str(root / "lib" / VERSION / "site-packages"), "LD_LIBRARY_PATH": str(root / "lib")}
    command = [str(root / "bin" / "python"), "-B", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def install_debian(root: Path, *packages: str) -> None:
    """A minimal Debian of this machine's release from this machine's mirror, and some packages."""
    include = [f"--include={','.join(packages)}"] if packages else []
    command = ["debootstrap", "--variant=minbase", *include, _codename(), str(root), _mirror()]
    subprocess.run(command, check=True, capture_output=True)


def make_debian(root: Path) -> None:
    """A minimal Debian of this machine's release from this machine's mirror, with some harder things added."""
    install_debian(root)
    odd = os.fsencode(root / "odd")
    os.mkdir(odd)
    for name in (
        b"new\nline",
        b"\xff\xfe",
        b" ",
        b"-rf",
        b"back\\slash",
        b"q'uo\"te",
        b"\x01",
        b"x" * 255,
        "ünï".encode(),
    ):
        with open(odd + b"/" + name, "wb") as file:
            file.write(name)
    subprocess.run(["setcap", "cap_net_raw+ep", root / "usr/bin/env"], check=True)
    subprocess.run(["setfacl", "-m", "u:1234:rx,g:99:r", root / "usr/bin/tail"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", root / "var/lib"], check=True)
    os.link(root / "usr/bin/env", root / "odd/env")
    os.mknod(root / "odd/block", 0o60660, os.makedev(259, 300_000))
    os.mkfifo(root / "odd/fifo")
    with open(root / "odd/sparse", "wb") as file:
        file.truncate(3 << 30)
    os.utime(root / "odd/sparse", ns=(0, -(10**18) - 1))
    os.utime(root / "odd/fifo", ns=(0, 7 * 10**18 + 5))


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise LookupError("this system has no code name")


def _mirror() -> str:
    """The first mirror this machine's apt is configured with for its own distribution."""
    lines: list[str] = []
    for file in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        if file.is_file():
            lines += file.read_text().splitlines()
    uris = [re.search(r"(?:^deb|^URIs:)\s+(?:\[[^\]]*\]\s+)?(\S+://\S+)", line) for line in lines]
    candidates = [match[1] for match in uris if match and re.search(r"/(debian|ubuntu)/?$", match[1])]
    if not candidates:
        raise LookupError("apt is configured with no mirror of this distribution")
    return candidates[0]
