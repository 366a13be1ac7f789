"""`scan --only`: a scan of parts, grafted into the base. What it promises not to have changed is not changed here."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from mkmeta.errors import NothingSelectedError
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, HardLinks
from mkmeta.pattern import Patterns
from mkmeta.scanner import base as base_module
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.scanner.helpers import Scanned
from tests.scanner.test_base import again, first_scan

TICK = 0.012  # seconds; more than the clock of change times takes to move on


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


def only(root: Path, base: Scanned, *patterns: str) -> Scanned:
    """A scan of parts, checked."""
    with ManifestReader.open(str(base.path)) as reader:
        hard_links = reader.info.hard_links
    time.sleep(TICK)
    result = again(root, base, only=tuple(map(os.fsencode, patterns)), hard_links=hard_links)
    check_all(result)
    return result


def check_all(scanned: Scanned) -> None:
    with ManifestReader.open(str(scanned.path)) as reader:
        check(reader)


def pruned(base: Scanned, *drop: str) -> Scanned:
    """The manifest without what matches."""
    output = base.path.with_name(f"{base.path.stem}-pruned.mkm")
    with ManifestReader.open(str(base.path)) as reader, output.open("w+b") as stream:
        prune(Source(reader, b"base"), list(map(os.fsencode, drop)), stream)
    return Scanned(output, base.report)


def hides_nothing(root: Path, scanned: Scanned) -> None:
    """Whatever is in an opaque directory on the volume is recorded."""
    nodes = scanned.nodes()
    for path, node in nodes.items():
        if isinstance(node, Directory) and node.kind is DirectoryKind.OPAQUE and (root / os.fsdecode(path)).is_dir():
            for name in os.listdir(os.path.join(os.fsencode(root), path)):
                assert os.path.join(path, name) in nodes, f"{path!r} hides {name!r}"


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    return root


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    names = [f"g/{group}/{version}/{name}" for group in "ab" for version in ("v1", "v2") for name in ("x", "lib/y")]
    return make(tmp_path / "volume", *names)


def test_what_was_pruned_shows_through_and_stays_pruned(volume: Path) -> None:
    base = pruned(first_scan(volume, "g/*"), "g/a/v1")
    make(volume, "g/a/v2/new")
    result = only(volume, base, "g/a/v2")
    assert b"g/a/v2/new" in result.nodes() and b"g/a/v1" not in result.nodes()
    hides_nothing(volume, result)
    assert again(volume, result).id == first_scan(volume, "g/*").id


def test_what_appeared_beside_the_parts_is_not_hidden(volume: Path) -> None:
    """The promise is broken: what is in a directory that stays opaque is found all the same."""
    base = first_scan(volume, "g/*")
    make(volume, "g/a/v2/new", "g/a/v3/unnamed")
    result = only(volume, base, "g/a/v2")
    assert b"g/a/v3/unnamed" in result.nodes()
    hides_nothing(volume, result)


def test_a_directory_that_is_another_one_is_looked_at_whole(volume: Path) -> None:
    base = first_scan(volume, "g/*")
    (volume / "g/a").rename(volume / "elsewhere")
    make(volume, "g/a/v2/new", "g/a/other")
    result = only(volume, base, "g/a/v2")
    hides_nothing(volume, result)
    assert result.id == first_scan(volume, "g/*").id


def test_a_new_directory_on_the_way_is_found(volume: Path) -> None:
    base = first_scan(volume, "g/*/*/lib")
    make(volume, "g/c/v1/lib/new")
    result = only(volume, base, "g/c/v1")
    assert result.id == first_scan(volume, "g/*/*/lib").id


@pytest.mark.parametrize("select", ["g/*", "g/*/*", "g/*/*/lib", "*"])
@pytest.mark.parametrize("becomes", ["nothing", "a file", "a link", "another directory"])
def test_what_is_gone_on_the_way_disappears(volume: Path, select: str, becomes: str) -> None:
    base = first_scan(volume, select)
    shutil.rmtree(volume / "g/a")
    match becomes:
        case "a file":
            make(volume, "g/a")
        case "a link":
            (volume / "g/a").symlink_to("b")
        case "another directory":
            (volume / "g/a").mkdir()
    assert only(volume, base, "g/a/v1/lib", "g/a/v2").id == first_scan(volume, select).id


def test_a_release_that_cannot_be_recorded_takes_its_subtree_along(volume: Path) -> None:
    """And one that can again is recorded, and leaves the list."""
    base = first_scan(volume, "g/*")
    whiteout(volume / "g/a/v2/bad")
    result = only(volume, base, "g/a/v2")
    assert [path for path, _ in result.report.left_out] == [b"g/a"]
    assert not any(path.startswith(b"g/a") for path in result.nodes())
    assert result.id == first_scan(volume, "g/*").id
    (volume / "g/a/v2/bad").unlink()
    for pattern in ("g/a", "g/a/v2"):
        cured = only(volume, result, pattern)
        assert cured.report.left_out == () and cured.id == first_scan(volume, "g/*").id


def test_left_out_elsewhere_stays_left_out(volume: Path) -> None:
    whiteout(volume / "g/b/v1/bad")
    base = first_scan(volume, "g/*/*")
    make(volume, "g/a/v1/new")
    result = only(volume, base, "g/a/*")
    assert [path for path, _ in result.report.left_out] == [b"g/b/v1"]
    assert result.id == first_scan(volume, "g/*/*").id


def whiteout(path: Path) -> None:
    """Something that no manifest can carry."""
    if os.geteuid() != 0:
        pytest.skip("takes mknod")
    os.mknod(path, 0o020000, 0)


def test_nothing_named_is_there(volume: Path) -> None:
    base = first_scan(volume, "g/*")
    with pytest.raises(NothingSelectedError):
        only(volume, base, "g/x", "nowhere/*")
    make(volume, "g/a/v1/more")
    assert only(volume, base, "g/x", "g/a/v1").report.unmatched == (b"g/x",)


# --- random volumes, edits of what patterns name ---


def fill(root: Path, chance: random.Random, count: int) -> None:
    """Files, directories, and links to what is there already, in three groups of three releases."""
    for _ in range(count):
        top = root / f"g{chance.randrange(3)}" / f"v{chance.randrange(3)}" / chance.choice(("", "lib", "lib/deep"))
        top.mkdir(parents=True, exist_ok=True)
        path = top / f"{chance.choice('pq')}{chance.randrange(9)}"
        files = [file for file in root.rglob("*") if file.is_file() and not file.is_symlink()]
        if path.exists() or path.is_symlink():
            continue
        match chance.randrange(6):
            case 0:
                path.mkdir()
            case 1:
                path.symlink_to("nowhere")
            case 2 | 3 if files:
                os.link(chance.choice(files), path)
            case _:
                path.write_bytes(chance.randbytes(chance.choice((0, 1, 5000))))


def edit_within(root: Path, patterns: Patterns, chance: random.Random) -> None:
    """A change of something that a pattern matches, or of what is in it, which touches nothing else but the directory
    it is in.
    """
    inside = [
        path
        for path in root.rglob("*")
        if patterns.first_match(os.fsencode(path.relative_to(root)), is_directory=True) is not None
        and not (path.is_file() and path.lstat().st_nlink > 1)
    ]
    if not inside:
        return
    path = chance.choice(inside)
    match chance.randrange(5):
        case 0 if not (path.is_dir() and not path.is_symlink()):
            path.unlink()
        case 1 if path.is_file() and not path.is_symlink():
            path.write_bytes(chance.randbytes(100))
        case 2 if path.is_dir() and not path.is_symlink():
            (path / f"new{chance.randrange(9)}").write_bytes(b"new")
        case 3 if path.is_dir() and not path.is_symlink():
            (path / f"below{chance.randrange(9)}").mkdir(exist_ok=True)
        case _ if not path.is_symlink():
            path.chmod(chance.choice((0o700, 0o755)))


@pytest.mark.parametrize("seed", range(30))
def test_it_is_a_full_scan_where_the_promise_is_kept(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / "volume"
    root.mkdir()
    fill(root, chance, 60)
    select = chance.choice(
        [("*",), ("*/*",), ("*/v1", "*/*/lib"), ("**/p*",), ("g0", "*/v*/lib/deep"), ("*/v0", "g1"), ("g0", "*/v*/")]
    )
    hard_links = chance.choice(list(HardLinks))
    (root / "g0/v1/lib").mkdir(parents=True, exist_ok=True)
    (root / "g0/v1/lib/p-always").touch()
    scanned = first_scan(root, *select, hard_links=hard_links)
    for _ in range(5):
        named = chance.choice([("g0/v1",), ("*/v1/",), ("g1",), ("**/lib",), ("g*/v0/lib", "g2/v2"), ("g0/v1/lib/p*",)])
        patterns = Patterns(tuple(map(os.fsencode, named)))
        time.sleep(TICK)
        for _ in range(chance.randrange(4)):
            edit_within(root, patterns, chance)
        full = first_scan(root, *select, hard_links=hard_links)
        try:
            result = only(root, scanned, *named)
        except NothingSelectedError:
            continue
        hides_nothing(root, result)
        assert result.id == full.id
        assert result.report.counts._replace(unchanged=0) == full.report.counts
        scanned = result


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_hidden_whatever_came_before(tmp_path: Path, seed: int) -> None:
    """An opaque directory has what the volume has, after any number of prunes and scans of parts."""
    chance = random.Random(seed)
    root = tmp_path / "volume"
    root.mkdir()
    fill(root, chance, 60)
    (root / "g0/v1/lib").mkdir(parents=True, exist_ok=True)
    (root / "g0/v1/lib/p-always").touch()
    scanned = first_scan(root, *chance.choice([("*",), ("*/*",), ("**/lib", "g1")]))
    for _ in range(6):
        drops = [f"g{chance.randrange(3)}/v{chance.randrange(3)}", "*/v2/lib", f"**/q{chance.randrange(9)}"]
        with contextlib.suppress(NothingSelectedError):
            scanned = pruned(scanned, chance.choice(drops))
        check_all(scanned)
        hides_nothing(root, scanned)
        try:
            scanned = only(root, scanned, chance.choice(["g0/v1", "*/v1", "**/lib", "g1/v2/lib", "g2"]))
        except NothingSelectedError:
            continue
        hides_nothing(root, scanned)
