"""Whether the hard links of a manifest are as formats/manifest.md section 3.3 says. It sorts on disk."""

from __future__ import annotations

from collections.abc import Iterable

from mkmeta.digest import DIGEST_SIZE
from mkmeta.errors import FormatError, printable
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.model import LinkRow, PrimaryRow, tree_order

_END = b"\0\0"  # after a path's key: sorts before a longer path, and no name is empty, so it cannot be part of one
_COUNT_BYTES = 4


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
