"""From recorded entries to the nodes of a layer: the only place that knows what overlayfs makes of attributes.

Pure: nothing here opens anything. The rules are those of formats/upper.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from mkmeta.codec.metacopy import REDIRECT_MAX, encode_metacopy, encode_redirect
from mkmeta.digest import ObjectId
from mkmeta.errors import BuildError, UsageError, printable
from mkmeta.model import NO_CONTENT, Directory, DirectoryKind, Node, RegularFile, Root, Xattrs
from mkmeta.overlay_xattrs import OPAQUE_VALUE, OverlayXattrs, overlay_xattrs


class PlannedNode(NamedTuple):
    """A node as it will be on disk: the recorded inode, and all its xattrs, overlayfs's included.

    A tuple and not a dataclass because a build makes one per entry.
    """

    name: bytes  # empty for the root of the layer
    inode: Node
    xattrs: Xattrs  # in the order in which they are set; no name twice
    content: int = NO_CONTENT  # of a file that is whole in the layer: number of its content


class ContentIndex(Protocol):
    """Knows which files may be whole."""

    def find(self, file: RegularFile) -> int:
        """The number of a file's content; NO_CONTENT."""


@dataclass(frozen=True)
class Plan:
    """The choices of one build, and what they make of each entry."""

    prefix: bytes = b""  # path of the recorded root below the lower layer, without outer slashes; empty: the same
    userxattr: bool = False  # `user.overlay.*`, for mounts in user namespaces
    verity: bool = True  # put fs-verity digests where the manifest has them
    inline: bool = True  # files whose content the manifest has are whole

    def __post_init__(self) -> None:
        """Raises UsageError when the kernel would not follow redirects below the prefix."""
        if self.prefix:
            try:
                encode_redirect(self.prefix)
            except ValueError as error:
                raise UsageError(f"redirect prefix {printable(self.prefix)!r}: {error}") from None

    @property
    def names(self) -> OverlayXattrs:
        """The names of overlayfs's own xattrs."""
        return overlay_xattrs(userxattr=self.userxattr)

    def root(self, root: Root, manifest_id: ObjectId) -> PlannedNode:
        """The layer's root: never opaque, and carrying the ID of the manifest it was made from."""
        marked = (*root.directory.xattrs, (self.names.manifest_id, manifest_id))
        return PlannedNode(b"", root.directory, marked)

    def directory(self, name: bytes, directory: Directory) -> PlannedNode:
        """A directory: opaque, for a mount and for a mount above that mount, or left to merge."""
        if directory.kind is DirectoryKind.MERGE:
            return PlannedNode(name, directory, directory.xattrs)
        return PlannedNode(name, directory, directory.xattrs + self._opaque)

    def children(
        self, path: bytes, entries: Iterable[tuple[bytes, Node]], contents: ContentIndex | None = None
    ) -> Iterator[PlannedNode]:
        """The nodes in the directory at `path`. Raises BuildError for a file whose redirect would be too long.

        A file that `contents` has is whole: its data is looked for nowhere else, so that nothing marks it.
        """
        target = b"/".join(part for part in (self.prefix, path) if part)
        base = b"/" + target + b"/" if target else b"/"
        metacopy_name, redirect_name = self.names.metacopy, self.names.redirect
        for name, inode in entries:
            if type(inode) is RegularFile and inode.size:
                if contents is not None and (content := contents.find(inode)) != NO_CONTENT:
                    yield PlannedNode(name, inode, inode.xattrs, content)
                    continue
                redirect = base + name
                if len(redirect) > REDIRECT_MAX:
                    raise BuildError(
                        f"its redirect has {len(redirect)} bytes, the kernel follows {REDIRECT_MAX}",
                        path=path + b"/" + name,
                        hint="leave this subtree out of the scan, or use a shorter --redirect-prefix",
                    )
                metacopy = encode_metacopy(inode.verity if self.verity else None)
                yield PlannedNode(name, inode, (*inode.xattrs, (metacopy_name, metacopy), (redirect_name, redirect)))
            elif type(inode) is Directory:
                yield self.directory(name, inode)
            else:
                yield PlannedNode(name, inode, inode.xattrs)

    @cached_property
    def _opaque(self) -> Xattrs:
        return ((self.names.opaque, OPAQUE_VALUE), (self.names.escaped_opaque, OPAQUE_VALUE))
