"""`mkmeta build` as a command: what it prints where, and what it exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from tests.layer.layers import xattrs
from tests.layer.manifests import manifest_from
from tests.vectors.trees import Tree, regular

pytestmark = pytest.mark.needs("trusted xattrs", "getfattr")

MANIFEST = manifest_from(Tree(children={b"file": regular(3), b"dir": Tree()}))
ID = MANIFEST[-64:-32].hex()  # formats/manifest.md 2.5: the footer has it at offset 32


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "sw.mkm"
    path.write_bytes(MANIFEST)
    return str(path)


def test_the_id_is_the_last_line(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = str(tmp_path / "layer")
    assert main(["build", manifest, dest]) == 0
    output = capsys.readouterr()
    assert output.out == ID + "\n"
    assert f"built {dest}: 2 entries" in output.err
    assert xattrs(tmp_path / "layer")["trusted.overlay.mkmeta"].hex() == ID


def test_swap_says_where_the_old_tree_went(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for dest in ("layer", f"{tmp_path}/layer/"):
        assert main(["build", "-q", "--swap", manifest, dest]) == 0
    assert capsys.readouterr() == (f"{ID}\n{tmp_path}/layer.old-{ID[:12]}\n{ID}\n", "")


def test_json(manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = f"{tmp_path}/layer"
    assert main(["build", "--json", "--swap", manifest, dest]) == 0
    assert main(["build", "--json", "--swap", manifest, dest]) == 0
    assert main(["build", "--json", manifest, dest]) == 1
    output = capsys.readouterr().out.splitlines()
    first, second, error = map(json.loads, output)
    assert first["message_type"] == second["message_type"] == "summary"
    assert first["id"] == ID
    assert first["dest"] == dest
    assert "old" not in first
    assert second["old"] == f"{dest}.old-{ID[:12]}"
    assert error["message_type"] == "exit_error"
    assert (error["message"], error["path"]) == ("exists", dest)


def test_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkmeta", "build", "-q", "-", f"{tmp_path}/layer"]
    result = subprocess.run(command, input=MANIFEST, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{ID}\n".encode(), b"")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--expect-id", "0" * 64], 11, "not the expected one"),
        (["--discard"], 2, "--discard goes with --swap"),
        (["--redirect-prefix", "a/../b"], 2, "redirect prefix 'a/../b'"),
    ],
)
def test_refusals(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["build", *arguments, manifest, f"{tmp_path}/layer"]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "layer").exists()


@pytest.mark.parametrize(
    "arguments", [["--expect-id", "12"], ["-j", "0"], ["-j", "65"], ["-j", "x"], ["--expect-id", "é"]]
)
def test_arguments_that_mean_nothing(manifest: str, tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build", *arguments, manifest, f"{tmp_path}/layer"])
    assert caught.value.code == 2


def test_expected_id_and_prefix(manifest: str, tmp_path: Path) -> None:
    options = ["--expect-id", ID, "--redirect-prefix", "/sw/x/", "--no-verity", "-j", "1", "-q"]
    assert main(["build", *options, manifest, f"{tmp_path}/layer"]) == 0
    assert xattrs(tmp_path / "layer" / "file")["trusted.overlay.redirect"] == b"/sw/x/file"


def test_a_manifest_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    assert main(["build", f"{tmp_path}/junk", f"{tmp_path}/layer"]) == 10
    assert main(["build", f"{tmp_path}/absent", f"{tmp_path}/layer"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "layer").exists()
