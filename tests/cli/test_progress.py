"""Progress is for terminals: there on one, nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    for number in range(200):
        directory = root / f"d{number}"
        directory.mkdir(parents=True)
        (directory / "file").touch()
    return root


def on_a_terminal(command: list[str]) -> str:
    """What a command shows on a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # EIO: the other end is closed
            break
        shown += piece
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.parametrize(("options", "expected"), [([], True), (["-q"], False), (["--json"], False)])
def test_scan_on_a_terminal(volume: Path, options: list[str], expected: bool) -> None:
    command = [sys.executable, "-m", "mkmeta", "scan", str(volume), "-o", str(volume.parent / "sw.mkm"), *options]
    assert ("scan: " in on_a_terminal(command)) == expected


def test_build_on_a_terminal(volume: Path) -> None:
    base = [sys.executable, "-m", "mkmeta"]
    manifest, layer = str(volume.parent / "sw.mkm"), str(volume.parent / "layer")
    subprocess.run([*base, "scan", str(volume), "-o", manifest, "-q"], check=True, capture_output=True)
    assert "build: " in on_a_terminal([*base, "build", manifest, layer, "--userxattr"])
