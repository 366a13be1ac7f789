"""Observes this host's NFS mounts for a while: totals from mountstats, and as root by directory from histograms."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mkmeta.demand import histograms
from mkmeta.demand.histograms import Found, NoHistogramsError
from mkmeta.demand.inodes import paths_of
from mkmeta.demand.mountstats import Totals, difference, read_totals
from mkmeta.demand.profile import ProfileMount, Source
from mkmeta.demand.tally import MISS, OPEN, STAT, Tally
from mkmeta.errors import LockedError, MkmetaError, printable, reason
from mkmeta.linux.mountinfo import mounts as mount_table
from mkmeta.manifest.reader import ManifestReader
from mkmeta.store.lock import held

RUN = Path("/run/mkmeta")


def observe(
    tally: Tally, seconds: float, *, base: ManifestReader | None, note: Callable[[str], None]
) -> tuple[Source, tuple[ProfileMount, ...]]:
    """Counts for so long. Raises MkmetaError when a mount point is none of NFS, LockedError beside another run."""
    before = _totals(tally.points)
    devices = _devices(tally.points)
    found: Found | None = None
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            RUN.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                stack.enter_context(held(bytes(RUN / "observe.lock"), "observe", wait=0, note=note))
            except LockedError as error:
                error.hint = "one at a time: its profile is of all programs of this host"
                raise
        counting = None
        try:
            counting = stack.enter_context(histograms.histograms(dict(devices.values()), histograms.TRACEFS))
            before = _totals(tally.points)
        except NoHistogramsError as error:
            _by_mount_only(error, note)
        time.sleep(seconds)
        try:
            found = counting.read() if counting else None
        except NoHistogramsError as error:
            _by_mount_only(error, note)
        after = read_totals()
    still = _devices(tally.points)
    there = [point for point in devices if point in after and still.get(point) == devices[point]]
    if not there:
        raise MkmetaError("was unmounted meanwhile", path=tally.points[0])
    for point in tally.points:
        if point not in there:
            note(f"{printable(point)}: was unmounted meanwhile, what was asked of it is left out")
    totals = {point: difference(before[point], after[point]) if point in there else {} for point in tally.points}
    mounts = tuple(ProfileMount(point=point, totals=totals[point]) for point in tally.points)
    if found is None:
        return Source.MOUNTSTATS, mounts
    _attribute(tally, {point: devices[point][0] for point in there}, found, base)
    return Source.NFS, mounts


def _by_mount_only(error: NoHistogramsError, note: Callable[[str], None]) -> None:
    note(f"by mount only, not by directory: {error}")
    if error.hint:
        note(error.hint)


def _totals(points: Sequence[bytes]) -> dict[bytes, Totals]:
    known = read_totals()
    for point in points:
        if point not in known:
            hint = "name one that `mount -t nfs,nfs4` shows, or observe a program: mkmeta observe DIR -o P -- COMMAND"
            raise MkmetaError("is no mount point of NFS", path=point, hint=hint)
    return known


def _devices(points: Sequence[bytes]) -> dict[bytes, tuple[int, bytes]]:
    """By mount point, that is there, of the mount on top: its st_dev, and the type of its filesystem."""
    return {mount.point: (mount.device, mount.fstype) for mount in mount_table() if mount.point in points}


def _attribute(tally: Tally, devices: Mapping[bytes, int], found: Found, base: ManifestReader | None) -> None:
    """Counts by inode number become counts by path, below the first mount point of their device that has them."""
    tally.lost["drops"] += found.dropped
    for device in sorted(set(devices.values())):
        counts = {inode: kinds for (dev, inode), kinds in found.counts.items() if dev == device}
        for point in (point for point in devices if devices[point] == device):
            try:
                paths = paths_of(point, set(counts), base)
            except OSError as error:
                raise MkmetaError(reason(error), path=point) from None
            for inode in sorted(counts.keys() & paths.keys()):
                path = point.rstrip(b"/") + (b"/" + paths[inode] if paths[inode] else b"")
                kinds = counts.pop(inode)
                tally.add_counts(path, kinds[MISS], kinds[STAT], kinds[OPEN])
        tally.lost["inodes"] += sum(map(Counter.total, counts.values()))
