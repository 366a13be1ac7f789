"""`mkmeta dump`: against text written by hand, and against mkcomposefs and a mount of its image."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Device, Directory, LinkRow, Node, PrimaryRow, RegularFile, Symlink
from tests.conftest import Mount
from tests.vectors.cases import CASES, Case
from tests.vectors.make_vectors import VECTORS, manifest_of
from tests.vectors.trees import Tree

SKELETON = str(VECTORS / "skeleton" / "manifest.mkm")
MTIME = "1700000000.123456789"
WHOLE = f"""\
/ 0 41755 5 0 0 0 {MTIME} - - - user.root=yes
/README 7 100644 1 0 0 0 {MTIME} README - -
/a 0 40755 2 0 0 0 {MTIME} - - -
/a/b 1 100644 3 0 0 0 {MTIME} a/b - -
/a- 0 @100644 0 0 0 0 0.0 /a/b - -
/a.b 0 40755 2 0 0 0 {MTIME} - - -
/a.b/c 0 @100644 0 0 0 0 0.0 /a/b - -
/grp 0 42775 4 0 500 0 {MTIME} - - -
/grp/v1 0 40755 3 0 0 0 {MTIME} - - -
/grp/v1/lib 0 40755 2 0 0 0 {MTIME} - - -
/grp/v1/lib/libx.so 9 120777 1 0 0 0 {MTIME} libx.so.1 - -
/grp/v2 0 40755 4 0 0 0 {MTIME} - - -
/grp/v2/lib 0 40755 2 0 0 0 {MTIME} - - -
/grp/v2/lib/libx.so 9 120777 1 0 0 0 {MTIME} libx.so.1 - -
/grp/v2/tmp 0 40755 2 0 0 0 {MTIME} - - -
"""
TOP = WHOLE.splitlines()[0] + "\n"
PARTS = {
    "": WHOLE,
    "/": WHOLE,
    "README": TOP + f"/README 7 100644 1 0 0 0 {MTIME} README - -\n",
    "a": TOP + f"/a 0 40755 2 0 0 0 {MTIME} - - -\n/a/b 1 100644 1 0 0 0 {MTIME} a/b - -\n",
    "/a.b/": TOP + f"/a.b 0 40755 2 0 0 0 {MTIME} - - -\n/a.b/c 1 100644 1 0 0 0 {MTIME} a.b/c - -\n",
    "./grp/v1/lib/libx.so": TOP + "".join(WHOLE.splitlines(keepends=True)[7:11]),
}


@pytest.mark.parametrize(("path", "text"), PARTS.items())
def test_text(path: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", SKELETON, path]) == 0
    assert capsys.readouterr().out == text


def test_links_of_a_part_among_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    """Whose primary is outside: the first name inside takes its place."""
    with ManifestReader.open(str(VECTORS / "many-links" / "manifest.mkm")) as reader:
        *_, last = reader.links()
    assert main(["dump", str(VECTORS / "many-links" / "manifest.mkm"), os.fsdecode(last.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:4] == [f"/{os.fsdecode(last.path)}", "0", "100644", "1"]
    assert main(["dump", str(VECTORS / "equal-subtrees" / "manifest.mkm"), "v2"]) == 0
    assert "/v2/a 1 100644 1" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "--json", SKELETON]) == 0
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {message["message_type"] for message in messages} == {"entry"}
    by_path = {message["path"]: message for message in messages}
    assert len(by_path) == len(WHOLE.splitlines())
    assert by_path["a/b"]["nlink"] == 3
    assert by_path["a-"]["hard_link_to"] == "a/b"
    assert by_path["grp"] == {
        "message_type": "entry", "path": "grp", "type": "directory", "mode": "2775", "uid": 0, "gid": 500,
        "mtime_ns": 1_700_000_000_123_456_789, "kind": "merge", "entries": 7,
    }  # fmt: skip


def test_absent_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", SKELETON, "grp/v3"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("mkmeta: grp/v3: not in this manifest\n")


def test_bad_links_are_refused_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(VECTORS / "reject" / "link-to-directory.mkm")]) == 10
    assert capsys.readouterr().out == ""


def _odd_case() -> Case:
    """Every type and attribute, less what mkcomposefs does not take: files above 2^53 bytes, 32 KiB of xattrs."""
    case = CASES["every-type"]
    (name, directory), *_ = case.tree.children.items()
    assert isinstance(directory, Tree)
    children = {key: child for key, child in directory.children.items() if key != b"huge"}
    xattrs = children[b"xattrs"]
    assert isinstance(xattrs, RegularFile)
    short = tuple((key, value) for key, value in xattrs.xattrs if key != b"user.big")
    children[b"xattrs"] = dataclasses.replace(xattrs, xattrs=short)
    return dataclasses.replace(
        case, tree=dataclasses.replace(case.tree, children={name: dataclasses.replace(directory, children=children)})
    )


def _fits(node: Tree | Node) -> bool:
    """Whether mkcomposefs takes the sizes of files and xattrs, and the test the number of files."""
    if sum(7 + len(name) + len(value) for name, value in node.xattrs) > 32_000:
        return False
    if isinstance(node, Tree):
        return len(node.children) < 10_000 and all(map(_fits, node.children.values()))
    return not isinstance(node, RegularFile) or node.size <= 2**53


IMAGES = {name: case for name, case in CASES.items() if _fits(case.tree)} | {"odd": _odd_case()}


@pytest.mark.needs("root", "mkcomposefs", "loop mounts")
@pytest.mark.parametrize("case", IMAGES.values(), ids=IMAGES)
def test_a_mounted_image_shows_the_tree(
    case: Case, tmp_path: Path, mount: Mount, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest, image = tmp_path / "manifest.mkm", tmp_path / "image"
    manifest.write_bytes(manifest_of(case))
    assert main(["dump", str(manifest)]) == 0
    strict = {**os.environ, "CFS_PARSE_STRICT": "1"}
    command = ["mkcomposefs", "--from-file", "-", str(image)]
    text = capfd.readouterr().out
    made = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=strict)
    assert made.returncode == 0, made.stderr
    top = os.fsencode(mount("erofs", "ro,loop", image))
    seen = {
        os.path.relpath(os.path.join(directory, name), top)
        for directory, directories, files in os.walk(top)
        for name in directories + files
    }
    whiteouts = {b"%02x" % number for number in range(256)}  # which mkcomposefs adds to the root
    with ManifestReader.open(str(manifest)) as reader:
        assert seen - whiteouts == {path for path, _ in reader.walk() if path}
        rows = {row.path: row for row in reader.links()}
        for path, node in reader.walk():
            children = [child for _, child in reader.directory(node, path)] if isinstance(node, Directory) else []
            _compare(top, path, node, rows.get(path), children, _content(reader, path, node))


def _content(reader: ManifestReader, path: bytes, node: Node) -> bytes | None:
    """What a text says of a file's content."""
    if reader.contents is None or not isinstance(node, RegularFile) or node.size > 5000:
        return None
    number = reader.contents.find(node)
    return reader.contents.read(number, path) if number >= 0 else None


def _compare(
    top: bytes, path: bytes, node: Node, row: PrimaryRow | LinkRow | None, children: list[Node], content: bytes | None
) -> None:
    """An entry of the manifest with what the mounted image shows."""
    at = os.path.join(top, path)
    found = os.lstat(at)
    assert (found.st_mode, found.st_uid, found.st_gid) == (node.mode, node.uid, node.gid)
    assert found.st_mtime_ns == node.mtime_ns
    names = os.listxattr(at, follow_symlinks=False)
    xattrs = {os.fsencode(name): os.getxattr(at, name, follow_symlinks=False) for name in names}
    expected = dict(node.xattrs)
    if not path:
        expected[b"trusted.overlay.opaque"] = b"y"  # mkcomposefs says so of every root
    source = row.target if isinstance(row, LinkRow) else path
    match node:
        case RegularFile(size=size, verity=verity):
            assert found.st_size == size
            if content is not None:
                with open(at, "rb") as file:
                    assert file.read() == content
            elif size:
                expected[b"trusted.overlay.metacopy"] = b"\0\x24\0\x01" + verity if verity else b""
                expected[b"trusted.overlay.redirect"] = b"/" + source
        case Symlink(target=target):
            assert os.readlink(at) == target
        case Device(major=major, minor=minor):
            assert found.st_rdev == os.makedev(major, minor)
    assert xattrs == expected
    match row:
        case PrimaryRow(_, nlink):
            assert found.st_nlink == nlink
        case LinkRow(_, target):
            assert found.st_ino == os.lstat(os.path.join(top, target)).st_ino
        case None if isinstance(node, Directory):
            assert found.st_nlink == 2 + sum(isinstance(child, Directory) for child in children)
        case None:
            assert found.st_nlink == 1
