"""Volumes made up for tests, and what a scan of a selection would record of them, said a second way.

Names and attributes are few, so that equal directories, equal files and hard links are many.
"""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from hypothesis import strategies as st

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts
from mkmeta.codec.info import Info
from mkmeta.digest import ObjectId
from mkmeta.manifest.check import check
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import (
    NO_COUNTS,
    Counts,
    Directory,
    DirectoryKind,
    Entry,
    HardLinks,
    RegularFile,
    Root,
    Special,
    Symlink,
)
from mkmeta.trees.merge import Conflict, merge, stored_counts
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.layer.layers import open_reader
from tests.vectors.trees import (
    INFO,
    MTIME,
    Leaf,
    Tree,
    add_directory,
    add_directory_facts,
    link_rows,
    total_of,
    walk,
)

NAMES = [b"a", b"b", b"c"]
_OWN: dict[str, Any] = {"uid": 0, "gid": 0, "mtime_ns": MTIME}
LEAVES: list[Leaf] = [
    RegularFile(mode=0o100644, size=5, **_OWN),
    RegularFile(mode=0o100644, size=6, **_OWN),
    Symlink(mode=0o120777, target=b"a", **_OWN),
    Special(mode=0o010644, **_OWN),
]


@dataclasses.dataclass(frozen=True)
class Volume:
    """A tree, and the inode number of everything in it that is no directory. Equal numbers are hard links."""

    tree: Tree
    inodes: Mapping[bytes, int]


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Volumes with at least one entry."""

    def directory(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Tree]:
        times = st.sampled_from([MTIME, MTIME, MTIME + 1])
        return st.builds(Tree, children=st.dictionaries(st.sampled_from(NAMES), nodes, max_size=3), mtime_ns=times)

    nodes = st.recursive(st.sampled_from(LEAVES), directory, max_leaves=10)
    tree = Tree(children=draw(st.dictionaries(st.sampled_from(NAMES), nodes, min_size=1, max_size=3)))
    return Volume(tree, inodes_of(tree, draw(st.lists(st.booleans(), min_size=30, max_size=30))))


def inodes_of(tree: Tree, shared: list[bool]) -> dict[bytes, int]:
    """Inode numbers; where `shared` says so, equal leaves are one inode."""
    found = {}
    for number, (path, node) in enumerate(walk(tree)):
        if not isinstance(node, Tree):
            is_shared = shared[number % len(shared)]
            found[path] = 1000 + LEAVES.index(node) if is_shared and node in LEAVES else number + 1
    return found


def paths_of(tree: Tree) -> list[bytes]:
    """Every path below the root."""
    return [path for path, _ in walk(tree)]


def selections(volume: Volume) -> st.SearchStrategy[frozenset[bytes]]:
    """Paths to select."""
    return st.frozensets(st.sampled_from(paths_of(volume.tree)), min_size=1, max_size=4)


def selected(tree: Tree, chosen: Collection[bytes], path: bytes = b"") -> Tree | None:
    """What a scan records of `tree`, all of it opaque, that selects `chosen`; None: nothing."""
    children: dict[bytes, Tree | Leaf] = {}
    for name, child in tree.children.items():
        at = path + b"/" + name if path else name
        if at in chosen:
            children[name] = child
        elif isinstance(child, Tree):
            below = selected(child, chosen, at)
            if below is not None:
                children[name] = below
    if not children and path:
        return None
    return dataclasses.replace(tree, children=children, kind=DirectoryKind.MERGE)


def recorded(
    volume: Volume,
    chosen: Collection[bytes],
    *,
    facts: bool = True,
    created: int = INFO.created,
    hard_links: HardLinks = HardLinks.ALL,
    **info: Any,
) -> bytes:
    """The manifest of a selection, with the volume's inode numbers as facts and its hard links."""
    tree = selected(volume.tree, chosen)
    assert tree is not None
    groups: dict[tuple[int, bytes], list[bytes]] = {}
    for path, node in walk(tree):
        if not isinstance(node, Tree):
            subtree = subtree_of(tree, path) if hard_links is HardLinks.SUBTREE else b""
            groups.setdefault((volume.inodes[path], subtree), []).append(path)
    links = {path: names[0] for names in groups.values() for path in names[1:]}
    nlinks = Counter(volume.inodes.values())
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        top, place, counts = _write(writer, tree, b"", volume.inodes, nlinks, facts)
        index = writer.add_links(link_rows(links))
        about = dataclasses.replace(INFO, created=created, hard_links=hard_links, **info)
        if facts:
            about = dataclasses.replace(about, counts=stored_counts(counts))
        writer.finish(Root(directory=top, links=index, digests=()), about, place)
    return stream.getvalue()


def subtree_of(tree: Tree, path: bytes) -> bytes:
    """The topmost opaque directory above a path, or the path itself."""
    names = path.split(b"/")
    for count, name in enumerate(names[:-1], 1):
        below = tree.children[name]
        assert isinstance(below, Tree)
        if below.kind is DirectoryKind.OPAQUE:
            return b"/".join(names[:count])
        tree = below
    return path


def _write(
    writer: ManifestWriter,
    tree: Tree,
    path: bytes,
    inodes: Mapping[bytes, int],
    nlinks: Mapping[int, int],
    facts: bool,
) -> tuple[Directory, Location | None, Counts]:
    entries: list[Entry] = []
    places: list[Location | None] = []
    below: list[Counts] = []
    numbers = []
    linked = {}
    for number, (name, child) in enumerate(sorted(tree.children.items())):
        at = path + b"/" + name if path else name
        numbers.append(inodes.get(at, 500_000 + len(at)))
        if isinstance(child, Tree):
            node, place, counts = _write(writer, child, at, inodes, nlinks, facts)
            places.append(place)
            below.append(counts)
            entries.append(Entry(name, node))
        else:
            entries.append(Entry(name, child))
            if nlinks[inodes[at]] > 1:
                linked[number] = nlinks[inodes[at]]
    directory = Directory(
        mode=tree.mode,
        uid=tree.uid,
        gid=tree.gid,
        mtime_ns=tree.mtime_ns,
        xattrs=tree.xattrs,
        children=add_directory(writer, entries),
        entries=total_of(entries),
        kind=tree.kind,
    )
    if not facts:
        return directory, None, NO_COUNTS
    page = PageFacts(numbers, [MTIME] * len(numbers), places, linked)
    return directory, *add_directory_facts(writer, entries, page, tree.kind, below)


def merged(*manifests: bytes, conflict: Conflict = Conflict.FAIL, **options: Any) -> bytes:
    """The merged manifest, checked."""
    readers = [open_reader(manifest) for manifest in manifests]
    try:
        sources = [Source(reader, b"%d.mkm" % number) for number, reader in enumerate(readers, 1)]
        with tempfile.TemporaryFile() as stream:
            report = merge(sources, stream, conflict=conflict, **options)
            stream.seek(0)
            result = stream.read()
    finally:
        for reader in readers:
            reader.close()
    assert id_of(result) == report.manifest_id
    return result


def pruned(manifest: bytes, *drop: bytes) -> bytes:
    """The pruned manifest, checked."""
    with open_reader(manifest) as reader, tempfile.TemporaryFile() as stream:
        report = prune(Source(reader, b"sw.mkm"), drop, stream)
        stream.seek(0)
        result = stream.read()
    assert id_of(result) == report.manifest_id
    return result


def id_of(manifest: bytes) -> bytes:
    """The ID of a manifest, all of which must be valid."""
    with open_reader(manifest) as reader:
        check(reader)
        return reader.id


def info_of(manifest: bytes) -> Info:
    """What a manifest says of itself."""
    with open_reader(manifest) as reader:
        return reader.info


def tree_of(manifest: bytes) -> dict[bytes, object]:
    """Everything by path, directories with all but what is in them."""
    with open_reader(manifest) as reader:
        return {path: without_contents(node) for path, node in reader.walk()}


def without_contents(node: object) -> object:
    """A node that can be compared by its own attributes."""
    return dataclasses.replace(node, children=ObjectId(b""), entries=0) if isinstance(node, Directory) else node
