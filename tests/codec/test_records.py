"""Info and facts records that claim more than they hold: memory follows the bytes, not the claims."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import pytest

from mkmeta.codec.facts import decode_facts
from mkmeta.codec.info import decode_info
from mkmeta.errors import FormatError

NESTED = (b"\xdd" + (10_000).to_bytes(4, "big")) * 20_000  # arrays of 10,000 in one another
CLAIMS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "info, known key": (decode_info, b"\x81\xa6select\x91" + NESTED),
    "info, unknown key": (decode_info, b"\x81\xa3new" + NESTED),
    "info, key": (decode_info, b"\x81" + NESTED),
    "info, left out": (decode_info, b"\x81\xa8left_out\xdd" + (2**32 - 1).to_bytes(4, "big") + NESTED),
    "facts, column": (lambda data: decode_facts(data, "it", entries=20_000), b"\x93" + NESTED),
    "facts, more than entries": (
        lambda data: decode_facts(data, "it", entries=5),
        b"\x93\xdd" + (100_000).to_bytes(4, "big") + bytes(100_000),
    ),
}


@pytest.mark.parametrize(("decode", "data"), CLAIMS.values(), ids=CLAIMS)
def test_memory_follows_the_bytes(decode: Callable[[bytes], object], data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError):
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * len(data)
