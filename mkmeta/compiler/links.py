"""Hard links of a layer: which names are links and are made last, and making them."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Self

from mkmeta.compiler.diagnosis import Diagnosis, Step
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.sorter import temporary_space_error
from mkmeta.model import LinkRow, PrimaryRow, tree_order

_BLOCK_ROWS: Final = 1024  # paths looked up together; a walk in tree order stays in one block for a while
_BLOCK_CACHE = 16  # blocks kept: a few MiB
_SEPARATOR = b"\0"  # occurs in no path


class LinkNames:
    """The paths that are hard links to a primary, to be asked for one by one. A context manager.

    The paths are in an anonymous file in `$TMPDIR`, memory holds one of 1,024. Safe to use after a fork.
    """

    def __init__(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        """`rows` ascend in tree order. Raises MkmetaError when the temporary directory is full."""
        self._file = tempfile.TemporaryFile(prefix="mkmeta-", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._firsts: list[bytes] = []  # tree-order key of the first path of each block
        self._places: list[tuple[int, int]] = []  # offset and length of each block
        self._end = 0
        self.count = 0
        try:
            self._fill(rows)
        except BaseException:
            self._file.close()
            raise
        self._block = lru_cache(maxsize=_BLOCK_CACHE)(self._read_block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, path: bytes) -> bool:
        number = bisect_right(self._firsts, tree_order(path)) - 1
        return number >= 0 and path in self._block(number)

    def _fill(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        block: list[bytes] = []
        for row in rows:
            if isinstance(row, LinkRow):
                block.append(row.path)
                self.count += 1
            if len(block) == _BLOCK_ROWS:
                self._add(block)
                block = []
        if block:
            self._add(block)

    def _add(self, block: list[bytes]) -> None:
        data = _SEPARATOR.join(block)
        self._firsts.append(tree_order(block[0]))
        self._places.append((self._end, len(data)))
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise temporary_space_error(error) from None
        self._end += len(data)

    def _read_block(self, number: int) -> frozenset[bytes]:
        offset, length = self._places[number]
        return frozenset(os.pread(self._file.fileno(), length, offset).split(_SEPARATOR))


def make_links(top: int, rows: Iterable[PrimaryRow | LinkRow]) -> None:
    """Links every path to its primary below the directory `top`; directories keep their mtime.

    Directories are opened following no link, and links are made by name in them. Raises BuildError.
    """
    diagnosis = Diagnosis(top)
    for row in rows:
        if not isinstance(row, LinkRow):
            continue
        source_directory, _, source = row.target.rpartition(b"/")
        target_directory, _, target = row.path.rpartition(b"/")
        try:
            source_fd = open_beneath(source_directory, os.O_PATH | os.O_DIRECTORY, dir_fd=top)
            try:
                _link(source_fd, source, target_directory, target, top)
            finally:
                os.close(source_fd)
        except OSError as error:
            raise diagnosis.explain(error, row.path, Step.LINK) from None


def _link(source_fd: int, source: bytes, directory: bytes, name: bytes, top: int) -> None:
    fd = open_beneath(directory, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
    try:
        before = os.fstat(fd)
        os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
        os.utime(fd, ns=(before.st_mtime_ns, before.st_mtime_ns))
    finally:
        os.close(fd)
