"""Patterns against a second, slower way to say the same, and those for one name against find(1)."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.cli.pattern_file import parse_patterns
from mkmeta.errors import UsageError
from mkmeta.pattern import NOWHERE, Patterns, check_pattern, literal, remark

CASES = [
    # pattern, paths it matches, paths it does not
    (b"a", [b"a"], [b"b", b"a/b", b"aa"]),
    (b"a/b", [b"a/b"], [b"a", b"b", b"a/b/c"]),
    (b"./a//b", [b"a/b"], [b"a"]),
    (rb"a\/b", [b"a/b"], [b"a"]),
    (b"a*b*c", [b"abc", b"axbxc", b"abcbc"], [b"acb", b"ab"]),
    (b"a**b", [b"ab", b"axxb"], [b"a/b"]),
    (b"[!a]", [b"\n", b"\xff", "\u00e9".encode()], [b"a"]),
    (b"[\xfe-\xff]", [b"\xff"], [b"\xfd"]),
    (b"[[:alpha:]]", [b"a", b"Z"], [b"1", "\u00e9".encode()]),
    ("[\u00e0-\u00ff]".encode(), ["\u00e9".encode()], [b"e"]),
    (b"[]-]x", [b"]x", b"-x"], [b"ax"]),
    (b"{a,b}", [b"{a,b}"], [b"a"]),
    (b"[ab", [b"[ab"], [b"a"]),
    (b"[[:nothing:]]", [], [b"a", b"n", b":"]),
    (b"[z-a]", [], [b"a", b"z", b"-"]),
    (b"[!z-a]", [b"a"], []),
    (b"a\\", [b"a\\"], [b"a"]),
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
    assert Patterns(sources).first_match(b"/".join(names), is_directory=True) == expected


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


@pytest.mark.parametrize("pattern", [b"/mnt/sw/grp", b"a/../b", b"..", rb"a/\.\./b", b"a\0b", b"a" * 70_000])
def test_impossible_patterns_are_refused(pattern: bytes) -> None:
    with pytest.raises(UsageError):
        Patterns([pattern])


def test_many_wildcards_in_a_name_are_not_exponential() -> None:
    assert not matches(b"*a" * 100, b"a" * 250 + b"b")
    assert not matches(b"?*" * 50 + b"c", b"a" * 255)


@pytest.mark.parametrize("pattern", [b"a/", b"*/", b"a//", b"**/", b"a/.", rb"a\/"])
def test_a_slash_at_the_end_is_for_directories(pattern: bytes) -> None:
    patterns = Patterns([pattern, b"a"])
    _, matched = patterns.advance(patterns.start(), b"a")
    assert patterns.fitting(matched, is_directory=True) == [0, 1]
    assert patterns.fitting(matched, is_directory=False) == [1]
    below = Patterns([pattern]).first_match(b"a/b", is_directory=False)
    assert below and below.path == b"a"


NAMES = [
    *("abmz-][\\!^*?.:1_ \t\n09~A\x7fé"),
    *("a]b", "[a]", "v1", "v2", "vx", "v:]", "{a,b}", "trail ", " lead", "x y", "#x", ".a", "AB", "éx", "a-c", "a\\b"),
    *("\\a", "a*b", "--", "a\nb", "!a", "^a", "]]", "[[", ":]", "d:"),
]
PATTERNS = [
    *(
        r"[\!a]",
        r"[a\-z]",
        r"[a\]b]",
        r"[\*]",
        r"[a\*]",
        r"[\[]",
        r"[\]a]",
        r"[\\]",
        r"[\^a]",
        "[^a]",
        "[!a]",
        "[^!]",
        "[!^]",
    ),
    *(
        "[]a]",
        "[!]a]",
        "[^]a]",
        "[a-]",
        "[-a]",
        "[!-]",
        "[--a]",
        "[*--]",
        "[a-c]",
        "[!a-y]",
        "[a-cx-z]",
        "[a-c-e]",
        "[]-a]",
    ),
    *(
        "[[:digit:]]",
        "[![:digit:]]",
        "[[:alpha:][:digit:]]*",
        "v[[:digit:]]",
        "[[:upper:]]",
        "[[:lower:]]",
        "[[:space:]]",
    ),
    *(
        "[[:blank:]]",
        "[[:punct:]]",
        "[[:xdigit:]]",
        "[[:cntrl:]]",
        "[[:graph:]]",
        "[[:print:]]",
        "[[:alnum:]]",
        "[[=a=]]",
    ),
    *(
        "[[.a.]]",
        "[[.-.]]",
        "[[.a.]-c]",
        "v[[:]]",
        "[[:]",
        "[[a]",
        "[a[]",
        "[[]",
        "[]]",
        "[[]a[]]",
        "[.]*",
        "[a:]",
        "[:d]*",
    ),
    *(
        "*",
        "?",
        "??",
        "a*",
        "*a",
        "a?b",
        "*]",
        "*[]]",
        r"\*",
        r"\?",
        r"\[",
        r"\a",
        r"\\",
        r"\\*",
        r"a\*b",
        r"?\\?",
        "a**b",
        "***",
    ),
    *(
        "[",
        "[a",
        "a[",
        "[!",
        "[]",
        "[^]",
        "[!]",
        "*[",
        "[a-",
        "{a,b}",
        "{*}",
        "!*",
        "^*",
        "[!!]",
        "[^^]",
        "[!-z]",
        r"[\a-\c]",
    ),
]


def found(directory: Path, pattern: str) -> list[str]:
    """What find(1) says, whose -name is fnmatch(3)."""
    done = subprocess.run(
        ["find", str(directory), "-mindepth", "1", "-maxdepth", "1", "-name", pattern, "-printf", r"%f\0"],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    return sorted(done.stdout.decode().split("\0")[:-1])


def test_find_says_the_same(tmp_path: Path) -> None:
    chance = random.Random(1)
    names = set(NAMES) - {".", "/"}
    names |= {"".join(chance.choices("ab-]![^\\*:", k=chance.randint(1, 4))) for _ in range(150)}
    for name in names:
        (tmp_path / name).touch()
    alphabet = ["a", "b", "c", "-", "]", "[", "!", "^", "\\", "*", "?", "[:digit:]", "[a-c]", ":", r"\]"]
    patterns = [*PATTERNS, *("".join(chance.choices(alphabet, k=chance.randint(1, 7))) for _ in range(250))]
    different = []
    for pattern in patterns:
        if pattern in (".", "..") or (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            continue  # a backslash at the end matches nothing for find, and stands for itself here
        # Classes are ASCII here; for find, `??` is one character of two bytes as well
        asked = {name for name in names if name.isascii() or not re.search(r"\[:|\?", pattern)}
        ours = {name for name in asked if matches(pattern.encode(), name.encode())}
        theirs = asked.intersection(found(tmp_path, pattern))
        if ours != theirs:
            different.append((pattern, ours - theirs, theirs - ours))
    assert different == []


NAME = st.text(st.sampled_from("ab]-![^\\*?é"), min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))


@given(NAME)
def test_any_name_can_be_written(name: str) -> None:
    escaped = "".join("\\" + char for char in name).encode()
    assert matches(escaped, name.encode()) and literal(escaped) == name.encode()
    check_pattern(escaped, lambda _path: False)


DOUBTFUL = [
    (b"{a,b}", "has braces, {a,b}", rb"\{a,b}"),
    (b"grp/{a,b}/lib", "has braces", None),
    (b"grp/v{1..3}", "has braces", rb"grp/v\{1..3}"),
    (b"x{a/b,c}", "has braces", None),
    (b"[ab", "has a [ without a ]", rb"\[ab"),
    (b"[a/b]", "has a [ without a ]", rb"\[a/b]"),
    (b"[[:number:]]", "has an unknown class, [:number:]", b"[[:digit:]]"),
    (b"[[.hyphen.]]", "has [.hyphen.]", b"[-]"),
    (b"[z-a]", "has a range without characters, z-a", b"[a-z]"),
    (b"a\\", "ends with a \\", rb"a\\"),
    (b"!a", "begins with !", rb"\!a"),
]


@pytest.mark.parametrize(("pattern", "what", "instead"), DOUBTFUL)
def test_what_is_probably_not_meant_is_refused(pattern: bytes, what: str, instead: bytes | None) -> None:
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        check_pattern(pattern, lambda _path: False)
    assert caught.value.hint
    if instead is not None:
        check_pattern(instead, lambda _path: False)
    if (name := literal(pattern)) is not None:  # somebody has a file of that name
        check_pattern(pattern, lambda path: path == name)


@pytest.mark.parametrize(
    "pattern", [b"[", b"!", b"{}", b"{a}", b"{", b"a}", b"[{,}]", rb"\{a,b}", b"[!a]", b"a,b", b"x!"]
)
def test_what_looks_odd_and_is_meant(pattern: bytes) -> None:
    check_pattern(pattern, lambda path: path == b"[")


def test_a_pattern_that_begins_with_the_root() -> None:
    with pytest.raises(UsageError) as caught:
        check_pattern(b"/mnt/sw/grp/*", lambda _path: False, root=b"/mnt/sw")
    assert caught.value.hint == "write 'grp/*'"


def test_why_a_pattern_may_have_matched_nothing() -> None:
    assert "'**/*.pyc' matches at any depth" in str(remark(b"*.pyc"))
    assert "'**/build/' matches at any depth" in str(remark(b"build/"))
    assert "directories alone" in str(remark(b"**/build/"))
    assert remark(b"a/b") is None


FILE = [
    (b"a\nb\n", [b"a", b"b"]),
    (b"a\r\n\r\n b\t", [b"a", b"b"]),
    (b"# no\n\\#x\r\n   # no\n", [rb"\#x"]),
    (b"trail\\ \n", [b"trail\\ "]),
    (b"trail\\  \n", [b"trail\\ "]),
    (b"trail\\\\ \n", [rb"trail\\"]),
    (b"trail\\ \r\n", [b"trail\\ "]),
    (b"\\ lead", [b"\\ lead"]),
    (b"\xef\xbb\xbfa\n", [b"a"]),
    (b"\n \n", []),
    (b"a\\\n", [b"a\\"]),
]


@pytest.mark.parametrize(("content", "patterns"), FILE)
def test_files_with_patterns(content: bytes, patterns: list[bytes]) -> None:
    assert parse_patterns(content) == patterns
