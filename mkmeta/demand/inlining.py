"""What `--inline SIZE` would save: opened files no larger than it, whose content a layer would hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from mkmeta.demand.cover import is_within
from mkmeta.demand.reading import Demand
from mkmeta.demand.shape import Shape

SIZES: Final = (4 << 10, 16 << 10, 64 << 10, 1 << 20)  # bytes


class Inlining(NamedTuple):
    """What one limit does."""

    size: int  # bytes
    opens: int  # answered locally
    files: int
    bytes: int  # that the layer holds more


def inlining(demand: Demand, shape: Shape, selected: Iterable[bytes]) -> tuple[int, list[Inlining]]:
    """Opens of files in selected directories, and for each limit how many it saves."""
    tops = set(selected)
    total = 0
    known: list[tuple[int, int]] = []
    for path, opens in sorted(demand.files.items()):
        parent, _, _ = path.rpartition(b"/")
        place = shape.place(parent)
        if place is None or place.missing is not None or not is_within(place.path, tops):
            continue
        total += opens
        size = shape.size(path)
        if size is not None:
            known.append((size, opens))
    found = []
    for limit in SIZES:
        small = [(size, opens) for size, opens in known if size <= limit]
        found.append(Inlining(limit, sum(o for _, o in small), len(small), sum(s for s, _ in small)))
    return total, found
