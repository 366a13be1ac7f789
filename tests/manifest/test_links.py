"""LinkCollector against a model of dictionaries; check_groups against rows that do not add up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import FormatError, ScanError
from mkmeta.manifest.links import FINGERPRINT_BYTES, LinkCollector, check_groups
from mkmeta.model import LinkRow, PrimaryRow, tree_order
from tests import strategies as some

ALIKE = bytes(DIGEST_SIZE)  # everything recorded of every inode
Name = tuple[int, bytes, int]  # inode, path, subtree
NAMES = st.dictionaries(
    some.paths, st.tuples(st.sampled_from([0, 1, 2, 2**64 - 1]), st.integers(0, 3)), max_size=25
).map(lambda found: [(inode, path, subtree) for path, (inode, subtree) in found.items()])


def model(names: list[Name], dropped: set[int]) -> list[PrimaryRow | LinkRow]:
    """The rows as formats/manifest.md section 3.3 has them."""
    rows: list[PrimaryRow | LinkRow] = []
    by_inode = sorted(name for name in names if name[2] not in dropped)
    for _, group in itertools.groupby(by_inode, key=lambda name: name[0]):
        paths = sorted((path for _, path, _ in group), key=lambda path: path.split(b"/"))
        if len(paths) > 1:
            rows.append(PrimaryRow(paths[0], len(paths)))
            rows += (LinkRow(path, paths[0]) for path in paths[1:])
    return sorted(rows, key=lambda row: row.path.split(b"/"))


@given(NAMES, st.sets(st.integers(0, 3)))
def test_rows_are_those_of_the_model(names: list[Name], dropped: set[int]) -> None:
    with LinkCollector() as collector:
        for inode, path, subtree in names:
            collector.add(inode, path, bytes(FINGERPRINT_BYTES), subtree)
        rows = list(collector.rows(dropped))
    assert rows == model(names, dropped)
    check_groups((row, ALIKE) for row in rows)


def test_tree_order_is_that_of_names() -> None:
    """`a/b` comes before `a-`, though `-` sorts before `/`."""
    names = [(1, path, 0) for path in (b"a-", b"a/b", b"a.b/c", b"a", b"a/b/c", b"a\x01")]
    expected = [b"a", b"a/b", b"a/b/c", b"a\x01", b"a-", b"a.b/c"]
    with LinkCollector() as collector:
        for inode, path, subtree in names:
            collector.add(inode, path, bytes(FINGERPRINT_BYTES), subtree)
        assert [row.path for row in collector.rows(())] == expected
    assert sorted((path for _, path, _ in names), key=tree_order) == expected


@given(st.binary(min_size=FINGERPRINT_BYTES, max_size=FINGERPRINT_BYTES), st.booleans())
def test_names_of_an_inode_that_differ(fingerprint: bytes, far: bool) -> None:
    """Recorded with other attributes: the inode changed during the scan. A dropped subtree does not count."""
    other = bytes([fingerprint[0] ^ 1]) + fingerprint[1:]
    with LinkCollector() as collector:
        collector.add(5, b"a", fingerprint, 0)
        collector.add(5, b"b", fingerprint, 0)
        collector.add(5, b"z/c" if far else b"c", other, 1)
        assert len(list(collector.rows({1}))) == 2
    with LinkCollector() as collector:
        collector.add(5, b"a", fingerprint, 0)
        collector.add(5, b"b", other, 0)
        with pytest.raises(ScanError, match="changed during the scan") as caught:
            list(collector.rows(()))
    assert caught.value.path == b"b"


GROUPS: dict[str, tuple[str, list[PrimaryRow | LinkRow]]] = {
    "too few": ("fewer links", [PrimaryRow(b"a", 3), LinkRow(b"b", b"a")]),
    "none": ("fewer links", [PrimaryRow(b"a", 2)]),
    "too many": ("more links", [PrimaryRow(b"a", 2), LinkRow(b"b", b"a"), LinkRow(b"c", b"a")]),
    "the one before short": ("'a' has fewer", [PrimaryRow(b"a", 2), PrimaryRow(b"b", 2), LinkRow(b"c", b"b")]),
    "to a link": ("no primary", [PrimaryRow(b"a", 2), LinkRow(b"b", b"a"), LinkRow(b"c", b"b")]),
    "to nothing": ("no primary", [LinkRow(b"b", b"a")]),
    "to a longer path": ("no primary", [PrimaryRow(b"a", 2), LinkRow(b"b", b"a/a")]),
}


@pytest.mark.parametrize(("words", "rows"), GROUPS.values(), ids=GROUPS)
def test_groups_that_do_not_add_up(words: str, rows: list[PrimaryRow | LinkRow]) -> None:
    with pytest.raises(FormatError, match=words):
        check_groups((row, ALIKE) for row in rows)


def test_a_link_is_like_its_primary() -> None:
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(b"a", 3), LinkRow(b"b", b"a"), LinkRow(b"c", b"a")]
    with pytest.raises(FormatError, match="'c' differs from 'a'"):
        check_groups(zip(rows, (ALIKE, ALIKE, b"x" * DIGEST_SIZE), strict=True))
