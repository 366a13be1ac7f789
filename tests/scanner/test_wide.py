"""Directories with more names than a worker keeps in memory: read in runs, recorded as any other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mkmeta.errors import MkmetaError
from mkmeta.scanner import base as base_module
from mkmeta.scanner import gathering, sharing
from mkmeta.scanner.gathering import Gathering
from mkmeta.scanner.looking import open_content
from mkmeta.scanner.records import Listing
from mkmeta.scanner.sharing import Shared
from tests.scanner.helpers import scan_tree
from tests.scanner.test_base import again
from tests.scanner.test_only import only

_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a few names: every directory is one with very many."""
    monkeypatch.setattr(gathering, "RUN", 5)
    monkeypatch.setattr(sharing, "FEW", 1)
    monkeypatch.setattr(sharing, "_MANY", 2)


def make_volume(root: Path, seed: int) -> None:
    """Directories of up to 60 names of any kind, in three levels."""
    chosen = random.Random(seed)
    for group in range(3):
        for release in range(chosen.randint(1, 12)):
            directory = root / f"g{group}" / f"v{release:02}"
            directory.mkdir(parents=True)
            for number in range(chosen.choice([0, 1, 4, 5, 6, 11, 60])):
                path = directory / f"{chosen.choice('ab')}{number:02}"
                match chosen.randrange(6):
                    case 0:
                        path.mkdir()
                        (path / "inner").write_text(f"{path}")
                    case 1:
                        path.symlink_to("nowhere")
                    case 2 if files := [one for one in directory.iterdir() if one.is_file() and not one.is_symlink()]:
                        path.hardlink_to(chosen.choice(files))
                    case _:
                        path.write_text(f"{path}")


VARIANTS: dict[str, dict[str, Any]] = {
    "everything": {"select": ("*",)},
    "releases": {"select": ("g*/v*",)},
    "names in a skeleton": {"select": ("g*/v0[0-5]/a*",)},
    "hidden": {"select": ("*",), "hide": (b"**/a?3", b"g1/v0*/b*")},
    "two workers": {"select": ("g*",), "workers": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(4))
def test_runs_change_nothing(tmp_path: Path, request: pytest.FixtureRequest, variant: str, seed: int) -> None:
    volume = tmp_path / "volume"
    make_volume(volume, seed)
    options = dict(VARIANTS[variant])
    select = options.pop("select")
    whole = scan_tree(volume, *select, output=tmp_path / "whole.mkm", **options)
    request.getfixturevalue("narrow")
    runs = scan_tree(volume, *select, output=tmp_path / "runs.mkm", **options)
    assert runs.nodes() == whole.nodes()
    assert (runs.id, runs.report.counts) == (whole.id, whole.report.counts)


@pytest.mark.parametrize("seed", range(6))
def test_runs_on_a_base(tmp_path: Path, request: pytest.FixtureRequest, seed: int) -> None:
    """Unchanged, changed here and there, changed by nothing but a file's content."""
    chosen = random.Random(seed)
    volume = tmp_path / "volume"
    make_volume(volume, seed)
    base = scan_tree(volume, "*", output=tmp_path / "base.mkm")
    request.getfixturevalue("narrow")
    same = again(volume, base)
    assert same.id == base.id
    assert same.report.counts.unchanged == base.report.counts.files + base.report.counts.symlinks
    time.sleep(0.02)
    for path in chosen.sample(sorted(path for path in volume.rglob("*") if path.is_file()), 3):
        path.write_text("changed")
    everything = sorted(path for path in volume.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in chosen.sample(everything, chosen.choice([0, 2, 5])):
        path.unlink()
    assert again(volume, base).id == scan_tree(volume, "*", output=tmp_path / "after.mkm").id


@pytest.mark.parametrize("seed", range(3))
def test_runs_on_the_way(tmp_path: Path, request: pytest.FixtureRequest, seed: int) -> None:
    volume = tmp_path / "volume"
    make_volume(volume, seed)
    base = scan_tree(volume, "*", output=tmp_path / "base.mkm")
    time.sleep(0.02)
    (volume / "g1/v00/new").write_text("new")
    for gone in (volume / "g1/v00").glob("?[0-4]?"):
        if not gone.is_dir():
            gone.unlink()
    request.getfixturevalue("narrow")
    assert only(volume, base, "g1/v00/?*").id == scan_tree(volume, "*", output=tmp_path / "after.mkm").id


@pytest.mark.usefixtures("narrow")
def test_a_change_is_seen_after_all_runs(tmp_path: Path) -> None:
    """By the closing look; then everything is read once more, and nothing of the first attempt is left."""
    volume = tmp_path / "volume"
    make_volume(volume, 1)
    wide = volume / "g0" / "wide"
    wide.mkdir()
    for number in range(40):
        (wide / f"f{number:02}").write_text(f"{number}")
        (wide / f"d{number:02}").mkdir()
    (wide / "g00").hardlink_to(wide / "f00")

    def opened(name: bytes) -> int:
        if name == b"f39" and (wide / "f00").exists():
            (wide / "f00").unlink()
            (wide / "d00").rmdir()
        return open_content(name)

    scanned = scan_tree(volume, "g0", output=tmp_path / "during.mkm", open_content=opened)
    assert scanned.left_out() == {}
    assert scanned.id == scan_tree(volume, "g0", output=tmp_path / "after.mkm").id


@pytest.mark.usefixtures("narrow")
def test_no_room_for_runs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "volume"
    make_volume(volume, 1)
    (volume / "g0/wide").mkdir()
    for number in range(40):
        (volume / f"g0/wide/{number}").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(MkmetaError, match=r"nowhere: temporary files cannot be written") as caught:
        scan_tree(volume, "*", output=tmp_path / "m.mkm")
    assert "TMPDIR" in str(caught.value.hint)


def test_a_directory_of_many_names_takes_little_memory(tmp_path: Path) -> None:
    """First scan and rescan."""
    wide = tmp_path / "volume" / "wide"
    wide.mkdir(parents=True)
    directory = os.open(wide, os.O_RDONLY)
    for number in range(100_000):
        os.mknod(f"a name of some length {number:06}", 0o100644, dir_fd=directory)
    os.close(directory)
    first, second = tmp_path / "first.mkm", tmp_path / "second.mkm"
    scan = [sys.executable, "-m", "mkmeta", "scan", str(tmp_path / "volume"), "-q"]
    for call in ([*scan, "-o", str(first)], [*scan, "--base", str(first), "-o", str(second)]):
        peak = subprocess.run([sys.executable, "-c", _PEAK, *call], check=True, capture_output=True, text=True).stdout
        assert int(peak) < 80_000, call


def test_nobody_runs_too_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others found waits in memory for the slowest: so they wait as well, and it comes out in order."""
    monkeypatch.setattr(sharing, "_AHEAD", 50)
    chosen, names, most = random.Random(1), 500, 0
    found: list[int] = []
    lock = threading.Lock()

    class Recorder(Gathering):
        def add(self, part: Listing) -> None:
            found.extend(part.inodes)

    def work(_reader: object, start: int, stop: int) -> Listing:
        nonlocal most
        with lock:
            pause = chosen.choice([0, 0, 0.001, 0.01])
            most = max(most, stop - len(found))
        time.sleep(pause)
        return Listing(inodes=list(range(start, stop)))

    class Reader:
        pace = sharing.Pace()

    with Recorder() as recorder:
        shared = Shared(b"", -1, names, work, recorder)

        def lane() -> None:
            while not shared.is_over:
                turn = shared.claim(3)
                if turn is None:
                    shared.wait_for_a_turn()
                else:
                    shared.perform(Reader(), turn, enter=False)  # type: ignore[arg-type]

        lanes = [threading.Thread(target=lane) for _ in range(8)]
        for one in lanes:
            one.start()
        for one in lanes:
            one.join()
        shared.wait()
    assert found == list(range(names))
    assert 20 < most <= 50
