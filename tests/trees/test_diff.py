"""Differences, applied to one side, make the other; between manifests, and between manifests and layers."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.errors import FormatError, UsageError
from mkmeta.manifest.cursor import Page
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory, DirectoryKind, Entry, LinkRow, Node, PrimaryRow, Root
from mkmeta.trees.diff import HARD_LINKS, Difference, Tree, diff
from mkmeta.trees.layer_tree import LayerTree
from tests.layer.layers import build_layer, open_reader, with_plan
from tests.layer.manifests import manifest_from
from tests.property.test_manifests import CASES, Drawn, slow_to_draw, written
from tests.scanner.helpers import make_sample, scan_tree
from tests.trees.test_merge import VECTORS, M, O, X, Y, d
from tests.trees.volumes import Volume, recorded, selections, volumes, without_contents
from tests.vectors.trees import INFO, encode_directory

Flat = tuple[dict[bytes, object], dict[bytes, PrimaryRow | LinkRow]]
Pair = tuple[tuple[Volume, frozenset[bytes]], tuple[Volume, frozenset[bytes]]]
volume_pairs: st.SearchStrategy[Pair] = st.tuples(volumes(), volumes()).flatmap(
    lambda pair: st.tuples(*[st.tuples(st.just(volume), selections(volume)) for volume in pair])
)


def flat(side: Tree) -> Flat:
    """All of a tree by path, and its hard links."""
    nodes: dict[bytes, object] = {}
    stack: list[tuple[bytes, Node | None]] = [(b"", side.find(b""))]
    while stack:
        path, node = stack.pop()
        nodes[path] = without_contents(node)
        if isinstance(node, Directory):
            prefix = path + b"/" if path else b""
            stack += [(prefix + name, below) for name, below in side.entries(node, path)]
    return nodes, {row.path: row for row in side.links()}


def applied(side: Tree, differences: list[Difference]) -> Flat:
    """A tree after the differences, all of them, were applied to it."""
    nodes, rows = flat(side)
    for difference in differences:
        path = difference.path
        assert nodes.get(path) == without_contents(difference.before)
        if difference.after is None:
            del nodes[path]
        else:
            nodes[path] = without_contents(difference.after)
        if difference.row_before is not None:
            assert rows.pop(path) == difference.row_before
        if difference.row_after is not None:
            rows[path] = difference.row_after
    return nodes, rows


def check_differences(one: Tree, other: Tree) -> None:
    """Everything there is to say about the differences of two trees."""
    differences = list(diff(one, other, everything=True))
    assert applied(one, differences) == flat(other)
    keys = [difference.path.replace(b"/", b"\0") for difference in differences]
    assert keys == sorted(set(keys))
    for difference in differences:
        assert difference.before is not None or difference.after is not None
        assert bool(difference.changes) == (difference.before is not None and difference.after is not None)
    # without `everything`: the same, but for what is inside of what was added or removed
    nodes = {difference.path: difference for difference in diff(one, other)}
    tops = {
        path + b"/"
        for path, difference in nodes.items()
        if isinstance(difference.before, Directory) != isinstance(difference.after, Directory)
    }
    inside = [item for item in differences if any(item.path.startswith(top) for top in tops)]
    assert list(nodes.values()) == [item for item in differences if item not in inside]
    back = {item.path: (item.after, item.before, item.changes) for item in diff(other, one)}
    assert back == {path: (item.before, item.after, item.changes) for path, item in nodes.items()}


@given(volume_pairs)
def test_a_diff_applied_is_the_other_tree(pair: Pair) -> None:
    manifests = [recorded(volume, chosen) for volume, chosen in pair]
    with open_reader(manifests[0]) as one, open_reader(manifests[1]) as other:
        check_differences(one, other)
        assert (one.id == other.id) == (not list(diff(one, other)))


@slow_to_draw
@given(CASES, CASES)
def test_whatever_a_manifest_can_hold(one: Drawn, other: Drawn) -> None:
    with open_reader(written(one[1], one[0])) as a:
        with open_reader(written(other[1], other[0])) as b:
            if a.root.digests == b.root.digests:  # else contents are not compared
                check_differences(a, b)
        with open_reader(written(one[1], one[0], facts=True)) as twin:
            assert list(diff(a, twin, everything=True)) == []


@given(volume_pairs, st.data())
def test_a_part_of_a_diff(pair: Pair, data: st.DataObject) -> None:
    manifests = [recorded(volume, chosen) for volume, chosen in pair]
    with open_reader(manifests[0]) as one, open_reader(manifests[1]) as other:
        everything = list(diff(one, other, everything=True))
        top = data.draw(st.sampled_from(sorted(flat(one)[0].keys() | flat(other)[0].keys())))
        inside = [item for item in everything if not top or item.path == top or item.path.startswith(top + b"/")]
        assert list(diff(one, other, top, everything=True)) == inside
        with pytest.raises(KeyError):
            diff(one, other, b"no/such")


CHANGES = [
    ("mode", {"mode": 0o100600}, ["mode"]),
    ("owner", {"gid": 5}, ["owner"]),
    ("mtime", {"mtime_ns": 1}, ["mtime"]),
    ("size", {"size": 9}, ["size"]),
    ("xattrs", {"xattrs": ((b"user.a", b"1"),)}, ["xattrs"]),
    ("all", {"mode": 0o100600, "uid": 1, "mtime_ns": 0, "size": 0, "xattrs": ((b"user.a", b""),)},
     ["mode", "owner", "mtime", "size", "xattrs"]),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "changes"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_what_changed(fields: dict[str, object], changes: list[str]) -> None:
    before, after = d(M, d=d(O, x=X)), d(M, d=d(O, x=dataclasses.replace(X, **fields)))  # type: ignore[arg-type]
    with open_reader(manifest_from(before)) as one, open_reader(manifest_from(after)) as other:
        assert [(item.path, item.changes) for item in diff(one, other)] == [(b"d/x", changes)]


def test_kind_type_and_links() -> None:
    before, after = d(M, d=d(M, x=X, y=X), t=X), d(M, d=d(O, x=X, y=X), t=d(O, x=Y))
    with (
        open_reader(manifest_from(before)) as one,
        open_reader(manifest_from(after, links={b"d/y": b"d/x"})) as other,
    ):
        found = [(item.path, item.changes) for item in diff(one, other)]
        assert found == [(b"d", ["kind"]), (b"d/x", [HARD_LINKS]), (b"d/y", [HARD_LINKS]), (b"t", ["type"])]


def test_only_directories_that_differ_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    many: dict[str, Any] = {f"d{number:03}": d(O, x=X, e=d(O, y=Y)) for number in range(200)}
    changed = {**many, "d100": d(O, x=X, e=d(O, y=X))}
    opened = []
    original = ManifestReader.page_bytes

    def page_bytes(self: ManifestReader, page: Page, path: bytes) -> bytes:
        opened.append(page.id)
        return original(self, page, path)

    monkeypatch.setattr(ManifestReader, "page_bytes", page_bytes)
    with open_reader(manifest_from(d(M, **many))) as one, open_reader(manifest_from(d(M, **changed))) as other:
        assert [item.path for item in diff(one, other)] == [b"d100/e/y"]
    assert len(opened) == 2 * 3  # the root, d100, d100/e


def test_only_pages_that_differ_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of many pages, in one of which an entry is another, and in one of which there is one more."""
    names = [f"{number:05}" + "f" * 80 for number in range(20_000)]
    tree = dict[str, Any].fromkeys(names, X)
    changed = {**tree, names[9000]: Y, names[17_000] + "x": X}
    with open_reader(manifest_from(d(M, big=d(O, **tree)))) as one:
        big = one.find(b"big")
        assert isinstance(big, Directory)
        pages = len(one.pages(big, b"big"))
        assert pages > 6
        with open_reader(manifest_from(d(M, big=d(O, **changed)))) as other:
            found = [(item.path, bool(item.changes)) for item in diff(one, other)]
            assert found == [(b"big/" + names[9000].encode(), True), (b"big/" + names[17_000].encode() + b"x", False)]
            opened: set[ObjectId] = set()
            original = ManifestReader.page_bytes

            def page_bytes(self: ManifestReader, page: Page, path: bytes) -> bytes:
                opened.add(page.id)
                return original(self, page, path)

            monkeypatch.setattr(ManifestReader, "page_bytes", page_bytes)
            assert list(diff(other, one)) != []
    assert len(opened) < 2 * pages


def test_equal_link_pages_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{number:05}" + "f" * 80 for number in range(4500)]
    links = {name.encode(): names[0].encode() for name in names[1:]}
    tree = d(M, **dict[str, Any].fromkeys(names, X))
    with (
        open_reader(manifest_from(tree, links=links)) as one,
        open_reader(manifest_from(tree, links=dict(list(links.items())[:-1]))) as other,
    ):
        read = []
        original = ManifestReader.links

        def rows(self: ManifestReader, **how: Any) -> Iterator[PrimaryRow | LinkRow]:
            read.append(how)
            return original(self, **how)

        monkeypatch.setattr(ManifestReader, "links", rows)
        assert [item.path for item in diff(one, other)] == [names[0].encode(), names[-1].encode()]
        assert read[0] == {"skip": frozenset(range(1, len(one.link_pages()) - 1))}
        assert len(one.link_pages()) > 2


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.needs("user xattrs")
def test_a_layer_is_what_is_on_disk(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    manifest = scan_tree(volume, "grp/a", "grp/b/*", "top").path.read_bytes()
    build_layer(manifest, tmp_path / "layer", with_plan(userxattr=True))
    layer = tmp_path / "layer"
    with open_reader(manifest) as one, LayerTree(os.fsencode(layer)) as other:
        assert list(diff(one, other, everything=True)) == []
        lib = layer / "grp/a/v1/lib"
        (lib / "one.py").chmod(0o600)
        (lib / "nothing").unlink()
        (lib / "added").symlink_to("x")
        os.setxattr(lib / "huge", "user.note", b"1")
        (lib / "link").unlink()
        (lib / "link").symlink_to("elsewhere")
        os.setxattr(layer / "grp/b/v1", "user.overlay.opaque", b"x")
        os.setxattr(layer / "grp/a/v2/lib/more", "user.overlay.metacopy", bytes(36))
        (layer / "grp/b/v1/lib/same").unlink()
        found = {item.path: item.changes for item in diff(one, other)}
        assert applied(one, list(diff(one, other, everything=True)))[1] == flat(other)[1]
    found[b"grp/a/v1/lib/link"].remove("mtime")
    assert found.pop(b"grp/a/v1/lib") == found.pop(b"grp/b/v1/lib") == ["mtime"]
    assert found == {
        b"grp/a/v1/lib/added": [],
        b"grp/a/v1/lib/huge": ["xattrs"],
        b"grp/a/v1/lib/link": ["target"],
        b"grp/a/v1/lib/nothing": [],
        b"grp/a/v1/lib/one.py": ["mode"],
        b"grp/a/v1/lib/same": ["mode"],
        b"grp/a/v2/lib/more": ["content"],
        b"grp/b/v1": ["kind"],
        b"grp/b/v1/lib/same": [],
    }


@pytest.mark.needs("user xattrs")
def test_two_layers(tmp_path: Path) -> None:
    for name, tree in (("one", d(M, d=d(O, x=X), e=d(O, y=Y))), ("two", d(M, d=d(O, x=Y)))):
        build_layer(manifest_from(tree), tmp_path / name, with_plan(userxattr=True))
    open_before = set(os.listdir("/proc/self/fd"))
    with LayerTree(os.fsencode(tmp_path / "one")) as one, LayerTree(os.fsencode(tmp_path / "two")) as other:
        assert [one.find(path) is None for path in (b"d/x", b"d/nothing", b"d/x/below", b"e")] == [
            False,
            True,
            True,
            False,
        ]
        assert [(item.path, item.changes) for item in diff(one, other)] == [(b"d/x", ["size"]), (b"e", [])]
    assert set(os.listdir("/proc/self/fd")) <= open_before


def test_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layer"):
        LayerTree(os.fsencode(tmp_path))


# --- hostile ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(path.stem for path in (VECTORS / "reject").glob("*.mkm")))
def test_hostile_manifests_are_refused_or_compared(case: str) -> None:
    """What is not opened is not checked: `show --check` is for that. Nothing else than FormatError is raised."""
    data = (VECTORS / "reject" / f"{case}.mkm").read_bytes()
    good = (VECTORS / "every-type" / "manifest.mkm").read_bytes()
    for pair in ((data, good), (good, data)):
        try:
            with open_reader(pair[0]) as one, open_reader(pair[1]) as other:
                for number, _ in enumerate(diff(one, other, everything=True)):
                    assert number < 1_000_000
        except FormatError as error:
            assert error.message


def test_an_encoding_that_is_not_the_one_is_refused() -> None:
    """Two objects of equal values and different bytes: one of them is not canonical."""

    def made(data: bytes) -> bytes:
        stream = io.BytesIO()
        with ManifestWriter(stream) as writer:
            children = writer.add(ObjectKind.DIRECTORY, data)
            top = Directory(
                mode=0o040755, uid=0, gid=0, mtime_ns=0, children=children, entries=1, kind=DirectoryKind.MERGE
            )
            writer.finish(Root(directory=top, links=None, digests=()), INFO, None)
        return stream.getvalue()

    data = encode_directory([Entry(b"x", X)])
    uid = data.index(b"\xcd\x81\xa4") + 3  # after the mode
    longer = data[:uid] + b"\xcc\x00" + data[uid + 1 :]
    with open_reader(made(data)) as one, open_reader(made(longer)) as other, pytest.raises(FormatError, match="canon"):
        list(diff(one, other))
