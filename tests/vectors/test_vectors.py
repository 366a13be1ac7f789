"""formats/vectors, held against mkmeta and against the reader written from the document alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from examples import read_manifest as example
from mkmeta.codec.container import FOOTER, FRAME_ROW, OBJECT_ROW
from mkmeta.digest import verity_digest
from mkmeta.manifest.check import check_all
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS, Device, DigestName, Directory, LinkRow, Node, PrimaryRow, RegularFile, Special, Symlink
from tests.vectors.cases import CASES
from tests.vectors.explain import explain
from tests.vectors.make_vectors import EXAMPLE, VECTORS, manifest_of, refusal
from tests.vectors.reject import REJECTED, base
from tests.vectors.trees import PAGE_BYTES, write_tree

NAMES = sorted(CASES)
REJECTED_NAMES = sorted(REJECTED)
FORMAT_CHANGED = (
    "The writer makes other objects than those in formats/vectors: every manifest ID in the world changes, and stored "
    "manifests may not be read. If that is meant, it is a new format version; say so in formats/manifest.md."
)


def objects_of(data: bytes) -> dict[bytes, bytes]:
    """ID to bytes of every object in a file, found without the reader."""
    frame_table, frames, _, object_table, objects = FOOTER.unpack(data[-FOOTER.size :])[:5]
    rows = [FRAME_ROW.unpack_from(data, frame_table + number * FRAME_ROW.size) for number in range(frames)]
    content = [zstandard.decompress(data[offset : offset + size]) for offset, size, _ in rows]
    found = {}
    for number in range(objects):
        name, frame, offset, length = OBJECT_ROW.unpack_from(data, object_table + number * OBJECT_ROW.size)
        found[name] = content[frame][offset : offset + length]
    return found


def as_example_sees(node: Node) -> tuple[object, ...]:
    """A node of the model as the fields of the example's Entry, without the name."""
    match node:
        case RegularFile():
            body: tuple[object, ...] = (node.size, node.blake3, node.verity)
        case Directory():
            body = (node.children, node.entries, int(node.kind))
        case Symlink():
            body = (node.target,)
        case Device():
            body = (node.major, node.minor)
        case Special():
            body = ()
    return node.mode, node.uid, node.gid, *divmod(node.mtime_ns, NS), body, node.xattrs


def joined(reader: ManifestReader) -> Iterator[tuple[bytes, tuple[object, ...], int | bytes | None]]:
    """What mkmeta reads, in the shape of the example's walk."""
    said: dict[bytes, int | bytes] = {}
    for row in reader.links():
        match row:
            case PrimaryRow(path, nlink):
                said[path] = nlink
            case LinkRow(path, target):
                said[path] = target
    for path, node in reader.walk():
        if path:
            yield path, as_example_sees(node), said.get(path)


def test_every_case_is_in_the_files_and_every_file_is_a_case() -> None:
    assert sorted(path.name for path in VECTORS.iterdir()) == sorted([*NAMES, "reject"])
    files = {path.name for path in (VECTORS / "reject").iterdir()}
    assert files == {name + end for name in REJECTED_NAMES for end in (".mkm", ".txt")}


@pytest.mark.parametrize("name", NAMES)
def test_mkmeta_and_example_find_the_same_facts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = VECTORS / name / "manifest.mkm"
    assert example.main(["", str(file)]) == 0
    listing = capsys.readouterr().out
    assert listing == (VECTORS / name / "tree.txt").read_text()
    with ManifestReader.open(str(file)) as reader, file.open("rb") as stream:
        check_all(reader)
        assert reader.id.hex() + "\n" == (VECTORS / name / "id.txt").read_text()
        container = example.Container(stream.fileno())
        seen = [
            (path, tuple(entry)[1:], link)
            for path, entry, link in example.Tree(container, example.read_root(container)).walk()
        ]
        assert list(joined(reader)) == seen
        assert (reader.facts_place is not None) == CASES[name].facts
        assert reader.info == CASES[name].info
        found = reader.contents.table if reader.contents is not None else ()
        digest = blake3 if DigestName.BLAKE3 in CASES[name].digests else None
        assert {row[0] for row in found} == {
            digest(content).digest() if digest else verity_digest(content) for content in CASES[name].contents
        }


@pytest.mark.parametrize("name", NAMES)
def test_the_writer_still_makes_these_objects(name: str) -> None:
    committed = (VECTORS / name / "manifest.mkm").read_bytes()
    made = manifest_of(CASES[name])
    assert objects_of(made) == objects_of(committed), FORMAT_CHANGED
    assert FOOTER.unpack(made[-96:])[5] == FOOTER.unpack(committed[-96:])[5], FORMAT_CHANGED


def test_what_the_cases_are_there_for() -> None:
    """That the vectors show what why.txt says."""
    assert (VECTORS / "contents/id.txt").read_text() == (VECTORS / "no-contents/id.txt").read_text()
    footers = {name: FOOTER.unpack((VECTORS / name / "manifest.mkm").read_bytes()[-96:]) for name in NAMES}
    assert footers["many-frames"][1] >= 4
    assert footers["facts"][5] == footers["no-facts"][5]
    with ManifestReader.open(str(VECTORS / "many-links" / "manifest.mkm")) as reader:
        assert (sum(1 for _ in reader.links()), len(reader.link_pages())) == (40, 2)
    for name, path, pages in (("pages", b"d", 4), ("page-border", b"one", 1), ("page-border", b"two", 2)):
        with ManifestReader.open(str(VECTORS / name / "manifest.mkm")) as reader:
            directory = reader.find(path)
            assert isinstance(directory, Directory)
            found = reader.pages(directory, path)
            assert len(found) == pages
            if name == "pages":
                contents = [reader.page(page, directory, path) for page in found]
                assert sum(any(isinstance(node, Directory) for _, node in page) for page in contents) >= 2
                assert any(len(reader.page_bytes(page, path)) > PAGE_BYTES for page in found)
    equal = objects_of((VECTORS / "equal-subtrees" / "manifest.mkm").read_bytes())
    assert len(equal) == 3 + 3  # directories; root, link page, link index


def test_the_explanation_is_of_the_file() -> None:
    hello = VECTORS / "hello"
    assert explain((hello / "manifest.mkm").read_bytes()) == (hello / "explained.txt").read_text()


@pytest.mark.parametrize("name", REJECTED_NAMES)
def test_both_readers_refuse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = VECTORS / "reject" / f"{name}.mkm"
    expected = file.with_suffix(".txt").read_text()
    assert refusal(file) + "\n" == expected
    where, _, reason = expected.partition(": ")
    assert where and reason.strip() and expected.count("\n") == 1
    assert example.main(["", str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    where, _, reason = said.err.partition(": ")
    assert where and reason.strip() and said.err.count("\n") == 1


def test_the_rejected_files_have_one_flaw_each(tmp_path: Path) -> None:
    """The file most of them were made from is a good one."""
    file = tmp_path / "base.mkm"
    file.write_bytes(base().encode())
    with pytest.raises(ValueError, match="was not refused"):
        refusal(file)
    assert example.main(["", str(file)]) == 0


def test_the_generator_still_makes_the_rejected_files(tmp_path: Path) -> None:
    for name, data in REJECTED.items():
        file = tmp_path / "file.mkm"
        file.write_bytes(data)
        assert refusal(file) + "\n" == (VECTORS / "reject" / f"{name}.txt").read_text(), name


def test_example_as_a_program(tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False)

    good = run(VECTORS / "hello" / "manifest.mkm")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == (VECTORS / "hello" / "tree.txt").read_text()
    bad = run(VECTORS / "reject" / "name-dot.mkm")
    assert (bad.returncode, bad.stdout, bad.stderr) == (1, "", "directory /: '.' is not a name\n")
    assert run(tmp_path / "absent").stderr == f"{tmp_path}/absent: {os.strerror(2)}\n"
    assert run(tmp_path).returncode == 1
    assert run().returncode == 2


def test_example_imports_nothing_of_mkmeta() -> None:
    code = f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); print(*(m for m in sys.modules if 'mkmeta' in m))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in result.stdout.split() if not name.startswith("__editable__")] == []


def test_memory_of_a_compression_bomb() -> None:
    """512 MiB in a frame of a few KiB: refused without taking the memory."""
    program = "import sys; from examples import read_manifest as e; sys.exit(e.main(['', sys.argv[1]]))"
    mkmeta = "import sys; from mkmeta.__main__ import main; sys.exit(main(['show', '--check', sys.argv[1]]))"
    for code, status in ((program, 1), (mkmeta, 10)):
        limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)\n{code}"
        command = [sys.executable, "-c", limited, str(VECTORS / "reject" / "zstd-bomb.mkm")]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLE.parents[1])
        assert (result.returncode, result.stderr.count("\n")) == (status, 1), result.stderr


def test_stream_of_the_generator_is_never_sought() -> None:
    """The writer works on a pipe."""

    class Pipe(io.BytesIO):
        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation("seek")

    stream = Pipe()
    write_tree(stream, CASES["facts"].tree, links=CASES["facts"].links, facts=True)
    assert objects_of(stream.getvalue()) == objects_of(manifest_of(CASES["facts"]))
