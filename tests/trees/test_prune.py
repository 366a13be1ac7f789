"""Pruning: what stays is what a scan of it would record, and what goes shows through."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkmeta.errors import FormatError, MkmetaError, NothingSelectedError, UsageError
from mkmeta.model import Counts, Directory, DirectoryKind, HardLinks
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.conftest import Mount
from tests.layer.layers import build_layer, open_reader
from tests.scanner.helpers import make_sample, scan_tree
from tests.trees.test_merge import VECTORS, make_real
from tests.trees.volumes import Volume, id_of, info_of, paths_of, pruned, recorded, selected, selections, volumes
from tests.vectors.trees import walk

Case = tuple[Volume, frozenset[bytes], frozenset[bytes]]  # volume, what was selected, what is dropped
CASES = volumes().flatmap(lambda volume: st.tuples(st.just(volume), selections(volume), selections(volume)))


def is_in(path: bytes, chosen: frozenset[bytes]) -> bool:
    return any(path == top or path.startswith(top + b"/") for top in chosen)


def rest(volume: Volume, chosen: frozenset[bytes], dropped: frozenset[bytes]) -> frozenset[bytes]:
    """The largest pieces of what was recorded that hold nothing dropped."""
    pieces = [
        path
        for path in paths_of(volume.tree)
        if is_in(path, chosen)
        and not is_in(path, dropped)
        and not any(drop.startswith(path + b"/") for drop in dropped if drop in paths_of(volume.tree))
    ]
    return frozenset(pieces)


@given(CASES, st.sampled_from(HardLinks))
def test_what_stays_is_a_scan_of_it(case: Case, hard_links: HardLinks) -> None:
    volume, chosen, dropped = case
    there = selected(volume.tree, chosen)
    assert there is not None
    stays = rest(volume, chosen, dropped)
    matched = [path for path, _ in walk(there) if path in dropped]
    manifest = recorded(volume, chosen, hard_links=hard_links)
    if not matched:
        with pytest.raises(NothingSelectedError):
            pruned(manifest, *dropped)
    elif not stays:
        with pytest.raises(MkmetaError, match="nothing would be left"):
            pruned(manifest, *dropped)
    else:
        assert id_of(pruned(manifest, *dropped)) == id_of(recorded(volume, stays, hard_links=hard_links))


@settings(max_examples=10)
@given(case=CASES)
def test_the_scanner_agrees(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    volume, chosen, dropped = case
    stays = rest(volume, chosen, dropped)
    there = selected(volume.tree, chosen)
    assert there is not None
    if not stays or not any(path in dropped for path, _ in walk(there)):
        return
    root = tmp_path_factory.mktemp("prune") / "volume"
    make_real(root, volume)
    before = scan_tree(root, *map(bytes.decode, sorted(chosen))).path.read_bytes()
    after = scan_tree(root, *map(bytes.decode, sorted(stays))).path.read_bytes()
    result = pruned(before, *dropped)
    assert id_of(result) == id_of(after)
    counts = [{name: info_of(manifest).counts[name] for name in Counts._fields[:6]} for manifest in (result, after)]
    assert counts[0] == counts[1]


def test_patterns_whole_subtrees_and_info(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    before = scan_tree(volume, "grp/*/v*/lib", "tools/*", "grp/b/empty").path.read_bytes()
    after = scan_tree(volume, "grp/a/v2/lib", "grp/b/*/lib", "grp/b/empty").path.read_bytes()
    result = pruned(before, b"grp/a/v1", b"tools/**")
    assert id_of(result) == id_of(after)
    info = info_of(result)
    assert info.select == (b"grp/*/v*/lib", b"tools/*", b"grp/b/empty")
    assert info.created == info_of(before).created
    with open_reader(result) as reader:
        assert reader.facts_place is not None


def test_what_was_left_out_in_what_is_dropped_is_forgotten(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    os.setxattr(volume / "grp/a/v1/lib/nothing", "user.overlay.x", b"")
    os.setxattr(volume / "top", "user.overlay.x", b"")
    before = scan_tree(volume, "grp/*/*", "top").path.read_bytes()
    assert [path for path, _ in info_of(before).left_out] == [b"grp/a/v1", b"top"]
    assert [path for path, _ in info_of(pruned(before, b"grp/a")).left_out] == [b"top"]


def test_patterns_that_match_inside_what_is_dropped_have_matched(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    with open_reader(scan_tree(volume).path.read_bytes()) as reader:
        drop = [b"grp/a", b"grp/a/v1/lib/one.py", b"grp/*/nothing", b"tools/x"]
        with tempfile.TemporaryFile() as stream:
            report = prune(Source(reader, b"sw.mkm"), drop, stream)
        assert report.unmatched == (b"grp/*/nothing",)
        assert report.dropped + report.entries == reader.root.directory.entries


@pytest.mark.parametrize("pattern", [b"/abs", b"../up"])
def test_impossible_patterns_are_refused(tmp_path: Path, pattern: bytes) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/f").touch()
    with pytest.raises(UsageError):
        pruned(scan_tree(tmp_path / "volume").path.read_bytes(), pattern)


@pytest.mark.needs("root", "overlay", "trusted xattrs")
@pytest.mark.parametrize("how", ["merge", "nested"])
def test_what_is_dropped_shows_through_a_mount(tmp_path: Path, overlay: Mount, how: str) -> None:
    """The volume changes below the mount; only what was dropped shows it."""
    volume = tmp_path / "volume"
    make_sample(volume, privileged=True)
    manifest = pruned(scan_tree(volume, "grp/a", "grp/b").path.read_bytes(), b"grp/a/v1/lib", b"grp/b/v1/lib/-")
    build_layer(manifest, tmp_path / "layer")
    for name in ("grp/a/v1/lib", "grp/b/v1/lib", "grp/a/v2/lib", "grp/b/v1/lib/deep"):
        (volume / name / "new").write_text("new")
    (volume / "grp/b/v1/lib/-").write_text("another dash")
    mounted = overlay(tmp_path / "layer", volume, how)
    assert (mounted / "grp/a/v1/lib/new").read_text() == "new"  # dropped
    assert (mounted / "grp/a/v1/lib/one.py").read_text() == "print(1)\n"
    assert (mounted / "grp/b/v1/lib/-").read_text() == "another dash"
    assert (mounted / "grp/b/v1/lib/new").read_text() == "new"  # its directory is not complete any more
    for name in ("grp/a/v2/lib/new", "grp/b/v1/lib/deep/new"):
        assert not (mounted / name).exists()  # complete, answered by the layer
    assert (mounted / "grp/a/v2/lib/block").read_bytes() == b"x" * 4096


def test_nothing_is_opaque_above_what_was_dropped(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    make_sample(volume, privileged=False)
    with open_reader(pruned(scan_tree(volume).path.read_bytes(), b"grp/b/v1/lib/deep/er")) as reader:
        kinds = {path: node.kind.name for path, node in reader.walk() if isinstance(node, Directory)}
    merge = {path for path, kind in kinds.items() if kind == DirectoryKind.MERGE.name}
    assert merge == {b"", b"grp", b"grp/b", b"grp/b/v1", b"grp/b/v1/lib"}
    assert b"grp/b/v1/lib/deep" not in kinds  # nothing was left in it


@pytest.mark.parametrize("case", sorted(path.stem for path in (VECTORS / "reject").glob("*.mkm")))
def test_hostile_manifests_are_refused_or_come_out_valid(case: str) -> None:
    data = (VECTORS / "reject" / f"{case}.mkm").read_bytes()
    try:
        result = pruned(data, b"**/[a-h]*")
    except (FormatError, NothingSelectedError) as error:
        assert re.search(r"\S", error.message)
    except MkmetaError as error:
        assert "nothing would be left" in error.message
    else:
        assert id_of(result)
