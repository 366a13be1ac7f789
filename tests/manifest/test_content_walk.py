"""How much of a tree is inside, whatever is held in memory meanwhile."""

from __future__ import annotations

import io

import pytest

from mkmeta.codec.container import CONTENT_SIZE_MAX
from mkmeta.manifest import cursor
from mkmeta.manifest.content_walk import Totals, count_inside
from mkmeta.model import DigestName, RegularFile
from tests.manifest.opened import opened
from tests.vectors.cases import CASES
from tests.vectors.trees import walk, write_tree

WITH_DIGESTS = [name for name, case in CASES.items() if DigestName.BLAKE3 in case.digests]


@pytest.mark.parametrize("held", [1, 512 << 10])
def test_each_name_counts_once(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """Also where the page it is in is read again, since what is below it took its place."""
    monkeypatch.setattr(cursor, "_PAGES_HELD", held)
    most = 0
    for name in WITH_DIGESTS:
        case, stream = CASES[name], io.BytesIO()
        write_tree(stream, case.tree, digests=case.digests)
        sizes = [
            node.size
            for _, node in walk(case.tree)
            if isinstance(node, RegularFile) and 0 < node.size <= CONTENT_SIZE_MAX
        ]
        with opened(stream.getvalue()) as reader:
            assert count_inside(reader, lambda *_: True) == Totals(len(sizes), sum(sizes)), name
        most = max(most, len(sizes))
    assert most > 5
