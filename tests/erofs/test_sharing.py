"""What occurs more than once, found in little memory."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest

from mkmeta.sinks.erofs import sharing
from mkmeta.sinks.erofs.spool import Spool


@pytest.mark.parametrize("held", [1, 30, 1 << 21])
def test_repeated_numbers(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    """All but the first of each, whatever is held in memory; parts on the disk make nothing occur twice."""
    monkeypatch.setattr(sharing, "_HASHES_HELD", held)
    rng = random.Random(held)
    few = [rng.randrange(-(2**63), 2**63) for _ in range(150)]
    lists = [rng.choices(few, k=rng.randrange(20)) for _ in range(20)]
    times = Counter(number for some in lists for number in some)
    with contextlib.closing(Spool()) as spool:
        found = Counter(sharing._repeated(lists, spool))
    assert found == times - Counter(set(times))
    assert found and len(found) < len(times)
