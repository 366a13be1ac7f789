"""What every sink may rely on (mkmeta/sinks/protocol.py), shown with one that takes nodes in one ordered stream."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.build import BuildOptions, build
from mkmeta.errors import BuildError
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.model import Directory, DirectoryKind, LinkRow, PrimaryRow
from mkmeta.plan import Plan, PlannedNode
from mkmeta.sinks.protocol import DataBeyond, LayerKind, Published
from tests.layer.layers import open_reader
from tests.layer.manifests import manifest_from
from tests.strategies import trees
from tests.vectors.trees import Tree, regular, write_tree


class Listing:
    """Writes down what it is called with."""

    kind = LayerKind.DIRECTORY
    ordered = True
    links_in_place = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.nodes: dict[bytes, PlannedNode] = {}
        self.directories: list[bytes] = []
        self.settled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(("exit", None))

    def begin(self, root: PlannedNode, inodes: int, data: DataBeyond) -> None:
        assert data(0) == 0
        self.calls.append(("begin", inodes))

    def writer(self, counts: Counter[str], links: LinkLookup | None, contents: Contents | None) -> Listing:
        counts["writers"] += 1
        self.calls.append(("writer", None))
        return self

    def directory(self, path: bytes, node: PlannedNode, children: Iterator[PlannedNode]) -> None:
        self.directories.append(path)
        assert not path or self.nodes[path] == node, "a directory is what it was among the children"
        names = []
        for child in children:
            names.append(child.name)
            self.nodes[path + b"/" + child.name if path else child.name] = child
        assert names == sorted(names)

    def settle(self) -> None:
        self.settled = len(self.directories)

    def links(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        self.calls += [(type(row).__name__, row.path) for row in rows]

    def finish(self, root: PlannedNode, counts: Counter[str]) -> Published:
        assert self.settled == len(self.directories), "all that was written is there before anybody is told"
        self.calls.append(("finish", counts["writers"]))
        return Published("none")


@given(trees(()), st.booleans())
def test_every_node_comes_once_and_in_order(tree: Tree, userxattr: bool) -> None:
    stream = io.BytesIO()
    write_tree(stream, tree)
    plan = Plan(userxattr=userxattr)
    with open_reader(stream.getvalue()) as reader:
        sink = Listing()
        result = build(reader, sink, BuildOptions(plan=plan, jobs=3))
        recorded = dict(reader.walk())
        del recorded[b""]
    assert {path: planned.inode for path, planned in sink.nodes.items()} == recorded
    assert list(sink.directories) == [b"", *(path for path, node in recorded.items() if isinstance(node, Directory))]
    assert sink.calls == [("begin", len(recorded)), ("writer", None), ("finish", 1), ("exit", None)]
    assert (result.entries, result.links, result.published.filesystem) == (len(recorded), 0, "none")


def test_further_names_come_after_everything_else() -> None:
    files = {name: regular(1) for name in (b"a", b"b", b"c")}
    tree = Tree(children={b"d": Tree(children=files), b"e": regular(1)}, kind=DirectoryKind.MERGE)
    sink = Listing()
    with open_reader(manifest_from(tree, links={b"d/c": b"d/a", b"e": b"d/a"})) as reader:
        assert build(reader, sink, BuildOptions()).links == 2
    assert set(sink.nodes) == {b"d", b"d/a", b"d/b"}
    assert sink.calls == [
        ("begin", 3),
        ("writer", None),
        ("PrimaryRow", b"d/a"),
        ("LinkRow", b"d/c"),
        ("LinkRow", b"e"),
        ("finish", 1),
        ("exit", None),
    ]


def test_a_sink_that_fails_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise BuildError("full")

    sink = Listing()
    monkeypatch.setattr(sink, "directory", fail)
    with open_reader(manifest_from(Tree())) as reader, pytest.raises(BuildError, match="full"):
        build(reader, sink, BuildOptions())
    assert sink.calls == [("begin", 0), ("writer", None), ("exit", None)]
