"""What is below a directory is read along with it, or is a task of its own: what is recorded does not depend on it."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory
from mkmeta.scanner import base as base_module
from mkmeta.scanner import gathering, inside, performing
from tests.scanner.helpers import Scanned, scan_tree

NEVER, ALWAYS = 0.0, 1e9  # seconds in which what is below is read along
BAD = "trusted.overlay.origin"  # an attribute that takes the subtree it is in with it


@pytest.fixture(autouse=True)
def _small_things_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a KiB are tasks of their own, and ten names worth a file; trees of tests are seconds old."""
    monkeypatch.setattr(inside, "LARGE_FILE", 1024)
    monkeypatch.setattr(gathering, "RUN", 10)
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


def grow(root: Path, numbers: random.Random) -> None:
    """A few levels of directories with a little of everything."""
    directories = [root / f"top{number}" for number in range(5)]
    for number in range(30):
        directories.append(numbers.choice(directories) / f"d{number}")
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(numbers.choice((0, 1, 3, 40))):
            (directory / f"f{number}").write_bytes(numbers.randbytes(numbers.choice((0, 5, 2000))))
    files = sorted(path for path in root.rglob("f*") if path.is_file())
    for number, path in enumerate(numbers.sample(files, 12)):
        os.link(path, numbers.choice(directories) / f"link{number}")
        (numbers.choice(directories) / f"symlink{number}").symlink_to("somewhere")


def edit(root: Path, numbers: random.Random) -> None:
    """Changes something, or nothing."""
    paths = sorted(root.rglob("*"))
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    directories = [path for path in paths if path.is_dir()]
    for _ in range(numbers.randrange(3)):
        path, directory = numbers.choice(files), numbers.choice(directories)
        match numbers.randrange(8):
            case 0:
                path.write_bytes(numbers.randbytes(9))
            case 1:
                os.setxattr(path, "user.note", numbers.randbytes(3))
            case 2:
                os.chmod(directory, numbers.choice((0o755, 0o750)))
            case 3:
                (directory / f"new{numbers.randrange(1000)}").write_bytes(b"new")
            case 4:
                os.utime(path, ns=(1, 1))
            case 5:
                os.setxattr(directory, "user.note", numbers.randbytes(3))
            case 6:
                os.link(path, directory / f"more{numbers.randrange(10**9)}")
            case 7:
                os.utime(directory, ns=(1, 1))


def everything(scanned: Scanned) -> dict[bytes, tuple[object, ...]]:
    """What a manifest says of every entry, facts included, but for where they are."""
    found: dict[bytes, tuple[object, ...]] = {}
    with ManifestReader.open(str(scanned.path)) as reader:
        stack = [(b"", reader.root.directory, reader.facts_place)]
        while stack:
            path, directory, facts = stack.pop()
            assert facts is not None
            found[path + b"/"] = (reader.counts(facts, path),)
            for entry in reader.recorded(directory, path, facts):
                below = path + b"/" + entry.name if path else entry.name
                found[below] = (entry.node, entry.inode, entry.change_time, entry.nlink)
                if isinstance(entry.node, Directory):
                    stack.append((below, entry.node, entry.facts))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_it_does_not_matter_how_far_a_task_goes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = random.Random(seed)
    root = tmp_path / "volume"
    grow(root, numbers)
    base: Path | None = None
    for step in range(3):
        time.sleep(0.02)  # more than a tick of the clock of change times
        found = []
        for name, moment in (("never", NEVER), ("always", ALWAYS), ("sometimes", numbers.uniform(0, 0.002))):
            monkeypatch.setattr(performing, "MOMENT", moment)
            output = tmp_path / f"{step}-{name}.mkm"
            if base is None:
                scanned = scan_tree(root, output=output)
            else:
                with ManifestReader.open(str(base)) as reader:
                    scanned = scan_tree(root, output=output, base=reader)
            scanned.nodes()  # as a whole valid
            found.append((scanned.id, scanned.report, everything(scanned)))
        full = scan_tree(root, output=tmp_path / "full.mkm")
        assert {scanned_id for scanned_id, _, _ in found} == {full.id}
        assert found[1][1:] == found[0][1:]
        assert found[2][1:] == found[0][1:]
        base = tmp_path / f"{step}-{numbers.choice(('never', 'always', 'sometimes'))}.mkm"
        edit(root, numbers)
    shutil.rmtree(root)


@pytest.mark.parametrize("moment", [NEVER, ALWAYS])
def test_what_cannot_be_recorded_is_left_out_all_the_same(
    moment: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performing, "MOMENT", moment)
    root = tmp_path / "volume"
    grow(root, random.Random(1))
    for number in range(3):  # deep below, beside names enough for a file that is then not wanted
        deep = root / f"top{number}" / "deep" / "er"
        deep.mkdir(parents=True)
        (deep / "bad").write_bytes(b"")
        os.setxattr(deep / "bad", BAD, b"x")
    scanned = scan_tree(root)
    assert set(scanned.left_out()) == {b"top0", b"top1", b"top2"}
    assert {path.split(b"/")[0] for path in scanned.nodes()} == {b"top3", b"top4"}


def test_nothing_changed_is_one_answer_for_a_subtree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no directory of it is written once more."""
    monkeypatch.setattr(performing, "MOMENT", ALWAYS)
    monkeypatch.setattr(gathering, "RUN", 4096)
    root = tmp_path / "volume"
    grow(root, random.Random(2))
    time.sleep(0.02)
    first = scan_tree(root, output=tmp_path / "first.mkm")
    with ManifestReader.open(str(first.path)) as base:
        second = scan_tree(root, output=tmp_path / "second.mkm", base=base)
        before = {entry.name: entry.facts for entry in base.recorded(base.root.directory, b"", base.facts_place)}
    with ManifestReader.open(str(second.path)) as reader:
        after = {entry.name: entry.facts for entry in reader.recorded(reader.root.directory, b"", reader.facts_place)}
    assert second.id == first.id
    assert after == before
    assert second.report.counts._replace(unchanged=0) == first.report.counts
