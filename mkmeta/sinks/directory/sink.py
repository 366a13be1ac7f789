"""The sink for an upper directory: what happens in which order (formats/upper.md section 4), and what it costs."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from mkmeta.errors import BuildError, human_bytes, reason
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.linux.process import ending_signals_held
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.model import LinkRow, PrimaryRow
from mkmeta.overlay_xattrs import OverlayXattrs
from mkmeta.plan import PlannedNode
from mkmeta.sinks.directory.diagnosis import Attempt, Diagnosis
from mkmeta.sinks.directory.hard_links import make_links
from mkmeta.sinks.directory.node_writer import SHARED, XATTR_BYTES, XATTR_FILES, NodeWriter
from mkmeta.sinks.directory.sharing import SharedLayer
from mkmeta.sinks.directory.staging import Destination, Staging, check_what_passes_on
from mkmeta.sinks.protocol import DataBeyond, LayerKind, Published

# Filesystems on which data takes no less than its size
_STORE_AS_IT_IS: Final = frozenset({"ext2", "ext3", "ext4", "tmpfs", "xfs"})


class DirectorySink:
    """Writes a layer as a directory at `dest`, in any number of processes."""

    kind = LayerKind.DIRECTORY
    ordered = False
    links_in_place = False

    def __init__(
        self,
        dest: bytes,
        names: OverlayXattrs,
        *,
        swap: bool = False,
        discard: bool = False,
        base: bytes | None = None,
    ) -> None:
        """`names`: of mkmeta's own marks. `swap`: exchange it with an existing DEST; `discard`: and remove that.

        `base`: a layer to share unchanged files with, by hard links.
        """
        self._dest = dest
        self._names = names
        self._swap = swap
        self._discard = discard
        self._base_path = base
        self._base: SharedLayer | None = None
        self._leftovers: list[bytes] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self, root: PlannedNode, inodes: int, data: DataBeyond) -> None:
        """Makes the staging directory, after everything that can be refused was looked at."""
        destination = Destination.open(self._dest)
        self._stack.callback(destination.close)
        destination.check(swap=self._swap)
        self._leftovers = destination.remove_leftovers()
        diagnosis = Diagnosis(destination.parent_fd)
        if self._base_path is not None:
            self._base = self._stack.enter_context(SharedLayer(self._base_path, self._names))
        else:  # with a base, how many inodes and bytes it takes is known in the end only
            _check_room(destination, inodes, data)
        try:
            with ending_signals_held():
                self._staging = self._stack.enter_context(Staging(destination, self._names))
            check_what_passes_on(self._staging.fd, self._dest)
        except OSError as error:
            raise diagnosis.explain(error, self._dest, Attempt.CREATE) from None
        if self._base is not None and not self._base.mark(self._staging.fd):
            self._base = None
        name, value = root.xattrs[-1]
        try:
            os.setxattr(self._staging.fd, name, value)  # whether the filesystem takes overlayfs's xattrs
        except OSError as error:
            raise Diagnosis(self._staging.fd).explain_xattr(error, b"", name, len(value)) from None

    def writer(self, counts: Counter[str], links: LinkLookup | None, contents: Contents | None) -> NodeWriter:
        """For a worker process."""
        os.umask(0)
        return NodeWriter(self._staging.fd, counts, self._base, contents)

    def links(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        """Makes the hard links; directories keep their mtime."""
        make_links(self._staging.fd, rows)

    def finish(self, root: PlannedNode, counts: Counter[str]) -> Published:
        """Finishes the root, flushes everything, and gives the directory its name."""
        NodeWriter(self._staging.fd, Counter(), None, None).finish(self._staging.fd, b"", root)
        try:
            old = self._staging.publish(swap=self._swap, discard=self._discard)
        except OSError as error:
            raise BuildError(f"cannot be put in place: {reason(error)}", path=self._dest) from None
        filesystem = filesystem_type(self._staging.fd)
        return Published(filesystem, old, tuple(self._leftovers), tuple(self._notes(filesystem, counts)))

    def _notes(self, filesystem: str, counts: Counter[str]) -> Iterable[str]:
        if counts[XATTR_FILES]:
            yield _xattr_note(filesystem, counts[XATTR_FILES], counts[XATTR_BYTES])
        if self._base is not None and not counts[SHARED]:
            yield "nothing was shared: no file is just the same in the layer that --base names"
        if self._base_path is not None and self._base is None:
            yield "nothing can be shared: --base is on another filesystem"


def _check_room(destination: Destination, inodes: int, data: DataBeyond) -> None:
    """Raises BuildError when the filesystem says that so many inodes, or bytes, are not free.

    Some count no inodes, as btrfs; and some compress data, or find that they have it: what they take is not known.
    """
    counts = os.fstatvfs(destination.parent_fd)
    if counts.f_files and counts.f_favail < inodes:
        raise BuildError(
            f"the layer takes {inodes} inodes, its filesystem has {counts.f_favail} free",
            path=destination.path,
            hint="make room, or make a filesystem with more inodes (mkfs.ext4 -N), or use xfs or btrfs",
        )
    if filesystem_type(destination.parent_fd) not in _STORE_AS_IT_IS:
        return
    free = counts.f_bfree * counts.f_frsize  # with what is kept for root, or whoever else may take it
    size = data(free)
    if size:
        raise BuildError(
            f"the layer takes {human_bytes(size)} for data, its filesystem has {human_bytes(free)} free",
            path=destination.path,
            hint="make room, or leave contents out (--no-inline), or make an image elsewhere (--format erofs)",
        )


def _xattr_note(filesystem: str, files: int, size: int) -> str:
    """What xattrs outside of inodes cost, and what avoids it."""
    cure = {
        "ext4": "; an ext4 made with mkfs.ext4 -I 512 (-I 1024 for paths over 240 bytes) keeps them in the inode",
        "xfs": "; an xfs made with mkfs.xfs -i size=1024 keeps them in the inode",
    }.get(filesystem, "")
    return (
        f"the xattrs of {files} files did not fit into their inodes and take "
        f"{human_bytes(-(-size // files))} each, {human_bytes(size)} in all{cure}"
    )
