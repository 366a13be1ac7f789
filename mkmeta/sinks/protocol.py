"""What `build` asks of a sink: to write a tree of planned nodes, and to have it appear as a whole.

A sink knows how a node is written. Of overlayfs it knows nothing (`plan` has put it into the nodes' xattrs), nor where
nodes come from. A new one is a folder here, with `directory` as its model, and a LayerKind. It is called in this order:

1. `begin`, before any work: what would refuse the output in the end refuses it here. Something may be written now.
2. `writer`, in every process that is to write, and its `directory` for each directory of the tree, the root first. Each
   comes after the one it is in. If the sink is `ordered`, there is one writer, in the process that called `begin`, and
   directories come in tree order: depth first, names ascending. Else there may be several, in forked processes.
3. `links`, once: further names of inodes that were written, for the directories that hold them have no such nodes. But
   if the sink takes `links_in_place`, they have, and what each is has to be looked up; `links` is not called.
4. `finish`, once: the root's own attributes, and the output appears, durable. Until then there was nothing.

A sink is a context manager: left before `finish` has returned, it leaves nothing behind. It raises BuildError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from mkmeta.digest import VerityDigest
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.model import LinkRow, PrimaryRow
from mkmeta.plan import PlannedNode

WHOLE: Final = "inline"  # what every sink counts: files that are whole, their data being in the output
WHOLE_BYTES: Final = "inline_bytes"  # of these


class LayerKind(StrEnum):
    """What a layer is on disk; the values are those of formats/store.md."""

    DIRECTORY = "directory"  # formats/upper.md
    EROFS = "erofs"  # formats/erofs.md


class Published(NamedTuple):
    """What `finish` did."""

    filesystem: str  # type of the one the output is on
    old: bytes | None = None  # name, beside the output, of what had its name before
    leftovers: tuple[bytes, ...] = ()  # names beside it that a killed build left and that could not be removed
    notes: tuple[str, ...] = ()  # what who asked for it should know
    verity: VerityDigest | None = None  # of an output that is a file


# Given how many bytes there is room for, says how many all nodes that are whole hold, if these are more; else 0. It may
# read the whole manifest, where it cannot be told otherwise.
DataBeyond = Callable[[int], int]


class Writer(Protocol):
    """Writes directories, in one process."""

    def directory(self, path: bytes, node: PlannedNode, children: Iterator[PlannedNode]) -> None:
        """Writes what is in the directory at `path`, names ascending, and then its own attributes, but the root's.

        A directory among the children is written later; in a sink that is not ordered, by whoever has the time.
        """

    def settle(self) -> None:
        """Sees to it that other processes find what it has written. Called before they are told of it."""


class Sink(Protocol):
    """One output."""

    kind: LayerKind
    ordered: bool
    links_in_place: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, root: PlannedNode, inodes: int, data: DataBeyond) -> None:
        """Prepares for a tree of so many inodes, the root apart, and so much data."""

    def writer(self, counts: Counter[str], links: LinkLookup | None, contents: Contents | None) -> Writer:
        """A writer for this process, which counts what it does, for the summary.

        `links` knows the hard links; None: there are none. `contents` has those of nodes that are whole, and compares
        what it reads with the recorded digest; None: no node is.
        """

    def links(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        """Makes the hard links; rows come in tree order, a primary before its links."""

    def finish(self, root: PlannedNode, counts: Counter[str]) -> Published:
        """Completes and publishes the output; `counts` are those of all writers."""
