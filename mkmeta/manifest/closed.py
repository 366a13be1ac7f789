"""Paths at which files may not be what a content is taken for, though modes allow it (formats/manifest.md section 7).

Such are those of files that an NFSv4 ACL keeps from somebody, those of directories, for all below them, and those
where nobody asked for ACLs on a volume that has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from mkmeta.manifest.cursor import Recorded
from mkmeta.model import Directory, DirectoryKind

if TYPE_CHECKING:
    from mkmeta.codec.info import Info
    from mkmeta.manifest.reader import ManifestReader

_PATHS_MAX: Final = 60_000  # fewer than an array of an info record may have
_BYTES_MAX: Final = 2 << 20  # of all paths: half of what an info record may have
_NFS4_ACL: Final = "nfs4_acl"  # among the counts of an info record


class ClosedPaths(Collection[bytes]):
    """A set of them, of bounded size: where there are too many, a directory stands for what is in it, the deepest
    ones first. So more may be closed than was said, and never less.
    """

    def __init__(self, paths: Iterable[bytes] = ()) -> None:
        self._paths: set[bytes] = set()
        self._size = 0
        self.update(paths)

    def __contains__(self, path: object) -> bool:
        return path in self._paths

    def __iter__(self) -> Iterator[bytes]:
        """Ascending."""
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)

    def add(self, path: bytes) -> None:
        """One more."""
        if path not in self._paths:
            self._paths.add(path)
            self._size += len(path)
            if len(self._paths) > _PATHS_MAX or self._size > _BYTES_MAX:
                self._shrink()

    def update(self, paths: Iterable[bytes]) -> None:
        """Some more."""
        for path in paths:
            self.add(path)

    def _shrink(self) -> None:
        """To half of what there may be, so that it does not happen at every path."""
        while len(self._paths) > _PATHS_MAX // 2 or self._size > _BYTES_MAX // 2:
            deepest = max(map(_depth, self._paths))
            self._paths = {path.rpartition(b"/")[0] if _depth(path) == deepest else path for path in self._paths}
            self._size = sum(map(len, self._paths))


def are_known(info: Info) -> bool:
    """Whether a manifest knows what ACLs close in it: its scan asked for them, or met none at all."""
    return info.closed is not None or not (info.counts.get(_NFS4_ACL) or info.drop_xattrs)


def closed_in(reader: ManifestReader) -> Iterable[bytes]:
    """The paths of a manifest: where they are not known, all that it records. Raises FormatError."""
    if are_known(reader.info):
        return reader.info.closed or ()
    return _recorded_whole(reader)


def _recorded_whole(reader: ManifestReader) -> Iterator[bytes]:
    """What is in merge directories and is none."""
    stack: list[tuple[bytes, Iterator[Recorded]]] = [(b"", reader.recorded(reader.root.directory, b"", None))]
    while stack:
        path, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        below = path + b"/" + entry.name if path else entry.name
        if isinstance(entry.node, Directory) and entry.node.kind is DirectoryKind.MERGE:
            stack.append((below, reader.recorded(entry.node, below, None)))
        else:
            yield below


def _depth(path: bytes) -> int:
    """How many names it has."""
    return path.count(b"/") + 1 if path else 0
