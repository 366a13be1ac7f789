"""Putting a tree together from parts of recorded ones, and writing it as a manifest in one pass.

Who takes part in what is the caller's: it opens directories and says, name by name, what comes into them. One rule is
kept here, whatever is asked for: a directory in which everything is as one input has it stays what it is there, and any
other is a merge directory. So nothing becomes opaque that was not recorded completely, in one piece, by one scan.

Memory: the entries of the directories from the root to where the walk is.
"""

from __future__ import annotations

import contextlib
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mkmeta.codec.container import Location
from mkmeta.codec.facts import encode_columns, encode_facts
from mkmeta.codec.objects import encode_directory
from mkmeta.digest import ObjectKind
from mkmeta.errors import FormatError, MkmetaError, printable
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import ENTRIES_MAX, Directory, DirectoryKind, Entry, Node, RegularFile, Symlink, tree_order
from mkmeta.trees.changes import own_changes
from mkmeta.trees.links import LinkNames

OF_THE_FILE = "compact_bytes"  # of `counts`: how large a file is without what its tree does not need; ours has no such
COUNTED = ("dirs", "skeleton", "files", "symlinks", "others", "bytes")  # of `counts`: what a walk of the result tells


class Item(NamedTuple):
    """An entry of an input, with its facts."""

    name: bytes
    node: Node
    inode: int  # 0: not known
    change_time: int  # ns since the epoch; 0 where the inode is not known
    facts: Location | None  # of a directory: those of what is in it
    source: Source


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """An input."""

    reader: ManifestReader
    name: bytes  # what the user calls it

    def top(self) -> Item:
        """Its root."""
        return Item(b"", self.reader.root.directory, 0, 0, self.reader.facts_place, self)

    def check(self) -> None:
        """Raises FormatError naming the input unless root, info and hard links are valid."""
        with self._named():
            _ = self.reader.root, self.reader.info
            self.reader.check_links()

    def items(self, directory: Item, path: bytes) -> list[Item]:
        """What is in a directory of this input. Raises FormatError naming the input."""
        node = directory.node
        assert isinstance(node, Directory)
        with self._named():
            entries = self.reader.directory(node, path)
            if directory.facts is None:
                return [Item(name, entry, 0, 0, None, self) for name, entry in entries]
            facts = self.reader.facts(directory.facts, path, entries=len(entries))
            directories = sum(type(entry) is Directory for _, entry in entries)
            if directories != len(facts.children):
                where = f"facts of {printable(path) or 'the root'}"
                raise FormatError(f"{where}: {len(facts.children)} children for {directories} directories")
        below = iter(facts.children)
        return [
            Item(name, entry, inode, time, next(below) if type(entry) is Directory else None, self)
            for (name, entry), inode, time in zip(entries, facts.inodes, facts.change_times, strict=True)
        ]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            error.path = error.path or self.name
            raise

    def counts(self) -> dict[str, int]:
        """What the scan counted and a walk of the tree does not tell, such as hidden names."""
        known = (*COUNTED, OF_THE_FILE)
        return {name: count for name, count in self.reader.info.counts.items() if name not in known}


@dataclass(eq=False, slots=True)
class Opening:
    """A directory of the result while it is put together."""

    path: bytes
    own: Item  # whose name, attributes and facts of its own it gets
    origin: Item  # what it stays if nothing in it is different there
    originals: list[Item]  # what is in `origin`
    steps: Iterator[Item | Opening]  # what comes into it, in order
    entries: list[Entry] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)
    change_times: list[int] = field(default_factory=list)
    places: list[Location | None] = field(default_factory=list)

    def take(self, node: Node, item: Item, facts: Location | None) -> None:
        """Adds an entry."""
        self.entries.append(Entry(item.name, node))
        self.inodes.append(item.inode)
        self.change_times.append(item.change_time)
        if isinstance(node, Directory):
            self.places.append(facts)


class LeftOut:
    """What the inputs had to leave out; what the result has after all is taken off the list."""

    def __init__(self, rows: Iterable[tuple[bytes, str]]) -> None:
        self._reasons = dict(reversed(list(rows)))  # of several reasons the first
        self._keys = sorted(map(tree_order, self._reasons))

    def recorded(self, path: bytes) -> None:
        """The result has `path`, and, if it is a directory, all that is below it."""
        if not self._keys:
            return
        key = tree_order(path)
        at = bisect_left(self._keys, key)
        while at < len(self._keys) and (self._keys[at] == key or self._keys[at].startswith(key + b"\0")):
            del self._reasons[self._keys.pop(at).replace(b"\0", b"/")]

    def rows(self) -> tuple[tuple[bytes, str], ...]:
        """What is still left out."""
        return tuple(sorted(self._reasons.items()))


class Assembly:
    """Writes the objects and facts of a result; `counts` are those of `COUNTED`."""

    def __init__(self, writer: ManifestWriter, links: LinkNames, left_out: LeftOut, *, facts: bool) -> None:
        self._writer = writer
        self._links = links
        self._left_out = left_out
        self._facts = facts
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def run(self, top: Opening) -> tuple[Directory, Location | None]:
        """Puts everything together; the root directory and the place of its facts. Raises MkmetaError."""
        stack = [top]
        while True:
            opening = stack[-1]
            step = next(opening.steps, None)
            if isinstance(step, Opening):
                stack.append(step)
            elif step is not None:
                self._take(opening, step)
            else:
                stack.pop()
                node, facts = self._close(opening, is_root=not stack)
                if not stack:
                    assert node is not None
                    return node, facts
                if node is not None:
                    stack[-1].take(node, opening.own, facts)

    def _take(self, opening: Opening, item: Item) -> None:
        """Something that is no directory."""
        node = item.node
        path = opening.path + b"/" + item.name if opening.path else item.name
        opening.take(node, item, None)
        self._links.add(path, node, item.inode)
        self._left_out.recorded(path)
        match node:
            case RegularFile():
                self.counts["files"] += 1
                self.counts["bytes"] += node.size
            case Symlink():
                self.counts["symlinks"] += 1
            case _:
                self.counts["others"] += 1

    def _close(self, opening: Opening, *, is_root: bool) -> tuple[Directory | None, Location | None]:
        """A directory whose entries are all there; None when it is an empty merge directory."""
        node, own = opening.origin.node, opening.own.node
        assert isinstance(node, Directory) and isinstance(own, Directory)
        entries = opening.entries
        same = len(entries) == len(opening.originals) and all(
            entry.node is item.node or (entry.node == item.node and entry.name == item.name)
            for entry, item in zip(entries, opening.originals, strict=True)
        )
        if same and not set(own_changes(own, node)) - {"kind"}:
            where = f"directory '{printable(opening.path)}'" if opening.path else "root directory"
            self._writer.add_named(node.children, opening.origin.source.reader.object_of(node.children, where))
        else:
            if not entries and not is_root:
                return None, None
            node = Directory(
                mode=own.mode,
                uid=own.uid,
                gid=own.gid,
                mtime_ns=own.mtime_ns,
                xattrs=own.xattrs,
                children=self._writer.add(ObjectKind.DIRECTORY, encode_directory(entries)),
                entries=len(entries) + sum(below.entries for _, below in entries if isinstance(below, Directory)),
                kind=DirectoryKind.MERGE,
            )
            if node.entries > ENTRIES_MAX:
                raise MkmetaError(f"{node.entries} entries, more than the limit of {ENTRIES_MAX}", path=opening.path)
        if node.kind is DirectoryKind.OPAQUE:
            self._left_out.recorded(opening.path)
        self.counts["dirs" if node.kind is DirectoryKind.OPAQUE else "skeleton"] += 1
        return node, self._facts_of(opening)

    def _facts_of(self, opening: Opening) -> Location | None:
        if not self._facts or (opening.entries and not any(opening.inodes)):
            return None
        columns = encode_columns(opening.inodes, opening.change_times)
        return self._writer.add_facts(encode_facts(columns, opening.places))


def is_directory(item: Item) -> bool:
    """Whether an entry is a directory."""
    return stat.S_ISDIR(item.node.mode)
