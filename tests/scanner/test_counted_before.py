"""A scan on a base counts what it leaves out as the base did, where nothing has changed: however far a task goes."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from mkmeta.model import Counts
from mkmeta.scanner import base as base_module
from mkmeta.scanner import gathering, performing, sharing
from tests.scanner.helpers import scan_tree
from tests.scanner.test_base import again, first_scan

DROP = (b"user.drop*",)
LEFT_OUT = Counts._fields.index("hidden")


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)
    real = os.listxattr
    monkeypatch.setattr(os, "listxattr", lambda *args, **keys: [*real(*args, **keys), "system.nfs4_acl"])


@pytest.mark.needs("user xattrs")
@pytest.mark.parametrize("hide", [(), (b"**/h*",)])
@pytest.mark.parametrize("seed", range(3))
def test_random_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: tuple[bytes, ...], seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / "volume"
    root.mkdir()
    grow(root / "tree", chance, 3)
    time.sleep(0.05)  # several ticks of the clock of change times
    first = first_scan(root, "tree", drop_xattrs=DROP, hide=hide)
    directories = sorted(path for path in (root / "tree").rglob("*") if path.is_dir())
    for edits in range(3):
        for _ in range(edits):
            edit(chance.choice(directories), chance)
        full = scan_tree(root, "tree", output=tmp_path / "full.mkm", drop_xattrs=DROP, hide=hide)
        found = set()
        for moment, wide in ((0, False), (60, False), (0, True), (60, True)):
            with monkeypatch.context() as patch:
                patch.setattr(performing, "MOMENT", moment)
                if wide:  # each directory of three names is read by turns
                    patch.setattr(sharing, "FEW", 1)
                    patch.setattr(sharing, "_MANY", 1)
                    patch.setattr(gathering, "RUN", 2)
                second = again(root, first, drop_xattrs=DROP, hide=hide, workers=chance.choice((1, 2)))
            assert second.id == full.id
            found.add(second.report.counts)
        (counts,) = found
        assert counts[:LEFT_OUT] == full.report.counts[:LEFT_OUT]
        if edits:
            assert counts.hidden == full.report.counts.hidden
            assert all(a <= b for a, b in zip(counts[:-1], full.report.counts[:-1], strict=True))
        else:
            assert counts[:-1] == full.report.counts[:-1]


def grow(directory: Path, chance: random.Random, depth: int) -> None:
    directory.mkdir()
    for number in range(chance.randrange(1, 6)):
        path = directory / f"{chance.choice('fh')}{number}"
        if depth and chance.random() < 0.5:
            grow(path, chance, depth - 1)
        else:
            path.write_text("x" * chance.randrange(3))
        for attribute in ("user.drop", "user.drop2", "user.kept"):
            if chance.random() < 0.3:
                os.setxattr(path, attribute, b"1")
    for name in (f".nfs{chance.getrandbits(96):024x}", ".snapshot"):
        if chance.random() < 0.3:
            (directory / name).mkdir() if name == ".snapshot" else (directory / name).touch()


def edit(directory: Path, chance: random.Random) -> None:
    """One change in a directory, which may be gone."""
    if not directory.exists():
        return
    names = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    match chance.randrange(4):
        case 0:
            (directory / f"new{chance.random()}").touch()
        case 1 if names:
            victim = chance.choice(names)
            shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
        case 2:
            directory.chmod(chance.choice((0o755, 0o750)))
        case _:
            for path in names:
                if path.is_file():
                    path.write_text("y" * chance.randrange(9))
