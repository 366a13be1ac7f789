"""A crash of the machine at any instant leaves the old output or the new one: real runs, on a model of a disk that
keeps what was synced. What a killed program leaves is tests/store/test_crashes.py's, tests/compiler/test_publish.py's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.durability.disk import Disk, Inode, trace

pytestmark = pytest.mark.needs("root", "trusted xattrs", "strace")

MKMETA = (sys.executable, "-m", "mkmeta")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where all that is watched happens; a volume, and two manifests of it."""
    for release in ("v1", "v2"):
        (tmp_path / "volume" / release / "lib").mkdir(parents=True)
        (tmp_path / "volume" / release / "lib/a").write_text(release)
        (tmp_path / "volume" / release / "empty").touch()
        (tmp_path / "volume" / release / "link").symlink_to("lib")
    top = tmp_path / "place"
    top.mkdir()
    for number in ("1", "2"):
        mkmeta(tmp_path, "scan", "-q", "volume", "--select", f"v{number}", "-o", f"{number}.mkm")
    return top


def mkmeta(place: Path, *arguments: str | Path) -> None:
    """Runs it, unwatched."""
    trace([*MKMETA, *arguments], place / ".." / "log", place)


class Watched:
    """A run of mkmeta, call by call."""

    def __init__(self, place: Path, *arguments: str | Path) -> None:
        self.disk = Disk(place)
        self._place = place
        self.calls = trace([*MKMETA, *arguments], place.parent / "log", place)
        assert self.calls

    def check_old_or_new(self, name: str) -> Inode:
        """Asserts that `name` is what it was or complete, whatever is lost, and new and safe at the end, once."""
        old = self.disk.now(self._place / name)
        points = 0
        for call in self.disk.run(self.calls):
            points += 1
            for inode in self.disk.maybe(self._place / name):
                assert inode is old or (inode is not None and inode.is_complete()), call
        assert points >= 4  # made, written, renamed, synced
        (new,) = self.disk.maybe(self._place / name)
        assert new is not None and new is not old and new.is_complete()
        return new


@pytest.fixture(autouse=True)
def _import_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "../volume", "--select=v1"),
        ("scan", "../volume", "--base=../1.mkm"),
        ("scan", "../volume", "--base=../1.mkm", "--only=v1"),
        ("merge", "../1.mkm", "../2.mkm"),
        ("prune", "../2.mkm", "--drop=v2/lib"),
    ],
    ids=" ".join,
)
def test_manifest(place: Path, arguments: tuple[str, ...], first: bool) -> None:
    if not first:
        (place / "sw.mkm").write_bytes((place.parent / "2.mkm").read_bytes())
    Watched(place, *arguments, "-q", "-o", "sw.mkm").check_old_or_new("sw.mkm")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_new_layer(place: Path, jobs: str) -> None:
    new = Watched(place, "build", "-q", "-j", jobs, "../1.mkm", "layer").check_old_or_new("layer")
    assert {"v1"} == new.names()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["erofs", "composefs"])
def test_image(place: Path, kind: str, first: bool) -> None:
    if not first:
        mkmeta(place, "build", "-q", "--format", kind, "../2.mkm", "image")
    Watched(place, "build", "-q", "--swap", "--format", kind, "../1.mkm", "image").check_old_or_new("image")


@pytest.mark.parametrize("discard", [True, False])
def test_exchanged_layer(place: Path, discard: bool) -> None:
    mkmeta(place, "build", "-q", "../1.mkm", "layer")
    run = Watched(place, "build", "-q", "--swap", *(["--discard"] if discard else []), "../2.mkm", "layer")
    old = run.disk.now(place / "layer")
    assert old is not None
    new = run.check_old_or_new("layer")
    assert {"v2"} == new.names()
    if not discard:
        (kept,) = place.glob("layer.old-*")
        assert run.disk.maybe(kept) == {old} and old.is_complete()


def test_a_new_tree_under_an_old_name_is_known_as_unfinished(place: Path) -> None:
    """Or what a crash left beside DEST would pass for a layer that was in use once, and never go."""
    mkmeta(place, "build", "-q", "../1.mkm", "layer")
    run = Watched(place, "build", "-q", "--swap", "../2.mkm", "layer")
    old = run.disk.now(place / "layer")
    (kept,) = place.glob("layer.old-*")
    for call in run.disk.run(run.calls):
        for inode in run.disk.maybe(kept):
            is_new_dest = run.disk.maybe(place / "layer") == {inode}
            assert inode in (None, old) or is_new_dest or not inode.unsafe_mark, call


@pytest.mark.parametrize("first", [True, False])
def test_generation(place: Path, first: bool) -> None:
    if not first:
        mkmeta(place, "build", "-q", "../1.mkm", "--store", "store")
    run = Watched(place, "build", "-q", "../2.mkm", "--store", "store")
    old = run.disk.now(place / "store/current")
    for call in run.disk.run(run.calls):
        for pointer in run.disk.maybe(place / "store/current"):
            if pointer is not None and pointer is not old:
                (generation,) = run.disk.maybe(place / "store" / pointer.target)
                assert generation is not None and generation.is_complete(), call
            else:
                assert pointer is old, call
    (pointer,) = run.disk.maybe(place / "store/current")
    assert pointer is not None and pointer is not old
    (description,) = run.disk.maybe(place / "store/store.json")
    assert description is not None and description.is_complete()
    (generation,) = run.disk.maybe(place / "store" / pointer.target)
    assert generation is not None and {"layer", "manifest.mkm", "generation.json"} <= set(generation.entries)


@pytest.mark.parametrize("first", [True, False])
def test_pointer(place: Path, first: bool) -> None:
    mkmeta(place, "build", "-q", "../1.mkm", "--store", "store")
    (place / "volume").mkdir()
    if not first:
        mkmeta(place, "publish", "-q", "store", "--pointer", "volume/sw.json")
        mkmeta(place, "build", "-q", "../2.mkm", "--store", "store")
    run = Watched(place, "publish", "-q", "store", "--pointer", "volume/sw.json")
    manifest = place / "volume" / json.loads((place / "volume/sw.json").read_bytes())["manifest"]
    assert manifest.exists()
    old = run.disk.now(place / "volume/sw.json")
    for call in run.disk.run(run.calls):
        for pointer in run.disk.maybe(place / "volume/sw.json"):
            if pointer is old:
                continue
            assert pointer is not None and pointer.is_complete(), call
            (announced,) = run.disk.maybe(manifest)
            assert announced is not None and announced.is_complete(), call
    (pointer,) = run.disk.maybe(place / "volume/sw.json")
    assert pointer is not None and pointer is not old
