"""What a scan on a base counts, beside what it records: formats/manifest.md section 6."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from mkmeta.scanner import base as base_module
from tests.scanner.helpers import scan_tree
from tests.scanner.test_base import again, first_scan

DROP = (b"user.drop*",)


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


@pytest.mark.needs("user xattrs")
@pytest.mark.parametrize("hide", [(), (b"**/h*",)])
def test_counts_are_those_of_what_was_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: tuple[bytes, ...]
) -> None:
    """Of trees at random, edited at random; what was not to be read again, stat(2) has said before and after."""
    real = os.listxattr
    monkeypatch.setattr(os, "listxattr", lambda *a, **k: [*real(*a, **k), "system.nfs4_acl"])
    chance = random.Random(len(hide))
    for round_ in range(8):
        root = tmp_path / f"v{round_}"
        root.mkdir()
        grow(root / "tree", chance, 4)
        options = {"drop_xattrs": DROP, "hide": hide}
        first = first_scan(root, "tree", **options)
        before = entries(root)
        time.sleep(0.05)  # several ticks of the clock of change times
        for _ in range(chance.randrange(4)):
            edit(root / "tree", chance)
        second = again(root, first, **options)
        full_again = scan_tree(root, "tree", output=tmp_path / "full.mkm", **options)
        after = entries(root)
        assert second.id == full_again.id
        counts, expected = second.report.counts, full_again.report.counts
        assert counts[: counts._fields.index("snapshots")] == expected[: expected._fields.index("snapshots")]
        there = recorded(after, hide)
        read = {path for path in there if (hide and path.is_dir()) or before.get(path) != after[path]}
        listed = {path for path in read if path.is_dir()}
        assert counts.nfs4_acl == len(read) + 1, "and the root"
        assert counts.dropped_xattrs == sum(name.startswith("user.drop") for path in read for name in real(path))
        assert counts.silly_renamed == sum(is_silly(name) for path in listed for name in os.listdir(path))
        assert counts.unchanged == sum(not path.is_dir() for path in there - read)


def grow(directory: Path, chance: random.Random, depth: int) -> None:
    directory.mkdir()
    for number in range(chance.randrange(1, 5)):
        name = f"{chance.choice('fh')}{number}"
        if depth and chance.random() < 0.5:
            grow(directory / name, chance, depth - 1)
        else:
            (directory / name).write_text(name * chance.randrange(3))
        for attribute in ("user.drop", "user.drop2", "user.kept"):
            if chance.random() < 0.3:
                os.setxattr(directory / name, attribute, b"1")
    if chance.random() < 0.5:
        (directory / f".nfs{chance.getrandbits(96):024x}").touch()


def edit(tree: Path, chance: random.Random) -> None:
    paths = sorted(path for path in tree.rglob("*") if not is_silly(path.name))
    path = chance.choice([tree, *paths])
    if not path.is_dir():
        path.write_text("another")
        os.setxattr(path, "user.drop", b"2")
    elif chance.random() < 0.5:
        (path / f".nfs{chance.getrandbits(96):024x}").touch()
    else:
        (path / f"new{chance.getrandbits(32)}").touch()


def entries(root: Path) -> dict[Path, tuple[int, int]]:
    """All in a tree, with what tells that something has changed."""
    found = (path for path in root.rglob("*") if not is_silly(path.name))
    return {path: (path.stat().st_ino, path.stat().st_ctime_ns) for path in found}


def recorded(found: dict[Path, tuple[int, int]], hide: tuple[bytes, ...]) -> set[Path]:
    return {path for path in found if not hide or not any(part[0] == "h" for part in path.parts[-depth_of(path) :])}


def depth_of(path: Path) -> int:
    """How many names lead from the selected directory to a path in it."""
    return len(path.parts) - path.parts.index("tree") - 1


def is_silly(name: str) -> bool:
    return name.startswith(".nfs")
