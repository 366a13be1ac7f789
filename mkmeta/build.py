"""A whole build: from an open manifest, through the plan, to a sink."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Final, assert_never

from mkmeta.digest import ObjectId
from mkmeta.errors import IdMismatchError
from mkmeta.manifest.content_walk import data_beyond
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import Branch, Report, walk, walk_in_order
from mkmeta.model import NAME_MAX, PATH_LIMIT, LinkRow, Node
from mkmeta.plan import Plan
from mkmeta.sinks.directory.sink import DirectorySink
from mkmeta.sinks.erofs.sink import ErofsSink
from mkmeta.sinks.protocol import LayerKind, Published, Sink, Writer

_BATCH: Final = 2000  # entries per message to a worker: a fraction of a second, thousands of times a message's cost

_NAME_AND_NODE: Final = itemgetter(0, 1)  # of a Recorded

Progress = Callable[[int, int], None]  # entries written, entries altogether


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a build is asked for."""

    plan: Plan = field(default_factory=Plan)
    kind: LayerKind = LayerKind.DIRECTORY
    base: bytes | None = None  # a layer to share unchanged files with
    expect_id: ObjectId | None = None
    vouched: bool = False  # somebody on this host named that ID: he answers for its set-ID bits and devices
    jobs: int = 1  # worker processes, where the sink takes nodes from several


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build did."""

    manifest_id: ObjectId
    entries: int  # in the tree, without the root
    links: int  # of them, further names of an inode
    counts: Counter[str]  # what the sink counted
    published: Published
    seconds: float


def sink_for(dest: bytes, options: BuildOptions, *, swap: bool = False, discard: bool = False) -> Sink:
    """The sink that makes what is asked for. `swap`: exchange it with an existing DEST; `discard`: and remove that."""
    match options.kind:
        case LayerKind.DIRECTORY:
            return DirectorySink(dest, options.plan.names, swap=swap, discard=discard, base=options.base)
        case LayerKind.EROFS:
            return ErofsSink(dest, jobs=options.jobs, swap=swap)
        case _:
            assert_never(options.kind)


def build(
    reader: ManifestReader, sink: Sink, options: BuildOptions, progress: Progress = lambda _done, _total: None
) -> BuildResult:
    """Writes what a manifest records to a sink.

    Raises IdMismatchError and FormatError before anything is written, BuildError when the output cannot be; in each
    case there is what was there before.
    """
    started = time.monotonic()
    check_id(reader, options.expect_id)
    plan, top = options.plan, reader.root.directory
    reader.check_links()
    root = plan.root(reader.root, reader.id)
    done = 0

    def advance(entries: int) -> None:
        nonlocal done
        done += entries
        progress(done, top.entries)

    if plan.prefix:
        walk(reader, lambda _report: _LengthChecker(plan), jobs=options.jobs, batch=_BATCH)
    links = sum(isinstance(row, LinkRow) for row in reader.links())
    contents = reader.contents if plan.inline else None
    if contents is not None:
        contents.prepare()
    with sink:
        sink.begin(root, top.entries - links, partial(data_beyond, reader) if contents is not None else _nothing)

        def builder(report: Report) -> _Builder:
            lookup = LinkLookup(reader) if links else None
            writer = sink.writer(report.counts, lookup, contents)
            report.settle = writer.settle
            return _Builder(plan, None if sink.links_in_place else lookup, contents, writer)

        if sink.ordered:
            counts = walk_in_order(reader, builder, progress=advance)
        else:
            counts = walk(reader, builder, jobs=options.jobs, batch=_BATCH, progress=advance)
        if not sink.links_in_place:
            sink.links(reader.links())
        published = sink.finish(root, counts)
    return BuildResult(
        manifest_id=reader.id,
        entries=top.entries,
        links=links,
        counts=counts,
        published=published,
        seconds=time.monotonic() - started,
    )


def _nothing(_room: int) -> int:
    """The data of a layer without any."""
    return 0


def check_id(reader: ManifestReader, expected: ObjectId | None) -> None:
    """Raises IdMismatchError unless the manifest is the expected one, FormatError when its ID is not its own."""
    _ = reader.root  # reading it proves that the file's ID is that of its content
    if expected not in (None, reader.id):
        raise IdMismatchError(f"the manifest's ID is {reader.id.hex()}, not the expected one")


class _LengthChecker:
    """Has the plan complain of the first redirect that is too long, with the prefix in front of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._room = PATH_LIMIT - len(plan.prefix) - 1

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Looks at the entries, where any could be too long; most directories are not even read."""
        length = len(branch.path) + 1
        if length + NAME_MAX > self._room:
            for _ in self._plan.children(branch.path, map(_NAME_AND_NODE, entries)):
                pass
        return length + branch.directory.entries * (NAME_MAX + 1) > self._room


class _Builder:
    """Has directories written as they are planned."""

    def __init__(self, plan: Plan, links: LinkLookup | None, contents: Contents | None, writer: Writer) -> None:
        """`links`: what to leave out. `contents`: of files that are whole."""
        self._plan = plan
        self._links = links
        self._contents = contents
        self._writer = writer

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Writes a directory."""
        here: Iterator[tuple[bytes, Node]] = map(_NAME_AND_NODE, entries)
        links = self._links
        if links is not None:
            here = (entry for entry in here if not links.is_link(branch.below(entry[0])))
        node = self._plan.directory(branch.name, branch.directory)
        self._writer.directory(branch.path, node, self._plan.children(branch.path, here, self._contents))
        return True
