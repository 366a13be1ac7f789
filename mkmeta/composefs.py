"""A composefs image of a composefs-dump(5) text: the tree that its lines make, in any order, and the plan for it.

Memory is bounded but for hard links, of which the paths are held. formats/erofs.md section 7 has the plan.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import BinaryIO, Final

from mkmeta.codec.dump_lines import XATTR_COST, XATTRS_COST, XATTRS_MAX, DumpEntry, DumpLink, Xattrs
from mkmeta.codec.erofs import TYPES
from mkmeta.codec.metacopy import encode_metacopy
from mkmeta.composefs_plan import ROOT_OPAQUE, SELINUX, WHITEOUT_MODE, WHITEOUT_NAMES, redirection
from mkmeta.digest import VerityDigest
from mkmeta.errors import printable
from mkmeta.overlay_xattrs import TRUSTED
from mkmeta.sinks.erofs.assembly import Assembly
from mkmeta.sinks.erofs.collecting import Collector, node_order
from mkmeta.sinks.erofs.destination import ImageDestination
from mkmeta.sinks.erofs.nodes import DIRECTORY, REGULAR, SYMLINK, TYPE_MASK, Row, layout_of, xattr_entries
from mkmeta.sinks.erofs.spool import Spool
from mkmeta.trees.dump_text import DumpRecord, DumpText, Progress, bad_line

_NUMBER_BYTES: Final = 8
_WHITEOUT: Final = 0o020000
_ESCAPED: Final = TRUSTED.prefix + b"overlay."
_USER: Final = b"user.overlay."
_U64: Final = 2**64


@dataclass(frozen=True, kw_only=True)
class DumpImage:
    """What was made of a text."""

    entries: int  # lines, the root's not counted
    version: int  # of composefs
    verity: VerityDigest
    image_bytes: int
    seconds: float


def build_dump(
    text: BinaryIO,
    dest: bytes,
    *,
    version: int | None = None,
    swap: bool = False,
    jobs: int = 1,
    progress: Progress = lambda _lines: None,
) -> DumpImage:
    """Writes the image of a text to `dest`. `version`: 0 or 1; None: 1 if the tree has a whiteout.

    Raises FormatError for a text that mkcomposefs refuses, or should, before anything is written; BuildError.
    """
    started = time.monotonic()
    destination = ImageDestination(dest, swap)
    destination.check()
    with _Tree() as tree:
        tree.read(text, progress)
        chosen = int(tree.whiteouts) if version is None else version
        with Assembly(jobs=jobs, composefs=chosen) as assembly:
            collector = Collector(0, assembly.part())
            root = tree.collect(collector, chosen)
            digest, size = assembly.write(root, destination.output())
    return DumpImage(
        entries=tree.lines - 1,
        version=chosen,
        verity=digest,
        image_bytes=size,
        seconds=time.monotonic() - started,
    )


class _Tree(DumpText):
    """The lines of a text in node order."""

    def __init__(self) -> None:
        super().__init__(node_order)

    def collect(self, collector: Collector, version: int) -> Row:
        """Has all directories collected, in node order. Returns the row of the root. Raises FormatError."""
        targets = self.targets()
        marks = _Marks(iter(self._parents), version)
        records = self.records()
        key, line, top = next(records)
        assert isinstance(top, DumpEntry)
        xattrs = _escaped(top.xattrs)
        marks.apply(key, xattrs, line)
        root = _row(top, xattrs | dict((ROOT_OPAQUE,)), collector, b"")
        children = _Children(records)
        with _Directories() as directories:
            directories.append(key, line)
            while (found := directories.next()) is not None:
                key, line = found
                inside = self._inside(children.of(key, line), collector, directories, marks, targets)
                if not key.strip(b"\0"):
                    inside = _merged(inside, _root_whiteouts(top, collector))
                for name, kind, node in inside:
                    if isinstance(node, bytes):
                        collector.add_link(name, kind, node)
                    else:
                        collector.add(name, kind, node)
                collector.end(_path_of(key))
        children.check_end()
        return root

    def _inside(
        self,
        records: Iterator[DumpRecord],
        collector: Collector,
        directories: _Directories,
        marks: _Marks,
        targets: dict[bytes, int],
    ) -> Iterator[tuple[bytes, int, Row | bytes]]:
        """What is in a directory, ascending: name, type, row or, of a further name, the key of the row."""
        for key, line, entry in records:
            name = entry.path.rpartition(b"/")[2]
            if isinstance(entry, DumpLink):
                target = self.final(entry.path)
                yield name, TYPES[targets[target] & TYPE_MASK], target
                continue
            if entry.mode & TYPE_MASK == DIRECTORY:
                directories.append(key, line)
                xattrs = _escaped(entry.xattrs)
                marks.apply(key, xattrs, line)
                row = _row(entry, xattrs, collector, b"")
            else:
                row = _planned(entry, collector, entry.path if entry.path in targets else b"", line)
            yield name, TYPES[row[0][0] & TYPE_MASK], row


class _Directories:
    """Directories whose children are still to come, in node order. A context manager."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._pieces: Iterator[bytes] = iter(())
        self._read = 0

    def __enter__(self) -> _Directories:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def append(self, key: bytes, number: int) -> None:
        """One more, and the number of its line."""
        self._spool.append_piece(number.to_bytes(_NUMBER_BYTES, "big") + key)

    def next(self) -> tuple[bytes, int] | None:
        """The next one; None: there are no more."""
        piece = next(self._pieces, None)
        if piece is None and self._read < self._spool.size:
            self._spool.flush()
            at, self._read = self._read, self._spool.size
            self._pieces = self._spool.pieces(at, self._read - at)
            piece = next(self._pieces)
        if piece is None:
            return None
        return piece[_NUMBER_BYTES:], int.from_bytes(piece[:_NUMBER_BYTES], "big")


class _Children:
    """Entries, given to their directories."""

    def __init__(self, records: Iterator[DumpRecord]) -> None:
        self._records = records
        self._ahead = next(records, None)

    def of(self, directory: bytes, line: int) -> Iterator[DumpRecord]:
        """Those in the directory with this key, which is on this line. Raises FormatError for what is in none."""
        while (record := self._ahead) is not None:
            key, number, entry = record
            parent = _parent_of(key)
            if parent > directory:
                return
            if parent < directory or number < line:
                raise bad_line(number, f"'{printable(entry.path)}' is in no directory of the lines before")
            self._ahead = next(self._records, None)
            yield record

    def check_end(self) -> None:
        """Raises FormatError when there are some left."""
        if self._ahead is not None:
            raise bad_line(self._ahead[1], f"'{printable(self._ahead[2].path)}' is in no directory of the lines before")


class _Marks:
    """Says of directories that whiteouts are in them; asked in node order."""

    def __init__(self, parents: Iterator[bytes], version: int) -> None:
        """`parents`: keys of directories with whiteouts, ascending, perhaps several times."""
        self._parents = parents
        self._next = next(parents, None)
        self._added = [(_ESCAPED + b"whiteouts", b""), (_USER + b"whiteouts", b"")]
        if version:
            self._added += [(_ESCAPED + b"opaque", b"x"), (_USER + b"opaque", b"x")]

    def apply(self, key: bytes, xattrs: Xattrs, line: int) -> None:
        """Adds to the xattrs of a directory. Raises FormatError as mkcomposefs does."""
        while self._next is not None and self._next < key:
            self._next = next(self._parents, None)
        if self._next == key:
            _add(xattrs, self._added, line)


def _add(xattrs: Xattrs, added: Iterable[tuple[bytes, bytes]], line: int) -> None:
    """Sets xattrs. Raises FormatError where mkcomposefs counts them wrong, and refuses: long values are replaced."""
    held = 0
    for name, value in added:
        old = xattrs.pop(name, None)
        if old is not None:
            held = held - XATTR_COST - len(name) - len(old) if xattrs else 0
        held += XATTR_COST + len(name) + len(value) + (0 if xattrs else XATTRS_COST)
        if held % _U64 > XATTRS_MAX:
            raise bad_line(line, f"mkcomposefs cannot replace the value of {printable(name)}: it is too long")
        xattrs[name] = value


def _planned(entry: DumpEntry, collector: Collector, key: bytes, line: int) -> Row:
    """The row of an entry, as composefs has it. A directory still lacks what is in it."""
    xattrs = _escaped(entry.xattrs)
    kind = entry.mode & TYPE_MASK
    if kind == _WHITEOUT and not entry.device:
        _add(xattrs, ((_ESCAPED + b"whiteout", b""), (_USER + b"whiteout", b"")), line)
        entry = entry._replace(mode=REGULAR | entry.mode & ~TYPE_MASK, size=0)
    elif kind == REGULAR and entry.size and entry.content is None:
        digest = None if entry.digest is None else VerityDigest(entry.digest)
        xattrs |= redirection(entry.payload or b"", encode_metacopy(digest))
    return _row(entry, xattrs, collector, key)


def _row(entry: DumpEntry, xattrs: Xattrs, collector: Collector, key: bytes) -> Row:
    mode, size, content = entry.mode, entry.size, entry.content
    at = collector.content(content) if content else 0
    bits, xattr_bytes, entries = xattr_entries(sorted(xattrs.items()))
    chunk_format, data, blocks, tail = layout_of(mode, size, content=content is not None, exact=True)
    target = entry.payload or b"" if mode & TYPE_MASK == SYMLINK else b""
    head = (
        mode, entry.nlink, entry.uid, entry.gid, entry.seconds, entry.nanoseconds, size, data, blocks, tail,
        xattr_bytes,
    )  # fmt: skip
    return head, (entry.device or chunk_format, target, at, bits, entries, key)


def _escaped(xattrs: Xattrs) -> Xattrs:
    """Those of overlayfs get a name that a mount of the image shows as it was."""
    if not any(name.startswith(TRUSTED.prefix) for name in xattrs):
        return dict(xattrs)
    prefix = TRUSTED.prefix
    return {_ESCAPED + name[len(prefix) :] if name.startswith(prefix) else name: xattrs[name] for name in xattrs}


def _root_whiteouts(top: DumpEntry, collector: Collector) -> Iterator[tuple[bytes, int, Row]]:
    """What hides directories of objects, ascending: name, type, row."""
    xattrs = {name: value for name, value in top.xattrs.items() if name == SELINUX}
    entry = top._replace(mode=WHITEOUT_MODE, nlink=1, device=0, size=0, payload=None, content=None)
    row = _row(entry, xattrs, collector, b"")
    for name in WHITEOUT_NAMES:
        yield name, TYPES[_WHITEOUT], row


def _merged(
    one: Iterator[tuple[bytes, int, Row | bytes]], other: Iterator[tuple[bytes, int, Row | bytes]]
) -> Iterator[tuple[bytes, int, Row | bytes]]:
    """Both, ascending by name; of the same name, that of the first."""
    before = b""
    for node in heapq.merge(one, other, key=itemgetter(0)):
        if node[0] != before:
            before = node[0]
            yield node


def _path_of(key: bytes) -> bytes:
    return key[2:].replace(b"\0", b"/")


def _parent_of(key: bytes) -> bytes:
    depth = int.from_bytes(key[:2], "big") - 1
    return depth.to_bytes(2, "big") + key[2:].rpartition(b"\0")[0]
