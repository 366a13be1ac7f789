"""A whole verification: a layer against its manifest, and if asked for, the volume against it too."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mkmeta.errors import MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import MakeVisitor, Report, walk
from mkmeta.plan import Plan
from mkmeta.verifier.data import DataChecker, Sample
from mkmeta.verifier.findings import Findings, Reporter, Side
from mkmeta.verifier.layer import Layer
from mkmeta.verifier.looking import SubtreeFinder
from mkmeta.verifier.volume import Volume, VolumeVisitor

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


class Verified(NamedTuple):
    """What was compared."""

    # Entries of the `layer` and the `volume`; files whose data was `measured`, or `read`, of so many `bytes`; entries
    # of the volume that were `touched`: as recorded in everything but the change time, which nobody can set back.
    counts: Counter[str]
    unproven: str | None = None  # why it cannot be told which entries of the volume were replaced by others like them


def verify(
    reader: ManifestReader,
    options: VerifyOptions,
    findings: Findings,
    progress: Progress = lambda _done, _total: None,
) -> Verified:
    """Compares, and adds to `findings` everything that is not as recorded.

    Raises FormatError, and MkmetaError when there is nothing that could be compared.
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

    def compare(tree: Layer | Volume, make_visitor: MakeVisitor, jobs: int, batch: int) -> Counter[str]:
        reporter = Reporter(tree.side, findings.add)
        tree.check_root(reporter)
        counts = walk(
            reader,
            make_visitor,
            jobs=jobs,
            batch=batch,
            facts=tree.side is Side.VOLUME,
            receive=findings.add,
            progress=advance,
        )
        tree.check_links(reporter, SubtreeFinder(reader))
        return counts

    with contextlib.ExitStack() as stack:
        layer = stack.enter_context(Layer(options.layer, options.plan, reader))
        if options.lower is None:
            return Verified(compare(layer, layer.visitor, options.layer_jobs, _BATCH))
        volume = stack.enter_context(Volume(options.lower, options.plan.prefix, reader))
        counts = compare(layer, layer.visitor, options.layer_jobs, _BATCH)
        sample = options.data

        def visitor(report: Report) -> VolumeVisitor:
            return VolumeVisitor(volume, report, None if sample is None else DataChecker(root.digests, sample))

        counts += compare(volume, visitor, options.volume_jobs, _BATCH if sample is None else _DATA_BATCH)
        return Verified(counts, volume.unproven)
