"""Patterns against a second, slower way to say the same: one regular expression over the whole path."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.errors import UsageError
from mkmeta.pattern import NOWHERE, Patterns

CASES = [
    # pattern, paths it matches, paths it does not
    (b"a", [b"a"], [b"b", b"a/b", b"aa"]),
    (b"a/b", [b"a/b"], [b"a", b"b", b"a/b/c"]),
    (b"./a//b/", [b"a/b"], [b"a"]),
    (b"*", [b"a", b".hidden", b"\xff"], [b"a/b"]),
    (b".", [b"a", b".hidden"], [b"a/b"]),
    (b"v*", [b"v", b"v1.2"], [b"av"]),
    (b"?", [b"a", "é".encode(), b"\xff"], [b"ab", b""]),
    (b"[a-c]1", [b"a1", b"c1"], [b"d1"]),
    (b"[!a]1", [b"b1"], [b"a1"]),
    (rb"\*", [b"*"], [b"a"]),
    (rb"a\?b*", [b"a?b", b"a?bc"], [b"axb"]),
    (b"[*]", [b"*"], [b"a"]),
    (b"**", [b"a", b"a/b/c"], []),
    (b"**/x", [b"x", b"a/x", b"a/b/x", b"x/x"], [b"x/a"]),
    (b"a/**", [b"a", b"a/b", b"a/b/c"], [b"b"]),
    (b"a/**/b", [b"a/b", b"a/x/b", b"a/x/y/b"], [b"a", b"b"]),
    (b"**/**/x", [b"x", b"a/x"], [b"a"]),
    (b"grp/*/v*/lib", [b"grp/x/v1/lib"], [b"grp/x/lib", b"grp/x/y/v1/lib"]),
    (b"tools/**/python", [b"tools/python", b"tools/a/b/python"], [b"python"]),
]


def matches(pattern: bytes, path: bytes) -> bool:
    """Whether a walk along `path` ends in a match."""
    patterns = Patterns([pattern])
    state = patterns.start()
    matched: list[int] = []
    for name in path.split(b"/"):
        state, matched = patterns.advance(state, name)
    return bool(matched)


@pytest.mark.parametrize(("pattern", "good", "bad"), CASES)
def test_pattern_matches(pattern: bytes, good: list[bytes], bad: list[bytes]) -> None:
    assert [path for path in good if not matches(pattern, path)] == []
    assert [path for path in bad if matches(pattern, path)] == []


COMPONENTS = st.sampled_from([b"a", b"b", b"ab", b"*", b"?", b"a*", b"**"])


@given(
    st.lists(COMPONENTS, min_size=1, max_size=5), st.lists(st.sampled_from([b"a", b"b", b"ab"]), min_size=1, max_size=6)
)
def test_walk_agrees_with_regular_expression(components: list[bytes], names: list[bytes]) -> None:
    expression = "".join(
        "(?:[^/]+/)*"
        if component == b"**"
        else re.escape(component.decode()).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + "/"
        for component in components
    )
    if components[-1] == b"**":
        expression += "(?:[^/]+/)?"
    expected = re.fullmatch(expression, b"/".join(names).decode() + "/") is not None
    assert matches(b"/".join(components), b"/".join(names)) == expected


@given(
    st.lists(st.lists(COMPONENTS, min_size=1, max_size=4).map(b"/".join), max_size=4),
    st.lists(st.sampled_from([b"a", b"b", b"ab"]), max_size=5),
)
def test_first_match_is_the_first_of_the_way(sources: list[bytes], names: list[bytes]) -> None:
    expected = None
    for depth in range(len(names), 0, -1):
        above = b"/".join(names[:depth])
        if found := tuple(source for source in sources if matches(source, above)):
            expected = (above, found)
    assert Patterns(sources).first_match(b"/".join(names)) == expected


def test_state_is_empty_where_nothing_can_match() -> None:
    patterns = Patterns([b"grp/*/lib", b"tools/**/python"])
    assert patterns.advance(patterns.start(), b"home") == (NOWHERE, [])
    below, _ = patterns.advance(patterns.start(), b"grp")
    assert below and patterns.advance(patterns.advance(below, b"x")[0], b"bin") == (NOWHERE, [])


def test_plain_names_need_no_listing() -> None:
    patterns = Patterns([b"grp/a/lib", b"tools/x"])
    assert patterns.names(patterns.start()) == {b"grp", b"tools"}
    assert Patterns([b"grp/a", b"*/b"]).names(Patterns([b"grp/a", b"*/b"]).start()) is None


def test_many_stars_are_not_exponential() -> None:
    assert not matches(b"/".join([b"**", b"a"] * 20), b"/".join([b"a"] * 19 + [b"b"]))


@pytest.mark.parametrize("pattern", [b"/mnt/sw/grp", b"a/../b", b"..", b"a\0b"])
def test_impossible_patterns_are_refused(pattern: bytes) -> None:
    with pytest.raises(UsageError):
        Patterns([pattern])
