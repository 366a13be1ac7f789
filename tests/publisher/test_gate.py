"""`mkmeta release --predict --min-gain`: what saves too little is not built, and nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkmeta.__main__ import main
from tests.demand.profiles import make_profile, misses
from tests.publisher.sites import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with one release published, and one that is new."""
    site = Site(tmp_path)
    site.call("release", "-q")
    site.make("paint/v2")
    return site


def profile(site: Site, rows: dict[str, int]) -> str:
    """Programs asked so often in vain, in these directories."""
    path = site.top / "farm.profile"
    return str(make_profile(path, str(site.volume), [misses(name, count) for name, count in rows.items()]))


def test_enough_is_saved(site: Site) -> None:
    farm = profile(site, {"grp/paint/v1/lib": 90, "grp/paint/v2/lib": 900})
    done = site.call("release", "grp/paint/v2", "--predict", farm, "--min-gain", "misses=99%", "--min-gain", "50%")
    assert [line.split()[0] for line in done.err.splitlines()] == ["check", "scan", "verify", "predict", "publish"]
    assert "100.0% of misses" in done.err
    assert site.names() == {"paint/v1", "paint/v2"}


def test_the_same_as_predict_says(site: Site) -> None:
    farm = profile(site, {"grp/paint/v1/lib": 30, "grp/paint/v2/lib": 30, "grp/paint/v1/doc": 40})
    site.call("release", "-q", "grp/paint/v2")
    assert main(["predict", str(site.manifest), farm, "--min-gain", "misses=60%"]) == 0
    assert main(["predict", str(site.manifest), farm, "--min-gain", "misses=61%"]) == 4
    before = site.state
    for share, code in (("60%", 0), ("61%", 4)):
        site.make(f"brush/v{code}")
        site.call("release", f"grp/brush/v{code}", "--predict", farm, "--min-gain", f"misses={share}", check=code)
        assert (site.state == before) == (code == 4)
        before = site.state


@pytest.mark.needs("trusted xattrs")
def test_too_little_leaves_everything_as_it_was(tmp_path: Path) -> None:
    site = Site(tmp_path, store=True)
    site.call("release", "-q")
    site.make("paint/v2")
    farm = profile(site, {"grp/paint/v2/doc": 900, "grp/paint/v2/lib": 100})
    before = site.state
    built = sorted((site.top / "store").rglob("*"))
    for more in ([], ["--dry-run"], ["--retire", "grp/paint/v1"]):
        done = site.call("release", "grp/paint/v2", "--predict", farm, "--min-gain", "misses=50%", *more, check=4)
        assert "misses: 10.0% is saved, 50.0% was asked for" in done.err
        assert site.state == before
        assert sorted((site.top / "store").rglob("*")) == built
    site.call("release", "grp/paint/v2", "--predict", farm)
    assert site.names() == {"paint/v1", "paint/v2"}


def test_what_is_wrong_is_said_before_anything_is_done(site: Site) -> None:
    before = site.state
    torn = site.top / "torn.profile"
    torn.write_bytes(Path(profile(site, {"grp": 1})).read_bytes()[:-5])
    for arguments, code, message in (
        (["--min-gain", "50%"], 2, "--min-gain needs profiles"),
        (["--predict", str(torn)], 1, "torn.profile"),
        (["--predict", str(site.top / "none")], 1, "none"),
    ):
        done = site.call("release", "grp/paint/v2", *arguments, check=code)
        assert message in done.err
        assert len(done.err.splitlines()) <= 2
        assert site.state == before


def test_mounts_of_the_layer_file_count(site: Site) -> None:
    """Where hosts mount `data-only`, what is not recorded is not there, and costs nothing."""
    farm = profile(site, {"grp/paint/v2/doc": 900})
    gate = ["grp/paint/v2", "--predict", farm, "--min-gain", "misses=50%"]
    site.call("release", *gate, check=4)
    site.configure('profile = "data-only"\n')
    site.call("release", *gate)
