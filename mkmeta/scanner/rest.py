"""The rest of a tree, when only part of it is looked at: what a new manifest takes from its base without a look."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from operator import sub
from typing import Any

from mkmeta.codec.packing import unpack
from mkmeta.errors import FormatError, NothingSelectedError, printable
from mkmeta.manifest.links import LinkCollector
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DirectoryKind
from mkmeta.pattern import Patterns
from mkmeta.scanner.base import CHILDREN, KIND, MODE, NAME, SIZE, Base, BaseDirectory, Row, fingerprint, unpacked
from mkmeta.scanner.records import Counts


class Rest:
    """What the base says, without what was looked at anew."""

    def __init__(self, base: ManifestReader, only: Patterns) -> None:
        self._base = base
        self._only = only
        self._replaced = Counts()

    @property
    def created(self) -> int:
        """How old it is, in ns since the epoch: what is trusted the next time must not be younger."""
        return self._base.info.created

    def replace(self, kind: DirectoryKind | None, rows: Iterable[bytes], path: bytes) -> None:
        """Notes what does not count any more: the directory at `path`, looked into, and packed entries in it."""
        replaced = Counter(dirs=kind is DirectoryKind.OPAQUE, skeleton=kind is DirectoryKind.MERGE)
        for row in rows:
            replaced.update(_count(self._base, row, path))
        self._replaced = self._replaced.plus(replaced[name] for name in Counts._fields)

    def counts(self) -> Iterator[int]:
        """The fields of Counts. Those of names left out are as in the base, since it does not say where they were."""
        old = self._base.info.counts
        return map(sub, (old.get(name, 0) for name in Counts._fields), self._replaced)

    def left_out(self) -> list[tuple[bytes, str]]:
        """What the base left out and nobody looked at."""
        return [(path, why) for path, why in self._base.info.left_out if not self._is_walked(path)]

    def keep_links(self, links: LinkCollector, *, failed: list[bytes]) -> None:
        """Adds the names of linked inodes, but for those below the paths of `failed` subtrees."""
        for path, inode, row in _linked_rows(self._base):
            if not self._is_walked(path) and not any(path.startswith(subtree + b"/") for subtree in failed):
                links.add(inode, path, fingerprint(row), 0)

    def unmatched(self, matched: Container[int]) -> tuple[bytes, ...]:
        """The patterns of what was to be looked at that match nothing. Raises NothingSelectedError when none does."""
        sources = self._only.sources
        found = tuple(pattern for number, pattern in enumerate(sources) if number not in matched)
        if len(found) == len(sources):
            hint = "it matches nothing that is selected, neither on the volume nor in the base"
            raise NothingSelectedError("no pattern of --only matched anything", path=sources[0], hint=hint)
        return found

    def _is_walked(self, path: bytes) -> bool:
        state = self._only.start()
        for name in path.split(b"/"):
            state, matched = self._only.advance(state, name)
            if matched:
                return True
        return False


def _linked_rows(reader: ManifestReader) -> Iterator[tuple[bytes, int, Row]]:
    """Every recorded name of an inode that has several: path, inode number, entry. In tree order."""
    trail: list[tuple[bytes, dict[bytes, tuple[Row, int]], dict[bytes, BaseDirectory]]] = []
    base = Base(reader, adopted=False, trust=True)

    def enter(prefix: bytes, directory: BaseDirectory) -> None:
        recorded = base.read(directory, prefix[:-1])
        below = {row[NAME]: (row, inode) for row, inode in zip(recorded.rows, recorded.inodes, strict=True)}
        trail.append((prefix, below, recorded.directories()))

    enter(b"", base.root())
    for link in reader.links():
        while not link.path.startswith(trail[-1][0]):
            trail.pop()
        while b"/" in (rest := link.path.removeprefix(trail[-1][0])):
            prefix, _, directories = trail[-1]
            name = rest.partition(b"/")[0]
            if name not in directories:
                raise FormatError(f"base: links: '{printable(link.path)}' has no facts")
            enter(prefix + name + b"/", directories[name])
        if rest not in trail[-1][1]:
            raise FormatError(f"base: links: '{printable(link.path)}' is not recorded")
        row, inode = trail[-1][1][rest]
        yield link.path, inode, row


def _count(reader: ManifestReader, packed: bytes, path: bytes) -> dict[str, int]:
    """What an entry of the base, with all below it, adds to the counts of a scan."""
    counts = dict.fromkeys(("dirs", "skeleton", "files", "symlinks", "others", "bytes"), 0)
    row: Any = unpack(packed)
    stack: list[tuple[Row, bytes]] = [(row, path)]
    while stack:
        row, path = stack.pop()
        mode = row[MODE]
        if stat.S_ISDIR(mode):
            counts["dirs" if row[KIND] == DirectoryKind.OPAQUE else "skeleton"] += 1
            where = f"base: directory '{printable(path)}'"
            below: Any = unpacked(reader.object_of(row[CHILDREN], where), where)
            stack += [(entry, path + b"/" + entry[NAME]) for entry in below]
        elif stat.S_ISREG(mode):
            counts["files"] += 1
            counts["bytes"] += row[SIZE]
        else:
            counts["symlinks" if stat.S_ISLNK(mode) else "others"] += 1
    return counts
