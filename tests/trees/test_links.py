"""LinkCollector against a model of sets and sorted lists: who is one inode, who is recorded as such, who is stale."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.digest import DIGEST_SIZE
from mkmeta.manifest.link_check import check_groups
from mkmeta.model import HardLinks, LinkRow, PrimaryRow, tree_order
from mkmeta.trees import links
from mkmeta.trees.links import FINGERPRINT_BYTES, LinkCollector, Look
from tests import strategies as some

ALIKE = bytes(DIGEST_SIZE)  # everything recorded of every inode
LOOK = Look(1, 2, 9, bytes(FINGERPRINT_BYTES))


@dataclass(frozen=True)
class Name:
    """A name as it was looked at; `subtree` is its path up to so many names."""

    look: Look
    path: bytes
    depth: int

    @property
    def subtree(self) -> bytes:
        return b"/".join(self.path.split(b"/")[: self.depth])


few = st.sampled_from([0, 1, 2**63])
LOOKS = st.builds(
    Look,
    inode=few | st.just(2**64 - 1),
    change_time=st.sampled_from([0, 5, -(2**63), 2**63 - 1]),
    nlink=st.sampled_from([2, 3, 2**32 - 1]),
    fingerprint=st.sampled_from([bytes(FINGERPRINT_BYTES), b"\xff" * FINGERPRINT_BYTES]),
)
FEW_LOOKS = st.sampled_from([LOOK, LOOK._replace(nlink=3), LOOK._replace(inode=2**64 - 1, nlink=2)])
SHORT = st.lists(st.sampled_from([b"a", b"b", b"a-", b"a.b", b"\x01"]), min_size=1, max_size=4).map(b"/".join)


@st.composite
def names(draw: st.DrawFn, paths: st.SearchStrategy[bytes] = SHORT | some.paths) -> list[Name]:
    """Names in any order, each once. Of those that begin alike, all are in subtrees of one depth."""
    found = draw(st.dictionaries(paths, FEW_LOOKS | LOOKS, max_size=25))
    depths = {first: draw(st.integers(1, 2)) for first in sorted({path.split(b"/")[0] for path in found})}
    return [Name(look, path, depths[path.split(b"/")[0]]) for path, look in found.items()]


def model(
    found: list[Name], hard_links: HardLinks, failed: Container[bytes] = (), demoted: Container[bytes] = ()
) -> list[PrimaryRow | LinkRow]:
    """What is to be recorded, as formats/manifest.md section 3.3 and the module have it."""
    groups: dict[tuple[Look, bytes], set[bytes]] = {}
    for name in found:
        if name.subtree in failed:
            continue
        while name.subtree in demoted:
            name = dataclasses.replace(name, depth=name.depth + 1)
        key = (name.look, b"" if hard_links is HardLinks.ALL else name.subtree)
        groups.setdefault(key, set()).add(name.path)
    rows: list[PrimaryRow | LinkRow] = []
    for (look, _), paths in groups.items():
        first, *others = sorted(paths, key=lambda path: path.split(b"/"))
        if others and len(paths) <= look.nlink:
            rows += [PrimaryRow(first, len(paths)), *(LinkRow(other, first) for other in others)]
    return sorted(rows, key=lambda row: row.path.split(b"/"))


def collected(found: list[Name], hard_links: HardLinks = HardLinks.SUBTREE) -> LinkCollector:
    collector = LinkCollector(hard_links)
    for name in found:
        collector.add(name.look, name.path, name.subtree)
    return collector


@given(names(), st.sampled_from(HardLinks), st.data())
def test_rows_are_those_of_the_model(found: list[Name], hard_links: HardLinks, data: st.DataObject) -> None:
    tops = sorted({name.subtree for name in found})
    failed = data.draw(st.sets(st.sampled_from(tops))) if tops else set()
    directories = [top for top in tops if all(name.path != top for name in found)]
    demoted = data.draw(st.sets(st.sampled_from(directories))) if directories else set()
    again = data.draw(st.lists(st.sampled_from(found), max_size=3)) if found else []
    with collected([*found, *again], hard_links) as collector:
        rows = list(collector.rows(failed, demoted=demoted))
    assert rows == model(found, hard_links, failed, demoted)
    assert all(tree_order(one.path) < tree_order(two.path) for one, two in pairwise(rows))
    check_groups((row, ALIKE) for row in rows)


@given(names(), st.randoms(use_true_random=False))
def test_the_order_of_looks_does_not_matter(found: list[Name], dice: random.Random) -> None:
    shuffled = found.copy()
    dice.shuffle(shuffled)
    with collected(found) as one, collected(shuffled) as two:
        assert sorted(set(one.stale())) == sorted(set(two.stale()))
        assert list(one.rows()) == list(two.rows())


@given(st.lists(st.tuples(LOOKS, SHORT), max_size=12))
def test_stale_is_what_another_look_contradicts(seen: list[tuple[Look, bytes]]) -> None:
    """Also where one name was looked at twice. The latest state of an inode is true, unless it is one of two."""
    found = [Name(look, path, 1) for look, path in seen]
    expected = {
        name.subtree
        for name in found
        for other in found
        if name.look.inode == other.look.inode
        and name.look != other.look
        and other.look.change_time >= name.look.change_time
    }
    with collected(found) as collector:
        assert set(collector.stale()) == expected


@pytest.mark.parametrize("hard_links", HardLinks)
def test_too_much_to_hold_is_recorded_apart(monkeypatch: pytest.MonkeyPatch, hard_links: HardLinks) -> None:
    monkeypatch.setattr(links, "_GROUP_BYTES", 20)
    looks = [Look(inode, 0, 9, bytes(FINGERPRINT_BYTES)) for inode in (1, 2)]
    exact = [Name(looks[0], b"a/%04d" % number + b"x" * 4, 1) for number in range(2)]
    more = [Name(looks[1], b"b/%04d" % number + b"x" * (4 + number), 1) for number in range(2)]
    apart = [Name(looks[1], b"c/%d" % number, 1) for number in range(2)]
    with collected([*more, *exact, *apart], hard_links) as collector:
        linked = [*exact, *apart] if hard_links is HardLinks.SUBTREE else exact
        assert [row.path for row in collector.rows()] == [name.path for name in linked]


def test_tree_order_is_that_of_names() -> None:
    """`a/b` comes before `a-`, though `-` sorts before `/`."""
    expected = [b"a", b"a/b", b"a/b/c", b"a\x01", b"a-", b"a.b/c"]
    with collected([Name(LOOK, path, 1) for path in sorted(expected)], HardLinks.ALL) as collector:
        assert [row.path for row in collector.rows()] == expected
