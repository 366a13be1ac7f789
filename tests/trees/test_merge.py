"""Merging: the laws, on made-up volumes and with the scanner, and a table of who wins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkmeta.errors import FormatError, MkmetaError, UsageError
from mkmeta.model import Counts, DigestName, Directory, DirectoryKind, HardLinks, PrimaryRow
from mkmeta.trees.merge import Conflict
from tests.layer.layers import open_reader
from tests.layer.manifests import manifest_from
from tests.scanner.helpers import make_sample, scan_tree
from tests.trees.volumes import (
    LEAVES,
    Volume,
    id_of,
    info_of,
    inodes_of,
    merged,
    paths_of,
    recorded,
    selections,
    tree_of,
    volumes,
)
from tests.vectors.trees import Tree, regular

VECTORS = Path(__file__).parents[2] / "formats" / "vectors"
COUNTED = Counts._fields[:6]
Case = tuple[Volume, list[frozenset[bytes]]]


def shards(count: int) -> st.SearchStrategy[Case]:
    return volumes().flatmap(
        lambda volume: st.tuples(st.just(volume), st.lists(selections(volume), min_size=count, max_size=count))
    )


# --- laws ---------------------------------------------------------------------------------------------------------


@given(shards(3), st.permutations(range(3)), st.sampled_from(HardLinks))
def test_it_is_a_scan_of_all_selections_in_any_order(case: Case, order: list[int], hard_links: HardLinks) -> None:
    volume, chosen = case
    parts = [recorded(volume, chosen[number], hard_links=hard_links) for number in order]
    expected = id_of(recorded(volume, frozenset().union(*chosen), hard_links=hard_links))
    assert id_of(merged(*parts)) == expected
    assert id_of(merged(merged(parts[0], parts[1]), parts[2])) == expected
    assert id_of(merged(parts[0], merged(parts[1], parts[2]))) == expected


@given(shards(1))
def test_a_manifest_and_itself_is_itself(case: Case) -> None:
    volume, (chosen,) = case
    for facts in (True, False):
        one = recorded(volume, chosen, facts=facts)
        again = recorded(volume, chosen, facts=facts, created=7)
        empty = recorded(Volume(dataclasses.replace(volume.tree, children={}), {}), (), facts=facts)
        assert id_of(merged(one)) == id_of(merged(one, again)) == id_of(one)
        assert id_of(merged(one, empty)) == id_of(merged(empty, one)) == id_of(one)


@given(shards(2))
def test_facts_are_those_of_the_parts(case: Case) -> None:
    volume, (one, other) = case
    with open_reader(merged(recorded(volume, one), recorded(volume, other))) as reader:
        stack = [(b"", reader.root.directory, reader.facts_place)]
        while stack:
            path, directory, place = stack.pop()
            assert place is not None
            for name, node, inode, _, nlink, below in reader.recorded(directory, path, place):
                at = path + b"/" + name if path else name
                if isinstance(node, Directory):
                    stack.append((at, node, below))
                else:
                    assert inode == volume.inodes[at]
                    assert nlink == list(volume.inodes.values()).count(inode)


@given(shards(2))
def test_without_facts_links_are_those_that_one_part_knows(case: Case) -> None:
    volume, (one, other) = case
    parts = [recorded(volume, one, facts=False), recorded(volume, other)]
    result, turned = merged(*parts), merged(*reversed(parts))
    assert id_of(result) == id_of(turned)
    with open_reader(result) as reader, open_reader(recorded(volume, one | other)) as both:
        assert reader.root.directory == both.root.directory
        known = {tuple(row) for row in both.links()}
        groups: dict[bytes, set[int]] = {}
        for row in reader.links():
            groups.setdefault(getattr(row, "target", row.path), set()).add(volume.inodes[row.path])
        assert all(len(inodes) == 1 for inodes in groups.values())
        if one <= other:  # which has facts of all of it
            assert {tuple(row) for row in reader.links()} == known


def changed(volume: Volume, path: bytes) -> Volume:
    """The volume with something else at a path, and its inode numbers made anew."""

    def replace(tree: Tree, names: list[bytes]) -> Tree:
        name, *rest = names
        child = tree.children.get(name)
        other: Any = LEAVES[1] if child != LEAVES[1] else Tree(children={b"a": LEAVES[0]})
        children = {**tree.children, name: replace(child, rest) if rest and isinstance(child, Tree) else other}
        return dataclasses.replace(tree, children=children)

    tree = replace(volume.tree, path.split(b"/"))
    return Volume(tree, inodes_of(tree, [False]))


@st.composite
def stale_shards(draw: st.DrawFn) -> list[bytes]:
    """Manifests of a volume that changes between the scans."""
    volume = draw(volumes())
    parts = []
    for _ in range(3):
        parts.append(recorded(volume, draw(selections(volume)), facts=draw(st.booleans())))
        volume = changed(volume, draw(st.sampled_from(paths_of(volume.tree))))
    return parts


@given(stale_shards())
def test_later_is_a_fold_that_hides_nothing(parts: list[bytes]) -> None:
    result = merged(*parts, conflict=Conflict.LATER)
    step = merged(merged(*parts[:2], conflict=Conflict.LATER), parts[2], conflict=Conflict.LATER)
    assert tree_of(step) == tree_of(result)
    here, last = tree_of(result), tree_of(parts[-1])
    opaque = DirectoryKind.OPAQUE
    inputs = [open_reader(part) for part in parts]
    with open_reader(result) as reader:
        for path, node in reader.walk():
            if isinstance(node, Directory) and node.kind is opaque:
                assert node in [other.find(path) for other in inputs]  # one scan saw all of it, and nothing else
    for other in inputs:
        other.close()
    for path, other_node in last.items():
        mine: Any = here[path]  # all that the last one has is there
        assert mine == other_node or dataclasses.replace(mine, kind=DirectoryKind.MERGE) == other_node


@given(stale_shards())
def test_what_is_not_refused_agrees(parts: list[bytes]) -> None:
    try:
        result = merged(*parts)
    except MkmetaError as error:
        assert error.path is not None and error.hint
        return
    here = tree_of(result)
    for part in parts:
        for path, node in tree_of(part).items():
            mine: Any = here[path]
            assert mine == node or dataclasses.replace(mine, kind=DirectoryKind.MERGE) == node
    assert id_of(result) == id_of(merged(*reversed(parts)))


@settings(max_examples=10)
@given(case=shards(2))
def test_it_is_what_the_scanner_would_have_recorded(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    volume, chosen = case
    root = tmp_path_factory.mktemp("merge") / "volume"
    make_real(root, volume)
    parts = [scan_tree(root, *map(bytes.decode, sorted(paths))).path.read_bytes() for paths in chosen]
    both = scan_tree(root, *map(bytes.decode, sorted(chosen[0] | chosen[1])))
    assert id_of(merged(*parts)).hex() == both.id
    counts = info_of(both.path.read_bytes()).counts
    assert {name: info_of(merged(*parts)).counts[name] for name in COUNTED} == {name: counts[name] for name in COUNTED}


def make_real(root: Path, volume: Volume) -> None:
    """The volume on disk, with files in place of everything that is no directory."""
    root.mkdir()
    first: dict[int, Path] = {}
    for path in paths_of(volume.tree):
        real = root / path.decode()
        if path not in volume.inodes:
            real.mkdir()
        elif volume.inodes[path] in first:
            real.hardlink_to(first[volume.inodes[path]])
        else:
            real.write_bytes(b"%d" % volume.inodes[path])
            first[volume.inodes[path]] = real


def test_one_of_everything(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    parts = [
        scan_tree(volume, *select).path.read_bytes()
        for select in (["grp/a/*/lib", "top"], ["grp/b"], ["grp/*/v1", "tools/**/python"])
    ]
    together = scan_tree(volume, "grp/a/*/lib", "top", "grp/b", "grp/*/v1", "tools/**/python")
    assert id_of(merged(*parts)).hex() == together.id
    info = info_of(merged(*parts))
    assert info.select == (b"grp/a/*/lib", b"top", b"grp/b", b"grp/*/v1", b"tools/**/python")
    assert info.created == min(info_of(part).created for part in parts)


# --- the table ----------------------------------------------------------------------------------------------------

M, O = DirectoryKind.MERGE, DirectoryKind.OPAQUE  # noqa: E741
X, Y = regular(1), regular(2)


def d(kind: DirectoryKind, mode: int = 0o040755, /, **children: Any) -> Tree:
    return Tree(kind=kind, mode=mode, children={name.encode(): child for name, child in children.items()})


TABLE: list[tuple[str, Any, Any, Any, Any]] = [
    # what, at `p` in A, at `p` in B, merged (None: refused), with Conflict.LATER
    ("equal files", X, X, X, X),
    ("files", X, Y, None, Y),
    ("file, directory", X, d(O, x=X), None, d(O, x=X)),
    ("file, skeleton", X, d(M, x=X), None, d(M, x=X)),
    ("directory, file", d(O, x=X), Y, None, Y),
    ("skeletons", d(M, x=X), d(M, y=Y), d(M, x=X, y=Y), d(M, x=X, y=Y)),
    ("skeletons, modes", d(M, x=X), d(M, 0o040700, x=X), None, d(M, 0o040700, x=X)),
    ("skeletons, files", d(M, x=X, z=X), d(M, x=Y), None, d(M, x=Y, z=X)),
    ("equal", d(O, x=X), d(O, x=X), d(O, x=X), d(O, x=X)),
    ("opaque, other names", d(O, x=X), d(O, y=Y), None, d(O, y=Y)),
    ("opaque, fewer names", d(O, x=X, y=Y), d(O, x=X), None, d(O, x=X)),
    ("opaque, modes", d(O, x=X), d(O, 0o040700, x=X), None, d(O, 0o040700, x=X)),
    ("within", d(M, x=X), d(O, x=X, y=Y), d(O, x=X, y=Y), d(O, x=X, y=Y)),
    ("holds", d(O, x=X, y=Y), d(M, x=X), d(O, x=X, y=Y), d(O, x=X, y=Y)),
    ("one more", d(M, x=X, z=X), d(O, x=X), None, d(O, x=X)),
    ("one more, later", d(O, x=X), d(M, x=X, z=X), None, d(M, x=X, z=X)),
    ("one differs, later", d(O, x=X, y=Y), d(M, x=Y), None, d(M, x=Y, y=Y)),
    ("mode differs, later", d(O, x=X), d(M, 0o040700, x=X), None, d(M, 0o040700, x=X)),
    ("deep, holds", d(O, e=d(O, x=X, y=X)), d(M, e=d(M, x=X)), d(O, e=d(O, x=X, y=X)), d(O, e=d(O, x=X, y=X))),
    (
        "deep, later",
        d(O, e=d(O, x=X), f=d(O, x=X)),
        d(M, e=d(M, y=Y)),
        None,
        d(M, e=d(M, x=X, y=Y), f=d(O, x=X)),
    ),
    ("skeleton in a directory", d(O, x=X), d(M, e=d(M, y=Y)), None, d(M, x=X, e=d(M, y=Y))),
    ("empty directory", d(O), d(M, x=X), None, d(M, x=X)),
    ("empty directories", d(O), d(O), d(O), d(O)),
]


@pytest.mark.parametrize(("one", "other", "agreed", "later"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_table(one: Any, other: Any, agreed: Any, later: Any) -> None:
    a, b = (manifest_from(d(M, p=node)) for node in (one, other))
    if agreed is None:
        with pytest.raises(MkmetaError) as error:
            merged(a, b)
        assert error.value.path is not None and error.value.path.startswith(b"p")
    else:
        assert id_of(merged(a, b)) == id_of(manifest_from(d(M, p=agreed)))
    assert id_of(merged(a, b, conflict=Conflict.LATER)) == id_of(manifest_from(d(M, p=later)))


def test_a_file_in_between_drops_what_was_before() -> None:
    parts = [manifest_from(d(M, p=node)) for node in (d(O, x=X), Y, d(M, y=Y))]
    assert id_of(merged(*parts, conflict=Conflict.LATER)) == id_of(manifest_from(d(M, p=d(M, y=Y))))


def test_what_comes_again_overrides_what_is_between() -> None:
    one, other = (manifest_from(d(M, p=node)) for node in (X, Y))
    assert id_of(merged(one, other, one, conflict=Conflict.LATER)) == id_of(one)
    parts = [manifest_from(d(M, p=node)) for node in (d(M, x=X), d(M, x=Y, z=Y), d(M, x=X))]
    assert id_of(merged(*parts, conflict=Conflict.LATER)) == id_of(manifest_from(d(M, p=d(M, x=X, z=Y))))


def test_the_root_is_compared_too() -> None:
    with pytest.raises(MkmetaError, match="mode"):
        merged(manifest_from(d(M, x=X)), manifest_from(d(M, 0o040700, y=Y)))


# --- links --------------------------------------------------------------------------------------------------------


def volume_of(inodes: dict[bytes, int], **children: Any) -> Volume:
    return Volume(d(O, **children), inodes)


def test_one_inode_number_seen_in_two_states_is_no_link() -> None:
    before = volume_of({b"x": 1, b"y": 1}, x=X, y=X)
    after = volume_of({b"x": 1, b"y": 1}, x=Y, y=Y)
    parts = recorded(before, [b"x"]), recorded(after, [b"y"])
    for conflict in Conflict:
        assert link_names(merged(*parts, conflict=conflict)) == []


def test_without_facts_names_are_one_where_an_input_says_so() -> None:
    volume = volume_of(dict.fromkeys((b"w", b"x", b"y", b"z"), 1), w=X, x=X, y=X, z=X)
    parts = [recorded(volume, chosen, facts=False) for chosen in ([b"w", b"x"], [b"y", b"z"], [b"x", b"y"])]
    assert len(link_names(merged(*parts[:2]))) == 4
    with open_reader(merged(*parts[:2])) as reader:
        assert sum(isinstance(row, PrimaryRow) for row in reader.links()) == 2
    assert id_of(merged(*parts)) == id_of(merged(*reversed(parts)))
    assert id_of(merged(*parts)) != id_of(recorded(volume, [b"w", b"x", b"y", b"z"])), "in doubt, apart"


def link_names(manifest: bytes) -> list[bytes]:
    with open_reader(manifest) as reader:
        return [row.path for row in reader.links()]


# --- what else is in a manifest -----------------------------------------------------------------------------------


def test_what_one_recorded_is_not_left_out() -> None:
    volume = volume_of({b"x/f": 1, b"y": 2, b"z/f": 3}, x=d(O, f=X), y=Y, z=d(O, f=X))
    out = ((b"x", "one"), (b"x/f", "two"), (b"y", "three"), (b"z", "four"), (b"zz", "five"))
    one = recorded(volume, [b"z/f"], left_out=out)
    other = recorded(volume, [b"x", b"y"])
    assert info_of(merged(one, other)).left_out == ((b"z", "four"), (b"zz", "five"))


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"root": b"/other"}, "is of /other, 1.mkm of /mnt/sw"),
        ({"hide": (b"x",)}, "--hide"),
        ({"drop_xattrs": (b"*",)}, "--drop-xattr"),
    ],
)
def test_other_volumes_are_refused(info: dict[str, Any], problem: str) -> None:
    volume = volume_of({b"x": 1, b"y": 2}, x=X, y=Y)
    parts = recorded(volume, [b"x"]), recorded(volume, [b"y"], **info)
    with pytest.raises(UsageError, match=problem) as error:
        merged(*parts)
    assert error.value.hint
    if "root" in info:
        assert info_of(merged(*parts, other_root=True)).root == b"/mnt/sw"


def test_other_digests_are_refused(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    one = scan_tree(volume).path.read_bytes()
    other = scan_tree(volume, digests=(DigestName.VERITY,)).path.read_bytes()
    with pytest.raises(UsageError, match=r"has verity digests, 1\.mkm has blake3, verity"):
        merged(one, other)


@pytest.mark.parametrize("case", sorted(path.stem for path in (VECTORS / "reject").glob("*.mkm")))
def test_hostile_manifests_are_refused_or_come_out_valid(case: str) -> None:
    """What a merge does not read (a table out of order, an object nobody refers to) is not in what it writes."""
    data = (VECTORS / "reject" / f"{case}.mkm").read_bytes()
    try:
        result = merged(data)
    except FormatError as error:
        assert error.message
    else:
        assert id_of(result)
