"""Manifests made to harm: whatever they say, nothing outside the staging directory is touched, nothing is endless."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.digest import ObjectKind
from mkmeta.errors import BuildError, FormatError
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import DirectoryKind, Entry, Inode, LinkRow, PrimaryRow, Root, Symlink
from tests.layer.layers import build_layer, paths, snapshot
from tests.layer.manifests import chain, make_directory, manifest_from
from tests.vectors.trees import INFO, MTIME, Tree, encode_directory, regular

pytestmark = pytest.mark.needs("trusted xattrs")

TOP = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=MTIME)


def symlink(target: bytes) -> Symlink:
    return Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=MTIME, target=target)


def manifest_of_entries(entries: list[Entry], rows: list[PrimaryRow | LinkRow] | None = None, count: int = 0) -> bytes:
    """A manifest whose root directory holds these entries, as they are given."""
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        children = writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
        top = make_directory(TOP, children, count or len(entries), DirectoryKind.MERGE)
        writer.finish(Root(directory=top, links=writer.add_links(rows or []), digests=()), INFO, None)
    return stream.getvalue()


def refused(manifest: bytes, tmp_path: Path) -> None:
    """Asserts that the manifest is refused, and leaves no trace."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "victim").mkdir()
    before = snapshot(tmp_path / "victim")
    with pytest.raises(FormatError):
        build_layer(manifest, place / "layer")
    assert os.listdir(place) == []
    assert snapshot(tmp_path / "victim") == before


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"a/b", b"/etc", b"../victim/x", b"a\0b", b"x" * 256], ids=lambda name: repr(name[:12])
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    refused(manifest_of_entries([Entry(name, regular(1))]), tmp_path)


def test_a_link_and_a_directory_of_one_name(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        inner = writer.add(ObjectKind.DIRECTORY, encode_directory([Entry(b"x", regular(1))]))
        directory = make_directory(TOP, inner, 1, DirectoryKind.OPAQUE)
        link = symlink(os.fsencode(tmp_path / "victim"))
        children = writer.add(ObjectKind.DIRECTORY, encode_directory([Entry(b"d", link), Entry(b"d", directory)]))
        top = make_directory(TOP, children, 3, DirectoryKind.MERGE)
        writer.finish(Root(directory=top, links=None, digests=()), INFO, None)
    refused(stream.getvalue(), tmp_path)


def test_hard_links_through_symlinks(tmp_path: Path) -> None:
    """A link row whose path leads through a symlink names no entry."""
    (tmp_path / "victim").mkdir()
    entries = [Entry(b"a", regular(1)), Entry(b"s", symlink(os.fsencode(tmp_path / "victim")))]
    (tmp_path / "victim").rmdir()
    refused(manifest_of_entries(entries, [PrimaryRow(b"a", 2), LinkRow(b"s/a", b"a")]), tmp_path)


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    link = symlink(os.fsencode(victim))
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(b"a", 2), LinkRow(b"b", b"a")]
    build_layer(manifest_of_entries([Entry(b"a", link), Entry(b"b", link)], rows), tmp_path / "layer")
    assert os.readlink(tmp_path / "layer" / "b") == str(victim)
    assert victim.stat().st_nlink == 1


def test_symlinks_are_written_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    before = victim.stat()
    node = Symlink(
        mode=0o120777,
        uid=1,
        gid=2,
        mtime_ns=3,
        target=os.fsencode(victim),
        xattrs=((b"trusted.x", b"1"),) if os.geteuid() == 0 else (),
    )
    build_layer(manifest_of_entries([Entry(b"l", node)]), tmp_path / "layer")
    after = victim.stat()
    assert (before.st_uid, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_uid,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert os.listxattr(victim) == []
    found = os.lstat(tmp_path / "layer" / "l")
    assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (1, 2, 3)


@pytest.fixture
def bottomless() -> Iterator[Path]:
    """A directory for trees that are too deep for pytest to remove."""
    place = Path(tempfile.mkdtemp(prefix="mkmeta-test-"))
    yield place
    subprocess.run(["rm", "-rf", place], check=True)


def test_two_thousand_levels(bottomless: Path) -> None:
    manifest = chain(2000)
    build_layer(manifest, bottomless / "layer")
    fd = os.open(bottomless / "layer", os.O_RDONLY)
    for _ in range(2000):
        below = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["file"]
    os.close(fd)
    build_layer(manifest_from(Tree()), bottomless / "layer", swap=True, discard=True)
    assert os.listdir(bottomless) == ["layer"]


def test_a_path_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    refused(chain(2046, b"dd"), tmp_path)


def test_sharing_cannot_hide_an_endless_tree(tmp_path: Path) -> None:
    """Thirty levels of ten equal directories each are a small file and more entries than anything can hold."""
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        entries = [Entry(b"f", regular(1))]
        total = 1
        for _ in range(9):
            children = writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
            directory = make_directory(TOP, children, total, DirectoryKind.OPAQUE)
            entries = [Entry(b"%d" % number, directory) for number in range(10)]
            total = 10 * (total + 1)
        children = writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
        top = make_directory(TOP, children, total, DirectoryKind.MERGE)
        writer.finish(Root(directory=top, links=None, digests=()), INFO, None)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(BuildError, match=rf"takes {total} inodes"):
        build_layer(stream.getvalue(), place / "layer")
    assert os.listdir(place) == []


def test_a_lying_count_is_found_out(tmp_path: Path) -> None:
    refused(manifest_of_entries([Entry(b"f", regular(1))], count=7), tmp_path)


def test_a_lie_found_late_leaves_nothing(tmp_path: Path) -> None:
    """The count of a directory deep inside is checked when it is read, after other things were written."""
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        inner = writer.add(ObjectKind.DIRECTORY, encode_directory([Entry(b"f", regular(1))]))
        liar = make_directory(TOP, inner, 5, DirectoryKind.OPAQUE)
        children = writer.add(ObjectKind.DIRECTORY, encode_directory([Entry(b"a", regular(1)), Entry(b"z", liar)]))
        top = make_directory(TOP, children, 7, DirectoryKind.MERGE)
        writer.finish(Root(directory=top, links=None, digests=()), INFO, None)
    refused(stream.getvalue(), tmp_path)


def test_nothing_but_dest_is_touched(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "other").mkdir()
    (tmp_path / "place" / "other" / "file").write_text("x")
    before = snapshot(tmp_path)
    tree = Tree(children={b"up": symlink(b"../.."), b"abs": symlink(b"/"), b"d": Tree(children={b"f": regular(1)})})
    build_layer(manifest_from(tree), tmp_path / "place" / "layer")
    after = {path: facts for path, facts in snapshot(tmp_path).items() if not path.startswith(b"place/layer")}
    for changed in (b"place",):  # a name was added to it
        del before[changed], after[changed]
    assert after == before


def test_memory_does_not_follow_the_number_of_entries(tmp_path: Path) -> None:
    """20,000 directories of shared content, in one process tree: the parent's peak stays where it was."""
    package = Tree(children={b"%d" % number: Tree() for number in range(100)})
    small = manifest_from(Tree(children={b"%d" % number: package for number in range(2)}))
    large = manifest_from(Tree(children={b"%d" % number: package for number in range(200)}))
    build_layer(small, tmp_path / "small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_layer(large, tmp_path / "large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10
    assert sum(1 for _ in paths(tmp_path / "large")) == 200 * 101
