"""The argument of verbs that look at a layer: a store, a generation of one, or any directory that was built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from mkmeta.errors import IdMismatchError, NoGenerationError, StoreError, UsageError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan
from mkmeta.sinks.erofs.inspection import is_image
from mkmeta.store.generation import LAYER, Generation, generation_of
from mkmeta.store.store import Store


@dataclass(frozen=True)
class FoundLayer:
    """A layer, and the generation it belongs to, if it does."""

    layer: bytes
    generation: Generation | None

    @classmethod
    def at(cls, path: bytes) -> Self:
        """The layer that is meant: the current one of a store, that of a generation, or `path` itself.

        Raises StoreError and NoGenerationError, and UsageError for what is no layer.
        """
        real = os.path.realpath(path)
        if os.path.lexists(os.path.join(real, b"store.json")):
            current = Store.open(real).current()
            if current is None:
                raise NoGenerationError("has no generation yet", path=path, hint="mkmeta build --store adds one")
            return cls(current.layer, current)
        generation = generation_of(real) or generation_of(os.path.join(real, LAYER))
        if generation is not None:
            return cls(generation.layer, generation)
        if os.path.lexists(real) and not os.path.isdir(real) and not is_image(real):
            raise UsageError(
                "is no layer: neither a directory nor an EROFS image",
                path=path,
                hint="name what mkmeta build made; a manifest is named with --manifest",
            )
        return cls(real, None)

    def plan(self) -> Plan:
        """How the generation says its layer was built. Raises StoreError."""
        assert self.generation is not None
        about = self.generation.about()
        return Plan(
            prefix=about.redirect_prefix,
            userxattr=about.userxattr,
            verity=about.verity,
            inline=about.contents is not None,
        )

    def open_manifest(self) -> ManifestReader:
        """The manifest of the generation; the caller closes it. Raises IdMismatchError when it is another's."""
        assert self.generation is not None
        if os.path.exists(self.generation.manifest) and not os.access(self.generation.manifest, os.R_OK):
            hint = "run this as one of them"
            raise StoreError("is for the store's owner and root", path=self.generation.manifest, hint=hint)
        reader = ManifestReader.open(self.generation.manifest)
        about = self.generation.about()
        if reader.id != about.id:
            reader.close()
            raise IdMismatchError(
                f"is manifest {reader.id.hex()[:12]}, its generation was built from {about.id.hex()[:12]}",
                path=self.generation.manifest,
                hint="name the right one with --manifest, or build the generation again",
            )
        return reader
