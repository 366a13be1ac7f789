"""What was found in one directory, put together in the order of its names, in bounded memory.

A directory is sent to the parent only when all of it is there and the closing look has found nothing changed. Until
then the runs of one with very many names wait in a file without a name, which then goes to the parent as it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import IO, Final

from mkmeta.linux.temporary import TemporaryFile
from mkmeta.scanner.records import Listing

RUN: Final = 4096  # entries in memory, about; what is worth a file


class Gathering:
    """Takes the parts of a directory in order. A context manager; leaving it forgets what was not taken over."""

    def __init__(self) -> None:
        self._parts: list[Listing] = []
        self._entries = 0  # of these, children included
        self._runs: IO[bytes] | None = None
        self._same = True
        self.has_children = False
        self.matched: set[int] = set()  # patterns, as in Listing
        self.matched_only: set[int] = set()

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runs is not None:
            self._runs.close()

    def add(self, part: Listing) -> None:
        """Adds what follows. Raises MkmetaError when the temporary directory cannot take it."""
        if self._entries >= RUN:
            self._spill()
        self._parts.append(part)
        self._entries += len(part.inodes)
        self._same &= part.same
        self.has_children |= bool(part.children)
        self.matched |= part.matched
        self.matched_only |= part.matched_only

    def last(self) -> Listing:
        """What is in memory: everything, or what follows the runs in the file. `same` says so of the whole."""
        listing = self._joined()
        listing.same = self._same
        return listing

    def take_runs(self) -> IO[bytes] | None:
        """The file with the runs before, if there are any: pickled listings, from its beginning."""
        runs, self._runs = self._runs, None
        if runs is not None:
            runs.seek(0)
        return runs

    def _joined(self) -> Listing:
        if len(self._parts) == 1:
            return self._parts[0]
        listing = Listing()
        listing.join(self._parts)
        return listing

    def _spill(self) -> None:
        listing = self._joined()
        if self._runs is None:
            self._runs = TemporaryFile()
        pickle.dump(listing, self._runs, protocol=pickle.HIGHEST_PROTOCOL)
        self._runs.flush()
        self._parts, self._entries = [], 0


class Runs:
    """The runs in the file of `Gathering.take_runs`, in another process of this program, which owns the file now."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Listing]:
        return self

    def __next__(self) -> Listing:
        if self._file is None:
            raise StopIteration
        try:
            run: Listing = pickle.load(self._file)
        except EOFError:
            self.close()
            raise StopIteration from None
        return run

    def close(self) -> None:
        """Nothing more is wanted."""
        if self._file is not None:
            self._file.close()
            self._file = None
