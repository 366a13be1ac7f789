"""`scan --dry-run` and `--estimate`, `build --dry-run`: what would be, beside what is."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.scanner.options import ScanOptions
from mkmeta.scanner.preview import preview
from tests.cli.test_contract import documented
from tests.conftest import Mount
from tests.scanner.helpers import make_sample, scan_tree


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    make_sample(tmp_path / "volume", privileged=False)
    return tmp_path / "volume"


def messages(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "select",
    [[], ["grp/*/v*/lib"], ["**/lib"], ["top", "tools/**/python"], ["*", "grp/a/v1/lib/huge"], ["*/*/v1/"]],
    ids=str,
)
@pytest.mark.needs("user xattrs")
def test_a_dry_run_says_what_a_scan_does(volume: Path, select: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(volume), *(f"--select={pattern}" for pattern in select), "--json"]
    before = sorted(os.listdir(volume.parent)), os.getcwd()
    assert main(["scan", *options, "--dry-run", "--estimate"]) == 0
    assert (sorted(os.listdir(volume.parent)), os.getcwd()) == before
    *selected, estimate, summary = messages(capsys)
    assert main(["scan", *options, "-o", str(volume.parent / "sw.mkm")]) == 0
    scanned = messages(capsys)[-1]
    assert main(["show", str(volume.parent / "sw.mkm"), "--json"]) == 0
    subtrees = [one for one in messages(capsys) if one["message_type"] == "subtree"]
    assert [one["path"] for one in selected] == [one["path"] for one in subtrees if one["type"] == "directory"]
    assert summary["others"] == len([one for one in subtrees if one["type"] != "directory"])
    assert summary["skeleton"] == scanned["skeleton"]
    for key in ("files", "dirs", "bytes"):
        assert estimate[key] == scanned[key], key
    assert estimate["error"] == 0
    assert {"dry_run", "subtrees", "others", "skeleton"} < documented()["summary", "scan"]
    assert set(estimate) - {"message_type"} == documented()["estimate", "scan"]


def test_nothing_is_read_but_what_leads_there(volume: Path) -> None:
    told: list[bytes] = []
    read: list[bytes] = []

    def refuse(name: bytes) -> int:
        read.append(name)
        raise OSError

    found = preview(ScanOptions(root=os.fsencode(volume), open_content=refuse), told.append, seconds=0.1)
    assert told == [b"grp", b"tools"] and found.others == 1 and read == []


def test_patterns_that_match_within_a_subtree_are_none_that_match_nothing(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["scan", str(volume), "--select=grp", "--select=grp/a/v1/lib", "--select=nothing", "-n"]
    for more in ([], ["--estimate"]):
        assert main([*call, *more]) == 0
        assert capsys.readouterr().err.count("matched nothing: ") == 1
    assert main([*call, "--strict"]) == 12
    assert main(["scan", str(volume), "--select=nothing", "-n"]) == 12
    assert main(["scan", str(volume), "--select={a,b}", "-n"]) == 2


def test_an_estimate_is_as_good_as_it_says(tmp_path: Path) -> None:
    """Walks at random alone, down an uneven tree."""
    chance = random.Random(4)
    root = tmp_path / "volume"
    for release in range(30):
        for part in range(chance.randint(1, 6)):
            directory = root / f"r{release}/p{part}/deep"
            directory.mkdir(parents=True)
            for number in range(chance.randint(0, 12)):
                (directory / f"f{number}").write_bytes(b"x" * 10)
    scanned = scan_tree(root)
    found = preview(ScanOptions(root=os.fsencode(root)), lambda _path: None, seconds=0.0).content
    assert found is not None and 0 < found.error < 0.5
    assert abs(found.entries - scanned.report.entries) <= 4 * found.error * found.entries
    assert found.bytes == pytest.approx(10 * found.files, rel=0.01)


@pytest.mark.needs("root")
def test_build_says_whether_there_is_room(
    volume: Path, mount: Mount, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = str(tmp_path / "sw.mkm")
    assert main(["scan", str(volume), "-o", manifest, "-q", "--drop-xattr", "*"]) == 0
    roomy, small = mount("tmpfs", "size=10m"), mount("tmpfs", "size=10m,nr_inodes=10")
    capsys.readouterr()
    assert main(["build", manifest, str(roomy / "layer"), "--dry-run", "--json"]) == 0
    (summary,) = messages(capsys)
    assert set(summary) - {"message_type"} <= documented()["summary", "build"]
    assert main(["build", manifest, str(small / "layer"), "--dry-run"]) == 1
    assert "inodes, and 9 are free" in capsys.readouterr().err
    assert main(["build", manifest, "--store", str(small / "deep/store"), "--dry-run"]) == 1
    assert os.listdir(roomy) == os.listdir(small) == []
    assert main(["build", manifest, str(roomy / "layer"), "-q"]) == 0
    inodes = {path.lstat().st_ino for path in (roomy / "layer").rglob("*")} | {(roomy / "layer").stat().st_ino}
    assert len(inodes) == summary["inodes"]
    assert stat.S_ISDIR((roomy / "layer").stat().st_mode)
    assert main(["build", manifest, str(small / "image"), "--format", "erofs", "--dry-run"]) == 0
