"""Whole manifests of random trees: what was written is read, by both readers, whatever the order of writing."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import read_manifest as example
from mkmeta.codec.info import Info
from mkmeta.errors import FormatError
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Counts, DigestName, Directory, DirectoryKind, LinkRow, Node, PrimaryRow, Xattrs
from tests import strategies as some
from tests.manifest.opened import opened
from tests.property.mutations import accepts
from tests.vectors.test_vectors import as_example_sees
from tests.vectors.trees import Leaf, Tree, link_rows, made_up_facts, regular, walk, write_tree

Drawn = tuple[tuple[DigestName, ...], Tree]  # digests recorded, tree
CASES = some.digest_sets.flatmap(lambda digests: st.tuples(st.just(digests), some.trees(digests)))
slow_to_draw = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def written(tree: Tree, digests: tuple[DigestName, ...], *, facts: bool = False) -> bytes:
    """A manifest with all links the tree allows: equal leaves are names of one inode."""
    stream = io.BytesIO()
    write_tree(stream, tree, links=links_of(tree), digests=digests, facts=facts)
    return stream.getvalue()


def links_of(tree: Tree) -> dict[bytes, bytes]:
    """Path to primary, for leaves that equal an earlier one."""
    first: dict[Leaf, bytes] = {}
    links = {}
    for path, node in walk(tree):
        if not isinstance(node, Tree) and first.setdefault(node, path) != path:
            links[path] = first[node]
    return links


def nlinks_of(tree: Tree) -> dict[bytes, int]:
    """How many names the facts that were made up say that a linked entry has."""
    rows = link_rows(links_of(tree))
    found = {row.path: row.nlink + 1 for row in rows if isinstance(row, PrimaryRow)}
    return found | {row.path: found[row.target] for row in rows if isinstance(row, LinkRow)}


def same(node: Node, drawn: Tree | Leaf) -> bool:
    """Whether what was read is what was drawn, all but the children."""
    if not isinstance(drawn, Tree):
        return node == drawn
    fields = ("mode", "uid", "gid", "mtime_ns", "xattrs", "kind")
    return isinstance(node, Directory) and all(getattr(node, name) == getattr(drawn, name) for name in fields)


@slow_to_draw
@given(CASES, st.booleans())
def test_round_trip(case: Drawn, facts: bool) -> None:
    check_round_trip(*case, facts=facts)


@st.composite
def wide_trees(draw: st.DrawFn) -> Tree:
    """Entries of any length up to 1 MiB, so that a few of them cross a page or several; some are directories."""
    sizes = st.sampled_from([0, 50_000, 65_400, 130_900, 131_000, 261_900, 262_100, 300_000, 900_000])

    def xattrs() -> Xattrs:
        size = draw(sizes) + draw(st.integers(0, 300))
        full, rest = divmod(size, 65_536)
        return (*((b"user.%02d" % number, bytes(65_536)) for number in range(full)), (b"user.x", bytes(rest)))

    def directory(depth: int, kind: DirectoryKind) -> Tree:
        children: dict[bytes, Tree | Leaf] = {}
        for number in range(draw(st.integers(kind is DirectoryKind.MERGE, 9))):
            name = b"%d" % number + draw(st.sampled_from([b"", b"x" * 254]))
            if depth and draw(st.booleans()):
                opaque = kind is DirectoryKind.OPAQUE or draw(st.booleans())
                below = directory(depth - 1, DirectoryKind.OPAQUE if opaque else kind)
                children[name] = dataclasses.replace(below, xattrs=xattrs())
            else:
                children[name] = dataclasses.replace(regular(draw(st.integers(0, 3))), xattrs=xattrs())
        return Tree(kind=kind, children=children)

    return directory(2, DirectoryKind.MERGE)


@settings(slow_to_draw, max_examples=25)
@given(wide_trees(), st.booleans())
def test_round_trip_of_pages(tree: Tree, facts: bool) -> None:
    check_round_trip((), tree, facts=facts)


def check_round_trip(digests: tuple[DigestName, ...], tree: Tree, *, facts: bool) -> None:
    """Both readers find what was written, and nothing to complain about."""
    data = written(tree, digests, facts=facts)
    drawn = list(walk(tree))
    with opened(data) as reader:
        check(reader)
        (top, root), *read = reader.walk()
        assert top == b"" and same(root, tree)
        assert [path for path, _ in read] == [path for path, _ in drawn]
        assert all(same(node, other) for (_, node), (_, other) in zip(read, drawn, strict=True))
        assert isinstance(root, Directory) and root.entries == len(drawn)
        assert reader.root.digests == digests
        assert list(reader.links()) == link_rows(links_of(tree))
        assert all(reader.find(path) == node for path, node in read)
        assert (reader.facts_place is not None) == facts
        if reader.facts_place:
            names = sorted(tree.children)
            nlinks = nlinks_of(tree)
            below = list(reader.recorded(root, b"", reader.facts_place))
            assert [(entry.inode, entry.change_time) for entry in below] == list(
                zip(*made_up_facts(names), strict=True)
            )
            assert [entry.nlink for entry in below] == [nlinks.get(name, 1) for name in names]
            counts = reader.counts(reader.facts_place, b"")
            assert counts.linked == len(nlinks)
            assert sum(counts[: Counts._fields.index("bytes")]) == len(drawn) + 1
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        container = example.Container(file.fileno())
        by_example = [
            (path, tuple(entry)[1:]) for path, entry, _ in example.Tree(container, example.read_root(container)).walk()
        ]
        example.check(container)
        assert by_example == [(path, as_example_sees(node)) for path, node in read]


@slow_to_draw
@given(CASES)
def test_same_tree_same_id(case: Drawn) -> None:
    """Order of writing, facts and info are not part of the ID."""
    digests, tree = case
    ids = {
        write_tree(io.BytesIO(), tree, digests=digests),
        write_tree(io.BytesIO(), tree, digests=digests, backwards=True),
        write_tree(io.BytesIO(), tree, digests=digests, facts=True),
        write_tree(io.BytesIO(), tree, digests=digests, info=Info(root=b"/elsewhere", created=0, tool="")),
    }
    assert len(ids) == 1


@slow_to_draw
@given(CASES, CASES)
def test_other_tree_other_id(one: Drawn, two: Drawn) -> None:
    first, second = (write_tree(io.BytesIO(), tree, digests=digests) for digests, tree in (one, two))
    assert (first == second) == (one == two)


@slow_to_draw
@given(CASES)
def test_walk_of_a_part(case: Drawn) -> None:
    digests, tree = case
    with opened(written(tree, digests)) as reader:
        everything = list(reader.walk())
        for top, _ in everything:
            inside = [(p, node) for p, node in everything if not top or p == top or p.startswith(top + b"/")]
            assert list(reader.walk(top)) == inside
        with pytest.raises(KeyError):
            list(reader.walk(b"no such entry, the names drawn are shorter"))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with pytest.raises(FormatError), opened(data) as reader:
        check(reader)
    assert not accepts(data)


def test_merge_kind_is_kept_apart() -> None:
    """The same children, merged or opaque, are two different trees."""
    child = Tree(children={b"f": Tree()})
    ids = {
        write_tree(io.BytesIO(), Tree(kind=DirectoryKind.MERGE, children={b"d": top}))
        for top in (child, Tree(kind=DirectoryKind.MERGE, children=child.children))
    }
    assert len(ids) == 2


def test_a_file_is_closed_when_it_is_refused(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    bad = tmp_path / "bad"
    bad.write_bytes(b"x" * 200)
    for _ in range(5):
        with pytest.raises(FormatError, match="magic"):
            ManifestReader.open(str(bad))
    assert len(os.listdir("/proc/self/fd")) == before
