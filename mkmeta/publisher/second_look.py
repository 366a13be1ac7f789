"""A second look at what was just scanned: has anything of it changed since? Nothing else of the volume is looked at."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from mkmeta.linux.descriptors import same_directory
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import Branch, Report, walk, walk_in_order
from mkmeta.model import Directory, DirectoryKind
from mkmeta.verifier.data import DataChecker, Sample
from mkmeta.verifier.findings import Findings
from mkmeta.verifier.volume import Volume, VolumeVisitor

_BATCH: Final = 2000  # entries per message to a worker
_DATA_BATCH: Final = 50  # the same where files are read
_JOBS: Final = 8  # processes that wait for a file server most of the time


def second_look(reader: ManifestReader, root: bytes, paths: Sequence[bytes], findings: Findings) -> tuple[int, int]:
    """Compares the volume with what a manifest has at and below some paths; adds to `findings` what differs.

    Returns how many entries were compared, and how many of them have another change time and nothing else: nobody has
    any business there now. Raises FormatError and MkmetaError.
    """
    counts = compare_parts(reader, root, paths, findings)
    return counts["volume"], counts["touched"]


def compare_parts(
    reader: ManifestReader,
    root: bytes,
    paths: Sequence[bytes],
    findings: Findings,
    *,
    data: Sample | None = None,
    jobs: int = _JOBS,
) -> Counter[str]:
    """As `mkmeta verify --lower`, of some paths alone; `data`: files whose content is read and compared as well.

    Returns the counts of `mkmeta.verifier.verify.Verified`. Raises FormatError and MkmetaError.
    """
    if not paths:
        return Counter()
    entries = sum(node.entries for node in map(reader.find, paths) if isinstance(node, Directory))
    with same_directory(), Volume(root, b"", reader) as volume:

        def visitor(report: Report) -> _Parts:
            checker = None if data is None else DataChecker(reader.root.digests, data)
            return _Parts(VolumeVisitor(volume, report, checker), paths)

        if entries <= _BATCH and data is None:  # processes to wait for a server take longer to start than it does
            return walk_in_order(reader, visitor, facts=True, receive=findings.add)
        batch = _BATCH if data is None else _DATA_BATCH
        return walk(reader, visitor, jobs=jobs, batch=batch, facts=True, receive=findings.add)


class _Parts:
    """Visits what is at and below paths."""

    def __init__(self, visitor: VolumeVisitor, paths: Sequence[bytes]) -> None:
        self._visitor = visitor
        self._paths = frozenset(paths)
        self._ends: dict[bytes, set[bytes]] = {}  # by directory above: names that are paths
        for path in paths:
            names = path.split(b"/")
            for depth in range(len(names)):
                self._ends.setdefault(b"/".join(names[:depth]), set())
            self._ends[b"/".join(names[:-1])].add(names[-1])

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Compares a directory that is in a part, goes on in one that leads to some."""
        ends = self._ends.get(branch.path)
        if ends is None:
            return self._is_inside(branch.path) and self._visitor.visit(branch, entries)
        if ends:  # files among them; as in a merge directory, of which what is not given is not missed
            merging = dataclasses.replace(branch.directory, kind=DirectoryKind.MERGE)
            named = (one for one in entries if one.name in ends and not isinstance(one.node, Directory))
            return self._visitor.visit(branch._replace(directory=merging), named)
        return True

    def _is_inside(self, path: bytes) -> bool:
        names = path.split(b"/")
        return any(b"/".join(names[:depth]) in self._paths for depth in range(1, len(names) + 1))
