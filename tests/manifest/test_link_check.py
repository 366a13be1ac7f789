"""check_groups: against a model for random rows, and what it says of rows that do not add up."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import FormatError
from mkmeta.manifest import link_check
from mkmeta.manifest.link_check import check_groups
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import LinkRow, PrimaryRow

ALIKE = bytes(DIGEST_SIZE)  # everything recorded of every inode
PATHS = st.sampled_from([b"a", b"a/b", b"a-", b"a/b/c", b"b", b"a\x01"])
Row = tuple[int | bytes, bytes]  # what is said of a path: how many names, or the primary; and the digest
DIGESTS = st.sampled_from([ALIKE, b"\0/" * 16, b"x" * 32])


@st.composite
def rows_by_path(draw: st.DrawFn) -> dict[bytes, Row]:
    """Rows that add up, but for a change or two."""
    inodes: dict[int, list[bytes]] = {}
    for path in draw(st.lists(PATHS, unique=True)):
        inodes.setdefault(draw(st.integers(0, 1)), []).append(path)
    found: dict[bytes, Row] = {}
    for first, *others in inodes.values():
        if others:
            digest = draw(DIGESTS)
            found |= {first: (len(others) + 1, digest)} | dict.fromkeys(others, (first, digest))
    for path in draw(st.lists(PATHS, max_size=2)):
        said, digest = found.get(path, (2, ALIKE))
        found[path] = draw(st.tuples(st.just(said), DIGESTS) | st.tuples(st.integers(2, 4) | PATHS, st.just(digest)))
    return found


def adds_up(found: dict[bytes, Row]) -> bool:
    """What formats/manifest.md section 3.3 demands, less the order."""
    nlinks = {path: said for path, (said, _) in found.items() if isinstance(said, int)}
    links = {path: said for path, (said, _) in found.items() if isinstance(said, bytes)}
    names = Counter(links.values())
    return (
        all(said in nlinks for said in links.values())
        and all(found[path][1] == found[said][1] for path, said in links.items())
        and all(names[path] == nlink - 1 for path, nlink in nlinks.items())
    )


@given(rows_by_path())
def test_accepts_what_adds_up(found: dict[bytes, Row]) -> None:
    rows = [
        (PrimaryRow(path, said) if isinstance(said, int) else LinkRow(path, said), digest)
        for path, (said, digest) in found.items()
    ]
    with contextlib.nullcontext() if adds_up(found) else pytest.raises(FormatError, match=r"^links: "):
        check_groups(rows)


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sorter that spills every few rows."""
    monkeypatch.setattr(link_check, "ExternalSorter", lambda: ExternalSorter(memory_limit=1000))
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(b"a", 500), *(LinkRow(b"b/%03d" % n, b"a") for n in range(499))]
    check_groups((row, ALIKE) for row in rows)
    with pytest.raises(FormatError, match="fewer links"):
        check_groups((row, ALIKE) for row in rows[:-1])


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
