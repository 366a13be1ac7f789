"""What `import mkmeta` offers to programs (docs/api.md): manifests opened, walked, compared, and planned as layers.

A small surface over the modules that do it, which may change where this does not. Names and paths are bytes, relative
to the scanned root, without a slash at either end; the root is the empty one. Every error is an MkmetaError: also for
bytes that are no valid manifest, wherever that shows. Nothing here writes, mounts, or needs more than to read the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Node
from mkmeta.plan import Plan, PlannedNode
from mkmeta.trees.diff import Difference
from mkmeta.trees.diff import diff as _diff


class Manifest:
    """A manifest file, open. A context manager; walks of it end when it is closed."""

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        """Raises FormatError, and MkmetaError when the file cannot be opened."""
        self._reader = ManifestReader.open(os.fsencode(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._reader.close()

    @property
    def id(self) -> str:
        """64 hexadecimal digits, which depend on the recorded tree alone."""
        return self._reader.id.hex()

    @property
    def entries(self) -> int:
        """How many names there are, at any depth."""
        return self._reader.root.directory.entries

    @property
    def select(self) -> tuple[bytes, ...]:
        """The patterns that it was scanned by; none: all was recorded."""
        return self._reader.info.select

    def get(self, path: bytes = b"") -> Node | None:
        """What is recorded at a path. Reads what is on the way there, whatever the size of the tree."""
        return self._reader.find(path)

    def list(self, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """The names in a directory, ascending, and what they are. Raises KeyError when there is no directory."""
        directory = self._reader.find(path)
        if not isinstance(directory, Directory):
            raise KeyError(path)
        return ((name, node) for name, node in self._reader.entries(directory, path))

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Everything at and below a path, that first, a directory before what is in it. KeyError: there is nothing."""
        return self._reader.walk(path)

    def plan(self, plan: Plan | None = None) -> Iterator[tuple[bytes, PlannedNode]]:
        """What a layer has for each path, as `walk` orders them: overlayfs's xattrs included.

        `plan` has the choices that `mkmeta build` has options for. Files whose content is in the manifest are planned
        as files that are not. Raises BuildError.
        """
        plan = plan or Plan()
        root = self._reader.root
        yield b"", plan.root(root, self._reader.id)
        stack = [(b"", plan.children(b"", self._reader.entries(root.directory, b"")))]
        while stack:
            path, nodes = stack[-1]
            for node in nodes:
                below = path + b"/" + node.name if path else node.name
                yield below, node
                if isinstance(node.inode, Directory):
                    stack.append((below, plan.children(below, self._reader.entries(node.inode, below))))
                    break
            else:
                stack.pop()


def open_manifest(path: str | bytes | os.PathLike[str]) -> Manifest:
    """Opens a manifest; the caller closes it. Raises FormatError, and MkmetaError when it cannot be opened."""
    return Manifest(path)


def diff(before: Manifest, after: Manifest, path: bytes = b"", *, everything: bool = False) -> Iterator[Difference]:
    """What differs at and below a path, in tree order; reads only directories that differ.

    A directory that was added or removed is one difference; with `everything`, each name in it is another. Raises
    KeyError when neither has the path.
    """
    return _diff(before._reader, after._reader, path, everything=everything)


def is_complete(directory: Directory) -> bool:
    """Whether all that the directory had was recorded, so that a layer answers for it alone; else the volume shows."""
    return directory.kind is not DirectoryKind.MERGE
