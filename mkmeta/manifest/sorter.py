"""Sorting more records than fit in memory: sorted runs in one temporary file, merged when read."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, Self

from mkmeta.linux.temporary import TemporaryFile

MEMORY_LIMIT: Final = 6 << 20  # bytes of records, with Python's overhead, before a run is spilled
_OVERHEAD = 80  # bytes Python spends on a short bytes object and its place in a list
_READ_SIZE = 64 << 10  # bytes read at once from a run: bounds the memory of a merge of many runs
_LENGTH_BYTES = 4


class ExternalSorter:
    """Takes byte records in any order, gives them back ascending. Memory is bounded by `memory_limit`.

    Runs are spilled to an anonymous file in `$TMPDIR`. A context manager; iterate after the last `add`, as
    often as needed.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT) -> None:
        self._limit = memory_limit
        self._held = 0
        self._records: list[bytes] = []
        self._spill: TemporaryFile | None = None
        self._ends = [0]  # offsets in the spill file where runs end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spill is not None:
            self._spill.close()

    def add(self, record: bytes) -> None:
        """Adds a record. Raises MkmetaError when the temporary directory cannot take what does not fit in memory."""
        self._records.append(record)
        self._held += len(record) + _OVERHEAD
        if self._held >= self._limit:
            self._spill_run()

    def __iter__(self) -> Iterator[bytes]:
        self._records.sort()
        if self._spill is None:
            return iter(self._records)
        runs = [self._run(start, end) for start, end in pairwise(self._ends)]
        return heapq.merge(*runs, self._records)

    def _spill_run(self) -> None:
        if self._spill is None:
            self._spill = TemporaryFile()
        self._records.sort()
        for record in self._records:
            self._spill.write(len(record).to_bytes(_LENGTH_BYTES, "big"))
            self._spill.write(record)
        self._spill.flush()
        self._ends.append(self._spill.tell())
        self._records.clear()
        self._held = 0

    def _run(self, position: int, end: int) -> Iterator[bytes]:
        assert self._spill is not None
        fd = self._spill.fileno()
        buffer = b""
        start = 0
        while position < end or start < len(buffer):
            length = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big") if start < len(buffer) else 0
            stop = start + _LENGTH_BYTES + length
            if start + _LENGTH_BYTES > len(buffer) or stop > len(buffer):
                piece = os.pread(fd, min(max(_READ_SIZE, length), end - position), position)
                position += len(piece)
                buffer = buffer[start:] + piece
                start = 0
                continue
            yield buffer[start + _LENGTH_BYTES : stop]
            start = stop
