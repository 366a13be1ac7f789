"""What the writer does when its memory of recent objects is too small."""

from __future__ import annotations

import io

import pytest

from mkmeta.manifest import writer
from mkmeta.model import DirectoryKind
from tests.vectors.cases import CASES
from tests.vectors.test_vectors import objects_of
from tests.vectors.trees import Tree, write_tree


def test_a_forgotten_object_is_in_the_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored twice, found once: the object table stays strictly ascending, the ID is the same."""
    child = CASES["equal-subtrees"].tree.children[b"v1"]
    others = {b"b%d" % number: Tree(mtime_ns=number, children={b"x": Tree(mtime_ns=number)}) for number in range(5)}
    tree = Tree(kind=DirectoryKind.MERGE, children={b"a": child, **others, b"c": child})
    roomy, tight = io.BytesIO(), io.BytesIO()
    expected = write_tree(roomy, tree, digests=CASES["equal-subtrees"].digests)
    monkeypatch.setattr(writer, "_RECENT_SLOTS", 1)
    assert write_tree(tight, tree, digests=CASES["equal-subtrees"].digests) == expected
    assert objects_of(tight.getvalue()) == objects_of(roomy.getvalue())
    assert _object_rows(tight.getvalue()) == _object_rows(roomy.getvalue()) == len(objects_of(roomy.getvalue()))


def _object_rows(data: bytes) -> int:
    """N of the footer."""
    return int.from_bytes(data[-72:-64], "little")
