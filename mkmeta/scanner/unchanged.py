"""Seeing that a directory has in it what the base has: what a scan on a base does most, in as few steps as can be.

Nothing else is told here: where anything is not as recorded, or cannot be said at once, the directory is read as any
other is (`mkmeta.scanner.directory`), and whatever is wrong is found and named there.
"""

from __future__ import annotations

import os
import stat
from operator import itemgetter
from typing import Final

from mkmeta.scanner.base import NAME, Base, Recorded, linked_name
from mkmeta.trees.writer import LinkedName

_NLINK: Final = itemgetter(stat.ST_NLINK)  # a stat_result is a tuple


def looks_as_recorded(base: Base, recorded: Recorded) -> list[os.stat_result] | None:
    """What lstat(2) says of names in the working directory, if they are what the base has there; None: they are not,
    or not all. Directories among them may have changed inside.
    """
    rows = recorded.rows
    try:
        looks = [os.lstat(row[NAME]) for row in rows]
    except OSError:
        return None  # whoever looks once more will say what it is
    if recorded.places:
        return looks if base.are_directories_as_recorded(recorded, looks) else None
    if rows and not base.are_as_recorded(rows, recorded.inodes, recorded.change_times, looks):
        return None
    return looks


def links_among(recorded: Recorded, looks: list[os.stat_result], device: int) -> list[LinkedName]:
    """The names of inodes that have several; there are no directories."""
    if not looks or max(map(_NLINK, looks)) <= 1:
        return []
    return [linked_name(seen, row, device) for seen, row in zip(looks, recorded.rows, strict=True) if seen.st_nlink > 1]
