"""A whole verification: a layer against its manifest, and if asked for, the volume against it too."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mkmeta.compiler.plan import Plan
from mkmeta.errors import MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.verifier.data import DataChecker, Sample
from mkmeta.verifier.findings import Findings, Side
from mkmeta.verifier.layer import Layer, SubtreeFinder
from mkmeta.verifier.volume import Volume
from mkmeta.verifier.walk import Reporter, Visitor, walk

JOBS_MAX: Final = 64  # processes
_BATCH: Final = 2000  # entries per message to a worker: a fraction of a second, thousands of times a message's cost
_DATA_BATCH: Final = 50  # the same where files are read, which may be large

Progress = Callable[[int, int], None]  # entries compared, entries altogether; each counts for the layer and the volume


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is compared."""

    layer: bytes
    plan: Plan = field(default_factory=Plan)  # how the layer was built
    lower: bytes | None = None  # the directory it is mounted over, to be compared too
    data: Sample | None = None  # with `lower`: files whose content is compared
    layer_jobs: int = 1  # worker processes
    volume_jobs: int = 1


def verify(
    reader: ManifestReader,
    options: VerifyOptions,
    findings: Findings,
    progress: Progress = lambda _done, _total: None,
) -> Counter[str]:
    """Compares, and adds to `findings` everything that is not as recorded.

    Returns how many entries were compared on the `layer` and the `volume`, and how many files' data was `measured` or
    `read`, in `bytes`. Raises FormatError, and MkmetaError when there is nothing that could be compared.
    """
    reader.check_links()
    root = reader.root
    if options.data is not None and not root.digests:
        raise MkmetaError(
            "the manifest has no digests to compare data with",
            hint="mkmeta scan --digest records them; without --data, names and attributes are compared",
        )
    total = root.directory.entries * (1 if options.lower is None else 2)
    done = 0

    def advance(entries: int) -> None:
        nonlocal done
        done += entries
        progress(done, total)

    with contextlib.ExitStack() as stack:
        layer = stack.enter_context(Layer(options.layer, options.plan, reader))
        volume = None
        if options.lower is not None:
            volume = stack.enter_context(Volume(options.lower, options.plan.prefix, reader))
        counts = _compare(layer, reader, layer.visitor, options.layer_jobs, _BATCH, findings, advance)
        if volume is not None:
            sample = options.data

            def visitor() -> Visitor:
                data = None if sample is None else DataChecker(root.digests, sample)
                return volume.visitor(data)

            batch = _BATCH if sample is None else _DATA_BATCH
            counts += _compare(volume, reader, visitor, options.volume_jobs, batch, findings, advance)
    return counts


def _compare(
    tree: Layer | Volume,
    reader: ManifestReader,
    make_visitor: Callable[[], Visitor],
    jobs: int,
    batch: int,
    findings: Findings,
    advance: Callable[[int], None],
) -> Counter[str]:
    """Compares one tree with the manifest: root, directories, hard links."""
    reporter = Reporter(Side.LAYER if isinstance(tree, Layer) else Side.VOLUME)
    tree.check_root(reporter)
    counts = walk(reader, reporter.side, make_visitor, jobs=jobs, batch=batch, report=findings.add, progress=advance)
    tree.check_links(reporter, SubtreeFinder(reader))
    for finding in reporter.findings:
        findings.add(finding)
    return counts
