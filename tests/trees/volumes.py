"""Volumes made up for tests, and what a scan of a selection would record of them, said a second way.

Names and attributes are few, so that equal directories, equal files and hard links are many.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Mapping
from typing import Any

from hypothesis import strategies as st

from mkmeta.codec.container import Location
from mkmeta.codec.facts import encode_columns, encode_facts
from mkmeta.codec.info import Info
from mkmeta.codec.objects import encode_directory
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import Directory, DirectoryKind, Entry, RegularFile, Root, Special, Symlink
from mkmeta.trees.assembly import Source
from mkmeta.trees.merge import Conflict, merge
from mkmeta.trees.prune import prune
from tests.compiler.layers import open_reader
from tests.vectors.trees import INFO, MTIME, Leaf, Tree, link_rows, walk

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
    volume: Volume, chosen: Collection[bytes], *, facts: bool = True, created: int = INFO.created, **info: Any
) -> bytes:
    """The manifest of a selection, with the volume's inode numbers as facts and its hard links."""
    tree = selected(volume.tree, chosen)
    assert tree is not None
    groups: dict[int, list[bytes]] = {}
    for path, node in walk(tree):
        if not isinstance(node, Tree):
            groups.setdefault(volume.inodes[path], []).append(path)
    links = {path: names[0] for names in groups.values() for path in names[1:]}
    stream = io.BytesIO()
    with ManifestWriter(stream) as writer:
        top, place = _write(writer, tree, b"", volume.inodes, facts)
        index = writer.add_links(link_rows(links))
        about = dataclasses.replace(INFO, created=created, **info)
        writer.finish(Root(directory=top, links=index, digests=()), about, place)
    return stream.getvalue()


def _write(
    writer: ManifestWriter, tree: Tree, path: bytes, inodes: Mapping[bytes, int], facts: bool
) -> tuple[Directory, Location | None]:
    entries: list[Entry] = []
    places: list[Location | None] = []
    numbers = []
    for name, child in sorted(tree.children.items()):
        at = path + b"/" + name if path else name
        numbers.append(inodes.get(at, 500_000 + len(at)))
        if isinstance(child, Tree):
            node, place = _write(writer, child, at, inodes, facts)
            places.append(place)
            entries.append(Entry(name, node))
        else:
            entries.append(Entry(name, child))
    directory = Directory(
        mode=tree.mode,
        uid=tree.uid,
        gid=tree.gid,
        mtime_ns=tree.mtime_ns,
        xattrs=tree.xattrs,
        children=writer.add(ObjectKind.DIRECTORY, encode_directory(entries)),
        entries=len(entries) + sum(node.entries for _, node in entries if isinstance(node, Directory)),
        kind=tree.kind,
    )
    if not facts:
        return directory, None
    return directory, writer.add_facts(encode_facts(encode_columns(numbers, [MTIME] * len(numbers)), places))


def merged(*manifests: bytes, conflict: Conflict = Conflict.FAIL, **options: Any) -> bytes:
    """The merged manifest, checked."""
    stream = io.BytesIO()
    readers = [open_reader(manifest) for manifest in manifests]
    try:
        sources = [Source(reader, b"%d.mkm" % number) for number, reader in enumerate(readers, 1)]
        report = merge(sources, stream, conflict=conflict, **options)
    finally:
        for reader in readers:
            reader.close()
    assert id_of(stream.getvalue()) == report.manifest_id
    return stream.getvalue()


def pruned(manifest: bytes, *drop: bytes) -> bytes:
    """The pruned manifest, checked."""
    stream = io.BytesIO()
    with open_reader(manifest) as reader:
        report = prune(Source(reader, b"sw.mkm"), drop, stream)
    assert id_of(stream.getvalue()) == report.manifest_id
    return stream.getvalue()


def id_of(manifest: bytes) -> bytes:
    """The ID of a manifest, all of which must be valid."""
    with open_reader(manifest) as reader:
        reader.check()
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
