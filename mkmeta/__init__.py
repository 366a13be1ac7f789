"""mkmeta: an offline manifest compiler for overlayfs metadata layers over read-only software volumes.

For programs: `open_manifest`, `diff`, and what these give (docs/api.md). They are imported when they are first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # what `typing` would say; it takes longer to import than all of this

if TYPE_CHECKING:
    from mkmeta.api import Manifest, diff, is_complete, open_manifest
    from mkmeta.errors import BuildError, FormatError, MkmetaError
    from mkmeta.model import Device, Directory, RegularFile, Special, Symlink
    from mkmeta.plan import Plan, PlannedNode
    from mkmeta.trees.diff import Difference

__version__ = "0.1.0"
__all__ = [
    "BuildError",
    "Device",
    "Difference",
    "Directory",
    "FormatError",
    "Manifest",
    "MkmetaError",
    "Plan",
    "PlannedNode",
    "RegularFile",
    "Special",
    "Symlink",
    "__version__",
    "diff",
    "is_complete",
    "open_manifest",
]

_PLACES = {
    "mkmeta.api": ("Manifest", "diff", "is_complete", "open_manifest"),
    "mkmeta.errors": ("BuildError", "FormatError", "MkmetaError"),
    "mkmeta.model": ("Device", "Directory", "RegularFile", "Special", "Symlink"),
    "mkmeta.plan": ("Plan", "PlannedNode"),
    "mkmeta.trees.diff": ("Difference",),
}


def __getattr__(name: str) -> object:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
