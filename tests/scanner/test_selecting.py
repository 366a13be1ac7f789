"""What patterns do in a scan: slashes at their end, and what is said of those that match nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.errors import UsageError
from mkmeta.manifest.reader import ManifestReader
from tests.scanner.helpers import scan_tree


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """`build` is a directory here and a file there."""
    root = tmp_path / "volume"
    for directory in ("rel/build", "rel/x", "rel/y/build/below", "top"):
        (root / directory).mkdir(parents=True)
    for file in ("rel/build/o", "rel/x/build", "rel/y/build/below/f", "build", "rel/tool.pyc"):
        (root / file).write_text("x")
    return root


def paths(scanned: dict[bytes, object]) -> set[str]:
    return {os.fsdecode(path) for path in scanned}


def test_a_slash_hides_directories_alone(volume: Path) -> None:
    scanned = scan_tree(volume, "rel", hide=(b"**/build/",))
    assert paths({**scanned.nodes()}) == {"rel", "rel/x", "rel/x/build", "rel/y", "rel/tool.pyc"}
    assert scanned.report.counts.hidden == 2
    assert scanned.report.unmatched_hide == ()
    skeleton = scan_tree(volume, "*/*", "*", hide=(b"build/", b"rel/build/"))
    assert "build" in paths({**skeleton.nodes()}) and "rel/build" not in paths({**skeleton.nodes()})
    assert skeleton.report.unmatched_hide == (b"build/",)


def test_a_slash_selects_directories_alone(volume: Path) -> None:
    scanned = scan_tree(volume, "**/build/")
    assert paths({**scanned.nodes()}) == {
        *("rel", "rel/build", "rel/build/o", "rel/y", "rel/y/build", "rel/y/build/below", "rel/y/build/below/f"),
    }
    assert scan_tree(volume, "top/", "build/").report.unmatched == (b"build/",)


@pytest.mark.parametrize("now", ["file", "directory"])
def test_what_was_hidden_changes_its_type(volume: Path, now: str) -> None:
    """A name that a slash hides, or not, as a rescan of everything and of a part see it."""
    hide = (b"**/build/",)
    before = scan_tree(volume, "rel", hide=hide, output=volume.parent / "before.mkm")
    if now == "file":
        (volume / "rel/build/o").unlink()
        (volume / "rel/build").rmdir()
        (volume / "rel/build").write_text("now a file")
    else:
        (volume / "rel/x/build").unlink()
        (volume / "rel/x/build").mkdir()
    full = scan_tree(volume, "rel", hide=hide)
    for only in ("rel", "rel/*/", "rel/**/build"):
        with ManifestReader.open(str(before.path)) as base:
            part = scan_tree(
                volume, "rel", hide=hide, base=base, only=(only.encode(),), output=volume.parent / "part.mkm"
            )
        if now == "file" and only == "rel/*/":
            assert "rel/build" in paths({**part.nodes()})
        assert part.id == full.id, only


def test_patterns_that_match_nothing_are_named(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.mkm"
    call = ["scan", str(volume), "--select", "rel", "--select", "lib", "--hide", "*.pyc", "--hide", "rel/x", "-q"]
    assert main([*call, "-o", str(output)]) == 0
    captured = capsys.readouterr().err
    assert "matched nothing: lib (it is relative to ROOT; '**/lib' matches at any depth)\n" in captured
    assert "matched nothing: --hide *.pyc (it is relative to ROOT; '**/*.pyc' matches at any depth)\n" in captured
    assert "rel/x" not in captured
    assert main([*call, "-o", str(output), "--json"]) == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    unmatched = [(one["option"], one["pattern"]) for one in messages if one["message_type"] == "unmatched"]
    assert unmatched == [("select", "lib"), ("hide", "*.pyc")]


def test_strict_writes_nothing(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m.mkm"
    assert main(["scan", str(volume), "--select", "rel", "--hide", "no", "--strict", "-o", str(output), "-q"]) == 0
    output.unlink()
    assert main(["scan", str(volume), "--select", "rel", "--select", "lib", "--strict", "-o", str(output)]) == 12
    assert "matched nothing: lib" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["volume"]


def test_doubts_are_for_the_base_too(volume: Path) -> None:
    """A name with braces may go: who has selected it once need not write it anew."""
    with pytest.raises(UsageError, match="has braces"):
        scan_tree(volume, "{a,b}")
    (volume / "{a,b}").write_text("x")
    before = scan_tree(volume, "{a,b}", "rel", output=volume.parent / "before.mkm")
    assert b"{a,b}" in before.nodes()
    (volume / "{a,b}").unlink()
    with ManifestReader.open(str(before.path)) as base:
        assert scan_tree(volume, "{a,b}", "rel", base=base).report.unmatched == (b"{a,b}",)
