"""Temporary space that runs out, at whatever file and whatever byte: a line that names the place, and no output."""

from __future__ import annotations

import contextlib
import os
import subprocess
from itertools import count
from pathlib import Path

import pytest

from mkmeta.manifest.sorter import ExternalSorter
from tests.calling import call
from tests.conftest import Mount
from tests.scanner.helpers import make_sample

pytestmark = pytest.mark.needs("root")

CALLS = {
    "scan": ["scan", "volume", "--select", "grp/*/v*", "--inline", "64K", "-o", "out"],
    "scan of a part": ["scan", "volume", "--base", "all.mkm", "--only", "grp/a/v1", "-o", "out"],
    "scan again": ["scan", "volume", "--base", "all.mkm", "-o", "out"],
    "merge": ["merge", "one.mkm", "other.mkm", "-o", "out"],
    "prune": ["prune", "all.mkm", "--drop", "grp/a/v1", "-o", "out"],
    "layer": ["build", "all.mkm", "out", "--userxattr"],
    "image": ["build", "all.mkm", "out", "--format", "erofs"],
    "import": ["import", "all.dump", "-o", "out"],
    "composefs image": ["build", "all.dump", "out", "--format", "composefs"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume, and manifests of it."""
    place = tmp_path_factory.mktemp("place")
    make_sample(place / "volume", privileged=False)
    wide = place / "volume/grp/a/v1/lib/wide"
    wide.mkdir()
    for number in range(300):
        (wide / f"f{number}").write_bytes(b"%d" % number * (number % 50))
    with contextlib.chdir(place):
        for name, select in (("all", "*"), ("one", "grp/a/v1"), ("other", "grp/*/v*")):
            call(["scan", "volume", "--select", select, "--inline", "64K", "-q", "-o", f"{name}.mkm"])
        Path("all.dump").write_text(call(["dump", "all.mkm"]).out)
    return place


@pytest.mark.parametrize("limit", ["nr_inodes={}", "size={}k"])
@pytest.mark.parametrize("verb", CALLS)
def test_every_file_and_every_byte(
    place: Path, tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch, verb: str, limit: str
) -> None:
    """With ever more room, until there is enough."""
    output = tmp_path / "output"
    output.mkdir()
    arguments = [str(output / "out") if word == "out" else word for word in CALLS[verb]]
    monkeypatch.chdir(place)
    monkeypatch.setattr(ExternalSorter.__init__, "__defaults__", (500,))  # they hold megabytes before they need a file
    small = mount("tmpfs", "size=1m")
    monkeypatch.setattr("tempfile.tempdir", str(small))
    for step in count(1):
        room = step if "inodes" in limit else 4 * step * max(1, step // 8)  # whole pages
        subprocess.run(["mount", "-o", "remount," + limit.format(room), small], check=True)
        result = call(arguments, check=None)
        assert os.listdir(small) == []
        if result.code == 0:
            break
        assert (result.code, result.out, os.listdir(output)) == (1, "", [])
        line, hint = result.err.splitlines()
        assert line == f"mkmeta: {small}: temporary files cannot be written: no space left on device"
        assert "TMPDIR" in hint
    assert os.listdir(output) == ["out"]
