"""`mkmeta release`: what is published is what a full scan gives; what fails leaves everything as it was."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.errors import UsageError
from mkmeta.pattern import Patterns
from mkmeta.publisher import release as release_module
from mkmeta.publisher.arrival import Coverage, coverage, literal, relative, release_of, topmost
from mkmeta.scanner.options import ScanReport
from mkmeta.scanner.scan import scan
from mkmeta.store.store import Store
from tests.publisher.sites import Site
from tests.store.processes import fork, run_killed, wait


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that announces manifests only, with one release published."""
    site = Site(tmp_path)
    site.call("release", "-q")
    return site


def test_first_and_next(site: Site) -> None:
    assert (site.names(), site.pointer.serial, site.pointer.generation) == ({"paint/v1"}, 1, 1)
    site.make("paint/v2")
    done = site.call("release", str(site.volume / "grp/paint/v2"))
    assert site.names() == {"paint/v1", "paint/v2"}
    assert done.out.strip() == site.pointer.id.hex() == site.full_scan()
    lines = done.err.splitlines()
    assert [line.split()[0] for line in lines] == ["check", "scan", "verify", "publish"]
    assert all(line.split()[2] == "s" for line in lines)
    site.call("release", "grp/paint/v2")
    assert (site.pointer.serial, site.pointer.generation) == (2, 2), "nothing is published twice"


def test_random_histories_end_as_a_full_scan(site: Site) -> None:
    """Each step is one that happens on volumes; after each, what is published is what a scan of everything gives."""
    chance = random.Random(14)
    there = {"paint/v1"}
    for number in range(9):
        step = chance.choice(["new", "new", "two", "gone", "rewritten", "outside"])
        names = [f"p{chance.randrange(3)}/v{number}{letter}" for letter in "ab"]
        named = names[:1]
        match step:
            case "new":
                there.add(site.make(names[0]).relative_to(site.volume / "grp").as_posix())
            case "two":
                named = names
                there |= {site.make(name).relative_to(site.volume / "grp").as_posix() for name in names}
            case "gone" if len(there) > 1:
                named = [chance.choice(sorted(there))]
                there.remove(named[0])
                site.remove(named[0])
            case "rewritten":
                named = [chance.choice(sorted(there))]
                (site.volume / "grp" / named[0] / "lib/m0.py").write_text(f"{number}")
            case _:
                (site.volume / "grp" / names[0] / "doc").mkdir(parents=True)
        site.call("release", "-q", *(f"grp/{name}" for name in named))
        assert site.names() == there
        if number % 3 == 0:
            assert site.full_scan() == site.pointer.id.hex(), (number, step)
    assert site.full_scan() == site.pointer.id.hex()


def test_what_is_not_selected_is_announced_all_the_same(site: Site) -> None:
    """Hosts remember that it was not there; they are told to forget that."""
    before = site.pointer
    (site.volume / "other/tool").mkdir(parents=True)
    (site.volume / "grp/paint/v9/doc").mkdir(parents=True)
    for serial, path in enumerate(("other/tool", "grp/paint/v9"), before.serial + 1):
        done = site.call("release", path)
        assert f"not selected, hosts see it straight from the volume: {path}" in done.err
        assert (site.names(), site.pointer.serial) == ({"paint/v1"}, serial)
    (site.volume / "grp/paint/notes").mkdir()
    site.call("release", "grp/paint/notes")
    assert site.pointer.id.hex() == site.full_scan(), "the directory that it is in has changed"


def break_with_marker(site: Site) -> list[str]:
    site.configure('marker = "done"\n')
    return ["grp/paint/v2"]


def break_with_staging(site: Site) -> list[str]:
    site.configure('staging = ["**/*.tmp"]\n')
    site.make("paint/v2.tmp")
    return ["grp/paint/v2.tmp"]


def break_with_what_cannot_be_recorded(site: Site) -> list[str]:
    os.setxattr(site.volume / "grp/paint/v2/lib/m0.py", "user.overlay.opaque", b"y")
    return ["grp/paint/v2"]


def break_pointer_directory(site: Site) -> list[str]:
    site.configure(f'store = "{site.config}"\n')
    return ["grp/paint/v2"]


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (break_with_marker, 24, "has no 'done', which 'marker' says a complete release has"),
        (break_with_staging, 24, "is a place to copy to: 'grp/paint/v2.tmp' matches '**/*.tmp' of 'staging'"),
        (break_with_what_cannot_be_recorded, 13, "lib/m0.py"),
        (break_pointer_directory, 1, "cannot be made"),
        (lambda _site: ["grp/paint/v2", "--quiet-for", "1h"], 24, "was changed 0 s ago"),
        (lambda _site: ["grp/paint/v3"], 2, "grp/paint/v3: is neither on the volume nor in the manifest"),
        (lambda _site: ["/elsewhere/v3"], 2, "/elsewhere/v3: is not on the volume"),
        (lambda _site: ["../v3"], 2, "is not the path of a release"),
        (lambda _site: ["--retire", "grp/paint/v3"], 12, "is not recorded, and so cannot be retired"),
        (lambda _site: ["grp/paint/v2", "--retire", "grp/paint"], 2, "cannot be both released and retired"),
        (lambda _site: ["--retire", "grp"], 1, "nothing would be left"),
    ],
)
@pytest.mark.needs("user xattrs")
def test_what_fails_leaves_everything_as_it_was(
    site: Site, make: Callable[[Site], list[str]], code: int, message: str
) -> None:
    site.make("paint/v2")
    arguments = make(site)
    before = site.state
    done = site.call("release", "-q", *arguments, check=code)
    assert message in done.err
    assert len(done.err.splitlines()) <= 2
    assert site.state == before
    assert done.out == ""
    site.configure()
    site.call("release", "-q", "--on-error", "leave-out", check=3 if code == 13 else 0)
    assert "paint/v1" in site.names()


def test_a_marker_and_quiet_let_a_release_through(site: Site) -> None:
    site.configure('marker = "done"\nstaging = ["**/.*"]\n')
    (site.make("paint/v2") / "done").touch()
    time.sleep(0.3)
    site.call("release", "grp/paint/v2", "--quiet-for", "0.2")
    assert site.names() == {"paint/v1", "paint/v2"}


@pytest.mark.parametrize("how", ["content", "touched", "new", "removed"])
def test_a_release_that_changes_meanwhile_is_not_published(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    lib = site.make("paint/v2") / "lib"

    def change(*args: object, **more: object) -> ScanReport:
        report = scan(*args, **more)  # type: ignore[arg-type]
        match how:
            case "content":
                (lib / "m0.py").write_text("other")
            case "touched":
                (lib / "m0.py").chmod(0o600)
                (lib / "m0.py").chmod(0o644)
            case "new":
                (lib / "late.py").touch()
            case "removed":
                (lib / "m0.py").unlink()
        return report

    (lib / "m0.py").chmod(0o644)
    monkeypatch.setattr(release_module, "scan", change)
    before = site.state
    done = site.call("release", "-q", "grp/paint/v2", check=4)
    assert "nothing was published; try again" in done.err
    assert site.state == before


def test_dry_run_changes_nothing(site: Site) -> None:
    site.make("paint/v2")
    before, there = site.state, sorted(os.listdir(site.top))
    done = site.call("release", "--dry-run", "grp/paint/v2")
    assert (site.state, sorted(os.listdir(site.top))) == (before, there)
    assert "a dry run: nothing was changed" in done.err
    assert done.out.strip() == site.full_scan()


def test_retire(site: Site) -> None:
    """It falls through, is not brought back by a full scan, is forgotten when it is gone, and may come again."""
    site.make("paint/v2")
    site.call("release", "-q", "grp/paint/v2")
    site.call("release", "-q", "--retire", "grp/paint/v1")
    assert site.names() == {"paint/v2"}
    retired = site.pointer
    site.call("release", "-q", check=0)
    assert site.pointer == retired
    site.remove("paint/v1")
    site.call("release", "-q", "grp/paint/v1")
    assert site.pointer.serial == retired.serial + 1
    assert site.pointer.id.hex() == site.full_scan(), "the directory that it was in has changed"
    assert "neither on the volume nor" in site.call("release", "-q", "grp/paint/v1", check=2).err
    site.make("paint/v1")
    site.call("release", "-q")
    assert site.names() == {"paint/v1", "paint/v2"}


def test_retire_is_taken_back_by_a_release(site: Site) -> None:
    site.make("paint/v2")
    site.call("release", "-q", "grp/paint/v2", "--retire", "grp/paint/v1")
    assert site.names() == {"paint/v2"}
    site.call("release", "-q", "grp/paint/v1")
    assert site.names() == {"paint/v1", "paint/v2"}
    site.call("release", "-q")
    assert site.full_scan() == site.pointer.id.hex()


@pytest.mark.needs("trusted xattrs")
def test_with_a_store(tmp_path: Path) -> None:
    site = Site(tmp_path, store=True)
    site.call("release", "-q")
    site.make("paint/v2")
    site.call("release", "-q", "grp/paint/v2")
    store = Store.open(os.fsencode(site.top / "store"))
    current = store.current()
    assert current is not None
    assert (current.number, current.about().id) == (site.pointer.generation, site.pointer.id)
    assert site.pointer.generation == 2


def test_a_store_that_comes_later_goes_on_from_the_pointer(site: Site) -> None:
    """Hosts take no lower number than they have."""
    for number in (2, 3):
        site.make(f"paint/v{number}")
        site.call("release", "-q", f"grp/paint/v{number}")
    before = site.pointer
    for more in ("store", "another"):
        site.configure(f'store = "{site.top}/{more}"\nformat = "erofs"\n')
        site.call("release", "-q")
        assert site.pointer == before, "it is the same manifest: hosts need nothing"
        site.make(f"{more}/v1")
        site.call("release", "-q", f"grp/{more}/v1")
        assert (site.pointer.generation, site.pointer.serial) == (before.generation + 1, before.serial + 1)
        current = Store.open(os.fsencode(site.top / more)).current()
        assert current is not None
        assert (current.number, current.about().id) == (site.pointer.generation, site.pointer.id)
        before = site.pointer


def run(site: Site, *args: str) -> Callable[[], int]:
    return lambda: main(["release", "-q", "--config", str(site.config), *args])


def test_three_at_once_all_end_up_published(site: Site) -> None:
    names = ["a/v1", "b/v1", "c/v1"]
    for name in names:
        site.make(name)
    running = [fork(run(site, f"grp/{name}")) for name in names]
    assert [wait(pid) for pid in running] == [0, 0, 0]
    assert site.names() == {"paint/v1", *names}
    assert site.pointer.serial == 4
    assert site.full_scan() == site.pointer.id.hex()


def test_killed_anywhere_nothing_is_half_and_nothing_is_lost(site: Site) -> None:
    """The pointer names a whole manifest at any time; the next call publishes what the killed one had recorded."""
    there = {"paint/v1"}
    for number, step in enumerate((60, 130)):  # all of them: test_chaos.py
        site.make(f"killed/v{number}")
        assert run_killed(run(site, f"grp/killed/v{number}"), step), "it has at least so many steps"
        assert site.names() >= there
        site.make(f"next/v{number}")
        assert run(site, f"grp/next/v{number}", "--wait", "5")() == 0
        there |= {f"next/v{number}", *(name for name in site.names() if name.startswith("killed/"))}
    assert site.call("release", "-q").out.strip() == site.full_scan() == site.pointer.id.hex()
    left = [name for name in os.listdir(site.top) if ".mkmeta-" in name]
    assert left == []


def test_json(site: Site) -> None:
    site.make("paint/v2")
    messages = site.call("release", "--json", "grp/paint/v2").messages
    assert [message.get("step") for message in messages] == ["check", "scan", "verify", "publish", None]
    assert messages[-1]["published"] is True
    assert messages[-1]["generation"] == 2
    error = site.call("release", "--json", "grp/none", check=2).messages[-1]
    assert (error["message_type"], error["path"]) == ("exit_error", "grp/none")


def test_without_a_layer_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "grp/paint/v2"]) == 2
    assert capsys.readouterr().err.startswith("mkmeta: release needs the layer file\n")


def test_paths() -> None:
    assert relative(b"/mnt/sw//a/./b/", b"/mnt/sw/") == b"a/b"
    assert relative(b"a/b", b"/mnt/sw") == b"a/b"
    for wrong in (b"/mnt/swx/a", b"/", b".", b"a/../b", b"a\0b", b"/mnt/sw"):
        with pytest.raises(UsageError):
            relative(wrong, b"/mnt/sw")
    assert topmost([b"a/b", b"a.x", b"a", b"b/c", b"b/c"]) == (b"a", b"a.x", b"b/c")


def test_a_literal_pattern_matches_its_path_alone() -> None:
    chance = random.Random(3)
    for _ in range(300):
        path = bytes(chance.choices(b"a*?[]\\!-\xff\n", k=4))
        pattern = Patterns([literal(path)])
        assert pattern.first_match(path, is_directory=True) is not None, path
        other = bytearray(path)
        other[chance.randrange(4)] = ord("z")
        assert pattern.first_match(bytes(other), is_directory=True) is None, (path, other)


def test_coverage() -> None:
    select, hide = Patterns([b"grp/*/v*/lib", b"tools/**/python"]), Patterns([b"grp/x"])
    expected = {
        b"grp/a/v1": Coverage.PARTS,
        b"grp/a/v1/lib/b": Coverage.WHOLE,
        b"grp/a/w1": Coverage.THROUGH,
        b"grp/x/v1/lib": Coverage.HIDDEN,
        b"tools/any": Coverage.PARTS,
        b"other": Coverage.THROUGH,
    }
    assert {path: coverage(path, select, hide) for path in expected} == expected


def test_what_is_complete_or_not() -> None:
    """The release is what the last name with wildcards matches, or what is selected by plain names alone."""
    select = Patterns(
        [b"grp/*/v*/lib", b"grp/*/v*/share/py", b"grp/*/t*l", b"tools/**/python", b"fixed/lib", b"any/**"]
    )
    expected = {
        b"grp/a/v1/lib": b"grp/a/v1",
        b"grp/a/v1/lib/below": b"grp/a/v1",
        b"grp/a/v1/share/py": b"grp/a/v1",
        b"grp/a/v1/share": b"grp/a/v1/share",  # named by a user, who knows
        b"grp/a/v1": b"grp/a/v1",
        b"grp/a": b"grp/a",
        b"grp/a/tool/x": b"grp/a/tool",
        b"tools/a/b/python": b"tools/a/b/python",
        b"fixed/lib/x": b"fixed/lib",
        b"any/thing/else": b"any",  # `**` may be nothing
        b"other/x": b"other/x",
    }
    assert {path: release_of(path, select) for path in expected} == expected
    assert release_of(b"a/b", Patterns([b"*"])) == b"a"


def test_a_marker_is_in_the_release_of_what_is_named(site: Site) -> None:
    site.configure('marker = "done"\n')
    site.make("paint/v2")
    done = site.call("release", "-q", "grp/paint/v2/lib", check=24)
    assert "grp/paint/v2: has no 'done'" in done.err
    (site.volume / "grp/paint/v2/done").touch()
    site.call("release", "-q", "grp/paint/v2/lib")
    assert site.names() == {"paint/v1", "paint/v2"}


def test_json_lines_are_json(site: Site) -> None:
    site.make("odd\udcff/v2")
    done = site.call("release", "--json", "grp/odd\udcff/v2")
    assert all(isinstance(json.loads(line), dict) for line in done.out.splitlines())


def test_after_is_about_what_is_retired(site: Site) -> None:
    before = site.state
    assert "--after goes with --retire" in site.call("release", "--after", "2d", check=2).err
    assert site.state == before
    site.make("paint/v2")
    site.call("release", "-q", "grp/paint/v2")
    messages = site.call("release", "--json", "--retire", "grp/paint/v1", "--after", "0.2").messages
    assert (messages[-2]["step"], messages[-1]["held"]) == ("wait", 0)
    assert messages[-1]["seconds"] >= 0.2, "what it waited counts"
