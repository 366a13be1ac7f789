"""`mkmeta watch`: what appears, goes or changes on the volume, with nobody telling."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.linux.statx import known_of
from tests.calling import Result
from tests.publisher.sites import Site
from tests.store.processes import fork, run_killed, wait


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that announces manifests only, with two releases published; releases are complete at once."""
    site = Site(tmp_path)
    site.configure('quiet = 0\nstaging = ["**/*.tmp"]\n')
    site.make("paint/v2")
    watch(site)
    return site


def watch(site: Site, *args: str, check: int | None = 0) -> Result:
    return site.call("watch", "--once", *args, check=check)


def test_what_is_new_is_taken_and_what_is_gone_is_not_kept(site: Site) -> None:
    assert site.names() == {"paint/v1", "paint/v2"}
    site.make("paint/v3")
    site.make("brush/v1")
    done = watch(site)
    assert "taken: grp/brush: published" in done.err
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3", "brush/v1"}
    assert site.pointer.serial == 2, "all at once"
    site.remove("paint/v1")
    watch(site)
    assert site.names() == {"paint/v2", "paint/v3", "brush/v1"}
    assert site.full_scan() == site.pointer.id.hex()


def test_nothing_is_published_twice(site: Site) -> None:
    site.make("paint/v3")
    watch(site)
    before = site.pointer
    time.sleep(0.02)
    for _ in range(2):
        watch(site)
    assert site.pointer == before


def test_what_is_not_selected_is_announced_once(site: Site) -> None:
    before = site.pointer
    time.sleep(0.02)
    (site.volume / "other").mkdir()
    time.sleep(0.02)
    watch(site)
    watch(site)
    assert (site.pointer.id, site.pointer.serial) == (before.id, before.serial + 1)


def test_half_copied_releases_wait(site: Site) -> None:
    site.configure('quiet = "1h"\nmarker = "done"\nstaging = ["**/*.tmp"]\n')
    site.make("paint/v3")
    site.make("paint/v4.tmp")
    (site.make("paint/v5") / "done").touch()
    done = watch(site)
    assert "waiting: grp/paint/v3: has no 'done'" in done.err
    assert "waiting: grp/paint/v4.tmp: is a place to copy to" in done.err
    assert "waiting: grp/paint/v5: was changed 0 s ago" in done.err
    assert site.names() == {"paint/v1", "paint/v2"}
    site.configure('quiet = 0\nmarker = "done"\nstaging = ["**/*.tmp"]\n')
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "paint/v5"}


def test_what_changed_after_it_was_published_is_named_and_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("quiet = 0\n", select="grp/*/v*")
    for name in ("paint/v2", "paint/v3", "paint/v4"):
        site.make(name)
    watch(site)
    before = site.pointer.id
    (site.volume / "grp/paint/v1/extra").touch()
    site.remove("paint/v2")
    (site.volume / "grp/paint/v2").write_text("a file")
    os.rename(site.volume / "grp/paint/v3", site.top / "aside")
    site.make("paint/v3")
    done = watch(site, "--json", check=4)
    found = {str(one["path"]): one["text"] for one in done.messages if one.get("state") == "changed"}
    assert found == {
        "grp/paint/v1": "was changed after it was published",
        "grp/paint/v2": "is a file, was a directory",
        "grp/paint/v3": "was replaced",
    }
    assert site.pointer.id == before
    site.call("release", "-q", *found)
    assert site.full_scan() == site.pointer.id.hex()
    watch(site)


@pytest.mark.needs("user xattrs")
def test_one_that_is_broken_does_not_keep_back_the_others(site: Site) -> None:
    site.make("paint/v3")
    site.make("paint/v4")
    os.setxattr(site.volume / "grp/paint/v3/lib/m0.py", "user.overlay.opaque", b"y")
    done = watch(site, check=1)
    assert "failed: grp/paint/v3: " in done.err
    assert site.names() == {"paint/v1", "paint/v2", "paint/v4"}


def test_a_volume_that_is_not_there_takes_nothing_out(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("quiet = 0\n", select="*/*/v*")
    (site.volume / "tools/make/v1").mkdir(parents=True)
    watch(site)
    before = site.state
    for name in ("grp", "tools"):
        os.rename(site.volume / name, site.top / name)
    done = watch(site, check=1)
    assert "2 of 2 names at the top are gone: nothing is taken out" in done.err
    assert site.state == before


def test_what_was_retired_is_not_taken_again(site: Site) -> None:
    site.make("brush/v1")
    watch(site)
    for name in ("paint/v1", "brush/v1"):
        site.call("release", "-q", "--retire", f"grp/{name}")
    watch(site)
    assert site.names() == {"paint/v2"}
    site.make("brush/v2")
    watch(site)
    assert site.names() == {"paint/v2", "brush/v2"}
    site.remove("brush/v1")
    watch(site)
    site.make("brush/v1")
    watch(site)
    assert site.names() == {"paint/v2", "brush/v1", "brush/v2"}


def test_two_watchers_publish_once(site: Site) -> None:
    site.make("paint/v3")
    before = site.pointer.serial
    running = [fork(lambda: main(["watch", "-q", "--once", "--config", str(site.config)])) for _ in range(2)]
    assert [wait(pid) for pid in running] == [0, 0]
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3"}
    assert site.pointer.serial == before + 1


def test_one_that_is_killed_loses_nothing(site: Site) -> None:
    chance = random.Random(5)
    killed = 0
    for number in range(4):
        site.make(f"paint/v1{number}")
        step = chance.randrange(30, 200)
        killed += run_killed(lambda: main(["watch", "-q", "--once", "--config", str(site.config)]), step)
    assert killed > 1
    watch(site)
    assert site.full_scan() == site.pointer.id.hex()


def test_dry_run_and_metrics(site: Site) -> None:
    site.make("paint/v3")
    before = site.state
    metrics = site.top / "watch.prom"
    watch(site, "--dry-run", "--metrics", str(metrics), "--max-rate", "1000")
    assert site.state == before
    assert "mkmeta_watch_listed_directories " in metrics.read_text()


def test_statx_says_what_lstat_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in (b"file", b"link"):
            status = os.lstat(os.path.join(os.fsencode(tmp_path), name))
            assert known_of(name, fd) == (status.st_mode, status.st_ino, status.st_ctime_ns)
        with pytest.raises(FileNotFoundError):
            known_of(b"none", fd)
    finally:
        os.close(fd)
