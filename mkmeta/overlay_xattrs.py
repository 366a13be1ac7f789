"""The names of the extended attributes that overlayfs reads in a layer, and of mkmeta's own beside them.

overlayfs hides every name that begins with its prefix from those who look through a mount, whether it knows the name
or not: so mkmeta's own marks on the root of a layer do not show. What each means is in formats/upper.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mkmeta.model import OVERLAY_XATTRS

OPAQUE_VALUE: Final = b"y"  # exactly one byte, or the kernel ignores it (fs/overlayfs/util.c, ovl_is_opaquedir)


@dataclass(frozen=True)
class OverlayXattrs:
    """The full names below one prefix: `trusted.overlay.`, or `user.overlay.` for mounts with `userxattr`."""

    prefix: bytes

    @cached_property
    def opaque(self) -> bytes:
        """On a directory: nothing of the layers below shows in it."""
        return self.prefix + b"opaque"

    @cached_property
    def escaped_opaque(self) -> bytes:
        """The same for a mount above the mount: the inner one shows it as `opaque` (Linux 6.7)."""
        return self.prefix + b"overlay.opaque"

    @cached_property
    def metacopy(self) -> bytes:
        """On a file: its data is elsewhere; the value may hold that data's fs-verity digest."""
        return self.prefix + b"metacopy"

    @cached_property
    def redirect(self) -> bytes:
        """On a file with `metacopy`: where its data is."""
        return self.prefix + b"redirect"

    @cached_property
    def manifest_id(self) -> bytes:
        """mkmeta's, on the root: the ID of the manifest the layer was built from, 32 raw bytes."""
        return self.prefix + b"mkmeta"

    @cached_property
    def pending(self) -> bytes:
        """mkmeta's, on the root: not in its place yet, whatever its name is; empty."""
        return self.prefix + b"mkmeta-pending"

    @cached_property
    def shared(self) -> bytes:
        """mkmeta's, on the root: shares inodes with another layer, so that nothing may write to it; empty."""
        return self.prefix + b"mkmeta-shared"

    @cached_property
    def marks(self) -> frozenset[bytes]:
        """All that mkmeta itself puts on a root. What else is there, the kernel wrote."""
        return frozenset({self.manifest_id, self.pending, self.shared})


TRUSTED, USER = NAMESPACES = tuple(map(OverlayXattrs, OVERLAY_XATTRS))


def overlay_xattrs(*, userxattr: bool) -> OverlayXattrs:
    """The names that a mount with or without the option `userxattr` reads."""
    return USER if userxattr else TRUSTED
