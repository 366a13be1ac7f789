"""One image from its first node to its name: the passes over it, and what they have in common."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import BinaryIO, Final, Self

from mkmeta.codec.erofs import encode_composefs_header
from mkmeta.digest import VerityDigest
from mkmeta.errors import BuildError
from mkmeta.sinks.erofs.collecting import Collection, Part
from mkmeta.sinks.erofs.image import Image, image_digest
from mkmeta.sinks.erofs.nodes import Body, Row, has_acl
from mkmeta.sinks.erofs.placing import Places, Tree
from mkmeta.sinks.erofs.sharing import SharedXattrs, find_shared

_INODES_MAX: Final = 2**32 - 1
_ENOUGH: Final = 20_000  # nodes that several processes write faster than one


class Assembly:
    """The nodes of an image, and then the image. A context manager."""

    def __init__(self, *, jobs: int = 1, composefs: int | None = None) -> None:
        """`jobs`: worker processes. `composefs`: the version of a composefs image; None: it is none."""
        self._jobs = jobs
        self.composefs = composefs
        self._collection = Collection()

    def __enter__(self) -> Self:
        self._collection.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._collection.__exit__(kind, error, trace)

    def part(self) -> Part:
        """Files for one more process that collects; to be called before that exists."""
        return self._collection.part()

    def write(self, root: Row, output: contextlib.AbstractContextManager[BinaryIO]) -> tuple[VerityDigest, int]:
        """Writes the image, all nodes being collected. Returns its fs-verity digest, and its size in bytes.

        Enters `output` when it is known what there is to write. Raises BuildError, MkmetaError, OSError of the output.
        """
        collection = self._collection
        collection.complete()
        head, body = root
        oldest = min(head[4:6], min((record.seconds, record.nanoseconds) for record in collection.directories()))
        nodes = 1 + sum(record.nodes for record in collection.directories())
        if nodes > _INODES_MAX:
            raise BuildError("an image has room for 2^32 inodes")
        exact = self.composefs is not None
        tree = Tree(root, collection, self._shared(body), oldest, exact)
        image = Image(tree, Places(tree, self._jobs if nodes > _ENOUGH else 1))
        header = b""
        if self.composefs is not None:
            acls = has_acl(body) or any(has_acl(body) for bodies in collection.all_bodies() for body in bodies)
            header = encode_composefs_header(self.composefs, acls=acls)
        with output as stream:
            image.write(stream.fileno(), header)
            return image_digest(stream.fileno(), image.size), image.size

    def _shared(self, root: Body) -> SharedXattrs:
        collection = self._collection
        return find_shared(collection, root, collection.spool(), collection.spool())
