"""examples/observe.bt under the real bpftrace, on this kernel: its counts are the calls that were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.demand.profile import ProfileReader
from tests.demand.tracing import bpftrace

pytestmark = [pytest.mark.slow, pytest.mark.needs("bpftrace")]  # it takes long to detach what it attached

CALLS = """
import os, subprocess, sys
top = sys.argv[1]

def attempt(call, *args):
    try: return call(*args)
    except FileNotFoundError: pass

for number in range(300):
    attempt(os.stat, f"{top}/a/none{number % 200}")
    attempt(os.open, f"{top}/b/none{number}", os.O_RDONLY)
for call, args in ((os.lstat, ()), (os.access, (0,)), (os.readlink, ())):
    attempt(call, f"{top}/c/none", *args)
    attempt(call, f"{top}/c/link", *args)
fd = os.open(f"{top}/d/program", os.O_RDONLY)
for _ in range(5): os.fstat(fd)  # asks for no name
attempt(os.execv, f"{top}/d/none", ["none"])
subprocess.run([f"{top}/d/program"], check=True, close_fds=False)
os.chdir(top)
attempt(os.stat, "relative")
"""


def observed(tmp_path: Path, volume: Path, **limits: int) -> tuple[dict[bytes, tuple[int, int, int]], dict[str, int]]:
    """Misses, stats and opens by directory, and what was lost."""
    maps, profile = tmp_path / "maps", tmp_path / "profile"
    bpftrace(maps, CALLS, volume, **limits)
    assert main(["observe", "--from", "bpftrace", str(maps), "--root", str(volume), "-o", str(profile)]) == 0
    with profile.open("rb") as stream:
        reader = ProfileReader(stream, bytes(profile))
        rows = {row.path: (row.misses, row.stats, row.opens) for row in reader.rows() if not row.is_file}
        return rows, dict(reader.header.lost)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / ("volume" * 10)  # longer than the shortest limit of bpftrace
    for name in "abcd":
        (root / name).mkdir(parents=True)
    (root / "c/link").symlink_to("/")
    (root / "d/program").write_text("#!/bin/sh\n")
    (root / "d/program").chmod(0o755)
    return root


def test_its_counts_are_the_calls(volume: Path, tmp_path: Path) -> None:
    rows, lost = observed(tmp_path, volume)
    # the shell opens the script that it was begun for
    assert rows == {b"a": (300, 0, 0), b"b": (300, 0, 0), b"c": (3, 3, 0), b"d": (1, 0, 3)}
    assert lost["relative"] >= 1


def test_a_full_map_and_a_cut_path_are_said(volume: Path, tmp_path: Path) -> None:
    rows, lost = observed(tmp_path, volume, keys=100)
    assert rows.get(b"b", (0, 0, 0))[0] <= 100 and lost["drops"] >= 300 - 100
    rows, lost = observed(tmp_path, volume, length=64)
    assert lost["cut"] >= 600
