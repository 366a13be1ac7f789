"""TreeWriter against a writer of the tests that has all of a tree at hand: the same ID, whatever comes when."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import tempfile
from collections.abc import Iterator

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.objects import encode_entry
from mkmeta.digest import DIGEST_SIZE, ObjectId, ObjectKind
from mkmeta.manifest.cursor import counts_of
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import NO_COUNTS, Counts, Directory, DirectoryKind, Entry, RegularFile, Xattrs
from mkmeta.trees.links import FINGERPRINT_BYTES, Look
from mkmeta.trees.merge import stored_counts
from mkmeta.trees.writer import ChildName, LinkedName, Own, Part, Place, TreeWriter, own_entry
from tests.vectors.trees import INFO, Leaf, Tree, encode_directory, made_up_facts, regular, write_tree

Said = tuple[list[int], list[int], dict[int, int]]  # inodes, change times, and those with several names
OPAQUE, MERGE = DirectoryKind.OPAQUE, DirectoryKind.MERGE


def xattrs(rng: random.Random) -> Xattrs:
    """Most entries are short, some fill a page with a few others, one in a while is longer than a page."""
    size = rng.choice([0, 0, 0, 1, 20_000, 60_000, 130_000, 130_000, 300_000 if rng.random() < 0.2 else 5])
    return tuple((b"user.%06d" % at, rng.randbytes(4) * (min(size - at, 65_536) // 4)) for at in range(0, size, 65_536))


def drawn(rng: random.Random, depth: int, kind: DirectoryKind) -> Tree:
    """A random tree. Merge directories are not empty, and no directory below an opaque one merges."""
    children: dict[bytes, Tree | Leaf] = {}
    for _ in range(rng.choice([0, 1, 3, 12]) if kind is OPAQUE else rng.choice([1, 5, 12])):
        name = b"%x" % rng.randrange(400)
        if depth and rng.random() < 0.4:
            below = MERGE if kind is MERGE and rng.random() < 0.5 else OPAQUE
            children[name] = drawn(rng, depth - 1, below)
        else:
            children[name] = dataclasses.replace(regular(rng.randrange(99)), xattrs=xattrs(rng))
    return Tree(kind=kind, mode=0o040700 + rng.randrange(8), children=children, xattrs=xattrs(rng))


class Source:
    """Says everything of a tree, in any order and any parts; what it says in between is what `tasks` still hold."""

    def __init__(self, writer: TreeWriter, rng: random.Random, met: set[str]) -> None:
        self._writer = writer
        self._rng = rng
        self.tasks: list[Iterator[None]] = []
        self.said: dict[bytes, Said] = {}  # path: facts of its entries
        self._met = met  # of what makes directories difficult

    def run(self, tree: Tree) -> None:
        """All of it."""
        self.tasks.append(self._directory(self._writer.root, b"", b"", tree))
        while self.tasks:
            task = self._rng.choice(self.tasks)
            if next(task, self) is self:
                self.tasks.remove(task)

    def _directory(self, place: Place, path: bytes, name: bytes, tree: Tree) -> Iterator[None]:
        names = sorted(tree.children)
        inodes, times = made_up_facts(names)
        linked = {at: 2 for at, below in enumerate(names) if self._is_linked(tree.children[below])}
        self.said[path] = inodes, times, linked
        fields = {field: getattr(tree, field) for field in ("mode", "uid", "gid", "mtime_ns", "xattrs", "kind")}
        own = own_entry(name, Directory(**fields, children=ObjectId(bytes(DIGEST_SIZE)), entries=0))
        leaves = [Entry(below, node) for below, node in sorted(tree.children.items()) if not isinstance(node, Tree)]
        data = encode_directory(leaves)
        small = len(leaves) == len(names) and len(data) < 200_000
        if path and tree.kind is OPAQUE and small and not linked and self._rng.random() < 0.5:
            self._leaf(place, own, data, leaves, PageFacts(inodes, times))
            return
        self._met.update({"parts"}, {"linked"} if linked else ())
        opening = self._writer.open(place, tree.kind)
        start = 0
        while start < len(names):
            stop = self._rng.randint(start + 1, len(names))
            pieces, children, counts, links, later = [b""], [], NO_COUNTS, [], []
            for at in range(start, stop):
                node = tree.children[names[at]]
                if isinstance(node, Tree) or (at not in linked and self._rng.random() < 0.2):
                    children.append(ChildName(names[at], node.kind if isinstance(node, Tree) else None, at - start))
                    pieces.append(b"")
                    later.append(node)
                    continue
                pieces[-1] += encode_entry(names[at], node)
                counts = counts.plus(counts_of(node, linked.get(at, 1)))
                if at in linked:
                    look = Look(inodes[at], times[at], 2, bytes(FINGERPRINT_BYTES))
                    links.append(LinkedName(names[at], look))
            known = {at - start: nlink for at, nlink in linked.items() if start <= at < stop}
            part = Part(pieces, children, inodes[start:stop], times[start:stop], known)
            places = self._writer.extend(opening, part, counts, links)
            for below, child, node in zip(places, children, later, strict=True):
                at_path = path + b"/" + child.name if path else child.name
                if isinstance(node, Tree):
                    self.tasks.append(self._directory(below, at_path, child.name, node))
                else:
                    self.tasks.append(self._file(below, child.name, node))
            start = stop
            yield
        self._writer.close(opening, own)

    def _leaf(self, place: Place, own: Own, data: bytes, entries: list[Entry], facts: PageFacts) -> None:
        self._met.add("a ready leaf")
        counts = Counts(dirs=1)
        for _, node in entries:
            counts = counts.plus(counts_of(node, 1))
        object_id = ObjectKind.DIRECTORY.id_of(data)
        written = encode_facts(counts, encode_page_facts(facts))
        self._writer.leaf_directory(place, own, object_id, data, written, len(entries), counts)

    def _file(self, place: Place, name: bytes, node: Leaf) -> Iterator[None]:
        yield
        self._writer.fill(place, encode_entry(name, node), 1, None, counts_of(node, 1))

    @staticmethod
    def _is_linked(node: Tree | Leaf) -> bool:
        return isinstance(node, RegularFile) and node.size % 7 == 0


def check_facts(reader: ManifestReader, said: dict[bytes, Said], met: set[str]) -> None:
    """Whether the facts of every directory are those its source gave; pages may divide them anywhere."""
    assert reader.facts_place is not None
    stack: list[tuple[bytes, Directory, Location]] = [(b"", reader.root.directory, reader.facts_place)]
    while stack:
        path, directory, place = stack.pop()
        inodes, times, linked = said.pop(path)
        pages = reader.pages(directory, path)
        start = 0
        for number, page in enumerate(pages):
            entries = reader.page(page, directory, path)
            facts = reader.facts_of_page(place, path, number, len(pages), len(entries))
            stop = start + len(entries)
            assert [inode % 2**64 for inode in facts.inodes] == inodes[start:stop]
            assert list(facts.change_times) == times[start:stop]
            assert dict(facts.linked) == {at - start: n for at, n in linked.items() if start <= at < stop}
            below = [entry for entry in entries if isinstance(entry.node, Directory)]
            for entry, further in zip(below, facts.children, strict=True):
                assert isinstance(entry.node, Directory) and further is not None
                stack.append((path + b"/" + entry.name if path else entry.name, entry.node, further))
            if number + 1 < len(pages):
                met.update({"pages"}, {"directories before the last page"} if below else ())
            start = stop
        assert start == len(inodes)
    assert not said


def test_any_order_and_any_parts_give_the_tree() -> None:
    met: set[str] = set()
    for seed in range(24):
        rng = random.Random(seed)
        tree = drawn(rng, 3, MERGE)
        with tempfile.TemporaryFile() as stream:
            with ManifestWriter(stream) as manifest, TreeWriter(manifest) as writer:
                source = Source(writer, rng, met)
                source.run(tree)
                assert writer.is_complete
                written = writer.finish(dataclasses.replace(INFO, counts=stored_counts(writer.counts)), ())
            assert written == write_tree(io.BytesIO(), tree)
            stream.flush()
            with ManifestReader(os.dup(stream.fileno())) as reader:
                check_facts(reader, source.said, met)
    assert met == {"a ready leaf", "parts", "linked", "pages", "directories before the last page"}
