"""What a preview counts, and what it estimates, beside the volume itself."""

from __future__ import annotations

import os
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from mkmeta.errors import MkmetaError, ScanError
from mkmeta.scanner import gathering, sharing
from mkmeta.scanner.options import ScanOptions
from mkmeta.scanner.preview import Content, Preview, preview

_EVERYTHING = 1e9  # seconds: all is counted
_SEEDS = 60


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Releases of very different size, with something of each kind in them."""
    chance = random.Random(4)
    root = tmp_path / "volume"
    for release in range(20):
        for part in range(chance.randint(1, 6)):
            directory = root / f"r{release}/p{part}/deep"
            directory.mkdir(parents=True)
            for number in range(chance.randint(0, 12)):
                (directory / f"f{number}").write_bytes(b"x" * chance.randint(0, 50))
            for number in range(chance.randint(0, 3)):
                (directory / f"link{number}").symlink_to("f0")
            os.mkfifo(directory / "fifo")
    return root


def look(root: Path, seconds: float | None = _EVERYTHING, **options: Any) -> Preview:
    before = os.listdir("/proc/self/fd"), os.getcwd()
    try:
        return preview(ScanOptions(root=os.fsencode(root), **options), lambda _path: None, seconds=seconds)
    finally:
        assert (os.listdir("/proc/self/fd"), os.getcwd()) == before


def truth(*tops: Path) -> tuple[int, int, int, int]:
    """Entries, directories, files and bytes at and below some directories."""
    below = [path for top in tops for path in (top, *top.rglob("*"))]
    files = [path for path in below if path.is_file() and not path.is_symlink()]
    dirs = [path for path in below if path.is_dir()]
    return len(below), len(dirs), len(files), sum(path.stat().st_size for path in files)


def sums(content: Content | None) -> tuple[int, int, int, int]:
    assert content is not None
    return content.entries, content.dirs, content.files, content.bytes


def test_all_is_counted(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a directory comes in several runs, and a file is one that a scan gives to a worker of its own."""
    monkeypatch.setattr(gathering, "RUN", 8)
    monkeypatch.setattr(sharing, "FEW", 1)
    monkeypatch.setattr(sharing, "_MANY", 2)
    (volume / "r0/wide").mkdir()
    for number in range(100):
        (volume / f"r0/wide/{number}").write_bytes(b"y")
    with open(volume / "r0/huge", "wb") as file:
        file.truncate(5 << 20)
    found = look(volume)
    assert sums(found.content) == truth(*volume.iterdir())
    assert found.content is not None and found.content.error == 0
    assert found.content.looked == found.content.entries


def test_walks_at_random_are_right_on_average_and_as_far_off_as_they_say(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates, errors = [], []
    for seed in range(_SEEDS):
        monkeypatch.setattr("mkmeta.scanner.preview._SEED", seed)
        content = look(volume, 0.0).content
        assert content is not None
        estimates.append(sums(content))
        errors.append(content.error * content.entries)
    for values, right in zip(zip(*estimates, strict=True), truth(*volume.iterdir()), strict=True):
        assert statistics.mean(values) == pytest.approx(right, rel=0.04)
    spread = statistics.stdev(entries for entries, *_ in estimates)
    assert statistics.mean(errors) == pytest.approx(spread, rel=0.25)


@pytest.mark.needs("user xattrs")
@pytest.mark.parametrize("seconds", [0.0, _EVERYTHING], ids=["walks", "counted"])
def test_what_cannot_be_recorded_is_told_once_and_not_counted(volume: Path, seconds: float) -> None:
    """However often walks come by."""
    bad = volume / "r0/p0"
    os.setxattr(bad, "user.overlay.metacopy", b"y")
    found = look(volume, seconds, select=(b"r0", b"r1"))
    assert [path for path, _ in found.left_out] == [b"r0/p0"]
    assert found.content is not None
    if seconds:
        assert sums(found.content) == tuple(
            ours - its for ours, its in zip(truth(volume / "r0", volume / "r1"), truth(bad), strict=True)
        )


def test_patterns_that_hide_nothing_are_known_when_all_was_counted(volume: Path) -> None:
    hide = (b"**/f0", b"nothing")
    assert look(volume, hide=hide).unmatched_hide == (b"nothing",)
    for seconds in (0.0, None):
        assert look(volume, seconds, hide=hide).unmatched_hide == ()


def test_patterns_that_may_match_further_down_are_none_that_match_nothing(volume: Path) -> None:
    select = (b"r0", b"r0/p0/deep/f0", b"r1/nothing")
    assert look(volume, None, select=select).unmatched == (b"r1/nothing",)
    assert look(volume, 0.0, select=select).unmatched == (b"r1/nothing",)


@pytest.mark.needs("user xattrs")
def test_a_root_that_cannot_be_scanned(volume: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="not a directory") as caught:
        look(volume / "r0/p0/deep/fifo")
    assert caught.value.hint
    with pytest.raises(MkmetaError, match="no pattern matched anything"):
        look(volume, select=(b"nowhere/*",))
    os.setxattr(volume, "user.overlay.metacopy", b"y")
    with pytest.raises(ScanError, match=r"user\.overlay\.metacopy") as caught:
        look(volume)
    assert caught.value.path == bytes(volume)
