"""What the hard links of a manifest say of a path: looked up in the link pages, which are in tree order."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import LinkRow, PrimaryRow, tree_order

_PAGES_KEPT: Final = 2  # decoded; a walk in tree order goes on in the same page, or in the next
_FIRSTS_KEPT: Final = 256  # keys of the first rows of pages, that a search meets again


class LinkLookup:
    """Looks paths up. For a manifest whose links have been checked; each process should have its own."""

    def __init__(self, reader: ManifestReader) -> None:
        self._reader = reader
        self._pages = reader.link_pages()
        self._rows = lru_cache(maxsize=_PAGES_KEPT)(self._read)
        self._first = lru_cache(maxsize=_FIRSTS_KEPT)(lambda number: tree_order(next(iter(self._rows(number)))))
        self._page = 0  # that was looked into last, and what sorts there:
        self._low: bytes | None = None  # from this key; None: not looked into yet
        self._high: bytes | None = None  # before this one; None: to the end

    def __getitem__(self, path: bytes) -> PrimaryRow | LinkRow | None:
        """The row of a path; None when it has no other names. Raises FormatError."""
        if not self._pages:
            return None
        key = tree_order(path)
        if self._low is None or key < self._low or (self._high is not None and key >= self._high):
            self._search(key)
        return self._rows(self._page).get(path)

    def is_link(self, path: bytes) -> bool:
        """Whether it is a further name of an inode: not the first, whose attributes stand for all."""
        return isinstance(self[path], LinkRow)

    def _search(self, key: bytes) -> None:
        low, high = 0, len(self._pages)
        if self._low is not None and key >= self._low and self._page + 1 < high:
            low = self._page + 1  # mostly it is the next
            if low + 1 < high and key < self._first(low + 1):
                high = low + 1
        while low + 1 < high:
            middle = (low + high) // 2
            if self._first(middle) <= key:
                low = middle
            else:
                high = middle
        self._page = low
        self._low = self._first(low) if low else b""
        self._high = self._first(low + 1) if low + 1 < len(self._pages) else None

    def _read(self, number: int) -> dict[bytes, PrimaryRow | LinkRow]:
        return {row.path: row for row in self._reader.link_page(number, self._pages[number])}
