"""`mkmeta explain`: every way to be served, beside what the kernel does; the costs follow from profile and path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mkmeta.host.costs import LOCAL, PLAIN, PROFILES, Served, costs
from mkmeta.mounts.profile import Profile
from tests import calling
from tests.calling import Result
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay", "trusted xattrs")


@pytest.fixture
def served(host: Host) -> Host:
    """A host with one of each: a release left out, hidden names, links, and two skeleton levels."""
    lib = host.volume / "grp/paint/v1/lib"
    os.link(lib / "one", lib / "same")
    (lib / "current").symlink_to("one")
    (lib.parent / "v").symlink_to("../v1")
    (lib / "secret").touch()
    host.release("v2", {"lib/two": "second\n", "bad/file": "x"})
    os.setxattr(host.volume / "grp/paint/v2/bad/file", "trusted.overlay.opaque", b"y")
    manifest = host.top / "sw.mkm"
    options: list[str | Path] = ["--select", "grp/*/v*", "--hide", "**/secret", "-o", manifest]
    host.call("scan", host.volume, *options, check=3)
    host.call("build", manifest, "--store", host.store)
    return host


def call(*args: str | Path) -> Result:
    """`mkmeta explain`, which takes no --run-dir."""
    return calling.call(["explain", *map(str, args)], check=None)


def explained(where: Path, path: str, *options: str) -> Result:
    result = call(where, path, *options)
    assert result.code == 0, result
    return result


def message(where: Path, path: str) -> dict[str, object]:
    (found,) = explained(where, path, "--json").messages
    return found


CASES: list[tuple[str, str, str]] = [
    ("grp/paint/v1/lib/one", "file", "recorded: the layer has its name and attributes, the volume its data"),
    ("grp/paint/v1/lib/empty", "leaf", "recorded: the layer has all there is of it"),
    ("grp/paint/v1/lib/current", "leaf", "recorded: the layer has all there is of it"),
    ("grp/paint/v1/lib", "complete", "recorded completely"),
    ("grp/paint", "skeleton", "a part of it was selected"),
    ("", "skeleton", "a part of it was selected"),
    ("grp/paint/v1/lib/no", "absent", "grp/paint/v1/lib/ was recorded completely, and it was not there"),
    ("grp/paint/v1/no/deeper", "absent", "grp/paint/v1/ was recorded completely"),
    ("grp/paint/v1/lib/secret", "absent", "told to hide **/secret"),
    ("grp/paint/v1/lib/one/below", "absent", "grp/paint/v1/lib/one is a file: nothing can be below it"),
    ("grp/paint/v1/lib/current/x", "absent", "is a symlink to one: explain what that leads to"),
    ("notes", "through", "not selected: below the root the volume answers"),
    ("grp/paint/tools", "through", "not selected: below grp/paint/ the volume answers"),
    ("grp/paint/v2", "through", "had to leave grp/paint/v2 out, so the volume answers: grp/paint/v2/bad/file: has"),
    ("grp/paint/v2/lib/two", "through", "had to leave grp/paint/v2 out"),
    ("grp/paint/v3/lib", "through", "selected, but not there when it was scanned"),
]


@pytest.mark.parametrize(("path", "how", "why"), CASES)
def test_every_way_to_be_served(served: Host, path: str, how: str, why: str) -> None:
    found = message(served.store, path)
    assert (found["path"], found["served"]) == (path, how)
    assert why in str(found["why"])
    assert why in explained(served.top / "sw.mkm", path).out, "a manifest says the same"


def test_everything_about_a_file(served: Host) -> None:
    found = message(served.store, "grp/paint/v1/lib/same")
    assert found["subtree"] == {"path": "grp/paint/v1"}
    assert found["patterns"] == [{"pattern": "grp/*/v*"}]
    assert found["redirect"] == {"path": "/grp/paint/v1/lib/one"}, "that of the primary"
    assert found["hard_links"] == [{"path": "grp/paint/v1/lib/one"}, {"path": "grp/paint/v1/lib/same"}]
    assert len(str(found["blake3"])) == len(str(found["verity"])) == 64
    assert found["directories"] == [
        {"path": "", "kind": "merge"},
        {"path": "grp", "kind": "merge"},
        {"path": "grp/paint", "kind": "merge"},
        {"path": "grp/paint/v1", "kind": "opaque"},
        {"path": "grp/paint/v1/lib", "kind": "opaque"},
    ]
    assert (found["profile"], found["kernel"]) == (None, None)
    text = explained(served.store, "grp/paint/v1/lib/same").out
    for expected in ("selected by    grp/*/v* (subtree grp/paint/v1)", "grp/paint: skeleton", "2 hard links"):
        assert expected in text, text
    assert "at most 11 calls to the volume: LOOKUP and ACCESS for each of 5 names, and OPEN" in text


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only"])
def test_beside_what_the_kernel_says(served: Host, profile: str) -> None:
    served.activate("--profile", profile)
    point = served.point
    assert f"{profile} (mounted)" in explained(point, "notes").out
    shown = {
        "grp/paint/v1/lib/one": "a file, as recorded",
        "grp/paint/v1/lib/no": "no such file or directory, as the layer says",
        "grp/paint/v2/lib/two": "a file, from the volume",
        "grp/paint/v1": "a directory, as recorded",
        "grp/paint/v1/v/lib/one": "a file, through the symlink",
        "grp/paint/v1/v/lib/no": "no such file or directory, through the symlink",
    }
    if profile == "data-only":
        shown["grp/paint/v2/lib/two"] = "no such file or directory: not shown by a data-only mount, which is closed"
    for path, expected in shown.items():
        assert message(point, path)["kernel"] == expected, path
        assert message(point, f"{point}/{path}")["path"] == path
    assert message(point, "grp")["profile"] == profile


def test_beyond_a_symlink_nothing_is_claimed(served: Host) -> None:
    assert message(served.store, "grp/paint/v1/v/lib/one")["costs"] == {}
    assert "nested" not in explained(served.store, "grp/paint/v1/v/lib/one").out


def test_a_kernel_that_disagrees(served: Host) -> None:
    served.activate()
    layer = Path(os.path.realpath(served.store / "current")) / "layer/grp/paint/v1"
    (layer / "lib/one").chmod(0o600)
    served.call("refresh", served.point)
    assert message(served.point, "grp/paint/v1/lib/one")["kernel"] == "a file, mode is 0600 instead of 0644"
    assert "(`mkmeta refresh` forgets)" in str(message(served.point, "no")["kernel"])


def test_what_cannot_be_explained(served: Host, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    for where, path, code, why in (
        (served.store, "grp/../etc", 2, "cannot contain '..'"),
        (tmp_path, "x", 2, "is no generation of a store"),
        (tmp_path / "none", "x", 1, "no such file"),
        (tmp_path / "junk", "x", 10, "junk"),
    ):
        result = call(where, path)
        assert (result.code, result.out) == (code, "") and why in result.err, where


def test_odd_names_are_shown(served: Host) -> None:
    assert explained(served.store, "grp/\udcff\n").out.startswith("grp/\\xff\\x0a: not recorded\n")


# What sends nothing, by profile: design.md's measurements, and facts 9 and 11 of overlayfs, written down once more.
ALL_LOCAL = {Served.WHOLE, Served.LEAF, Served.COMPLETE, Served.ABSENT}
LOCAL_LOOKUPS: dict[str, set[Served]] = {
    Profile.NESTED: ALL_LOCAL | {Served.FILE},
    Profile.MERGE: ALL_LOCAL,
    Profile.DATA_ONLY: set(Served),
    Profile.UPPER: ALL_LOCAL,
    PLAIN: set(),
}
LOCAL_LISTINGS: dict[str, set[Served]] = {
    Profile.NESTED: {Served.COMPLETE},
    Profile.MERGE: {Served.COMPLETE},
    Profile.DATA_ONLY: {Served.COMPLETE, Served.SKELETON},
    Profile.UPPER: {Served.COMPLETE},
    PLAIN: set(),
}


@pytest.mark.parametrize("profile", PROFILES)
def test_costs_are_what_was_measured(profile: str) -> None:
    words = {served: costs(profile, served, depth=3, above=4, skeleton=2) for served in Served}
    for call in ("lookup", "stat"):
        local = {served for served, one in words.items() if getattr(one, call).startswith(LOCAL)}
        assert local == LOCAL_LOOKUPS[profile], call
    assert {served for served, one in words.items() if one.listing == LOCAL} == LOCAL_LISTINGS[profile]
    assert all("{" not in text for one in words.values() for text in one if text)
    assert all(words[served].listing for served in Served if served.is_directory)
    ways = dict.fromkeys(Profile, "each of 2 names") | {Profile.DATA_ONLY: LOCAL, PLAIN: "each of 4 names"}
    assert all(ways[profile] in one.way for one in words.values())
    opened = str(words[Served.FILE].open)
    walks = profile in (Profile.NESTED, Profile.DATA_ONLY)
    assert ("at most 7 calls" in opened) == walks and "OPEN" in opened
    assert (words[Served.WHOLE].open == LOCAL) == (profile != PLAIN)


def test_every_profile_has_costs() -> None:
    assert set(PROFILES) == {*Profile, PLAIN}
