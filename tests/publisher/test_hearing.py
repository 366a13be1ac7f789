"""What the kernel tells of the volume: enough to find all that is new or gone, and not much more."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from mkmeta.config import read_config
from mkmeta.errors import MkmetaError
from mkmeta.linux.descriptors import closing
from mkmeta.linux.mount import umount2
from mkmeta.manifest.reader import ManifestReader
from mkmeta.pattern import Patterns
from mkmeta.publisher import hearing as hearing_module
from mkmeta.publisher import levels
from mkmeta.publisher.hearing import Events, Heard, Hearing, level_of, listen
from mkmeta.publisher.levels import Looked, Part, look_at_levels
from mkmeta.publisher.site import Site as Publishing
from mkmeta.publisher.watch import Pass, carry_over, watch_once
from tests.conftest import Mount
from tests.publisher.sites import Site

SELECT = ("grp/*/v*/lib", "grp/*/tool", "*/deep/**/x")


@pytest.mark.parametrize(
    ("directory", "level"),
    [
        ("", ""),
        ("grp", "grp"),
        ("grp/paint", "grp/paint"),
        ("grp/paint/v1", "grp/paint/v1"),
        ("grp/paint/v1/lib", "grp/paint/v1"),
        ("grp/paint/v1/lib/deeper/still", "grp/paint/v1"),
        ("grp/paint/tool", "grp/paint"),
        ("grp/paint/v1/doc", None),
        ("grp/paint/w1", None),
        ("home", "home"),
        ("home/alice", None),
        ("a/deep", "a/deep"),
        ("a/deep/b/c/d/e", "a/deep/b/c/d/e"),
        ("a/deep/b/x/d", "a/deep/b"),
    ],
)
def test_levels_of_directories(directory: str, level: str | None) -> None:
    found = level_of(os.fsencode(directory), Patterns([os.fsencode(one) for one in SELECT]))
    assert found == (None if level is None else os.fsencode(level))


@pytest.mark.needs("root", "loop mounts")
@pytest.mark.parametrize(
    ("fstype", "size"),
    [
        pytest.param("tmpfs", 0, id="tmpfs"),
        pytest.param("ext4", 16 << 20, id="ext4", marks=pytest.mark.needs("mkfs.ext4")),
        pytest.param("xfs", 300 << 20, id="xfs", marks=pytest.mark.needs("mkfs.xfs")),
        pytest.param("btrfs", 120 << 20, id="btrfs", marks=pytest.mark.needs("mkfs.btrfs")),
    ],
)
def test_filesystems_that_are_heard(tmp_path: Path, mount: Mount, fstype: str, size: int) -> None:
    """Each tells of what comes and goes, and gives what is moved another change time."""
    if size:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{fstype}", "-q", image], check=True, capture_output=True)
        top = mount(fstype, "loop", image)
    else:
        top = mount(fstype)
    (top / "aside/v1/lib").mkdir(parents=True)
    (top / "volume/grp").mkdir(parents=True)
    select = Patterns([b"grp/*/v*"])
    hearing, how = listen(os.fsencode(top / "volume"), Events.AUTO)
    assert hearing is not None, how
    try:
        assert how == f"the kernel tells of changes: fanotify on {fstype}"
        (top / "volume/grp/a b\nc").mkdir()
        (top / "aside/file").touch()
        assert hearing.collect(select) == Heard({b"grp": False})
        before = (top / "aside").stat().st_ctime_ns
        time.sleep(0.05)
        os.rename(top / "aside", top / "volume/grp/paint")
        assert hearing.collect(select) == Heard({b"grp": True})
        assert (top / "volume/grp/paint").stat().st_ctime_ns > before
        shutil.rmtree(top / "volume/grp/paint")
        assert hearing.collect(select) == Heard({b"grp": False}), "and of what is gone, nothing but that"
        assert hearing.is_there()
        umount2(os.fsencode(top), 0)
        assert not hearing.is_there()
        subprocess.run(["mount", "-t", "tmpfs", "another", top], check=True)  # which the fixture will unmount
        (top / "volume").mkdir()
        assert not hearing.is_there()
    finally:
        hearing.close()


def test_where_there_are_no_events(tmp_path: Path) -> None:
    for choice in (Events.AUTO, Events.NEVER):
        hearing, how = listen(b"/proc", choice)
        assert hearing is None
        assert how.startswith("all levels are listed each time")
    assert "proc may change without this kernel" in listen(b"/proc", Events.AUTO)[1]
    with pytest.raises(MkmetaError, match="the kernel tells of no changes here"):
        listen(b"/proc", Events.ALWAYS)
    assert "no such file" in listen(os.fsencode(tmp_path / "none"), Events.AUTO)[1]


@pytest.mark.needs("root")
def test_a_flood_is_everything(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    top = mount("tmpfs")
    (top / "volume").mkdir()
    hearing = Hearing(os.fsencode(top / "volume"))
    try:
        for limit, where in (("RESOLVED_MAX", top), ("LEVELS_MAX", top / "volume")):
            monkeypatch.setattr(hearing_module, limit, 20)
            for number in range(20):
                (where / f"{limit}{number}/below").mkdir(parents=True)
            assert hearing.collect(Patterns([b"*/*/*"])) == Heard({}, everything=True)
            (where / "more").mkdir()
            assert not hearing.collect(Patterns([b"*/*/*"])).everything
            monkeypatch.setattr(hearing_module, limit, 5000)
    finally:
        hearing.close()


class Histories:
    """Random things that happen on a volume, and beside it."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.chance = random.Random(seed)
        self.aside = site.top / "aside"
        self.aside.mkdir(exist_ok=True)
        self.number = 0

    def directory(self) -> Path:
        """Somewhere in the volume, down to a release."""
        volume, chance = self.site.volume, self.chance
        names = [
            chance.choice(("grp", "a", "b")),
            chance.choice(("p0", "p1", "deep", "\udcff\n")),
            f"v{chance.randrange(4)}",
        ]
        return volume.joinpath(*names[: chance.randrange(1, 4)])

    def copied(self, top: Path) -> None:
        """A tree in which something may be selected."""
        for name in self.chance.sample(("lib", "tool", "doc", "v1/lib", "deep/c/x", "v2/doc", "p/v3/lib"), 3):
            (top / name).mkdir(parents=True, exist_ok=True)

    def old(self) -> Path:
        """A tree made some time ago, on the same filesystem: moving it makes events in no directory of it."""
        self.number += 1
        top = self.aside / f"{self.number}"
        self.copied(top)
        return top

    def step(self) -> None:
        """Something."""
        where = self.directory()
        match self.chance.randrange(5):
            case 0:
                self.copied(where)
            case 1 if trees := sorted(self.aside.iterdir()):
                where.parent.mkdir(parents=True, exist_ok=True)
                if where.exists():
                    shutil.rmtree(where)
                os.rename(self.chance.choice(trees), where)
            case 2 if where.exists() and where.parent != self.site.volume:
                shutil.rmtree(where)
            case 3 if where.exists() and where.parent != self.site.volume:
                to = self.directory()
                if not to.exists() and to.parent.exists() and where not in to.parents:
                    os.rename(where, to)
            case _:
                (where / "doc").mkdir(parents=True, exist_ok=True)


def everything(publishing: Publishing) -> Looked:
    """A look at all levels: the truth."""
    with (
        ManifestReader.open(publishing.manifest) as reader,
        closing(os.open(publishing.root, os.O_RDONLY)) as volume,
    ):
        return look_at_levels(volume, reader, skip=b".mkmeta")


@pytest.mark.needs("root")
@pytest.mark.parametrize("seed", range(3))
def test_what_is_heard_is_where_all_is_found(mount: Mount, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """After each pass at what was heard, a look at everything finds nothing more; and it lists more."""
    monkeypatch.setattr(levels, "TRUST_MARGIN", 5 * 10**7)  # ns; change times are as coarse as the kernel's ticks
    site = Site(mount("tmpfs") / "site")
    site.configure("quiet = 0\n", select='", "'.join(SELECT))
    site.call("release", "-q")
    histories = Histories(site, seed)
    for _ in range(60):
        histories.old()
    time.sleep(0.2)
    publishing = Publishing.of(
        read_config(os.fsencode(site.config)), manifest_only=True, quiet=0, wait=9, note=lambda _text: None
    )
    since_ns = time.time_ns()
    hearing = Hearing(publishing.root)
    listed = all_listed = taken = 0
    try:
        select = watch_once(publishing).select
        for number in range(25):
            for _ in range(histories.chance.randrange(1, 4)):
                histories.step()
            heard = hearing.collect(select)
            moved = frozenset(level for level, moved in heard.levels.items() if moved)
            done = watch_once(publishing, part=Part(frozenset(heard.levels), moved, since_ns))
            assert not done.failed
            truth = everything(publishing)
            assert (truth.new, truth.gone) == ([], []), (number, heard)
            listed, all_listed, taken = listed + done.looked.listed, all_listed + truth.listed, taken + len(done.taken)
    finally:
        hearing.close()
    assert taken >= 5
    assert listed < all_listed


def test_what_was_found_elsewhere_is_kept() -> None:
    """A pass at a part tells what is known of all: of what it did not look at, from the pass before."""
    before, done = Pass(), Pass()
    rows = [(path, "text") for path in (b"grp/a/v1", b"grp/b/v1", b"grp/b", b"grp", b"grp/b/v2/lib", b"other")]
    before.looked.changed, before.failed, before.waiting = list(rows), list(rows), list(rows)
    done.looked.levels = {b"grp/b"}
    done.failed = [(b"grp/b/v1", "again")]
    carry_over(before, done)
    kept = [(path, "text") for path in (b"grp/a/v1", b"grp/b/v2/lib", b"other")]
    assert done.looked.changed == done.waiting == kept
    assert done.failed == [(b"grp/b/v1", "again"), *kept]
