"""The lines of a composefs-dump(5) text, put into an order in which directories come before what is in them.

Memory is bounded but for hard links, of which the paths are held.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Self

from mkmeta.codec.dump_lines import DumpEntry, DumpLink, decode_line
from mkmeta.errors import FormatError, printable
from mkmeta.manifest.sorter import ExternalSorter

_LINE_MAX: Final = 4 << 20  # bytes
_DEPTH_MAX: Final = 65535  # of paths, for keys of two bytes
_NUMBER_BYTES: Final = 8
_TYPE_MASK: Final = 0o170000
_DIRECTORY: Final = 0o040000
_REGULAR: Final = 0o100000
_WHITEOUT: Final = 0o020000

Progress = Callable[[int], None]  # lines read
DumpRecord = tuple[bytes, int, DumpEntry | DumpLink]  # key, number of the line, what it says


class DumpText:
    """The lines of a text, sorted. A context manager."""

    def __init__(self, key: Callable[[bytes], bytes]) -> None:
        """`key` sorts paths."""
        self._key = key
        self.lines = 0
        self.whiteouts = False  # whether there is one
        self._entries = ExternalSorter()
        self._parents = ExternalSorter()  # of whiteouts
        self.links: dict[bytes, bytes] = {}  # path: target

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._entries.__exit__(*error)
        self._parents.__exit__(*error)

    def read(self, text: BinaryIO, progress: Progress) -> None:
        """Reads all lines. Raises FormatError."""
        add = self._entries.add
        while line := text.readline(_LINE_MAX):
            self.lines = number = self.lines + 1
            if len(line) == _LINE_MAX:
                raise bad_line(number, f"longer than {_LINE_MAX} bytes")
            try:
                entry = decode_line(line.removesuffix(b"\n"))
            except ValueError as error:
                raise bad_line(number, str(error)) from None
            path = entry.path
            if not path and number > 1:
                raise bad_line(number, "the root once more")
            if number == 1 and (path or isinstance(entry, DumpLink) or entry.mode & _TYPE_MASK != _DIRECTORY):
                raise bad_line(number, "the first entry is not the root, a directory")
            if path.count(b"/") >= _DEPTH_MAX:
                raise bad_line(number, "too many directories in each other")
            if isinstance(entry, DumpLink):
                self.links.setdefault(path, entry.target)
            elif entry.mode & _TYPE_MASK == _WHITEOUT and not entry.device:
                self.whiteouts = True
                self._parents.add(self._key(path.rpartition(b"/")[0]))
            key = self._key(path)
            add(b"%b\0%b%b%b" % (key, number.to_bytes(_NUMBER_BYTES, "big"), marshal.dumps(tuple(entry), 2),
                len(key).to_bytes(_NUMBER_BYTES, "big")))  # fmt: skip
            progress(1)
        if not self.lines:
            raise FormatError("the text is empty")

    def records(self) -> Iterator[DumpRecord]:
        """Key, number of the line and what it says, ascending. Raises FormatError for a path that comes twice."""
        before = b"none"
        for record in self._entries:
            size = int.from_bytes(record[-_NUMBER_BYTES:], "big")
            key = record[:size]
            start = size + 1 + _NUMBER_BYTES
            number = int.from_bytes(record[size + 1 : start], "big")
            fields = marshal.loads(record[start:-_NUMBER_BYTES])
            entry: DumpEntry | DumpLink = DumpLink(*fields) if len(fields) == 2 else DumpEntry(*fields)
            if key == before:
                raise bad_line(number, f"'{printable(entry.path)}' is there already")
            before = key
            yield key, number, entry

    def targets(self) -> dict[bytes, int]:
        """The modes of what links name in the end, by path. Raises FormatError for what they cannot name."""
        if not self.links:
            return {}
        wanted = {self.final(path) for path in self.links}
        found = {}
        for _, number, entry in self.records():
            if isinstance(entry, DumpEntry) and entry.path in wanted:
                if entry.mode & _TYPE_MASK == _DIRECTORY:
                    raise bad_line(number, f"directory '/{printable(entry.path)}' has a hard link")
                whiteout = entry.mode & _TYPE_MASK == _WHITEOUT and not entry.device
                found[entry.path] = _REGULAR if whiteout else entry.mode
        for path, target in self.links.items():
            if self.final(path) not in found:
                raise FormatError(f"'{printable(path)}' links to '/{printable(target)}', which is not there")
        return found

    def final(self, path: bytes) -> bytes:
        """What a link names, at the end of all links to links. Raises FormatError for a circle."""
        passed = {}
        while (target := self.links.get(path)) is not None:
            if path in passed:
                raise FormatError(f"'{printable(path)}' is a hard link to itself")
            passed[path] = target
            path = target
        for link in passed:
            self.links[link] = path
        return path


def bad_line(line: int, problem: str) -> FormatError:
    """The error for a line that is refused."""
    return FormatError(f"line {line}: {problem}")
