"""What composefs makes of a tree: the other plan for an image (formats/erofs.md section 7).

It is a complete tree, with no volume below. Byte for byte what mkcomposefs 1.0.8 makes; nothing here opens anything.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mkmeta.codec.dump_lines import CONTENT_MAX
from mkmeta.codec.metacopy import encode_metacopy
from mkmeta.digest import ObjectId
from mkmeta.errors import BuildError
from mkmeta.model import NO_CONTENT, Device, Directory, Inode, Node, RegularFile, Root, Xattrs
from mkmeta.overlay_xattrs import OPAQUE_VALUE, TRUSTED
from mkmeta.plan import ContentIndex, Plan, PlannedNode

WHITEOUT_NAMES: Final = tuple(b"%02x" % number for number in range(256))
WHITEOUT_MODE: Final = 0o020644
SELINUX: Final = b"security.selinux"
ROOT_OPAQUE: Final = (TRUSTED.opaque, OPAQUE_VALUE)


@dataclass(frozen=True)
class ComposefsPlan(Plan):
    """The tree of a manifest as `mkmeta dump` says it: every file is redirected to its path on the volume."""

    top: Directory | None = None  # the recorded root
    objects: bool = False  # files are redirected to what is named by their fs-verity digests instead

    def root(self, root: Root, manifest_id: ObjectId) -> PlannedNode:
        """Opaque, for what that is worth."""
        return PlannedNode(b"", root.directory, (*root.directory.xattrs, ROOT_OPAQUE))

    def directory(self, name: bytes, directory: Directory) -> PlannedNode:
        """All directories are complete."""
        return PlannedNode(name, directory, directory.xattrs)

    def children(
        self, path: bytes, entries: Iterable[tuple[bytes, Node]], contents: ContentIndex | None = None
    ) -> Iterator[PlannedNode]:
        """The nodes in the directory at `path`; in the root also those that hide directories of objects."""
        if path:
            yield from self._children(path + b"/", entries, contents)
            return
        name = b""
        for _, node in heapq.merge(
            ((node.name, node) for node in self._children(b"", entries, contents)),
            ((name, self._whiteout(name)) for name in WHITEOUT_NAMES),
            key=lambda pair: pair[0],
        ):
            if node.name != name:
                name = node.name
                yield node

    def _children(
        self, prefix: bytes, entries: Iterable[tuple[bytes, Node]], contents: ContentIndex | None
    ) -> Iterator[PlannedNode]:
        for name, inode in entries:
            if isinstance(inode, RegularFile) and inode.size:
                if contents is not None and inode.size <= CONTENT_MAX:
                    content = contents.find(inode)
                    if content != NO_CONTENT:
                        yield PlannedNode(name, inode, inode.xattrs, content)
                        continue
                payload = object_name(inode, prefix + name) if self.objects else prefix + name
                yield PlannedNode(name, inode, inode.xattrs + redirection(payload, encode_metacopy(inode.verity)))
            else:
                yield PlannedNode(name, inode, inode.xattrs)

    def _whiteout(self, name: bytes) -> PlannedNode:
        top: Inode | None = self.top
        assert top is not None
        xattrs = tuple(pair for pair in top.xattrs if pair[0] == SELINUX)
        device = Device(mode=WHITEOUT_MODE, uid=top.uid, gid=top.gid, mtime_ns=top.mtime_ns, major=0, minor=0)
        return PlannedNode(name, device, xattrs)


def object_name(file: RegularFile, path: bytes) -> bytes:
    """Where composefs keeps the content of a file: `ab/cdef...`, by its fs-verity digest. Raises BuildError."""
    if file.verity is None:
        raise BuildError(
            "has no fs-verity digest, which would be the name of its object",
            path=path,
            hint="scan with --digest verity, or leave --objects out",
        )
    digits = file.verity.hex().encode()
    return digits[:2] + b"/" + digits[2:]


def redirection(payload: bytes, metacopy: bytes) -> Xattrs:
    """The xattrs of a file whose content is elsewhere; an empty payload: nobody knows where."""
    if payload:
        return ((TRUSTED.metacopy, metacopy), (TRUSTED.redirect, b"/" + payload))
    return ((TRUSTED.metacopy, metacopy),)
