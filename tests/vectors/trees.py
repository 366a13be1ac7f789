"""Trees as values, and writing one as a manifest with the library's writer.

A `Tree` is what the model calls a directory, with its children in place of their ID, so tests and vectors can say what
a manifest holds without saying how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from blake3 import blake3

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.info import Info
from mkmeta.codec.objects import PageRow, encode_entry, encode_page, encode_page_rows
from mkmeta.digest import ObjectId, ObjectKind, verity_digest
from mkmeta.manifest.content_writer import ContentWriter, FramePacker
from mkmeta.manifest.cursor import counts_of
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import (
    NO_COUNTS,
    Counts,
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

PAGE_BYTES = 262_144  # formats/manifest.md section 3.1
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
    contents: Sequence[bytes] = (),
) -> ObjectId:
    """Writes a manifest and returns its ID.

    `links` maps paths to the primary of the same inode. With `facts`, inode numbers and change times are made up from
    the names, and inodes have the names in `links` and one more. `backwards` writes siblings in the other order, which
    must not matter. `contents` are those of files; for them, the stream must be a file.
    """
    rows = link_rows(links or {})
    nlinks = {row.path: row.nlink + 1 for row in rows if isinstance(row, PrimaryRow)}
    nlinks |= {row.path: nlinks[row.target] for row in rows if isinstance(row, LinkRow)}
    taken = ContentWriter(everything=True) if contents else None
    with ManifestWriter(stream, taken) as writer:
        packer = FramePacker()
        for content in contents:
            name = blake3(content).digest() if DigestName.BLAKE3 in digests else verity_digest(content)
            assert packer.add(name, content) is None
        if frame := packer.take():
            writer.add_contents(frame)
        top, place, _ = _add(writer, tree, b"", nlinks if facts else None, backwards)
        index = writer.add_links(rows)
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


def encode_directory(entries: Sequence[Entry]) -> bytes:
    """The object of a directory of one page."""
    return encode_page(len(entries), b"".join(encode_entry(name, node) for name, node in entries))


def pages_of(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries, divided into pages."""
    pages: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        length = len(encode_entry(*entry))
        if pages[-1] and size + length > PAGE_BYTES:
            pages.append([])
            size = 0
        pages[-1].append(entry)
        size += length
    return pages


def total_of(entries: Sequence[Entry]) -> int:
    """How many there are, all below them included."""
    return len(entries) + sum(node.entries for _, node in entries if isinstance(node, Directory))


def add_directory(writer: ManifestWriter, entries: Sequence[Entry]) -> ObjectId:
    """Stores the objects of a directory, pages included."""
    pages = pages_of(entries)
    if len(pages) == 1:
        return writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
    rows = [
        PageRow(page[0].name, writer.add(ObjectKind.DIRECTORY_PAGE, encode_directory(page)), total_of(page))
        for page in pages
    ]
    return writer.add(ObjectKind.DIRECTORY, encode_page_rows(rows))


def add_directory_facts(
    writer: ManifestWriter, entries: Sequence[Entry], facts: PageFacts, kind: DirectoryKind, below: Sequence[Counts]
) -> tuple[Location, Counts]:
    """Stores the facts of a directory, given those of all its entries together and the counts of its directories."""
    is_opaque = kind is DirectoryKind.OPAQUE
    counts = NO_COUNTS.plus(Counts(dirs=is_opaque, skeleton=not is_opaque))
    for number, (_, node) in enumerate(entries):
        if not isinstance(node, Directory):
            counts = counts.plus(counts_of(node, facts.linked.get(number, 1)))
    for other in below:
        counts = counts.plus(other)
    pages = []
    start = children = 0
    for page in pages_of(entries):
        stop = start + len(page)
        directories = sum(isinstance(node, Directory) for _, node in page)
        linked = {at - start: nlink for at, nlink in facts.linked.items() if start <= at < stop}
        pages.append(
            encode_page_facts(
                PageFacts(
                    facts.inodes[start:stop],
                    facts.change_times[start:stop],
                    facts.children[children : children + directories],
                    linked,
                )
            )
        )
        start, children = stop, children + directories
    stored = pages[0] if len(pages) == 1 else [writer.add_facts(page) for page in pages]
    return writer.add_facts(encode_facts(counts, stored)), counts


def _add(
    writer: ManifestWriter, tree: Tree, path: bytes, nlinks: Mapping[bytes, int] | None, backwards: bool
) -> tuple[Directory, Location | None, Counts]:
    prefix = path + b"/" if path else b""
    done: dict[bytes, tuple[Directory, Location | None, Counts]] = {}
    for name, child in sorted(tree.children.items(), reverse=backwards):
        if isinstance(child, Tree):
            done[name] = _add(writer, child, prefix + name, nlinks, backwards)
    entries: list[Entry] = []
    for name, child in sorted(tree.children.items()):
        entries.append(Entry(name, done[name][0] if isinstance(child, Tree) else child))
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
    if nlinks is None:
        return directory, None, NO_COUNTS
    below = [done[name] for name, node in entries if isinstance(node, Directory)]
    inodes, change_times = made_up_facts([name for name, _ in entries])
    linked = {number: nlinks[prefix + name] for number, (name, _) in enumerate(entries) if prefix + name in nlinks}
    made_up = PageFacts(inodes, change_times, [place for _, place, _ in below], linked)
    return directory, *add_directory_facts(writer, entries, made_up, tree.kind, [counts for _, _, counts in below])


def regular(size: int = 0, mode: int = 0o100644) -> RegularFile:
    """A file without digests."""
    return RegularFile(mode=mode, uid=0, gid=0, mtime_ns=MTIME, size=size)
