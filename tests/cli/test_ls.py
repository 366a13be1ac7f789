"""`mkmeta ls`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.errors import printable
from mkmeta.manifest.reader import ManifestReader
from tests.vectors.assemble import Draft, file
from tests.vectors.make_vectors import VECTORS

SKELETON = str(VECTORS / "skeleton" / "manifest.mkm")
ODD = str(VECTORS / "every-type" / "manifest.mkm")
CASES: dict[str, tuple[list[str], str]] = {
    "top": ([], "README\na\na-\na.b\ngrp\n"),
    "slash": (["/"], "README\na\na-\na.b\ngrp\n"),
    "dot": (["."], "README\na\na-\na.b\ngrp\n"),
    "directory": (["grp/v2"], "lib\ntmp\n"),
    "slashes": (["//grp/./v2/"], "lib\ntmp\n"),
    "file": (["a/b"], "b\n"),
    "empty": (["grp/v2/tmp"], ""),
    "recursive": (["grp", "-R"], "v1\nv1/lib\nv1/lib/libx.so\nv2\nv2/lib\nv2/lib/libx.so\nv2/tmp\n"),
    "recursive file": (["a/b", "-R"], "b\n"),
}


@pytest.mark.parametrize(("arguments", "text"), CASES.values(), ids=CASES)
def test_names(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", SKELETON, *arguments]) == 0
    assert capsys.readouterr().out == text


def test_recursive_from_the_root_is_the_walk(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", SKELETON, "-R"]) == 0
    with ManifestReader.open(SKELETON) as reader:
        assert capsys.readouterr().out.splitlines() == [path.decode() for path, _ in reader.walk() if path]


def test_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "-l", ODD, "all"]) == 0
    lines = {line.rpartition("Z ")[2]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["set-id"] == ["-rwsr-sr-x", "-", "4294967294", "1000", "3", "2023-11-14T22:13:20.123456789Z", "set-id"]
    assert lines["sticky"][:5] == ["drwxrwxrwt+", "opaque", "65534", "65534", "0"]
    assert lines["before-1970"][5] == "1969-12-31T23:59:59.999999999Z"
    assert lines["after-2446"][5] == "2603-10-11T11:33:20.000000001Z"
    assert lines["block"][:6] == ["brw-rw----", "-", "0", "0", "4095,", "1048575"]
    assert lines["link -> ../\\xfe with space\\x0a"][0] == "lrwxrwxrwx"
    assert lines["fifo"][4] == "-"
    assert lines["\\x80\\xff"] and lines["café"]
    beyond = {key.split()[-1]: value[5] for key, value in lines.items() if "@" in value[5]}
    assert beyond == {"earliest": f"@{-(2**63)}.000000000", "latest": f"@{2**63 - 1}.999999999"}
    assert main(["ls", "-l", SKELETON]) == 0
    assert "drwxrwsr-x  merge      0   500            7 " in capsys.readouterr().out


def test_every_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", ODD, "all"]) == 0
    with ManifestReader.open(ODD) as reader:
        count = reader.root.directory.entries - 1
    out = capsys.readouterr().out
    assert out.count("\n") == count and out.isprintable() is False and "\t" not in out


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json", ODD, "all"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_path = {entry["path"]: entry for entry in entries}
    assert by_path["all/\\x80\\xff"]["path_b64"] == "YWxsL4D/"
    assert by_path["all/link"]["target_b64"] == "Li4v/iB3aXRoIHNwYWNlCg=="
    assert by_path["all/block"]["major"] == 4095
    assert by_path["all/earliest"]["mtime_ns"] == -(2**63) * 10**9
    names = [xattr["name"] for xattr in by_path["all/xattrs"]["xattrs"]]
    assert names[0] == "security.capability" and len(names) == 6
    assert len(by_path["all/set-id"]["verity"]) == len(by_path["all/set-id"]["blake3"]) == 64


@pytest.mark.parametrize("path", ["nope", "a/b/c", "a/..", "..", "grp/v1/lib/libx.so/x", "n" * 300])
@pytest.mark.parametrize("verb", ["ls", "dump"])
def test_absent_path(verb: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, SKELETON, path]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines()[0] == f"mkmeta: {path}: not in this manifest"


def test_only_what_is_asked_for_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flaw elsewhere in the file does not matter; one on the way does."""
    draft = Draft()
    rows = [draft.folder(b"bad", file(b".")), draft.folder(b"good", file(b"f"))]
    path = tmp_path / "half.mkm"
    path.write_bytes(draft.finish(*rows).encode())
    assert main(["ls", str(path), "good"]) == 0
    assert capsys.readouterr().out == "f\n"
    assert main(["ls", str(path), "bad"]) == 10
    assert capsys.readouterr().err == "mkmeta: directory 'bad': '.' is not a name\n"


@pytest.mark.parametrize("verb", ["show", "ls", "dump"])
def test_standard_input(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([verb, SKELETON]) == 0
    expected = capsys.readouterr().out
    data = Path(SKELETON).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main([verb, "-"]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data[:-1])))
    assert main([verb, "-"]) == 10
    assert capsys.readouterr().err.startswith("mkmeta: standard input: footer: missing")


def test_standard_input_leaves_no_file(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "mkmeta", "ls", "-"]
    data = Path(SKELETON).read_bytes()
    environment = {"TMPDIR": str(tmp_path)}
    result = subprocess.run(program, input=data, capture_output=True, check=True, env=environment, cwd=tmp_path)
    assert result.stdout == b"README\na\na-\na.b\ngrp\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["show", "ls", "dump"])
def test_files_that_are_no_manifests(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.startswith(f"mkmeta: {tmp_path}/absent: no such file or directory\n")
    assert main([verb, str(tmp_path)]) == 1
    why = "is a directory, and no store" if verb == "ls" else "is a directory"
    assert capsys.readouterr().err.startswith(f"mkmeta: {tmp_path}: {why}\n")
    text = tmp_path / "text"
    text.write_text("hello\n" * 100)
    assert main([verb, str(text)]) == 10
    assert capsys.readouterr().err.startswith(f"mkmeta: {text}: header: this is not a mkmeta manifest")
    assert main([verb, "--json", str(text)]) == 10
    assert json.loads(capsys.readouterr().out)["message_type"] == "exit_error"


def test_no_two_names_are_shown_alike() -> None:
    names = [
        b"\\",
        b"\\\\",
        b"\n",
        b"\\x0a",
        b"\\x0A",
        b"\\x5cx0a",
        b"\\\\x0a",
        b"\xff",
        b"\\xff",
        b"\\x",
        b"\\xg0",
        b"\\n",
    ]
    names += [
        "\u00e9".encode(),
        b"\xe9",
        b"\\xe9",
        b"\xc3",
        b"\\xc3\\xa9",
        "\u202ea".encode(),
        b"\\xe2\\x80\\xaea",
        b" ",
    ]
    shown = [printable(name) for name in names]
    assert len(set(shown)) == len(names)
    assert all(text.isprintable() for text in shown)
    assert printable(rb"C:\tmp\x") == r"C:\tmp\x"


@given(st.lists(st.binary(max_size=6) | st.text("\\x0aÿ\n", max_size=8).map(str.encode), unique=True, max_size=30))
def test_what_is_shown_says_each_byte(names: list[bytes]) -> None:
    for name in names:
        back = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), printable(name).encode())
        assert back == name


@pytest.fixture
def partly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A manifest with the contents of two names of one file, and of no other file."""
    volume = tmp_path / "volume"
    (volume / "d").mkdir(parents=True)
    for name, size in (("small", 5), ("large", 5000), ("empty", 0)):
        (volume / "d" / name).write_bytes(b"x" * size)
        (volume / "d" / name).chmod(0o644)
    (volume / "d" / "same").hardlink_to(volume / "d" / "small")
    (volume / "d" / "link").symlink_to("small")
    volume.chmod(0o755)
    (volume / "d").chmod(0o755)
    manifest = str(tmp_path / "sw.mkm")
    assert main(["scan", str(volume), "-o", manifest, "-q", "--inline", "1K"]) == 0
    capsys.readouterr()
    return manifest


def test_what_is_whole(partly: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "-l", partly, "d"]) == 0
    marks = {line.split()[-1]: line.split()[1] for line in capsys.readouterr().out.splitlines() if " -> " not in line}
    assert marks == {"small": "whole", "same": "whole", "large": "-", "empty": "-"}
    for verb in ("ls", "dump"):
        assert main([verb, "--json", partly, "d"]) == 0
        entries = map(json.loads, capsys.readouterr().out.splitlines())
        whole = {one["path"]: one.get("whole") for one in entries if one["type"] != "directory"}
        assert whole == {"d/small": True, "d/same": True, "d/large": False, "d/empty": False, "d/link": None}
    assert main(["ls", "--json", SKELETON, "a/b"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is False
