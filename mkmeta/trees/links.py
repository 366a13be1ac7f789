"""Hard links of a tree that is put together: which names are one inode.

Two names are one inode when the looks at them prove it: the same inode number, change time and number of names,
everything recorded of them equal, and not more of them than the inode has. They are recorded as one when, besides, they
are in one subtree, so that no file of a release is reached by a path of another; or, with HardLinks.ALL, anywhere.

Memory does not grow with the number of names: they are sorted on disk.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import groupby
from typing import Final, NamedTuple, Self

from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import HardLinks, LinkRow, PrimaryRow, tree_order

FINGERPRINT_BYTES: Final = 8
_END = b"\0\0"  # after a path's key: sorts before a longer path, and no name is empty, so it cannot be part of one
_LENGTH_BYTES = 2  # of the length of a path
_COUNT_BYTES = 4
_LOOK_BYTES = 8 + 8 + 4 + FINGERPRINT_BYTES
_TIME_BIAS = 2**63
_GROUP_BYTES: Final = 4 << 20  # bytes of paths of one inode; names of one with more are recorded apart


class Look(NamedTuple):
    """What a look at a name found, by which it is known that another name is the same inode."""

    inode: int  # as facts have it
    change_time: int  # ns since the epoch
    nlink: int  # names of the inode on the volume, 2 or more
    fingerprint: bytes  # stands for everything recorded of the inode


class LinkCollector:
    """Takes names of inodes that have several, in any order; gives link rows at the end. A context manager."""

    def __init__(self, hard_links: HardLinks = HardLinks.SUBTREE) -> None:
        self._across = hard_links is HardLinks.ALL
        self._names = ExternalSorter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._names.__exit__(*args)

    def add(self, look: Look, path: bytes, subtree: bytes) -> None:
        """A name; `subtree` is the path of the subtree it is in, or `path` itself where it was selected alone."""
        self._names.add(
            look.inode.to_bytes(8, "big")
            + (look.change_time + _TIME_BIAS).to_bytes(8, "big")
            + look.nlink.to_bytes(_COUNT_BYTES, "big")
            + look.fingerprint
            + tree_order(path)
            + _END
            + len(subtree).to_bytes(_LENGTH_BYTES, "big")
        )

    def stale(self) -> Iterator[bytes]:
        """The subtrees, or single paths, with names whose inode was found in another state later, or at the same time.

        For the looks of one scan. Before `rows`; some may come more than once.
        """
        for _, names in groupby(self._names, key=lambda record: record[:8]):
            before: list[bytes] = []
            state, differs = b"", False
            for record in names:
                if record[:_LOOK_BYTES] != state:
                    yield from before
                    differs = bool(before) and record[8:16] == state[8:16]
                    state, before = record[:_LOOK_BYTES], []
                path, length = _path_of(record)
                subtree = path[:length]
                if not before or before[-1] != subtree:
                    before.append(subtree)
            if differs:
                yield from before

    def rows(self, failed: Container[bytes] = (), *, demoted: Container[bytes] = ()) -> Iterator[PrimaryRow | LinkRow]:
        """The rows of the link pages, in order, without the names in `failed` subtrees.

        `demoted` are directories that turned out to be merge directories after names in them had been added.
        """
        with ExternalSorter() as rows:
            for look, names in groupby(self._names, key=lambda record: record[:_LOOK_BYTES]):
                nlink = int.from_bytes(look[16:20], "big")
                for paths in self._groups(names, failed, demoted):
                    if len(paths) > nlink or len(paths) < 2:
                        continue
                    primary = tree_order(paths[0])
                    rows.add(primary + _END + b"\0" + len(paths).to_bytes(_COUNT_BYTES, "big"))
                    for path in paths[1:]:
                        rows.add(tree_order(path) + _END + b"\1" + primary)
            for record in rows:
                key, rest = record.split(_END, 1)
                path = key.replace(b"\0", b"/")
                if rest[:1] == b"\0":
                    yield PrimaryRow(path, int.from_bytes(rest[1:], "big"))
                else:
                    yield LinkRow(path, rest[1:].replace(b"\0", b"/"))

    def _groups(
        self, names: Iterable[bytes], failed: Container[bytes], demoted: Container[bytes]
    ) -> Iterator[list[bytes]]:
        """The names of an inode by subtree: those of one come one after the other. Too long a group is not given."""
        group: list[bytes] = []
        subtree: bytes | None = None
        size = 0
        for record in names:
            path, length = _path_of(record)
            top = path[:length]
            if top in failed:
                continue
            while top in demoted and top != path:
                end = path.find(b"/", len(top) + 1)
                top = path if end < 0 else path[:end]
            if not self._across and subtree is not None and top != subtree:
                if size <= _GROUP_BYTES:
                    yield group
                group, size = [], 0
            subtree = top
            if group and path == group[-1]:
                continue  # seen twice: what it is in was read once more
            size += len(path)
            if size <= _GROUP_BYTES:
                group.append(path)
        if group and size <= _GROUP_BYTES:
            yield group


def _path_of(record: bytes) -> tuple[bytes, int]:
    """The path of a record, and the length of that of its subtree."""
    path = record[_LOOK_BYTES : -len(_END) - _LENGTH_BYTES].replace(b"\0", b"/")
    return path, int.from_bytes(record[-_LENGTH_BYTES:], "big")
