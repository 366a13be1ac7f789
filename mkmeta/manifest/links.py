"""Hard links of a manifest: from inode numbers to rows when scanning, and the check of rows when reading.

Memory does not grow with the number of links: both sort on disk.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Self

from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import FormatError, ScanError, printable
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import LinkRow, PrimaryRow, tree_order

_END = b"\0\0"  # after a path's key: sorts before a longer path, and no name is empty, so it cannot be part of one
_INODE_BYTES = 8
_COUNT_BYTES = 4
FINGERPRINT_BYTES = 8


class LinkCollector:
    """Collects the names of inodes with several names while a tree is walked; gives link rows at the end."""

    def __init__(self) -> None:
        self._names = ExternalSorter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._names.__exit__(*args)

    def add(self, inode: int, path: bytes, fingerprint: bytes, subtree: int) -> None:
        """A name of an inode; `fingerprint` (8 bytes) stands for everything recorded of it, `subtree` for where."""
        self._names.add(
            inode.to_bytes(_INODE_BYTES, "big")
            + tree_order(path)
            + _END
            + fingerprint
            + subtree.to_bytes(_COUNT_BYTES, "big")
        )

    def rows(self, dropped: Container[int]) -> Iterator[PrimaryRow | LinkRow]:
        """The rows of the link pages, in order, without the names in `dropped` subtrees.

        Raises ScanError when the names of an inode were not recorded alike.
        """
        with ExternalSorter() as rows:
            group: tuple[bytes, bytes, bytes] | None = None  # inode, path key of the primary, fingerprint
            nlink = 0
            for record in self._names:
                tail = len(record) - FINGERPRINT_BYTES - _COUNT_BYTES
                if int.from_bytes(record[-_COUNT_BYTES:], "big") in dropped:
                    continue
                inode, key = record[:_INODE_BYTES], record[_INODE_BYTES : tail - len(_END)]
                fingerprint = record[tail:-_COUNT_BYTES]
                if group is None or group[0] != inode:
                    _add_primary(rows, group, nlink)
                    group, nlink = (inode, key, fingerprint), 1
                    continue
                if fingerprint != group[2]:
                    raise ScanError(
                        f"changed during the scan (it is the same inode as {printable(_path(group[1]))})",
                        path=_path(key),
                        hint="wait until nothing writes to the volume, then scan again",
                    )
                nlink += 1
                rows.add(key + _END + b"\1" + group[1])
            _add_primary(rows, group, nlink)
            for record in rows:
                key, rest = record.split(_END, 1)
                if rest[:1] == b"\0":
                    yield PrimaryRow(_path(key), int.from_bytes(rest[1:], "big"))
                else:
                    yield LinkRow(_path(key), _path(rest[1:]))


def _add_primary(rows: ExternalSorter, group: tuple[bytes, bytes, bytes] | None, nlink: int) -> None:
    if group is not None and nlink > 1:
        rows.add(group[1] + _END + b"\0" + nlink.to_bytes(_COUNT_BYTES, "big"))


def check_groups(rows: Iterable[tuple[PrimaryRow | LinkRow, bytes]]) -> None:
    """Raises FormatError unless each link names a primary like itself, and primaries have the links they say.

    With each row comes a digest of everything recorded of its inode.
    """
    with ExternalSorter() as by_target:
        for row, digest in rows:
            match row:
                case PrimaryRow(path, nlink):
                    by_target.add(tree_order(path) + _END + b"\0" + digest + nlink.to_bytes(_COUNT_BYTES, "big"))
                case LinkRow(path, target):
                    by_target.add(tree_order(target) + _END + b"\1" + digest + tree_order(path))
        primary, recorded, missing = b"", b"", 0
        for record in by_target:
            key, rest = record.split(_END, 1)
            digest, rest, is_primary = rest[1 : 1 + DIGEST_SIZE], rest[1 + DIGEST_SIZE :], rest[:1] == b"\0"
            if is_primary:
                _check_complete(primary, missing)
                primary, recorded, missing = key, digest, int.from_bytes(rest, "big") - 1
                continue
            name, other = printable(_path(rest)), printable(_path(key))
            if key != primary:
                raise FormatError(f"links: '{name}' is a hard link to '{other}', which is no primary")
            if digest != recorded:
                raise FormatError(f"links: '{name}' differs from '{other}'")
            missing -= 1
        _check_complete(primary, missing)


def _check_complete(primary: bytes, missing: int) -> None:
    if missing:
        raise FormatError(
            f"links: '{printable(_path(primary))}' has {'fewer' if missing > 0 else 'more'} links than it says"
        )


def _path(key: bytes) -> bytes:
    return key.replace(b"\0", b"/")
