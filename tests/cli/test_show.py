"""`mkmeta show`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DirectoryKind
from tests.vectors.assemble import Draft, file
from tests.vectors.cases import CASES, Case
from tests.vectors.make_vectors import VECTORS, manifest_of
from tests.vectors.trees import INFO, Tree

SKELETON = str(VECTORS / "skeleton" / "manifest.mkm")
PAGE = """\
ID         {id}
root       /mnt/sw
scanned    2023-11-14T22:15:00.000000000Z
by         mkmeta vectors
digests    none
entries    14
  dirs           5
  skeleton       2
  files          4
  bytes          10 (10 B)
hard links yes
facts      none
select     2
  grp/*/lib
  a*
hide       1
  .nfs*
subtrees   6
  README (file)
  a (directory, 1 below)
  a- (file)
  a.b (directory, 1 below)
  grp/v1/lib (directory, 1 below)
  grp/v2 (directory, 3 below)
left out   1
  grp/v3/\\xff: permission denied
"""


def test_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", SKELETON]) == 0
    name = (VECTORS / "skeleton" / "id.txt").read_text().strip()
    assert capsys.readouterr().out == PAGE.format(id=name)


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--check", SKELETON]) == 0
    assert "checked    everything" in capsys.readouterr().out
    for name in ("link-to-directory", "facts-cut", "name-dot"):
        bad = VECTORS / "reject" / f"{name}.mkm"
        assert main(["show", "--check", str(bad)]) == 10
        said = capsys.readouterr()
        assert said.out == "" and said.err == f"mkmeta: {bad.with_suffix('.txt').read_text()}"


def test_every_vector_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name in CASES:
        assert main(["show", "--check", str(VECTORS / name / "manifest.mkm")]) == 0
        assert (VECTORS / name / "id.txt").read_text().strip() in capsys.readouterr().out


def test_facts_and_digests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(VECTORS / "facts" / "manifest.mkm")]) == 0
    assert "facts      yes" in capsys.readouterr().out
    assert main(["show", str(VECTORS / "hello" / "manifest.mkm")]) == 0
    assert "digests    blake3, verity\n" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json", "--check", SKELETON]) == 0
    manifest, *rest = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert manifest["message_type"] == "manifest"
    assert manifest["id"] == (VECTORS / "skeleton" / "id.txt").read_text().strip()
    assert manifest["select"] == [{"pattern": "grp/*/lib"}, {"pattern": "a*"}]
    assert (manifest["entries"], manifest["hard_links"], manifest["facts"], manifest["checked"]) == (
        14,
        True,
        False,
        True,
    )
    kinds = [message["message_type"] for message in rest]
    assert kinds == ["subtree"] * 6 + ["left_out", "summary"]
    assert rest[0] == {"message_type": "subtree", "path": "README", "type": "file", "entries": 0}
    assert rest[6]["path_b64"] == "Z3JwL3YzL/8=" and rest[6]["reason"] == "permission denied"
    assert rest[7] == {"message_type": "summary", "verb": "show", "subtrees": 6, "left_out": 1}


def test_one_page_also_of_many_subtrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    children = {b"v%03d" % number: Tree() for number in range(200)}
    left_out = tuple((b"x%03d" % number, "unreadable") for number in range(100))
    case = Case(
        why="",
        tree=Tree(kind=DirectoryKind.MERGE, children=children),
        info=dataclasses.replace(INFO, left_out=left_out),
    )
    path = tmp_path / "many.mkm"
    path.write_bytes(manifest_of(case))
    assert main(["show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60
    assert "subtrees   200" in lines and "  ... and 188 more; -v shows them" in lines
    assert "left out   100" in lines and "  ... and 88 more; -v shows them" in lines
    assert main(["show", "-v", str(path)]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "(directory, 0 below)" in line]) == 200


def test_nothing_below_the_subtrees_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = Draft()
    path = tmp_path / "half.mkm"
    path.write_bytes(draft.finish(draft.folder(b"bad", file(b"."))).encode())
    assert main(["show", str(path)]) == 0
    assert "  bad (directory, 1 below)" in capsys.readouterr().out
    with ManifestReader.open(str(path)) as reader:
        assert reader.root.directory.entries == 2


def test_hostile_info_is_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = {
        "root": b"/\x1b[2J\n", "created": -(2**63), "tool": "a\nb\x1b", "select": [b"\n"], "hide": [b"\x9b"],
        "left_out": [[b"\x1b", "\x1b\n"]], "counts": {"by\ntes": 2**64 - 1, "bytes": -1},
    }  # fmt: skip
    path = tmp_path / "hostile.mkm"
    path.write_bytes(Draft().finish(file(), info=hostile).encode())
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "root       /\\x1b[2J\\x0a\n" in out
