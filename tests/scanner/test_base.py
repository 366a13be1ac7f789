"""Scanning again on a base: the same tree, the same ID as a full scan, whatever was edited in between."""

from __future__ import annotations

import os
import random
import shutil
import time
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from mkmeta.errors import FormatError, NothingSelectedError, UsageError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import HardLinks
from mkmeta.scanner import base as base_module
from mkmeta.scanner.looking import open_content
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.scanner.helpers import Scanned, make_sample, scan_tree

_numbers = count()
SELECT = ("grp/*/v*", "tools", "top")


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of tests are seconds old; what the margin is for has tests of its own."""
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    root.mkdir()
    make_sample(root, privileged=False)
    time.sleep(0.05)  # more than a tick of the clock of change times
    return root


def again(root: Path, base: Scanned, *select: str, **options: Any) -> Scanned:
    """A scan on a base, into another file."""
    output = root.parent / f"again-{next(_numbers)}.mkm"
    with ManifestReader.open(str(base.path)) as reader:
        given = select or tuple(map(os.fsdecode, reader.info.select))
        options = {"digests": tuple(reader.root.digests), **options}
        return scan_tree(root, *given, output=output, base=reader, **options)


def first_scan(root: Path, *select: str, **options: Any) -> Scanned:
    """A scan that is to be a base."""
    return scan_tree(root, *select, output=root.parent / f"first-{next(_numbers)}.mkm", **options)


class Opened:
    """Counts the files that were opened to be read, in all processes."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __call__(self, name: bytes) -> int:
        with self._log.open("ab") as file:
            file.write(name + b"\n")
        return open_content(name)

    @property
    def names(self) -> list[bytes]:
        return self._log.read_bytes().splitlines() if self._log.exists() else []


def test_nothing_changed_nothing_is_read(volume: Path, tmp_path: Path) -> None:
    first = first_scan(volume, *SELECT)
    opened = Opened(tmp_path / "opened")
    second = again(volume, first, open_content=opened)
    assert (second.id, opened.names) == (first.id, [])
    assert second.report.counts._replace(unchanged=0) == first.report.counts
    assert second.report.counts.unchanged == first.report.counts.files + (
        first.report.counts.symlinks + first.report.counts.others
    )


def test_only_what_changed_is_read(volume: Path, tmp_path: Path) -> None:
    first = first_scan(volume, *SELECT)
    (volume / "grp/a/v2/lib/block").write_bytes(b"y" * 4096)  # same size
    opened = Opened(tmp_path / "opened")
    second = again(volume, first, open_content=opened)
    assert opened.names == [b"block"]
    assert second.id == scan_tree(volume, *SELECT).id != first.id


def test_a_change_that_hides_behind_mtime_and_size_is_seen(volume: Path) -> None:
    first = first_scan(volume, *SELECT)
    path = volume / "grp/a/v2/lib/block"
    status = path.stat()
    path.write_bytes(b"z" * 4096)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert again(volume, first).id == scan_tree(volume, *SELECT).id != first.id


def test_what_changed_shortly_before_the_base_is_read_again(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within one tick of the volume's clock leaves no trace; nor does a clock that is behind."""
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 300 * 10**9)
    first = first_scan(volume, *SELECT)
    opened = Opened(tmp_path / "opened")
    again(volume, first, open_content=opened)
    assert len(opened.names) > 3


def test_a_clock_of_the_volume_that_is_ahead(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What claims to have changed after the base was begun may have changed while it was made."""
    with monkeypatch.context() as patch:
        earlier = time.time_ns() - 10**10
        patch.setattr(time, "time_ns", lambda: earlier)
        first = first_scan(volume, *SELECT)
    opened = Opened(tmp_path / "opened")
    assert again(volume, first, open_content=opened).id == first.id
    assert len(opened.names) > 3


def test_no_trust_reads_everything(volume: Path, tmp_path: Path) -> None:
    first = first_scan(volume, *SELECT)
    opened = Opened(tmp_path / "opened")
    assert again(volume, first, open_content=opened, trust=False).id == first.id
    plainly = Opened(tmp_path / "plainly")
    scan_tree(volume, *SELECT, open_content=plainly)
    assert sorted(opened.names) == sorted(plainly.names) != []


def test_what_was_asked_for_is_recorded_and_asked_again(volume: Path) -> None:
    asked = {
        "hide": (b"one.*",),
        "drop_xattrs": (b"user.*",),
        "hard_links": HardLinks.ALL,
        "inline": ((b"", 100),),
        "inline_all": True,
    }
    first = first_scan(volume, *SELECT, **asked)
    with ManifestReader.open(str(first.path)) as reader:
        assert {name: getattr(reader.info, name) for name in asked} == asked
        assert (reader.info.root, reader.info.select) == (bytes(volume), tuple(map(os.fsencode, SELECT)))
    assert again(volume, first, **asked).id == first.id


def test_a_base_that_does_not_fit_is_refused(volume: Path, tmp_path: Path) -> None:
    first = first_scan(volume, *SELECT)
    for options in ({"digests": ()}, {"hide": (b"x",)}, {"drop_xattrs": (b"user.*",)}):
        with pytest.raises(UsageError, match="another --"):
            again(volume, first, **options)
    with pytest.raises(UsageError, match="another --select"):
        again(volume, first, "grp", only=(b"grp/a",))
    other = tmp_path / "other"
    shutil.copytree(volume / "tools", other)
    with pytest.raises(UsageError, match="was scanned from"):
        again(other, first)


def test_what_was_pruned_and_is_gone_now(tmp_path: Path) -> None:
    """A directory that is what the pruned base has of it, but complete again: other facts than a merge directory's."""
    root = tmp_path / "volume"
    for name in ("a/x/y/f1", "a/x/y/f2", "a/x/f", "b/z/f1", "b/z/f2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    time.sleep(0.05)
    first = first_scan(root, "a", "b")
    pruned = tmp_path / "pruned.mkm"
    with ManifestReader.open(str(first.path)) as reader, pruned.open("w+b") as stream:
        prune(Source(reader, b"first"), [b"a/x/y/f1", b"b/z/f1"], stream)
    (root / "a/x/y/f1").unlink()
    (root / "b/z/f1").unlink()
    time.sleep(0.05)
    second = again(root, Scanned(pruned, first.report), "a", "b")
    assert second.id == first_scan(root, "a", "b").id


def test_another_selection_is_no_hindrance(volume: Path, tmp_path: Path) -> None:
    first = first_scan(volume, "grp/a/v1")
    opened = Opened(tmp_path / "opened")
    second = again(volume, first, "grp", open_content=opened)
    assert second.id == scan_tree(volume, "grp").id
    assert b"one.py" not in opened.names and b"block" in opened.names
    assert again(volume, second, "grp/a/v1").id == first.id


def test_every_damage_to_the_base_is_an_error_or_harmless(volume: Path) -> None:
    """Also of what nobody looks at, and that is taken over: objects, and the table that says where they are."""
    first = first_scan(volume, *SELECT)
    expected = first.id
    data = first.path.read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        first.path.write_bytes(broken)
        try:
            result = again(volume, first)
        except (FormatError, UsageError):
            refused += 1
            continue
        assert result.id == expected
        result.nodes()  # checks all of it: no damage was taken over
    assert refused > 30


def test_the_output_of_an_unchanged_tree_grows_by_nothing_much(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "_LITTLE", 8 << 10)
    for number in range(200):
        (volume / f"tools/x/python/{number}").mkdir()
        (volume / f"tools/x/python/{number}/file").write_text(str(number))
    scanned = first_scan(volume, *SELECT)
    sizes = []
    for number in range(20):
        (volume / "tools/x/python/7/file").write_text(f"change {number}")
        scanned = again(volume, scanned)
        sizes.append(scanned.path.stat().st_size)
    assert scanned.id == scan_tree(volume, *SELECT).id
    assert max(sizes) < 3 * scan_tree(volume, *SELECT).path.stat().st_size + (8 << 10)
    assert any(later < earlier for earlier, later in pairwise(sizes)), "what is no longer needed goes at last"


# --- only ---


def only(volume: Path, base: Scanned, *patterns: str, **options: Any) -> Scanned:
    return again(volume, base, only=tuple(map(os.fsencode, patterns)), **options)


def test_only_looks_at_nothing_else(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = first_scan(volume, *SELECT)
    (volume / "grp/a/v3/lib").mkdir(parents=True)
    (volume / "grp/a/v3/lib/new").write_text("new")
    log = volume.parent / "looked"
    real = os.lstat

    def logged(path: Any, **options: Any) -> os.stat_result:
        if isinstance(path, bytes) and not path.startswith(b"/"):
            with log.open("ab") as file:
                file.write(path + b"\n")
        return real(path, **options)

    monkeypatch.setattr(os, "lstat", logged)
    second = only(volume, first, "grp/a/v3")
    monkeypatch.undo()
    assert set(log.read_bytes().split()) == {b"grp", b"a", b"v3", b"lib", b"new"}
    assert second.id == scan_tree(volume, *SELECT).id


def test_only_of_a_new_release_equals_a_full_scan(volume: Path) -> None:
    first = first_scan(volume, *SELECT)
    (volume / "grp/a/v3/lib").mkdir(parents=True)
    (volume / "grp/a/v3/lib/new").write_text("new")
    os.link(volume / "grp/a/v1/lib/one.py", volume / "grp/b/v1/lib/another")  # changes both: not only v3
    second = only(volume, first, "grp/a/v3", "grp/b/v1", "grp/a/v1")
    full = scan_tree(volume, *SELECT)
    assert second.id == full.id
    assert second.report.counts._replace(unchanged=0) == full.report.counts


def test_only_of_a_deleted_release(volume: Path) -> None:
    first = first_scan(volume, *SELECT)
    shutil.rmtree(volume / "grp/a/v2")
    second = only(volume, first, "grp/a/v2")
    full = scan_tree(volume, *SELECT)
    assert (second.id, second.report.counts._replace(unchanged=0)) == (full.id, full.report.counts)


@pytest.mark.parametrize(
    "pattern", ["grp/*/v1", "grp/a", "grp", "**/lib", "grp/a/v1/lib/one.py", "tools/x/python", "."]
)
def test_only_with_any_pattern(volume: Path, pattern: str) -> None:
    first = first_scan(volume, *SELECT)
    for second in (only(volume, first, pattern), only(volume, first, pattern, trust=False)):
        assert second.id == first.id
        assert second.report.counts._replace(unchanged=0) == first.report.counts


def test_only_inside_a_subtree(volume: Path) -> None:
    first = first_scan(volume, *SELECT)
    (volume / "grp/a/v1/lib/deep/er").mkdir(parents=True)
    (volume / "grp/a/v1/lib/deep/er/new").write_text("new")
    (volume / "grp/a/v1/lib/nothing").write_text("changed, and nobody said so")
    second = only(volume, first, "grp/a/v1/lib/deep")
    assert b"grp/a/v1/lib/deep/er/new" in second.nodes()
    assert second.nodes()[b"grp/a/v1/lib/nothing"] == first.nodes()[b"grp/a/v1/lib/nothing"]
    third = only(volume, second, "grp/a/v1/lib/nothing")
    assert third.id == scan_tree(volume, *SELECT).id


def test_only_that_matches_nothing(volume: Path) -> None:
    first = first_scan(volume, *SELECT)
    with pytest.raises(NothingSelectedError, match="--only"):
        only(volume, first, "grp/nobody")
    assert only(volume, first, "grp/nobody", "grp/a").report.unmatched == (b"grp/nobody",)


def test_only_keeps_what_was_left_out(volume: Path) -> None:
    os.setxattr(volume / "grp/b/v1/lib/-", "user.overlay.x", b"1")
    first = first_scan(volume, *SELECT)
    assert set(first.left_out()) == {b"grp/b/v1"}
    second = only(volume, first, "grp/a")
    assert (second.id, second.left_out()) == (first.id, first.left_out())
    os.removexattr(volume / "grp/b/v1/lib/-", "user.overlay.x")
    third = only(volume, second, "grp/b/v1")
    assert third.left_out() == {}
    assert third.id == scan_tree(volume, *SELECT).id


def test_what_only_took_over_is_as_old_as_it_was(volume: Path) -> None:
    """Otherwise something that changed while the base was made would be trusted the next time."""
    first = first_scan(volume, *SELECT)
    second = only(volume, first, "grp/a")
    with ManifestReader.open(str(first.path)) as one, ManifestReader.open(str(second.path)) as two:
        assert two.info.created == one.info.created


# --- random trees, random edits ---


def grow(root: Path, chance: random.Random, entries: int) -> None:
    """Adds files, links, directories."""
    for _ in range(entries):
        directories = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
        path = chance.choice(directories) / f"{chance.choice('abcdxyz')}{chance.randrange(30)}"
        if path.exists() or path.is_symlink():
            continue
        files = [file for file in root.rglob("*") if file.is_file() and not file.is_symlink()]
        match chance.randrange(6):
            case 0 | 1:
                path.mkdir()
            case 2 if files:
                os.link(chance.choice(files), path)
            case 3:
                path.symlink_to("nowhere")
            case _:
                path.write_bytes(chance.randbytes(chance.choice((0, 1, 5000))))


def edit(root: Path, chance: random.Random) -> None:
    """One change of any kind, anywhere."""
    everything = list(root.rglob("*"))
    if not everything:
        return
    path = chance.choice(everything)
    match chance.randrange(8):
        case 0:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        case 1 if path.is_file() and not path.is_symlink():
            path.write_bytes(chance.randbytes(100))
        case 2 if not path.is_symlink():
            path.chmod(chance.choice((0o700, 0o755, 0o750)))
        case 3 if not path.is_symlink():
            os.utime(path, (5, chance.randrange(1000)))
        case 4:
            target = path.with_name(f"moved{chance.randrange(1000)}")
            path.rename(target)
        case 5 if path.is_file() and not path.is_symlink():
            os.setxattr(path, "user.note", chance.randbytes(3))
        case 6 if path.is_file() and not path.is_symlink():
            size, status = path.stat().st_size, path.stat()
            path.unlink()
            path.write_bytes(chance.randbytes(size))  # another inode, perhaps of the same number
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case _:
            grow(root, chance, 2)


@pytest.mark.needs("user xattrs")
@pytest.mark.parametrize("seed", range(25))
def test_incremental_equals_full(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / "volume"
    root.mkdir()
    grow(root, chance, 60)
    select = chance.choice([("*",), ("a*", "b*"), ("*/*",), ("**/a*",), ("*/b*", "x*")])
    (root / "a-anchor").mkdir()
    (root / "a-anchor" / "a-file").write_text("so that something is always selected")
    (root / "b-anchor" / "b-dir").mkdir(parents=True)
    (root / "b-anchor" / "b-dir" / "file").write_text("here too")
    scanned = first_scan(root, *select, workers=1 + seed % 2)
    for _ in range(6):
        time.sleep(0.012)  # a tick of the clock of change times
        changed = []
        for _ in range(chance.randrange(4)):
            before = {path: os.lstat(path).st_ctime_ns for path in (root, *root.rglob("*"))}
            edit(root, chance)
            after = {path: os.lstat(path).st_ctime_ns for path in (root, *root.rglob("*"))}
            changed += [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        full = scan_tree(root, *select)
        expected, counts = full.id, full.report.counts
        incremental = again(root, scanned)
        incremental.nodes()
        assert incremental.id == expected
        assert incremental.report.counts._replace(unchanged=0) == counts
        names = {os.fsencode(path.relative_to(root)) for path in changed if path != root}
        if names:
            try:
                partial = again(root, scanned, only=tuple(sorted(names)))
            except NothingSelectedError:
                continue  # the changes were outside of the selection
            partial.nodes()
            assert partial.id == expected
            assert partial.report.counts._replace(unchanged=0) == counts
            incremental = partial
        scanned = incremental
