"""Whether a directory layer still is what was built: what a copy, a chown or an archive does to all of it shows in any
part of it, so a few files tell. `mkmeta verify` compares everything.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final

from mkmeta.errors import FormatError, printable
from mkmeta.linux.descriptors import closing
from mkmeta.linux.names import list_names
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import RegularFile
from mkmeta.overlay_xattrs import overlay_xattrs
from mkmeta.store.generation import About, Generation

_FILES: Final = 4  # with data, looked up in the manifest
_LOOKED_FOR: Final = 64  # entries, while there are not so many files
_SMALL: Final = 1000  # names: what of a layer is looked at twice is kept, up to there
_ATTEMPTS: Final = 256  # while none of them is on the volume: most of what was recorded may have been deleted since


def difference(generation: Generation, about: About) -> str | None:
    """What of a directory layer is not as in the manifest beside it, for people: owners, modes, or that files have lost
    the attribute that says where their data is, and would read as zeros. None: nothing that was looked at.

    Owners in layers for user namespaces depend on who looks. A manifest that is damaged says nothing. Raises OSError
    when the layer cannot be read.
    """
    try:
        reader = ManifestReader.open(generation.manifest)
    except (FormatError, OSError):
        return None
    compared = 0
    with reader:
        for path, found in islice(sampled(generation.layer, about.id), _LOOKED_FOR):
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                continue
            try:
                node = reader.find(path)
            except FormatError:
                return None
            if not isinstance(node, RegularFile):
                continue
            what = None
            if not about.userxattr and (found.st_uid, found.st_gid) != (node.uid, node.gid):
                what = f"belongs to {found.st_uid}:{found.st_gid}, recorded was {node.uid}:{node.gid}"
            elif found.st_mode != node.mode:
                what = f"has mode {found.st_mode & 0o7777:o}, recorded was {node.mode & 0o7777:o}"
            elif node.size and about.contents is None and not _leads_on(generation, about, path):
                what = "has lost the attribute that says where its data is, and would read as zeros"
            if what is not None:
                return f"{printable(path)} {what}"
            compared += 1
            if compared == _FILES:
                break
    return None


def _leads_on(generation: Generation, about: About, path: bytes) -> bool:
    names = os.listxattr(generation.layer + b"/" + path, follow_symlinks=False)
    return os.fsdecode(overlay_xattrs(userxattr=about.userxattr).metacopy) in names


def sampled(layer: bytes, seed: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Entries of a layer, no directories unless it has nothing else there, spread over it: the same ones each time.

    Each is found by going down at random from the root, so that releases count alike, however many files they have.
    """
    chance = random.Random(seed)
    seen: set[bytes] = set()
    known: dict[bytes, tuple[os.stat_result, list[bytes]]] = {}  # of small directories, and of what is none

    def look(path: bytes) -> tuple[os.stat_result, list[bytes]]:
        if path in known:
            return known[path]
        status = os.lstat(layer + b"/" + path)
        names = _entries(layer, path) if stat.S_ISDIR(status.st_mode) else []
        if len(names) <= _SMALL:
            known[path] = status, names
        return status, names

    top = look(b"")[1]
    for _ in range(_ATTEMPTS):
        path, names = b"", top
        while names:
            name = chance.choice(names)
            path = path + b"/" + name if path else name
            status, names = look(path)
        if path and path not in seen:
            seen.add(path)
            yield path, status


def _entries(layer: bytes, path: bytes) -> list[bytes]:
    with closing(os.open(layer + b"/" + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        return sorted(list_names(fd))
