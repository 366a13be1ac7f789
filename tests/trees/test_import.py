"""`mkmeta import`: a text as a manifest, and what becomes of it when it is a text again."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.composefs import build_dump
from mkmeta.errors import FormatError
from mkmeta.manifest.check import check_all
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName, DirectoryKind, RegularFile
from mkmeta.trees.dump_text import DumpText
from mkmeta.trees.from_dump import import_dump
from tests import strategies as some
from tests.erofs.dumps import ROOT, texts
from tests.layer.layers import open_reader
from tests.property.test_manifests import links_of
from tests.scanner.helpers import make_sample, scan_tree
from tests.vectors.trees import Tree, write_tree

PLAIN = b"1 0 0 0 1.5"
DIGEST = b"5a" * 32


def lines(*entries: bytes) -> bytes:
    return b"".join(line + b"\n" for line in (ROOT, *entries))


def dumped(manifest: Path, capsys: pytest.CaptureFixture[str], *options: str) -> bytes:
    assert main(["dump", str(manifest), *options]) == 0
    return capsys.readouterr().out.encode()


def imported(text: bytes, manifest: Path) -> str:
    """The ID; everything in the manifest is checked."""
    with manifest.open("w+b") as stream:
        report = import_dump(io.BytesIO(text), stream)
    with ManifestReader.open(str(manifest)) as reader:
        check_all(reader)
    return report.manifest_id.hex()


def closed(tree: Tree) -> Tree:
    """The same with nothing but complete directories in the root."""

    def opaque(one: Tree) -> Tree:
        children = {name: opaque(child) if isinstance(child, Tree) else child for name, child in one.children.items()}
        return Tree(
            children=children, mode=one.mode, uid=one.uid, gid=one.gid, mtime_ns=one.mtime_ns, xattrs=one.xattrs
        )

    whole = opaque(tree)
    return Tree(
        kind=DirectoryKind.MERGE, children=whole.children, mode=whole.mode, uid=whole.uid, gid=whole.gid,
        mtime_ns=whole.mtime_ns, xattrs=whole.xattrs,
    )  # fmt: skip


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    max_examples=20,
)
@given(some.trees((DigestName.VERITY,)), st.booleans())
def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Tree, linked: bool) -> None:
    """A text carries all that a manifest without BLAKE3 digests has, as far as mkcomposefs takes it."""
    tree = closed(tree)
    stream = io.BytesIO()
    manifest_id = write_tree(stream, tree, links=links_of(tree) if linked else None, digests=(DigestName.VERITY,))
    file = tmp_path / "m.mkm"
    file.write_bytes(stream.getvalue())
    text = dumped(file, capsys)
    with open_reader(stream.getvalue()) as reader:
        files = [node for _, node in reader.walk() if isinstance(node, RegularFile)]
    try:
        build_dump(io.BytesIO(text), os.fsencode(tmp_path / "image"), swap=True)
    except FormatError:
        with pytest.raises(FormatError):
            imported(text, tmp_path / "again.mkm")
        return
    again = imported(text, tmp_path / "again.mkm")
    assert dumped(tmp_path / "again.mkm", capsys) == text
    if any(node.size for node in files):  # or else BLAKE3 digests are known as well
        assert again == manifest_id.hex()


def test_contents_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sample(tmp_path / "volume", privileged=False)
    (tmp_path / "volume/grp/a/v1/lib/huge").unlink()
    scanned = scan_tree(tmp_path / "volume", inline=((b"", 5000),), inline_all=True, digests=tuple(DigestName))
    text = dumped(scanned.path, capsys)
    with pytest.raises(FormatError, match="empty"):
        imported(b"", tmp_path / "bad.mkm")
    imported(text, tmp_path / "again.mkm")
    assert dumped(tmp_path / "again.mkm", capsys) == text
    with ManifestReader.open(str(tmp_path / "again.mkm")) as reader:
        assert reader.root.digests == (DigestName.VERITY,)
        assert reader.contents is not None and reader.info.inline_all
        number = reader.contents.find(reader.find(b"grp/a/v1/lib/one.py"))  # type: ignore[arg-type]
        assert reader.contents.read(number, b"") == b"print(1)\n"
    (tmp_path / "volume/grp/a/v2/lib/more").unlink()
    (tmp_path / "volume/top").chmod(0o600)
    whole = scan_tree(tmp_path / "volume", inline=((b"", 5000),), inline_all=True, hard_links="all")
    assert imported(dumped(whole.path, capsys), tmp_path / "again.mkm") == whole.id  # both digests can be computed


@pytest.mark.parametrize("entries", [
    [b"/w 0 20644 1 0 0 0 0.0 - - -"],
    [b"/f 0 100644 1 4294967295 0 0 0.0 - - -"],
    [b"/f 0 100644 1 0 0 0 0.1000000000 - - -"],
    [b"/f 0 100644 %s - - - foo=1" % PLAIN],
    [b"/f 0 100644 %s - - - trusted.overlay.opaque=y" % PLAIN],
    [b"/d/f 0 100644 %s - - -" % PLAIN],
    [b"/d/f 0 100644 %s - - -" % PLAIN, b"/d 0 40755 %s - - -" % PLAIN],
    [b"/d 0 40755 %s - - -" % PLAIN, b"/l 0 @100644 0 0 0 0 0.0 /d - -"],
    [b"/l 0 @100644 0 0 0 0 0.0 /nowhere - -"],
    [b"/f 0 100644 %s - - -" % PLAIN] * 2,
    [b"/f 3 100644 %s x - -" % PLAIN, b"/g 1 100644 %s - y -" % PLAIN],
    [b"/f 0 100644 %s - - - -" % PLAIN],
    [b"/%s 0 40755 %s - - -" % (b"/".join([b"d" * 200] * depth), PLAIN) for depth in range(1, 22)],
])  # fmt: skip
def test_what_is_refused(entries: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_bytes(lines(*entries))
    assert main(["import", str(tmp_path / "text"), "-o", str(tmp_path / "m.mkm")]) == 10
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"mkmeta: {tmp_path}/text: ") and len(told) <= 2
    assert os.listdir(tmp_path) == ["text"]


def test_hard_links_whichever_name_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a text the first line has the attributes; in a manifest, the first in tree order."""
    file = b"3 100644 3 0 0 0 1.5"
    text = lines(
        b"/z %s z - %s" % (file, DIGEST),
        b"/a 0 @100644 0 0 0 0 0.0 /z - -",
        b"/d 0 40755 2 0 0 0 0.0 - - -",
        b"/d/m 0 @100644 0 0 0 0 0.0 /a - -",
    )
    imported(text, tmp_path / "m.mkm")
    assert dumped(tmp_path / "m.mkm", capsys).splitlines()[1:] == [
        b"/a %s a - %s" % (file, DIGEST),
        b"/d 0 40755 2 0 0 0 0.0 - - -",
        b"/d/m 0 @100644 0 0 0 0 0.0 /a - -",
        b"/z 0 @100644 0 0 0 0 0.0 /a - -",
    ]


def test_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Payloads that are named by digests: the image of the text, and that of its manifest."""
    text = lines(
        b"/d 0 40755 2 0 0 0 0.0 - - -",
        b"/d/f 3 100644 %s 5a/%s - %s" % (PLAIN, b"5a" * 31, DIGEST),
        b"/d/s 2 100644 %s - hi -" % PLAIN,
    )
    (tmp_path / "text").write_bytes(text)
    manifest, image, other = (str(tmp_path / name) for name in ("m.mkm", "image", "other"))
    assert main(["import", str(tmp_path / "text"), "-o", manifest]) == 0
    assert "1 payloads are not the paths" in capsys.readouterr().err
    assert main(["build", "--format", "composefs", str(tmp_path / "text"), image]) == 0
    assert main(["build", "--format", "composefs", "--objects", manifest, other]) == 0
    capsys.readouterr()
    assert Path(image).read_bytes() == Path(other).read_bytes()
    assert dumped(Path(manifest), capsys, "--objects") == text.replace(b" 4096 40755", b" 0 40755").replace(
        b"40755 2 0 0 0 0.0", b"40755 3 0 0 0 0.0", 1
    )
    scanned = scan_tree(_one_file(tmp_path / "volume"), digests=())
    assert main(["build", "--format", "composefs", "--objects", str(scanned.path), str(tmp_path / "no")]) == 1
    assert "has no fs-verity digest" in capsys.readouterr().err
    assert main(["build", "--objects", manifest, str(tmp_path / "no")]) == 2
    assert main(["build", "--objects", "--format", "composefs", str(tmp_path / "text"), str(tmp_path / "no")]) == 2


def _one_file(root: Path) -> Path:
    root.mkdir()
    (root / "file").write_text("x")
    return root


class Counted(dict[bytes, bytes]):
    """Counts how often something is looked up."""

    asked = 0

    def get(self, key: bytes, default: object = None) -> Any:
        self.asked += 1
        return super().get(key, default)


def test_links_to_links_are_each_followed_once() -> None:
    """However long the chain is that a text makes of them: the work does not grow with its square."""
    names = [b"%04d" % number for number in range(2000)]
    text = lines(
        b"/0000 0 100644 %s - - -" % PLAIN,
        *(b"/%s 0 @100644 %s %s - -" % (new, PLAIN, old) for old, new in pairwise(names)),
    )
    with DumpText(lambda path: path) as read:
        read.read(io.BytesIO(text), lambda _: None)
        read.links = counted = Counted(read.links)
        assert list(read.targets()) == [b"0000"]
    assert set(counted.values()) == {b"0000"}
    assert counted.asked < 10 * len(names)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(texts())
def test_any_text(tmp_path: Path, text: bytes) -> None:
    """A valid manifest, or a line that says why not."""
    try:
        imported(text, tmp_path / "m.mkm")
    except FormatError as error:
        assert error.message


def test_equal_contents_are_there_once(tmp_path: Path) -> None:
    """In frames too: nothing of what many files have in common is stored a second time."""
    shared = [os.urandom(5000) for _ in range(3)]
    text = lines(
        *(
            b"/%d 5000 100644 %s - %s -" % (number, PLAIN, b"".join(b"\\x%02x" % byte for byte in shared[number % 3]))
            for number in range(60)
        )
    )
    imported(text, tmp_path / "m.mkm")
    with ManifestReader.open(str(tmp_path / "m.mkm")) as reader:
        contents = reader.contents
        assert contents is not None and len(contents) == 3
        assert all(contents.find(node) >= 0 for _, node in reader.walk() if isinstance(node, RegularFile))
    assert (tmp_path / "m.mkm").stat().st_size < 3 * 5000 + 20_000
