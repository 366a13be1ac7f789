"""One image from its first node to its name: the passes over it, and what they have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, Self

from mkmeta.codec.erofs import encode_composefs_header
from mkmeta.digest import VerityDigest
from mkmeta.errors import BuildError
from mkmeta.manifest.sorter import temporary_space_error
from mkmeta.sinks.erofs.collecting import Collection, Part
from mkmeta.sinks.erofs.image import Image, image_digest
from mkmeta.sinks.erofs.nodes import Row, has_acl
from mkmeta.sinks.erofs.placing import Places, Placing
from mkmeta.sinks.erofs.sharing import SharedXattrs, find_shared
from mkmeta.sinks.erofs.spool import Spool

_INODES_MAX = 2**32 - 1


class Assembly:
    """The nodes of an image, and then the image. A context manager."""

    def __init__(self, *, composefs: int | None = None) -> None:
        """`composefs`: the version of a composefs image; None: it is none."""
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
        oldest = min(root[4:6], min((record.seconds, record.nanoseconds) for record in collection.directories()))
        if sum(record.nodes for record in collection.directories()) > _INODES_MAX:
            raise BuildError("an image has room for 2^32 inodes")
        shared = self._shared(root)
        placing = Placing(root, collection, shared, oldest, exact=self.composefs is not None)
        places = Places(placing, collection)
        image = Image(collection, placing, places, shared)
        header = b""
        if self.composefs is not None:
            header = encode_composefs_header(self.composefs, acls=any(map(has_acl, self._rows(root))))
        with output as stream:
            image.write(stream.fileno(), header, oldest)
            return image_digest(stream.fileno(), image.size), image.size

    def _rows(self, root: Row) -> Iterator[Row]:
        yield root
        for rows in self._collection.all_rows():
            yield from rows

    def _shared(self, root: Row) -> SharedXattrs:
        try:
            area, spool = Spool(), Spool()
        except OSError as error:
            raise temporary_space_error(error) from None
        self._collection.spools += area, spool

        def hashes() -> Iterator[Sequence[int]]:
            yield list(map(hash, root[15]))
            yield from self._collection.hashes()

        return find_shared(hashes(), (row[15] for row in self._rows(root)), area, spool)
