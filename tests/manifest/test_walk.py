"""Walking by several processes: every directory once, parents first, whatever the shape and however it is cut."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.errors import BuildError, MkmetaError
from mkmeta.manifest import walk as walk_module
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import Branch, Report, walk, walk_in_order
from mkmeta.model import Directory, DirectoryKind
from tests.layer.layers import open_reader
from tests.vectors.trees import Leaf, Tree, regular, write_tree

MERGE = DirectoryKind.MERGE


def wide(count: int) -> Tree:
    return Tree(children={b"%05d" % number: Tree() for number in range(count)}, kind=MERGE)


def deep(depth: int) -> Tree:
    tree = Tree(children={b"f": regular(1)})
    for level in range(depth):
        tree = Tree(children={b"d": tree, b"e%d" % level: Tree(), b"f": regular(level)})
    return Tree(children={b"top": tree}, kind=MERGE)


def bushy(levels: int) -> Tree:
    children: dict[bytes, Tree | Leaf] = {b"a": regular(1), b"z": regular(2)}
    if levels:
        children |= {b"d%d" % number: bushy(levels - 1) for number in range(4)}
    return Tree(children=children, kind=MERGE)


def lopsided() -> Tree:
    """One large directory among many small ones, at every level; and one with nothing but files."""
    children: dict[bytes, Tree | Leaf] = {b"n%d" % number: Tree(children={b"f": regular(1)}) for number in range(30)}
    files = Tree(children={b"f%03d" % number: regular(number) for number in range(400)})
    return Tree(children=children | {b"n10x": deep(40).children[b"top"], b"files": files}, kind=MERGE)


SHAPES = {"empty": Tree(kind=MERGE), "wide": wide(700), "deep": deep(120), "bushy": bushy(4), "lopsided": lopsided()}


def manifest_of(tree: Tree) -> bytes:
    stream = io.BytesIO()
    write_tree(stream, tree, facts=True)
    return stream.getvalue()


class Maker:
    """Makes each directory on disk, which fails unless the one it is in was made before, or when it was made."""

    def __init__(self, top: Path, report: Report, refused: frozenset[bytes] = frozenset()) -> None:
        self._top = os.fsencode(top)
        self._report = report
        self._refused = refused

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        if branch.path:
            os.mkdir(self._top + b"/" + branch.path)
        names = [entry.name for entry in entries]
        self._report.counts["entries"] += len(names)
        self._report.tell((branch.path, branch.subtree, branch.facts is not None, names))
        return branch.path not in self._refused


def recorded(reader: ManifestReader) -> dict[bytes, list[bytes]]:
    """The names in each directory."""
    return {
        path: [name for name, _ in reader.entries(node, path)]
        for path, node in reader.walk()
        if isinstance(node, Directory)
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("jobs", "batch"), [(1, 1), (3, 2), (2, 50), (3, 10_000)])
@pytest.mark.parametrize("waiting", [walk_module._WAITING_MAX, 2])
def test_every_directory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, jobs: int, batch: int, waiting: int
) -> None:
    monkeypatch.setattr(walk_module, "_WAITING_MAX", waiting)
    seen: list[tuple[bytes, bytes | None, bool, list[bytes]]] = []
    done: list[int] = []
    with open_reader(manifest_of(SHAPES[shape])) as reader:
        counts = walk(
            reader,
            lambda report: Maker(tmp_path, report),
            jobs=jobs,
            batch=batch,
            facts=batch > 1,
            receive=seen.append,
            progress=done.append,
        )
        expected = recorded(reader)
        entries = reader.root.directory.entries
    assert sorted(path for path, *_ in seen) == sorted(expected)
    assert {path: names for path, _, _, names in seen} == expected
    assert counts["entries"] == sum(done) == entries
    assert all(has_facts == (batch > 1) for _, _, has_facts, _ in seen)
    tops = {b"wide": 1, b"deep": 1}
    for path, subtree, *_ in seen:
        if shape.encode() in tops:
            assert subtree == (path.split(b"/")[0] or None)


@pytest.mark.parametrize("batch", [1, 10_000])
def test_nothing_below_what_was_refused(tmp_path: Path, batch: int) -> None:
    refused = frozenset({b"d1", b"d2/d0"})
    done: list[int] = []
    seen: list[tuple[bytes, ...]] = []
    with open_reader(manifest_of(bushy(3))) as reader:
        walk(
            reader,
            lambda report: Maker(tmp_path, report, refused),
            jobs=2,
            batch=batch,
            receive=seen.append,
            progress=done.append,
        )
        paths = [path for path in recorded(reader) if not any(path.startswith(no + b"/") for no in refused)]
        assert sum(done) == reader.root.directory.entries
    assert sorted(path for path, *_ in seen) == sorted(paths)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_order(tmp_path: Path, shape: str) -> None:
    order: list[bytes] = []

    class Noting(Maker):
        def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
            order.append(branch.path)
            return super().visit(branch, entries)

    with open_reader(manifest_of(SHAPES[shape])) as reader:
        walk_in_order(reader, lambda report: Noting(tmp_path, report))
        assert order == list(recorded(reader))


def test_what_a_visitor_raises_ends_the_walk(tmp_path: Path) -> None:
    class Failing(Maker):
        def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
            if branch.path == b"00300":
                raise BuildError("full", path=branch.path)
            return super().visit(branch, entries)

    with open_reader(manifest_of(wide(700))) as reader:
        with pytest.raises(BuildError, match="full"):
            walk(reader, lambda report: Failing(tmp_path, report), jobs=2, batch=10)
        (tmp_path / "00000").rename(tmp_path / "x")
        with pytest.raises(RuntimeError, match="FileExistsError"):
            walk(reader, lambda report: Maker(tmp_path, report), jobs=2, batch=10)


def test_what_is_told_is_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talker:
        def __init__(self, report: Report) -> None:
            self._report = report

        def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
            for number in range(5000):
                self._report.tell(number)
                assert len(self._report.items) < walk_module._ITEMS_MAX
            return True

    told: list[int] = []
    with open_reader(manifest_of(Tree(kind=MERGE))) as reader:
        walk(reader, Talker, jobs=1, batch=10, receive=told.append)
    assert told == list(range(5000))


def test_an_invalid_manifest_is_said_to_be_one(tmp_path: Path) -> None:
    data = bytearray(manifest_of(deep(30)))
    data[200] ^= 1
    with pytest.raises(MkmetaError), open_reader(bytes(data)) as reader:
        walk(reader, lambda report: Maker(tmp_path, report), jobs=2, batch=1)
