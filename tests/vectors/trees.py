"""Trees as values, and writing one as a manifest with the library's writer.

A `Tree` is what the model calls a directory, with its children in place of their ID, so tests and vectors can say what
a manifest holds without saying how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from mkmeta.codec.container import Location
from mkmeta.codec.facts import encode_columns, encode_facts
from mkmeta.codec.info import Info
from mkmeta.codec.objects import encode_directory
from mkmeta.digest import ObjectId, ObjectKind
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import (
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Root,
    Xattrs,
    tree_order,
)

Leaf = Node  # any node but a Directory
MTIME = 1_700_000_000_123_456_789
INFO = Info(root=b"/mnt/sw", created=1_700_000_100_000_000_000, tool="mkmeta vectors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory and what is in it."""

    children: Mapping[bytes, Tree | Leaf] = field(default_factory=dict)
    kind: DirectoryKind = DirectoryKind.OPAQUE
    mode: int = 0o040755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = MTIME
    xattrs: Xattrs = ()


def walk(tree: Tree, path: bytes = b"") -> Iterator[tuple[bytes, Tree | Leaf]]:
    """Everything below the root of `tree` with its path, in tree order."""
    for name, child in sorted(tree.children.items()):
        at = path + b"/" + name if path else name
        yield at, child
        if isinstance(child, Tree):
            yield from walk(child, at)


def write_tree(
    stream: BinaryIO,
    tree: Tree,
    *,
    links: Mapping[bytes, bytes] | None = None,
    digests: tuple[DigestName, ...] = (),
    info: Info = INFO,
    facts: bool = False,
    backwards: bool = False,
) -> ObjectId:
    """Writes a manifest and returns its ID.

    `links` maps paths to the primary of the same inode. With `facts`, inode numbers and change times are made up from
    the names. `backwards` writes siblings in the other order, which must not matter.
    """
    with ManifestWriter(stream) as writer:
        top, place = _add(writer, tree, facts, backwards)
        index = writer.add_links(link_rows(links or {}))
        return writer.finish(Root(directory=top, links=index, digests=digests), info, place)


def link_rows(links: Mapping[bytes, bytes]) -> list[PrimaryRow | LinkRow]:
    """The rows of the link pages for path -> primary."""
    names: dict[bytes, int] = {}
    for target in links.values():
        names[target] = names.get(target, 1) + 1
    rows: list[PrimaryRow | LinkRow] = [PrimaryRow(path, nlink) for path, nlink in names.items()]
    rows += (LinkRow(path, target) for path, target in links.items())
    return sorted(rows, key=lambda row: tree_order(row.path))


def made_up_facts(names: list[bytes]) -> tuple[list[int], list[int]]:
    """Inode numbers and change times that show every sign of difference and wrap around 2**64."""
    inodes = [(int.from_bytes(name[:4], "big") * 0x9E3779B97F4A7C15) % 2**64 for name in names]
    return inodes, [MTIME - 7 * len(name) for name in names]


def _add(writer: ManifestWriter, tree: Tree, facts: bool, backwards: bool) -> tuple[Directory, Location | None]:
    done: dict[bytes, tuple[Directory, Location | None]] = {}
    for name, child in sorted(tree.children.items(), reverse=backwards):
        if isinstance(child, Tree):
            done[name] = _add(writer, child, facts, backwards)
    entries: list[Entry] = []
    places: list[Location | None] = []
    for name, child in sorted(tree.children.items()):
        if isinstance(child, Tree):
            entries.append(Entry(name, done[name][0]))
            places.append(done[name][1])
        else:
            entries.append(Entry(name, child))
    directory = Directory(
        mode=tree.mode,
        uid=tree.uid,
        gid=tree.gid,
        mtime_ns=tree.mtime_ns,
        xattrs=tree.xattrs,
        children=writer.add(ObjectKind.DIRECTORY, encode_directory(entries)),
        entries=len(entries) + sum(below.entries for below, _ in done.values()),
        kind=tree.kind,
    )
    if not facts:
        return directory, None
    columns = encode_columns(*made_up_facts([name for name, _ in entries]))
    return directory, writer.add_facts(encode_facts(columns, places))


def regular(size: int = 0, mode: int = 0o100644) -> RegularFile:
    """A file without digests."""
    return RegularFile(mode=mode, uid=0, gid=0, mtime_ns=MTIME, size=size)
