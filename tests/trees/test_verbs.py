"""`mkmeta diff`, `merge` and `prune` as they are called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.trees import content_changes
from tests.bench.diff import write_manifest
from tests.scanner.helpers import make_sample

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `volume` and what was recorded of it: `all.mkm`, `one.mkm`, `two.mkm`, and later `new.mkm`."""
    monkeypatch.chdir(tmp_path)
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    for name, select in (("all", ["*"]), ("one", ["grp/a/*"]), ("two", ["grp/b/*", "top"])):
        assert main(["scan", "volume", "-q", "-o", f"{name}.mkm", *[f"--select={pattern}" for pattern in select]]) == 0
    (volume / "tools/x/python/tool").write_bytes(b"other")
    (volume / "tools/x/python/tool").chmod(0o755)
    os.utime(volume / "tools/x/python/tool", ns=(0, 0))
    os.setxattr(volume / "top", "user.note", b"new")
    (volume / "added").mkdir()
    os.utime(volume / "added", ns=(0, 0))
    for name in ("a", "b"):
        (volume / "added" / name).touch()
        os.utime(volume / "added" / name, ns=(0, 0))
    os.rename(volume / "grp/b/v1/lib/deep", tmp_path / "gone")
    assert main(["scan", "volume", "-q", "-o", "new.mkm"]) == 0
    return tmp_path


@pytest.fixture(autouse=True)
def _fresh(work: Path, capsys: Capture) -> None:
    capsys.readouterr()


def test_diff_prints_a_line_for_each_difference(capsys: Capture) -> None:
    assert main(["diff", "all.mkm", "new.mkm"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("~ /: mtime ")
    assert lines[1] == "+ added (directory, 2 entries in it)"
    assert lines[2].startswith("~ grp/b/v1/lib: mtime ")
    assert lines[3] == "- grp/b/v1/lib/deep (directory, 2 entries in it)"
    assert lines[4].startswith("~ tools/x/python/tool: mode 0644 -> 0755, mtime ")
    assert lines[4].endswith(" -> 1970-01-01T00:00:00.000000000Z, size 10 -> 5, content")
    assert lines[5:] == ["~ top: xattrs (user.note)"]


def test_diff_recursive_stat_quiet_and_a_part(capsys: Capture) -> None:
    assert main(["diff", "-R", "all.mkm", "new.mkm", "./grp/"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "- grp/b/v1/lib/deep (directory)",
        "- grp/b/v1/lib/deep/er (directory)",
        "- grp/b/v1/lib/deep/er/odd\\xff\\x0a name (file)",
    ]
    assert main(["diff", "--stat", "all.mkm", "new.mkm"]) == 4
    assert capsys.readouterr().out == "3 added, 3 removed, 4 changed\n"
    assert main(["diff", "-q", "all.mkm", "new.mkm"]) == 4
    assert main(["diff", "all.mkm", "new.mkm", "grp/a"]) == 0
    assert main(["diff", "all.mkm", "all.mkm"]) == 0
    assert capsys.readouterr() == ("", "")


def test_diff_as_json(capsys: Capture) -> None:
    assert main(["diff", "--json", "all.mkm", "new.mkm"]) == 4
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert messages[-1] == {"message_type": "summary", "verb": "diff", "added": 3, "removed": 3, "changed": 4}
    by_path = {message["path"]: message for message in messages[:-1]}
    assert by_path["top"]["what"] == ["xattrs"] and by_path["top"]["changed_xattrs"] == [{"name": "user.note"}]
    assert by_path["added"]["before"] is None and by_path["added"]["entries"] == 2
    assert by_path["tools/x/python/tool"]["before"]["size"] == 10


@pytest.mark.needs("user xattrs")
def test_diff_notes_other_contents(work: Path, capsys: Capture) -> None:
    """The tree decides; which contents came along is said beside it."""
    for path in (work / "volume", *(work / "volume").rglob("*")):
        if not path.is_symlink() and (path.is_dir() or path.is_file()):
            path.chmod(0o755)
    for name, rules in (("none", []), ("some", ["**/more=1M", "top=1K"]), ("other", ["top=1K", "**/-=1K"])):
        call = ["scan", "volume", "-q", "-o", f"{name}.mkm", *[f"--inline={rule}" for rule in rules]]
        assert main(call) == 0
    assert main(["scan", "volume", "-q", "-o", "part.mkm", "--select", "top", "--inline", "1K"]) == 0
    capsys.readouterr()
    same = "note: the tree is the same, contents in the manifests are not: "
    more, dash = "1 file is whole in layers with {} only (293.0 KiB)", "1 file is whole in layers with {} only (4 B)"
    for one, other, code, text in (
        ("none", "none", 0, ""),
        ("some", "some", 0, ""),
        ("some", "other", 0, f"{same}{more.format('A')}, {dash.format('B')}\n"),
        ("none", "some", 0, f"{same}2 files are whole in layers with B only (293.0 KiB)\n"),
        ("other", "none", 0, f"{same}2 files are whole in layers with A only (9 B)\n"),
        ("part", "none", 4, "note: with A 1 file is whole in layers (5 B), with B 0 files are whole in layers (0 B)\n"),
        ("part", "part", 0, ""),
    ):
        assert main(["diff", "--stat", f"{one}.mkm", f"{other}.mkm"]) == code
        assert capsys.readouterr().err == text
        assert main(["diff", "-q", f"{one}.mkm", f"{other}.mkm"]) == code
        assert main(["diff", f"{one}.mkm", f"{other}.mkm", "top"]) == 0
        assert capsys.readouterr() == ("", "")
    assert main(["diff", "--json", "some.mkm", "other.mkm"]) == 0
    message, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert message == {
        "message_type": "contents",
        "before": {"files": 2, "bytes": 300_005},
        "after": {"files": 2, "bytes": 9},
        "added": {"files": 1, "bytes": 4},
        "removed": {"files": 1, "bytes": 300_000},
    }
    assert summary["message_type"] == "summary"
    assert main(["diff", "--json", "none.mkm", "none.mkm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_equal_contents_are_told_by_the_tables(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1", "2"):
        assert main(["scan", "volume", "-q", "-o", f"{name}.mkm", "--inline", "1K", "--inline-private"]) == 0
    monkeypatch.setattr(content_changes, "count_inside", None)
    assert main(["diff", "1.mkm", "2.mkm"]) == 0
    with pytest.raises(TypeError):
        main(["diff", "1.mkm", "new.mkm"])


def test_diff_with_a_layer_a_generation_and_a_store(work: Path, capsys: Capture) -> None:
    assert main(["build", "all.mkm", "layer", "--userxattr", "-q"]) == 0
    assert main(["build", "all.mkm", "--store", "store", "--userxattr", "-q"]) == 0
    (generation,) = (work / "store/generations").iterdir()
    for side in ("layer", "store", str(generation), str(generation / "layer")):
        assert main(["diff", "all.mkm", side]) == 0
    (generation / "layer/top").chmod(0o600)
    capsys.readouterr()
    for side in ("store", str(generation)):
        assert main(["diff", side, "all.mkm"]) == 4
        assert capsys.readouterr().out == "~ top: mode 0600 -> 0644\n"
    assert main(["diff", "--stat", "new.mkm", "layer"]) == 4
    assert capsys.readouterr().out == "3 added, 3 removed, 4 changed\n"


def test_diff_says_what_it_cannot_compare(capsys: Capture) -> None:
    assert main(["scan", "volume", "-q", "-o", "none.mkm", "--digest", "none"]) == 0
    capsys.readouterr()
    assert main(["diff", "new.mkm", "none.mkm"]) == 0
    assert "blake3, verity" in capsys.readouterr().err


def test_merge_and_prune(work: Path, capsys: Capture) -> None:
    assert main(["merge", "one.mkm", "two.mkm", "-o", "both.mkm"]) == 0
    printed = capsys.readouterr()
    with ManifestReader.open("both.mkm") as reader:
        check(reader)
        assert printed.out == reader.id.hex() + "\n"
    assert "merged 2 manifests" in printed.err
    assert (
        main(["prune", "both.mkm", "--drop", "grp/b/*", "--drop", "top", "--drop", "nope", "-o", "one-again.mkm"]) == 0
    )
    printed = capsys.readouterr()
    assert "matched nothing: nope" in printed.err
    with ManifestReader.open("one.mkm") as reader:
        assert printed.out == reader.id.hex() + "\n"
    assert main(["diff", "one.mkm", "one-again.mkm"]) == 0


def test_a_merged_manifest_is_a_base(work: Path, capsys: Capture) -> None:
    assert main(["scan", "volume", "-q", "--select=grp/a/*", "-o", "one.mkm"]) == 0
    assert main(["scan", "volume", "-q", "--select=grp/b/*", "--select=top", "-o", "two.mkm"]) == 0
    assert main(["merge", "-q", "one.mkm", "two.mkm", "-o", "both.mkm"]) == 0
    capsys.readouterr()
    (work / "volume/grp/a/v3").mkdir()
    assert main(["scan", "volume", "-q", "--base", "both.mkm", "-o", "next.mkm"]) == 0
    following = capsys.readouterr().out
    selects = ["--select=grp/a/*", "--select=grp/b/*", "--select=top"]
    assert main(["scan", "volume", "-q", *selects, "-o", "whole.mkm"]) == 0
    assert capsys.readouterr().out == following


def test_manifests_on_stdout_and_stdin(work: Path) -> None:
    mkmeta = [sys.executable, "-m", "mkmeta"]
    merged = subprocess.run(
        [*mkmeta, "merge", "one.mkm", "two.mkm", "-o", "-"], capture_output=True, check=True, env=ENVIRONMENT
    )
    pruned = subprocess.run(
        [*mkmeta, "prune", "-", "--drop", "grp/a", "-o", "-", "-q"],
        input=merged.stdout,
        capture_output=True,
        check=True,
        env=ENVIRONMENT,
    )
    (work / "piped.mkm").write_bytes(pruned.stdout)
    with ManifestReader.open("piped.mkm") as reader:
        check(reader)
        assert pruned.stderr.decode() == reader.id.hex() + "\n"
        assert reader.find(b"grp/b/v1") and not reader.find(b"grp/a")


BAD_CALLS = {
    "diff: no such file": (["diff", "all.mkm", "no.mkm"], 1, "no.mkm: no such file"),
    "diff: no such path": (["diff", "all.mkm", "new.mkm", "nope"], 1, "nope: is in neither"),
    "diff: no manifest": (["diff", "all.mkm", "volume/top"], 10, "volume/top: header: "),
    "diff: no layer": (["diff", "all.mkm", "volume"], 2, "volume: is no layer"),
    "diff: stdin twice": (["diff", "-", "-"], 2, "both sides"),
    "merge: conflict": (
        ["merge", "two.mkm", "new.mkm", "-o", "out/x"],
        1,
        "/: differs between two.mkm and new.mkm: mtime",
    ),
    "merge: no manifest": (["merge", "one.mkm", "volume/top", "-o", "out/x"], 10, "volume/top: header: "),
    "merge: stdin twice": (["merge", "-", "-", "-o", "out/x"], 2, "standard input"),
    "merge: two things on stdout": (["merge", "one.mkm", "-o", "-", "--json"], 2, "--json"),
    "merge: no output directory": (["merge", "one.mkm", "-o", "out/no/x"], 1, "cannot be written"),
    "prune: nothing matched": (
        ["prune", "all.mkm", "--drop", "nope", "-o", "out/x"],
        12,
        "all.mkm: no pattern matched",
    ),
    "prune: nothing left": (["prune", "all.mkm", "--drop", "*", "-o", "out/x"], 1, "nothing would be left"),
    "prune: bad pattern": (["prune", "all.mkm", "--drop", "/x", "-o", "out/x"], 2, "relative to ROOT"),
    "prune: no manifest": (["prune", "volume/top", "--drop", "x", "-o", "out/x"], 10, "volume/top: header: "),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_get_one_clear_line(case: str, work: Path, capsys: Capture) -> None:
    (work / "out").mkdir()
    call, code, message = BAD_CALLS[case]
    assert main(call) == code
    error = capsys.readouterr().err.splitlines()
    assert message in error[0].removeprefix("mkmeta: ")
    assert len(error) <= 2, "a line, and a hint"
    assert os.listdir(work / "out") == []


def test_what_is_damaged_names_its_file(work: Path, capsys: Capture) -> None:
    data = bytearray((work / "two.mkm").read_bytes())
    data[60] ^= 1
    (work / "bad.mkm").write_bytes(data)
    for call in (["merge", "one.mkm", "bad.mkm"], ["prune", "bad.mkm", "--drop", "top"]):
        assert main([*call, "-o", "out.mkm"]) == 10
        assert "bad.mkm: " in capsys.readouterr().err
    assert not (work / "out.mkm").exists()


def test_memory_does_not_grow_with_the_tree(work: Path) -> None:
    """100 MB of address space are enough, of which Python and its libraries take half."""
    write_manifest(work / "a.mkm", 100_000)
    write_manifest(work / "b.mkm", 100_000, changed=set(range(0, 100_000, 7)))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (100 << 20, 100 << 20));"
        "from mkmeta.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    for call, code in (
        (["diff", "a.mkm", "b.mkm"], 4),
        (["merge", "a.mkm", "b.mkm", "-o", "c.mkm", "--on-conflict", "later"], 0),
        (["prune", "a.mkm", "--drop", "*/*/lib", "-o", "c.mkm"], 0),
    ):
        command = [sys.executable, "-c", limited, *call]
        result = subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT)
        assert result.returncode == code, result.stderr
