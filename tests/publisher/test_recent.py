"""`mkmeta verify --recent`: what was taken too early, or rewritten, is found where that is likely."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS
from mkmeta.publisher.arrival import CLOCKS_APART
from mkmeta.publisher.recent import released_since
from tests.calling import call
from tests.publisher.sites import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that announces manifests only, with two releases published."""
    site = Site(tmp_path)
    site.make("paint/v2")
    site.call("release", "-q")
    return site


def test_all_is_as_recorded(site: Site) -> None:
    done = site.call("verify", "--recent", "1d")
    assert "2 of what is recorded changed less than that ago" in done.err
    assert "compared 4 entries of the volume: all as recorded" in done.err
    assert done.out == ""


@pytest.mark.parametrize("how", ["goes on", "rewritten", "removed"])
def test_a_copy_that_went_on_after_it_was_taken_is_found(site: Site, how: str) -> None:
    lib = site.volume / "grp/paint/v2/lib"
    match how:
        case "goes on":
            (lib / "late.py").touch()
        case "rewritten":
            (lib / "m0.py").write_text("another")
        case _:
            (lib / "m0.py").unlink()
    done = site.call("verify", "--recent", "1d", "--json", check=4)
    (finding, *_), summary = [row for row in done.messages if row["message_type"] == "finding"], done.messages[-1]
    assert finding["subtree"] == "grp/paint/v2/lib"
    assert summary["findings"] >= 1
    assert summary["layer"] == 0
    assert f"volume: {finding['path']}" in site.call("verify", "--recent", "1d", check=4).out


def test_written_to_in_place_with_its_times_put_back(site: Site) -> None:
    path = site.volume / "grp/paint/v2/lib/m0.py"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "1 entries of the volume have another change time" in site.call("verify", "--recent", "1d").err
    done = site.call("verify", "--recent", "1d", "--data", check=4)
    assert "data: grp/paint/v2/lib/m0.py" in done.out


def test_only_what_was_released_lately(site: Site) -> None:
    """Against the definition: the change times of what was selected, with five minutes more than was asked for."""
    chance = random.Random(11)
    for number in range(6):
        site.make(f"p{number % 3}/v{number}")
    site.call("release", "-q")
    tops = sorted(site.volume.glob("grp/*/v*/lib"))
    changed = {os.fsencode(top.relative_to(site.volume)): top.stat().st_ctime_ns for top in tops}
    with ManifestReader.open(str(site.manifest)) as reader:
        first, last = min(changed.values()), max(changed.values())
        for _ in range(20):
            since = chance.randint(first - 1, last + 1)
            found = sorted(released_since(reader, since + int(CLOCKS_APART * NS), 0.0))
            assert found == sorted(path for path, when in changed.items() if when >= since)
        assert list(released_since(reader, last + 10**18, 60.0)) == []


def test_nothing_is_recent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(site.volume / "grp/paint/v2")  # nobody looks
    monkeypatch.setattr("mkmeta.cli.verify.time.time_ns", lambda: 2 * 10**18)
    done = site.call("verify", "--recent", "1d")
    assert "compared 0 entries of the volume: all as recorded" in done.err


def test_without_a_layer_file(site: Site) -> None:
    arguments = ["verify", "--recent", "1d", "--manifest", str(site.manifest)]
    assert call([*arguments, "--lower", str(site.volume)]).code == 0
    assert "--recent compares the volume" in call(arguments, check=2).err
    assert "--recent needs a manifest" in call(["verify", "--recent", "1d", "--lower", str(site.volume)], check=2).err
    assert "required: LAYER" in call(["verify", "--lower", str(site.volume)], check=2).err
    assert call([*arguments, "--lower", str(site.volume), "--recent", "soon"], check=2).code == 2
