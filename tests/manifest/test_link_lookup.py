"""Looking up hard links gives what a dictionary of all of them gives, in any order of questions."""

from __future__ import annotations

import random

import pytest

from mkmeta.digest import ObjectId
from mkmeta.manifest import link_lookup
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.model import LinkRow, PrimaryRow, tree_order
from tests.layer.layers import open_reader
from tests.layer.manifests import manifest_from
from tests.vectors.trees import Leaf, Tree, regular


def linked(directories: int, names: int) -> bytes:
    """A manifest with some names of one inode in each directory, with long names, and others that are not linked."""
    children: dict[bytes, Tree | Leaf] = {}
    links: dict[bytes, bytes] = {}
    for number in range(directories):
        here = {b"n%03d" % name + b"x" * 200: regular(1) for name in range(names)} | {b"alone": regular(2)}
        children[b"d%03d" % number] = Tree(children=here | {b"n-": Tree(children={b"alone": regular(1)})})
        path = b"d%03d/" % number
        first, *others = (path + name for name in sorted(here) if name != b"alone")
        links |= dict.fromkeys(others, first)
    return manifest_from(Tree(children=children), links=links)


@pytest.mark.parametrize("shape", [(0, 0), (1, 2), (300, 20)])
def test_as_a_dictionary(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_lookup, "_FIRSTS_KEPT", 4)
    with open_reader(linked(*shape)) as reader:
        rows = {row.path: row for row in reader.links()}
        if shape[0] == 300:
            assert len(reader.link_pages()) > 4
        paths = [path for path, _ in reader.walk()]
        questions = [*paths, *(path + b"-" for path in paths), b"", b"zzz", b"\xff", b"a"]
        in_order = sorted(questions, key=tree_order)
        shuffled = random.Random(1).sample(questions, len(questions))
        for asked in (in_order, in_order[::-1][:3000], shuffled[:200]):
            lookup = LinkLookup(reader)
            for path in asked:
                assert lookup[path] == rows.get(path)
            assert all(lookup.is_link(path) == isinstance(rows.get(path), LinkRow) for path in asked[:50])


def test_pages_in_order_are_read_once_or_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_reader(linked(300, 20)) as reader:
        reads: list[int] = []
        read = reader.link_page

        def noting(number: int, page: ObjectId) -> list[PrimaryRow | LinkRow]:
            reads.append(number)
            return read(number, page)

        monkeypatch.setattr(reader, "link_page", noting)
        lookup = LinkLookup(reader)
        for path, _ in reader.walk():
            _ = lookup[path]
        assert len(reads) <= 3 * len(reader.link_pages())
