"""What scripts rely on: formats/cli.md says it, this holds the program to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.cli.parser import GROUPS, VERBS
from mkmeta.errors import ExitCode

PAGE = Path(__file__).parents[2] / "formats" / "cli.md"


WITH_VERB = {"`summary`", "`progress`", "`exit_error`"}  # as the page says above its table


def tables() -> list[list[list[str]]]:
    """The rows of each table of the page, cells stripped, heads left out."""
    found: list[list[list[str]]] = []
    for block in PAGE.read_text().split("\n\n"):
        lines = block.strip().splitlines()
        if len(lines) > 2 and set(lines[1]) <= set("|-"):
            found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]])
    return found


def test_exit_codes_are_those_of_the_page() -> None:
    assert {(int(code), name) for code, name, _ in tables()[0]} == {(int(code), code.name) for code in ExitCode}


def documented() -> dict[tuple[str, str], set[str]]:
    """Keys by (message type, verb)."""
    return {
        (kind.strip("`"), verb): set(re.findall(r"`(\w+)`", keys)) | ({"verb"} if kind in WITH_VERB else set())
        for kind, verbs, keys in tables()[1]
        for verb in (VERBS if verbs == "all" else re.sub(r" \(.*\)", "", verbs).split(", "))
    }


@pytest.mark.needs("user xattrs")
def test_messages_are_those_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume, manifest = tmp_path / "volume", tmp_path / "sw.mkm"
    for name in ("good/file", "good/\udcff", "bad/file", "hid/file"):
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        (volume / name).write_text("x")
    (volume / "good/link").symlink_to("file")
    os.link(volume / "good/file", volume / "good/same")
    os.setxattr(volume / "good/file", "user.x", b"1")
    os.setxattr(volume / "bad/file", "user.overlay.opaque", b"y")
    layer = str(tmp_path / "layer")
    other = tmp_path / "other"
    (other / "good").mkdir(parents=True)
    (other / "good/file").write_text("y")
    for path in (other, other / "good", other / "good/file"):
        path.chmod(0o755)
    assert main(["scan", str(other), "-o", str(tmp_path / "other.mkm"), "--inline", "1K"]) == 0
    capsys.readouterr()
    profile = tmp_path / "in.profile"
    row = {"path": "good", "misses": 3}, {"path": "", "misses": 1}, {"rows": 2}
    head = {"mkmeta_profile": 1, "source": "strace", "mounts": [{"point": str(volume)}]}
    profile.write_text("".join(json.dumps(line) + "\n" for line in (head, *row)))
    (tmp_path / "text").write_text("/ 0 40755 2 0 0 0 0.0 - - -\n")
    promoting = ["--root", str(volume), "--history", str(tmp_path / "h"), "--selection", str(tmp_path / "s")]
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "a.profile").write_text(profile.read_text())
    config = tmp_path / "released.toml"
    config.write_text(
        f'volume = "{volume}"\nmanifest = "{tmp_path}/released.mkm"\n'
        f'pointer = "{tmp_path}/released.json"\nhide = ["hid"]\n'
    )
    calls = [
        ["scan", str(volume), "--select", "*", "--dry-run", "--estimate"],
        ["scan", str(volume), "--select", "*", "--select", "no", "-o", str(manifest)],
        ["build", str(manifest), layer, "--userxattr", "--dry-run"],
        ["build", str(manifest), layer, "--userxattr"],
        ["build", str(manifest), layer, "--userxattr", "--swap"],
        ["build", str(manifest), "--store", str(tmp_path / "store"), "--userxattr"],
        ["publish", str(tmp_path / "store"), "--pointer", str(tmp_path / "sw.json")],
        ["release", "--config", str(config)],
        ["release", "--config", str(config), "hid", "good", "--on-error", "leave-out"],
        ["doctor", "--userxattr"],
        ["init", str(volume), "-o", str(tmp_path / "sw.toml")],
        ["units", "--config", str(tmp_path / "sw.toml")],
        ["units", "--config", str(tmp_path / "sw.toml"), "--install", str(tmp_path / "units")],
        ["show", str(manifest)],
        ["ls", str(manifest), "-R"],
        ["ls", str(tmp_path / "store")],
        ["dump", str(manifest)],
        ["import", str(tmp_path / "text"), "-o", str(tmp_path / "imported.mkm")],
        ["verify", layer, "--manifest", str(manifest), "--userxattr", "--lower", str(volume), "--data"],
        ["verify", layer, "--manifest", str(manifest), "--userxattr", "--no-verity"],
        ["explain", str(manifest), "good/file"],
        ["prune", str(manifest), "--drop", "good/same", "--drop", "no", "-o", str(tmp_path / "pruned.mkm")],
        ["merge", str(tmp_path / "pruned.mkm"), str(manifest), "-o", str(tmp_path / "merged.mkm")],
        ["diff", str(tmp_path / "pruned.mkm"), str(tmp_path / "other.mkm")],
        ["build", str(manifest), layer],
        ["ls", str(manifest), "no"],
        ["observe", "--from", "ld-debug", "/dev/null", "-o", str(tmp_path / "sw.profile")],
        ["predict", str(manifest), str(profile), "--profile", "merge"],
        ["promote", str(spool), *promoting, "--settled", "0"],
        ["suggest", str(profile), "--root", str(volume), "--settled", "0"],
    ]
    seen: set[tuple[str, str]] = set()
    for call in calls:
        code = main([*call, "--json"])
        for line in capsys.readouterr().out.splitlines():
            message = json.loads(line)
            kind = message.pop("message_type")
            keys = {key.removesuffix("_b64") for key in message}
            assert ("verb" in message) == (f"`{kind}`" in WITH_VERB) and message.get("verb", call[0]) == call[0]
            assert keys <= documented()[kind, call[0]], (kind, call)
            seen.add((kind, call[0]))
        assert (kind == "exit_error") == (code not in (0, 3, 4, 23))
    verbs = {call[0] for call in calls}  # those that mount are in tests/host/test_messages.py
    expected = {pair for pair in documented() if pair[0] not in ("exit_error", "progress") and pair[1] in verbs} | {
        ("exit_error", "ls"),
        ("exit_error", "build"),
    }
    assert seen == expected


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_and_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"mkmeta {verb} " in text.partition("examples:")[2]
    assert "exit codes:" in text


def test_every_module_of_a_verb_is_in_one_group() -> None:
    modules = {
        path.stem for path in (PAGE.parents[1] / "mkmeta/cli").glob("*.py") if "def add_parser(" in path.read_text()
    }
    assert modules == set(VERBS)
    assert len(VERBS) == len(modules)


def test_help_lists_the_verbs_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for group, verbs in GROUPS.items():
        lines = text.partition(f"\n{group}:\n")[2].partition("\n\n")[0].splitlines()
        assert tuple(line.split()[0] for line in lines) == verbs
    assert all(len(line) <= 120 for line in text.splitlines())


def test_readme_names_every_verb() -> None:
    text = PAGE.parents[1].joinpath("README.md").read_text()
    assert [verb for verb in VERBS if f"| `{verb}` |" not in text] == []


def test_a_pipe_that_closes_early_is_no_error_message(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    for number in range(3000):
        (tmp_path / "volume" / f"file{number}").touch()
    assert main(["scan", str(tmp_path / "volume"), "-o", str(tmp_path / "sw.mkm"), "-q"]) == 0
    for verb in ("ls", "dump"):
        process = subprocess.Popen(
            [sys.executable, "-m", "mkmeta", verb, str(tmp_path / "sw.mkm")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        process.wait()
