"""`mkmeta watch`: what appears, goes or changes on the volume, with nobody telling."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from mkmeta.__main__ import main
from mkmeta.config import read_config
from mkmeta.linux.descriptors import closing
from mkmeta.linux.statx import known_of
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Directory, DirectoryKind
from mkmeta.publisher import levels
from mkmeta.publisher import release as release_module
from mkmeta.publisher import watch as watch_module
from mkmeta.publisher.arrival import CLOCKS_APART, Clock, clock_of
from mkmeta.publisher.site import Site as Publishing
from mkmeta.publisher.watch import watch_once
from mkmeta.scanner.options import ScanOptions, ScanReport
from mkmeta.scanner.scan import scan
from tests.calling import Result
from tests.conftest import CAPABILITIES, Mount
from tests.publisher.sites import Site
from tests.store.processes import fork, run_killed, wait


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that announces manifests only, with two releases published; releases are complete at once."""
    site = Site(tmp_path)
    site.configure('quiet = 0\nstaging = ["**/*.tmp"]\n')
    site.make("paint/v2")
    site.call("release", "-q")
    return site


def watch(site: Site, *args: str, check: int | None = 0) -> Result:
    return site.call("watch", "--once", *args, check=check)


def test_what_is_new_is_taken_and_what_is_gone_is_not_kept(site: Site) -> None:
    assert site.names() == {"paint/v1", "paint/v2"}
    site.make("paint/v3")
    site.make("brush/v1")
    done = watch(site)
    assert "taken: grp/brush/v1/lib: published" in done.err
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


def test_nothing_is_taken_before_the_first_release(tmp_path: Path) -> None:
    """What is half copied just then would be recorded as all there is."""
    site = Site(tmp_path)
    site.configure('quiet = "1h"\nmarker = "done"\n')
    for more in ((), ("--dry-run",)):
        done = watch(site, *more, check=1)
        assert "nothing is published yet" in done.err
        assert "mkmeta release, once, when nobody is copying" in done.err
    assert not site.manifest.exists()
    assert not site.pointer_path.exists()


def test_a_new_directory_in_which_nothing_is_selected_is_announced_once(site: Site) -> None:
    before = site.pointer
    time.sleep(0.02)
    (site.volume / "grp/brush/v1/doc").mkdir(parents=True)
    (site.volume / "grp/paint/v3/doc").mkdir(parents=True)
    time.sleep(0.02)
    for _ in range(3):
        watch(site)
    assert (site.pointer.id, site.pointer.serial) == (before.id, before.serial + 1)
    for name in ("brush/v1", "paint/v3"):
        site.make(name)
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3", "brush/v1"}
    assert site.full_scan() == site.pointer.id.hex()


def test_what_comes_later_into_a_release_of_a_package_that_did_not_change(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the pattern says that there may be something below what is not recorded."""
    monkeypatch.setattr(levels, "TRUST_MARGIN", -(10**12))  # seconds: all that is recorded is trusted at once
    site.configure("quiet = 0\n", select='grp/*/v*/lib", "grp/*/tool')
    (site.volume / "grp/brush/tool").mkdir(parents=True)
    (site.volume / "grp/brush/v1/doc").mkdir(parents=True)
    site.call("release", "-q")
    watch(site)
    site.make("brush/v1")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "brush/v1"}


@pytest.mark.parametrize("select", ["grp/*/v*", "grp/*/v*/lib"])
def test_versions_of_a_new_package_wait_for_their_own_marker(site: Site, select: str) -> None:
    site.configure('quiet = 0\nmarker = "done"\n', select=select)
    site.call("release", "-q")
    (site.make("brush/v1") / "done").touch()
    site.make("brush/v2")
    done = watch(site)
    assert "waiting: grp/brush/v2: has no 'done'" in done.err
    assert site.names() == {"paint/v1", "paint/v2", "brush/v1"}
    before = site.pointer
    watch(site)
    assert site.pointer == before
    (site.volume / "grp/brush/v2/done").touch()
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "brush/v1", "brush/v2"}


@pytest.mark.parametrize("select", ["grp/*/v*", "grp/*/v*/lib"])
def test_versions_of_a_new_package_are_quiet_each_for_itself(
    site: Site, select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release is quiet when all of it is, whatever of it is selected."""
    site.configure('quiet = "1h"\n', select=select)
    site.call("release", "-q")
    for number in (1, 2):
        site.make(f"brush/v{number}")
    time.sleep(0.05)
    (site.top / "now").touch()
    now = Clock((site.top / "now").stat().st_ctime_ns + 3600 * NS, 0)
    time.sleep(0.05)
    (site.volume / "grp/brush/v2/doc/page").touch()
    site.make("brush/v3")
    for module in (watch_module, release_module):
        monkeypatch.setattr(module, "clock_of", lambda *_args: now)
    done = watch(site)
    assert "waiting: grp/brush/v2: was changed 3600 s ago: grp/brush/v2/doc" in done.err
    assert "waiting: grp/brush/v3: was changed 3600 s ago: grp/brush/v3" in done.err
    assert site.names() == {"paint/v1", "paint/v2", "brush/v1"}


def test_random_histories_end_as_a_full_scan(site: Site) -> None:
    """Directories come before what is selected in them, or without; after each pass all is published, and once.

    But for the mtimes of directories above, in which only came what is not selected.
    """
    chance = random.Random(14)
    site.configure("quiet = 0\n", select='grp/*/v*/lib", "grp/*/tool", "*/deep/*/*/x')
    site.call("release", "-q")
    for number in range(20):
        for _ in range(chance.randrange(1, 4)):
            package, version = f"p{chance.randrange(3)}", f"v{chance.randrange(4)}"
            match chance.randrange(4):
                case 0 if not (site.volume / "grp" / package / version / "lib").exists():
                    site.make(f"{package}/{version}")
                case 1:
                    (site.volume / "grp" / package / version / "doc").mkdir(parents=True, exist_ok=True)
                case 2:
                    (site.volume / "grp" / package / "tool").mkdir(parents=True, exist_ok=True)
                case 3:
                    deep = site.volume / chance.choice("ab") / "deep" / package / version
                    (deep / "x" if chance.random() < 0.5 else deep).mkdir(parents=True, exist_ok=True)
        package = f"p{chance.randrange(9)}"
        if (site.volume / "grp" / package).exists():
            site.remove(package)
        time.sleep(0.02)
        watch(site)
        before = site.pointer
        site.full_scan()
        assert recorded(site.manifest) == recorded(site.top / "full.mkm"), number
        watch(site)
        assert site.pointer == before, number


def recorded(manifest: Path) -> dict[bytes, object]:
    """All nodes of a manifest; of directories of the skeleton, that they are there."""
    with ManifestReader.open(str(manifest)) as reader:
        return {
            path: None if isinstance(node, Directory) and node.kind is DirectoryKind.MERGE else node
            for path, node in reader.walk()
        }


@pytest.mark.needs("user xattrs")
def test_what_could_not_be_recorded_is_tried_again(site: Site) -> None:
    site.make("paint/v3")
    os.setxattr(site.volume / "grp/paint/v3/lib/m0.py", "user.overlay.opaque", b"y")
    site.call("release", "-q", "--on-error", "leave-out", check=3)
    before = site.pointer.id
    for _ in range(2):
        assert "failed: grp/paint/v3/lib: " in watch(site, check=1).err
    assert site.pointer.id == before
    os.removexattr(site.volume / "grp/paint/v3/lib/m0.py", "user.overlay.opaque")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3"}
    assert site.full_scan() == site.pointer.id.hex()


def test_what_appears_in_a_retired_package_is_not_taken(site: Site) -> None:
    for number in (1, 2):
        site.make(f"brush/v{number}")
    watch(site)
    site.call("release", "-q", "--retire", "grp/brush")
    site.make("brush/v3")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2"}
    site.call("release", "-q", "grp/brush/v3/lib")
    site.make("brush/v4")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "brush/v3"}
    site.call("release", "-q", "grp/brush")
    site.make("brush/v5")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", *(f"brush/v{number}" for number in range(1, 6))}


@pytest.mark.parametrize(
    ("where", "select", "more"),
    [
        ("sw.json", "grp/*/v*", ""),
        ("grp/sw.json", "grp/*/v*", ""),
        ("grp/paint/sw.json", "grp/*/v*", ""),
        ("grp/paint/v1/lib/sw.json", "grp/*/v*", ""),
        (".mkmeta/sw.json", "*", ""),
        (".mkmeta/sw.json", "*/sw.json", ""),
        ("grp/paint/own/sw.json", "grp/*/v*", None),
        (".mkmeta/sw.json", "*", 'hide = [".mkmeta"]\n'),
        (".mkmeta/sw.json", "*/*/v*", None),
    ],
)
def test_the_pointer_has_a_directory_of_its_own(tmp_path: Path, where: str, select: str, more: str | None) -> None:
    site = Site(tmp_path)
    site.configure(f"quiet = 0\n{more or ''}", select=f'{select}", "grp/*/v*')
    site.config.write_text(site.config.read_text().replace(".mkmeta/sw.json", where))
    site.call("release", "-q")
    pointer = site.volume / where
    before = pointer.read_bytes()
    if more == "":
        for once in (["--once"], []):
            done = site.call("watch", *once, check=2)
            assert "the pointer needs a directory of its own, which nothing selects" in done.err
        assert pointer.read_bytes() == before
        return
    watch(site)
    before = pointer.read_bytes()
    watch(site)
    assert pointer.read_bytes() == before


def test_the_clock_leaves_nothing_behind(site: Site) -> None:
    """It is the lock that is touched, which is there anyway, and only when somebody has to know the time."""
    directory, lock = site.pointer_path.parent, site.pointer_path.with_name(".sw.json.lock")
    there = sorted(os.listdir(directory))
    assert lock.name in there
    site.configure('quiet = "1h"\n')
    time.sleep(0.02)
    watch(site)  # names came or went just before it was published
    for path in (directory, lock):
        os.utime(path, (1, 1))
    watch(site)
    assert (lock.stat().st_mtime, directory.stat().st_mtime) == (1, 1)
    site.make("paint/v3")
    before = time.time() - 1
    clock = clock_of(os.stat(site.volume).st_dev, os.fsencode(site.pointer_path))
    assert clock.margin == 0
    assert clock.now_ns > before * NS
    assert "waiting: grp/paint/v3" in watch(site, "--dry-run").err
    assert directory.stat().st_mtime == 1, "nothing was made, nothing removed"
    assert lock.stat().st_mtime > 1
    assert lock.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(directory)) == there
    lock.unlink()
    lock.symlink_to(site.manifest)
    assert clock_of(os.stat(site.volume).st_dev, os.fsencode(site.pointer_path)).margin == CLOCKS_APART


def test_what_changed_after_it_was_published_is_named_and_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("quiet = 0\n", select="grp/*/v*")
    for name in ("paint/v2", "paint/v3", "paint/v4"):
        site.make(name)
    site.call("release", "-q")
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
    assert "failed: grp/paint/v3/lib: " in done.err
    assert site.names() == {"paint/v1", "paint/v2", "paint/v4"}


@pytest.mark.needs("user xattrs")
def test_all_parts_of_a_release_are_taken_when_another_is_broken(site: Site) -> None:
    """Then each is taken by itself: the marker of a release counts for the second part as for the first."""
    site.configure('quiet = 0\nmarker = "done"\n', select='grp/*/v*/lib", "grp/*/v*/share')
    site.call("release", "-q")
    for number in (3, 4):
        release = site.make(f"paint/v{number}")
        (release / "share").mkdir()
        (release / "done").touch()
    os.setxattr(site.volume / "grp/paint/v4/lib/m0.py", "user.overlay.opaque", b"y")
    done = watch(site, check=1)
    assert [line for line in done.err.splitlines() if line.startswith(("taken: ", "waiting: "))] == [
        f"taken: grp/paint/{part}: published" for part in ("v3/lib", "v3/share", "v4/share")
    ]


def test_a_volume_that_is_not_there_takes_nothing_out(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure("quiet = 0\n", select="*/*/v*")
    (site.volume / "tools/make/v1").mkdir(parents=True)
    site.call("release", "-q")
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


@pytest.mark.parametrize(
    ("key", "more", "select"),
    [
        ("select", "", 'grp/*/v*/lib", "grp/*/v*/doc'),
        ("hide", 'hide = ["**/*.pyc"]\n', "grp/*/v*/lib"),
        ("digests", 'digests = ["blake3"]\n', "grp/*/v*/lib"),
    ],
)
def test_other_rules_than_those_that_published_are_noticed(site: Site, key: str, more: str, select: str) -> None:
    """Also when nothing is new. Then all has to be looked at, and who calls for that knows that nobody is copying."""
    (site.volume / "grp/paint/v1/lib/m0.pyc").touch()
    site.call("release", "-q", "grp/paint/v1")
    site.configure(f"quiet = 0\n{more}", select=select)
    before = site.state
    for done in (watch(site, check=1), site.call("release", "grp/paint/v1", check=1)):
        assert f"the layer file has another '{key}' than what is published was made with" in done.err
        assert "mkmeta release without PATH, once, when nobody is copying" in done.err
    assert site.state == before
    site.call("release", "-q")
    assert site.pointer.id.hex() == site.full_scan()
    assert site.pointer.serial == 3
    site.make("paint/v3")
    watch(site)
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3"}


def test_what_is_barren_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `**` there are as many directories to look at as the volume has; most are leaves, and have nothing."""
    monkeypatch.setattr(levels, "TRUST_MARGIN", 0)
    site = Site(tmp_path)
    site.configure("quiet = 0\n", select="**/site-packages")
    (site.volume / "py/site-packages").mkdir(parents=True)
    for number in range(40):
        (site.volume / f"data/{number % 4}/{number}").mkdir(parents=True)
    site.call("release", "-q")
    time.sleep(0.1)
    publishing = Publishing.of(
        read_config(os.fsencode(site.config)), manifest_only=True, quiet=0, wait=9, note=lambda _text: None
    )
    barren = levels.Barren()
    first, second = [watch_once(publishing, barren=barren).looked.listed for _ in range(2)]
    assert first - second == 40 + 2, "all leaves, those of paint/v1 among them"
    (site.volume / "data/3/39/site-packages").mkdir()
    done = watch_once(publishing, barren=barren)
    assert done.taken == [b"data/3/39/site-packages"]
    (site.volume / "data/2/38/deeper").mkdir()
    time.sleep(0.1)
    for _ in range(2):
        watch_once(publishing, barren=barren)
    (site.volume / "data/2/38/deeper/site-packages").mkdir()
    shutil.rmtree(site.volume / "data/1/37")
    os.rename(site.volume / "data/0/36", site.volume / "data/1/37")
    (site.volume / "data/1/37/site-packages").mkdir()
    done = watch_once(publishing, barren=barren)
    assert done.taken == [b"data/1/37/site-packages", b"data/2/38/deeper/site-packages"]
    assert watch_once(publishing).looked.new == []


def test_barren_ones_are_those_of_the_same_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was retired or hidden is nothing new; when it no longer is, it is."""
    monkeypatch.setattr(levels, "BARREN_MAX", 1)
    barren = levels.Barren()
    with closing(os.open(tmp_path, os.O_RDONLY)) as fd:
        seen = known_of(b".", fd)
    for rules, expected in (("one", [False, False]), ("one", [True, False]), ("other", [False, False])):
        barren.begin(rules)
        assert [barren.has(name, seen) for name in (b"a", b"b")] == expected
        for name in (b"a", b"b"):
            barren.add(name, seen)
    barren.begin("other")
    assert not barren.has(b"a", seen._replace(change_time_ns=seen.change_time_ns + 1))


@pytest.mark.needs("root")
@pytest.mark.parametrize("events", ["auto", "never"])
def test_a_service_that_goes_on(mount: Mount, events: str) -> None:
    """As systemd starts it: with events, what comes is taken long before the next look at everything."""
    site = Site(mount("tmpfs") / "site")
    site.configure("quiet = 0\n")
    site.call("release", "-q")
    every = ["--every", "1h" if events == "auto" else "1s"]
    command = [sys.executable, "-m", "mkmeta", "watch", "--config", str(site.config), "--json", "--events", events]
    with subprocess.Popen([*command, *every], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        try:
            first = json.loads(service.stdout.readline())
            assert (first["message_type"], first["events"]) == ("watching", events == "auto")
            assert json.loads(service.stdout.readline())["message_type"] == "summary"
            site.make("paint/v2")
            site.make("brush/v1")
            while site.names() != {"paint/v1", "paint/v2", "brush/v1"}:
                assert json.loads(service.stdout.readline())
            site.config.write_text("broken")
            site.make("paint/v3")
            time.sleep(0.1)
            assert service.poll() is None
            site.configure("quiet = 0\n")
            site.make("paint/v4")
            while site.names() != {"paint/v1", "paint/v2", "paint/v3", "paint/v4", "brush/v1"} and events == "never":
                assert json.loads(service.stdout.readline())
        finally:
            service.terminate()
            service.communicate()
    assert service.returncode == 128 + signal.SIGTERM


def test_two_watchers_publish_once(site: Site) -> None:
    site.make("paint/v3")
    before = site.pointer.serial
    running = [fork(lambda: main(["watch", "-q", "--once", "--config", str(site.config)])) for _ in range(2)]
    assert [wait(pid) for pid in running] == [0, 0]
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3"}
    assert site.pointer.serial == before + 1


def test_two_that_find_different_things_lose_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second begins with is what the first has published, not what was there when the first began."""
    site.make("paint/v3")
    (scanned, tell), (wait_for, go_on) = os.pipe(), os.pipe()

    def slowly() -> int:
        def and_wait(options: ScanOptions, stream: BinaryIO) -> ScanReport:
            report = scan(options, stream)
            os.write(tell, b".")
            os.read(wait_for, 1)
            return report

        monkeypatch.setattr(release_module, "scan", and_wait)  # in this process only
        return main(["watch", "-q", "--once", "--config", str(site.config)])

    first = fork(slowly)
    assert os.read(scanned, 1) == b"."
    site.make("paint/v4")
    second = fork(lambda: main(["release", "-q", "--config", str(site.config), "grp/paint/v4"]))
    for _ in range(40):  # it would be done by now, if it did not wait for the first
        if os.waitid(os.P_PID, second, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.05)
    os.write(go_on, b".")
    assert [wait(first), wait(second)] == [0, 0]
    for fd in (scanned, tell, wait_for, go_on):
        os.close(fd)
    assert site.names() == {"paint/v1", "paint/v2", "paint/v3", "paint/v4"}
    assert site.full_scan() == site.pointer.id.hex()


@pytest.mark.parametrize("minutes", [-5, 5])
@pytest.mark.parametrize("beside", [True, False], ids=["pointer on the volume", "pointer elsewhere"])
def test_clocks_five_minutes_apart_do_no_harm(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch, minutes: int, beside: bool
) -> None:
    """What was copied a moment ago is not taken for quiet; what is quiet is, at the latest five minutes later."""
    top = tmp_path if beside or not CAPABILITIES["root"] else mount("tmpfs")
    site = Site(top)
    where = site.pointer_path if top == tmp_path else tmp_path / "sw.json"
    site.configure('quiet = "1m"\n')
    site.config.write_text(site.config.read_text().replace(str(site.pointer_path), str(where)))
    site.call("release", "-q")
    site.make("paint/v3")
    true = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: true() + minutes * 60 * NS)
    done = watch(site)
    assert "waiting: grp/paint/v3: was changed" in done.err
    if top != tmp_path:
        monkeypatch.setattr(time, "time_ns", lambda: true() + (minutes + 11) * 60 * NS)
        assert "taken: grp/paint/v3/lib" in watch(site).err


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
