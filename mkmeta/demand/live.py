"""Observes this host's NFS mounts for a while: totals from mountstats, and as root by directory from histograms."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mkmeta.demand import histograms
from mkmeta.demand.histograms import Found, NoHistogramsError
from mkmeta.demand.inodes import paths_of
from mkmeta.demand.mountstats import Totals, difference, read_totals
from mkmeta.demand.profile import ProfileMount, Source
from mkmeta.demand.tally import MISS, OPEN, STAT, Tally
from mkmeta.errors import LockedError, MkmetaError, reason
from mkmeta.manifest.reader import ManifestReader
from mkmeta.store.lock import held

RUN = Path("/run/mkmeta")


def observe(
    tally: Tally, seconds: float, *, base: ManifestReader | None, note: Callable[[str], None]
) -> tuple[Source, tuple[ProfileMount, ...]]:
    """Counts for so long. Raises MkmetaError when a mount point is none of NFS, LockedError beside another run."""
    before = _totals(tally.points)
    found: Found | None = None
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                stack.enter_context(held(bytes(RUN / "observe.lock"), "observe", wait=0, note=note))
            except LockedError as error:
                error.hint = "one at a time: its profile is of all programs of this host"
                raise
        try:
            counting = stack.enter_context(histograms.histograms(histograms.TRACEFS))
            before = _totals(tally.points)
            time.sleep(seconds)
            found = counting.read()
        except NoHistogramsError as error:
            note(f"by mount only, not by directory: {error}")
            if error.hint:
                note(error.hint)
            time.sleep(seconds)
        after = _totals(tally.points)
    mounts = tuple(ProfileMount(point=point, totals=difference(before[point], after[point])) for point in tally.points)
    if found is None:
        return Source.MOUNTSTATS, mounts
    _attribute(tally, found, base)
    return Source.NFS, mounts


def _totals(points: Sequence[bytes]) -> dict[bytes, Totals]:
    known = read_totals()
    for point in points:
        if point not in known:
            hint = "name one that `mount -t nfs,nfs4` shows, or observe a program: mkmeta observe DIR -o P -- COMMAND"
            raise MkmetaError("is no mount point of NFS", path=point, hint=hint)
    return known


def _attribute(tally: Tally, found: Found, base: ManifestReader | None) -> None:
    """Counts by inode number become counts by path; of other mounts they are none of ours."""
    tally.lost["drops"] += found.dropped
    for point in tally.points:
        try:
            device = os.stat(point).st_dev
            counts = {inode: kinds for (dev, inode), kinds in found.counts.items() if dev == device}
            paths = paths_of(point, set(counts), base)
        except OSError as error:
            raise MkmetaError(reason(error), path=point) from None
        for inode, kinds in sorted(counts.items()):
            if inode in paths:
                path = point.rstrip(b"/") + (b"/" + paths[inode] if paths[inode] else b"")
                tally.add_counts(path, kinds[MISS], kinds[STAT], kinds[OPEN])
            else:
                tally.lost["inodes"] += sum(kinds.values())
