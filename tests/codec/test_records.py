"""Records and objects that claim more than they hold: memory follows the bytes, not the claims."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable

import pytest

from mkmeta.codec.facts import decode_counts, decode_facts, decode_page_facts
from mkmeta.codec.info import decode_info
from mkmeta.codec.objects import decode_link_page, decode_page, decode_page_rows, decode_root, examine_page
from mkmeta.errors import FormatError
from mkmeta.model import DirectoryKind

OPAQUE = DirectoryKind.OPAQUE

NESTED = (b"\xdd" + (10_000).to_bytes(4, "big")) * 20_000  # arrays of 10,000 in one another
CLAIMS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "info, known key": (decode_info, b"\x81\xa6select\x91" + NESTED),
    "info, unknown key": (decode_info, b"\x81\xa3new" + NESTED),
    "info, key": (decode_info, b"\x81" + NESTED),
    "info, left out": (decode_info, b"\x81\xa8left_out\xdd" + (2**32 - 1).to_bytes(4, "big") + NESTED),
    "facts, column": (lambda data: decode_facts(data, "it", pages=1, entries=5), b"\x92\x90\x91\x94" + NESTED),
    "facts, counts": (lambda data: decode_facts(data, "it", pages=1, entries=5), b"\x92" + NESTED),
    "facts, pages": (lambda data: decode_facts(data, "it", pages=9, entries=5), b"\x92\x90" + NESTED),
    "facts, more than entries": (
        lambda data: decode_facts(data, "it", pages=1, entries=5),
        b"\x92\x90\x91\x94\xdd" + (100_000).to_bytes(4, "big") + bytes(100_000),
    ),
    "facts of a page": (lambda data: decode_page_facts(data, "it", entries=5), b"\x94" + NESTED),
    "counts": (lambda data: decode_counts(data, "it"), b"\x92\x9c" + NESTED),
    "counts, too many": (
        lambda data: decode_counts(data, "it"),
        b"\x92\xdd" + (100_000).to_bytes(4, "big") + bytes(100_000),
    ),
    "page of a directory": (lambda data: decode_page(data, "it", below=OPAQUE), b"\x91" + NESTED),
    "page, examined": (lambda data: examine_page(data, "it", below=OPAQUE, digests=()), b"\x91\x99" + NESTED),
    "pages of a directory": (lambda data: decode_page_rows(data, "it"), b"\x92\x93" + NESTED),
    "link page": (lambda data: decode_link_page(data, "it", after=b""), b"\x91\x92" + NESTED),
    "root": (decode_root, b"\x9a" + NESTED),
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
