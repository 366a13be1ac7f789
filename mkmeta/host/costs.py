"""What a lookup, a stat, a listing and an open of a path cost, by profile: the one table of it.

Measured on NFSv4.2, cold caches (docs/figures.md): a miss, a stat or a listing that a layer answers sends nothing. A
file of a layer above an ordinary lower is looked up there at once, above a data-only lower when it is first opened,
name by name. A directory of the skeleton is looked up, revalidated and listed on the volume as well.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from mkmeta.mounts.profile import Profile

PLAIN: Final = "plain"  # the volume itself, without a layer


class Served(StrEnum):
    """How a path is served: all that, with the profile, decides what it costs."""

    FILE = "file"  # recorded, with data on the volume
    WHOLE = "whole"  # recorded, with its data in the layer
    LEAF = "leaf"  # recorded, and nothing of it is on the volume: empty file, symlink, fifo, socket, device
    COMPLETE = "complete"  # a directory that was recorded completely
    SKELETON = "skeleton"  # a directory of which a part was selected
    ABSENT = "absent"  # not in a directory that was recorded completely: there is no such file
    THROUGH = "through"  # not selected, below a directory of the skeleton: the volume answers

    @property
    def is_directory(self) -> bool:
        """Whether it can be listed."""
        return self in (Served.COMPLETE, Served.SKELETON)


class Costs(NamedTuple):
    """What each call sends to the file server."""

    lookup: str
    stat: str
    listing: str | None = None  # None: it cannot be listed
    open: str | None = None  # None: there is nothing to open
    way: str = "local"  # what the directories on the way add to each of these


LOCAL: Final = "local"
_ONCE = "asks the volume once (LOOKUP), then cached; GETATTR when that times out"
_NEVER_THERE = "local: no such file, whatever the volume has"
_MISS = "asks the volume (LOOKUP), again whenever its directory changed or the cache timed out"
_LIST = "READDIR on the volume, after GETATTR when cached"
_OPEN = "OPEN on the volume"
_OPEN_LOOKED_UP = "LOOKUP and OPEN on the volume"
_OPEN_WALK = "the first time at most {walk} calls to the volume: LOOKUP and ACCESS for each of {depth} names, and OPEN"
_THROUGH_ONCE = "asks the volume once (LOOKUP), then cached; a name that is not there until `mkmeta refresh`"

_WAY = "LOOKUP once for each of {names} names, GETATTR when that times out"

_PLAIN: Final = {
    Served.FILE: Costs(_ONCE, _ONCE, None, _OPEN),
    Served.WHOLE: Costs(_ONCE, _ONCE, None, _OPEN),
    Served.LEAF: Costs(_ONCE, _ONCE),
    Served.COMPLETE: Costs(_ONCE, _ONCE, _LIST),
    Served.SKELETON: Costs(_ONCE, _ONCE, _LIST),
    Served.ABSENT: Costs(_MISS, _MISS),
    Served.THROUGH: Costs(_ONCE, _ONCE, _LIST, _OPEN),
}
_MERGE: Final = {
    Served.FILE: Costs(_ONCE, _ONCE, None, _OPEN_LOOKED_UP),
    Served.WHOLE: Costs(LOCAL, LOCAL, None, LOCAL),
    Served.LEAF: Costs(LOCAL, LOCAL),
    Served.COMPLETE: Costs(LOCAL, LOCAL, LOCAL),
    Served.SKELETON: Costs(_ONCE, _ONCE, _LIST),
    Served.ABSENT: Costs(LOCAL, LOCAL),
    Served.THROUGH: Costs(_THROUGH_ONCE, _THROUGH_ONCE, _LIST, _OPEN_LOOKED_UP),
}
_TABLE: Final[dict[str, dict[Served, Costs]]] = {
    Profile.NESTED: {**_MERGE, Served.FILE: Costs(LOCAL, LOCAL, None, _OPEN_WALK)},
    Profile.MERGE: _MERGE,
    Profile.DATA_ONLY: {
        **_MERGE,
        Served.FILE: Costs(LOCAL, LOCAL, None, _OPEN_WALK),
        Served.SKELETON: Costs(LOCAL, LOCAL, LOCAL),
        Served.THROUGH: Costs(_NEVER_THERE, _NEVER_THERE),
    },
    Profile.UPPER: _MERGE,
    PLAIN: _PLAIN,
}
PROFILES: Final = tuple(_TABLE)


def costs(profile: str, served: Served, *, depth: int, above: int, skeleton: int) -> Costs:
    """What a path costs in a profile, or `plain`.

    `depth` is the number of names in the redirect of a file. `above` is the number of directories on the way, the root
    not counted, `skeleton` how many of them are of the skeleton, which an overlay looks up on the volume too.
    """
    words = _TABLE[profile][served]
    asked = {PLAIN: above, Profile.DATA_ONLY: 0}.get(profile, skeleton)
    if asked:
        words = words._replace(way=_WAY.format(names=asked))
    if words.open is None:
        return words
    return words._replace(open=words.open.format(walk=2 * depth + 1, depth=depth))
