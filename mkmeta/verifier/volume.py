"""The living volume against a manifest: whether what was published once is still what was recorded.

Names and attributes; with a DataChecker, content too. Nothing is followed, no mount point is crossed, and nothing but
regular files is opened.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection

from mkmeta.compiler.inspection import LABEL_XATTRS, Difference, inode_differences, read_xattrs, xattr_differences
from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Entry, LinkRow, Node, RegularFile, type_name
from mkmeta.pattern import Patterns
from mkmeta.scanner.entry import NFS4_ACL_XATTRS
from mkmeta.scanner.looking import SILLY_RENAMED, SNAPSHOT_NAME
from mkmeta.verifier.data import DataChecker
from mkmeta.verifier.findings import Side
from mkmeta.verifier.layer import Looker, SubtreeFinder, sees_trusted_xattrs, why_closed
from mkmeta.verifier.walk import Reporter, Task


class Volume:
    """The directory that was scanned, open for verification. A context manager."""

    def __init__(self, lower: bytes, prefix: bytes, reader: ManifestReader) -> None:
        """`lower`: what layers are mounted over; the recorded root is `prefix` below it. Raises MkmetaError."""
        self._reader = reader
        path = os.path.join(lower, prefix) if prefix else lower
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = "name the directory that the layer is mounted over"
            raise MkmetaError(f"cannot be opened: {reason(error)}", path=path, hint=hint) from None
        # A scan that dropped xattrs does not record which: then others than the recorded ones may be there.
        self._any_xattrs = bool(reader.info.counts.get("dropped_xattrs"))
        self._hide = Patterns(reader.info.hide)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def visitor(self, data: DataChecker | None) -> VolumeVisitor:
        """For a worker process."""
        return VolumeVisitor(self.fd, self._hide, data, any_xattrs=self._any_xattrs)

    def check_root(self, report: Reporter) -> None:
        """The root's own attributes."""
        root = self._reader.root.directory
        os.fchdir(self.fd)
        self.visitor(None).compare(b".", root, Task(b"", root, None), b"", report)

    def check_links(self, report: Reporter, subtree_of: SubtreeFinder) -> None:
        """Hard links: every name still is the same inode as its primary."""
        with Looker(self.fd) as looker:
            for row in self._reader.links():
                if not isinstance(row, LinkRow):
                    continue
                status, primary = looker.look(row.path), looker.look(row.target)
                if status is not None and primary is not None and not os.path.samestat(status, primary):
                    task = Task(b"", self._reader.root.directory, subtree_of(row.path))
                    message = f"is no longer the same inode as {printable(row.target)}"
                    report.add(task, row.path, "link", message)


class VolumeVisitor:
    """Compares directories of the volume with their entries. Changes the working directory of its process."""

    def __init__(self, top: int, hide: Patterns, data: DataChecker | None, *, any_xattrs: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._top = top
        self._hide = hide
        self._data = data
        self._any_xattrs = any_xattrs
        self._sees_trusted = sees_trusted_xattrs()

    def visit(self, task: Task, entries: list[Entry], report: Reporter) -> Collection[bytes]:
        """Compares everything recorded in a directory, and in one that was recorded completely looks for more."""
        complete = task.directory.kind is DirectoryKind.OPAQUE
        try:
            fd = open_beneath(task.path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
            try:
                os.fchdir(fd)
                names = {os.fsencode(name) for name in os.listdir(fd)} if complete else set()
            finally:
                os.close(fd)
        except OSError as error:
            report.add(task, b"", *why_closed(error))
            return ()
        for name in sorted(names - {name for name, _ in entries}):
            self._report_new(task, name, report)
        there = {name for name, node in entries if self.compare(name, node, task, name, report)}
        self.counts["volume"] += len(entries)
        return there

    def compare(self, name: bytes, node: Node, task: Task, entry: bytes, report: Reporter) -> bool:
        """Compares a name of the working directory. Returns whether it is a directory, as recorded."""
        try:
            status = os.lstat(name)
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(node.mode):
                report.add(task, entry, "type", f"is a {type_name(status.st_mode)}, was a {type_name(node.mode)}")
                return False
            for what, message in self._differences(name, node, status):
                report.add(task, entry, what, message)
            if isinstance(node, RegularFile) and self._is_due(node, status, task.below(entry)):
                assert self._data is not None
                for what, message in self._data.differences(name, node, self.counts):
                    report.add(task, entry, what, message, side=Side.DATA)
        except FileNotFoundError:
            report.add(task, entry, "missing", f"is missing: a {type_name(node.mode)}")
            return False
        except OSError as error:
            report.add(task, entry, *why_closed(error))
            return False
        return isinstance(node, Directory)

    def _differences(self, name: bytes, node: Node, status: os.stat_result) -> list[Difference]:
        # What is published in a directory of the skeleton changes its mtime, and is no difference.
        lasting = not isinstance(node, Directory) or node.kind is DirectoryKind.OPAQUE
        found = list(inode_differences(name, node, status, mtime=lasting))
        xattrs = {key: value for key, value in read_xattrs(name).items() if key not in NFS4_ACL_XATTRS}
        ignored = frozenset(xattrs) if self._any_xattrs else LABEL_XATTRS
        recorded = node.xattrs
        if not self._sees_trusted:
            recorded = tuple((key, value) for key, value in recorded if not key.startswith(b"trusted."))
        return found + list(xattr_differences(recorded, xattrs, ignored=ignored))

    def _is_due(self, node: RegularFile, status: os.stat_result, path: bytes) -> bool:
        """Whether the content is to be compared: that of another size is another, and was named already."""
        return self._data is not None and 0 < node.size == status.st_size and path in self._data.sample

    def _report_new(self, task: Task, name: bytes, report: Reporter) -> None:
        """Reports a name that was not recorded, unless it is one that a scan leaves out."""
        try:
            mode = os.lstat(name).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            report.add(task, name, *why_closed(error))
            return
        made_up = SILLY_RENAMED.fullmatch(name) or (name == SNAPSHOT_NAME and stat.S_ISDIR(mode))
        if made_up or self._hide.first_match(task.below(name)):
            return
        kind = type_name(mode)
        message = f"is new: a {kind}, in a directory that was recorded completely; mounts of the layer do not show it"
        report.add(task, name, "new", message)
