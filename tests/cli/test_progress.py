"""Progress: a line that is rewritten on a terminal, a line now and then elsewhere, messages with --json."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mkmeta.cli.progress import ProgressLine
from tests.cli.test_contract import documented


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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def line_of(*, as_json: bool, quiet: bool = False, total: int | None = None) -> tuple[ProgressLine, Clock]:
    clock = Clock()
    return ProgressLine(argparse.Namespace(json=as_json, quiet=quiet), "scan", total, clock=clock), clock


def test_a_line_in_a_log_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    line, clock = line_of(as_json=False, total=4000)
    with line:
        for _ in range(700):
            line.update(1000, "x")
            clock.now += 0.1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "scan: 1,000 of 4,000 entries in 0:30 min, about 1:30 min left; x",
        "scan: 1,000 of 4,000 entries in 1:00 min, about 3:00 min left; x",
    ]


@pytest.mark.parametrize(("total", "left"), [(None, None), (2000, 5), (500, None)])
def test_messages_every_five_seconds(capsys: pytest.CaptureFixture[str], total: int | None, left: int | None) -> None:
    line, clock = line_of(as_json=True, total=total)
    with line:
        line.update(0)
        clock.now += 5
        line.update(1000)
        line.update(1001)
    (message,) = map(json.loads, capsys.readouterr().out.splitlines())
    del message["verb"]
    assert message == {"message_type": "progress", "done": 1000, "total": total, "seconds": 5.0, "seconds_left": left}
    assert set(message) - {"message_type"} <= documented()["progress", "scan"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        line, clock = line_of(as_json=as_json, quiet=True)
        with line:
            clock.now += 100
            line.update(5)
    assert capsys.readouterr() == ("", "")
