"""The living volume against a manifest: whether what was published once is still what was recorded.

Names and attributes; with a DataChecker, content too; and where the manifest has facts, whether names still lead to the
inodes that were recorded, in the state they were in. Nothing is followed, no mount point is crossed, and nothing but
directories and regular files is opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Final

from mkmeta.codec.acl import mode_without_acl
from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.descriptors import itself
from mkmeta.linux.filesystem import filesystem_type
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import Branch, Report
from mkmeta.model import Directory, DirectoryKind, LinkRow, Node, RegularFile, type_name
from mkmeta.pattern import Patterns
from mkmeta.scanner.entry import ACCESS_ACL, NFS4_ACL_XATTRS
from mkmeta.scanner.looking import is_made_up
from mkmeta.sinks.directory.inspection import (
    LABEL_XATTRS,
    Mismatch,
    inode_differences,
    read_xattrs,
    xattr_differences,
)
from mkmeta.verifier.data import DataChecker
from mkmeta.verifier.findings import Reporter, Side
from mkmeta.verifier.looking import (
    Looker,
    SubtreeFinder,
    enter,
    paired,
    sees_trusted_xattrs,
    sorted_names,
    why_closed,
)

# Filesystems that number inodes as they come across them: another mount, or a look after others, has other numbers.
_LOOKED_AT: Final = 1000  # entries of the root: if none of them is the recorded inode, nothing is
_UNNUMBERED: Final = frozenset({"9p", "exfat", "fuse", "fuseblk", "msdos", "ntfs3", "overlay", "vfat"})


class Volume:
    """The directory that was scanned, open for verification. A context manager."""

    side = Side.VOLUME

    def __init__(self, lower: bytes, prefix: bytes, reader: ManifestReader) -> None:
        """`lower`: what layers are mounted over; the recorded root is `prefix` below it. Raises MkmetaError."""
        self._reader = reader
        path = os.path.join(lower, prefix) if prefix else lower
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = "name the directory that the layer is mounted over"
            raise MkmetaError(f"cannot be opened: {reason(error)}", path=path, hint=hint) from None
        self.device = os.fstat(self.fd).st_dev
        # A scan that dropped xattrs does not record which: then others than the recorded ones may be there.
        self._any_xattrs = bool(reader.info.drop_xattrs or reader.info.counts.get("dropped_xattrs"))
        self.hide = Patterns(reader.info.hide)
        self._sees_trusted = sees_trusted_xattrs()
        self.unproven = self._why_unproven()

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _why_unproven(self) -> str | None:
        """Why it cannot be told whether a name still leads to the inode that was recorded; None: it can."""
        reader = self._reader
        if reader.facts_place is None:
            return "the manifest has no inode numbers"
        kind = filesystem_type(self.fd)
        if kind.partition(".")[0] in _UNNUMBERED:
            return f"inode numbers of {kind} do not last"
        seen = 0
        for entry in islice(reader.recorded(reader.root.directory, b"", reader.facts_place), _LOOKED_AT):
            with contextlib.suppress(OSError):
                status = os.stat(entry.name, dir_fd=self.fd, follow_symlinks=False)
                if entry.inode == status.st_ino and status.st_dev == self.device:
                    return None
                seen += 1
        return "all inode numbers are others: this is a copy of what was scanned" if seen else None

    def differences(self, name: bytes, node: Node, status: os.stat_result) -> list[Mismatch]:
        """How a name of the working directory differs from what was recorded of it. Raises OSError."""
        # What is published in a directory of the skeleton changes its mtime, and is no difference.
        lasting = not isinstance(node, Directory) or node.kind is DirectoryKind.OPAQUE
        found = list(inode_differences(name, node, status, mtime=lasting))
        xattrs = {key: value for key, value in read_xattrs(name).items() if key not in NFS4_ACL_XATTRS}
        if self._any_xattrs and ACCESS_ACL in xattrs and _mode_for(status.st_mode, xattrs[ACCESS_ACL]) == node.mode:
            found = [mismatch for mismatch in found if mismatch.what != "mode"]  # it stands for the ACL
        ignored = frozenset(xattrs) if self._any_xattrs else LABEL_XATTRS
        recorded = node.xattrs
        if not self._sees_trusted:
            recorded = tuple((key, value) for key, value in recorded if not key.startswith(b"trusted."))
        return found + list(xattr_differences(recorded, xattrs, ignored=ignored))

    def check_root(self, findings: Reporter) -> None:
        """The root's own attributes."""
        root = self._reader.root.directory
        try:
            for what, message in self.differences(itself(self.fd), root, os.fstat(self.fd)):
                findings.add(b"", what, message)
        except OSError as error:
            findings.add(b"", *why_closed(error))

    def check_links(self, findings: Reporter, subtree_of: SubtreeFinder) -> None:
        """Hard links: every name still is the same inode as its primary."""
        with Looker(self.fd) as looker:
            for row in self._reader.links():
                if not isinstance(row, LinkRow):
                    continue
                status, primary = looker.look(row.path), looker.look(row.target)
                if status is not None and primary is not None and not os.path.samestat(status, primary):
                    message = f"is no longer the same inode as {printable(row.target)}"
                    findings.add(row.path, "link", message, subtree=subtree_of(row.path))


class VolumeVisitor:
    """Compares directories of the volume with their entries. Changes the working directory of its process.

    Counts the entries compared as `volume`, and as `touched` those of which nothing but the change time is another.
    """

    def __init__(self, volume: Volume, report: Report, data: DataChecker | None) -> None:
        self._volume = volume
        self._counts = report.counts
        self._findings = Reporter(Side.VOLUME, report.tell)
        self._data = data

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Compares all that is recorded in a directory, and in one that was recorded completely looks for more.

        What is a directory is compared when it is visited itself.
        """
        if not enter(branch, self._volume.fd, self._findings):
            return False
        try:
            if branch.path:
                for what, message in self._volume.differences(b".", branch.directory, os.lstat(b".")):
                    self._findings.add(branch.path, what, message, subtree=branch.subtree)
            if branch.directory.kind is DirectoryKind.OPAQUE:
                with sorted_names() as names:
                    for name, _, entry in paired(names, entries):
                        if entry is None:
                            self._report_new(branch, name)
                        else:
                            self._compare(branch, entry)
            else:
                for entry in entries:
                    self._compare(branch, entry)
        except OSError as error:
            self._findings.add(branch.path, *why_closed(error), subtree=branch.subtree)
            return False
        return True

    def _compare(self, branch: Branch, entry: Recorded) -> None:
        """Compares a name of the working directory."""
        name, node = entry.name, entry.node
        path, subtree = branch.below(name), branch.subtree
        self._counts["volume"] += 1
        if isinstance(node, Directory):
            return
        try:
            status = os.lstat(name)
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(node.mode):
                message = f"is a {type_name(status.st_mode)}, was a {type_name(node.mode)}"
                self._findings.add(path, "type", message, subtree=subtree)
                return
            differences = self._volume.differences(name, node, status)
            for what, message in differences:
                self._findings.add(path, what, message, subtree=subtree)
            suspect = False
            if not differences and entry.inode and self._volume.unproven is None:
                # What is on another device, as subvolumes are, is recorded with numbers of this boot.
                if status.st_ino != entry.inode and status.st_dev == self._volume.device:
                    suspect = True
                    message = "was replaced: it is another inode than the recorded one, with the same attributes"
                    self._findings.add(path, "inode", message, subtree=subtree)
                elif status.st_ctime_ns != entry.change_time:
                    suspect = True
                    self._counts["touched"] += 1
            if isinstance(node, RegularFile) and self._is_due(node, status, path, suspect=suspect):
                assert self._data is not None
                for what, message in self._data.differences(name, node, self._counts):
                    self._findings.add(path, what, message, subtree=subtree, side=Side.DATA)
        except FileNotFoundError:
            self._findings.add(path, "missing", f"is missing: a {type_name(node.mode)}", subtree=subtree)
        except OSError as error:
            self._findings.add(path, *why_closed(error), subtree=subtree)

    def _is_due(self, node: RegularFile, status: os.stat_result, path: bytes, *, suspect: bool) -> bool:
        """Whether the content is to be compared: that of another size is another, and was named already.

        What may have been written to is compared whatever the sample.
        """
        return self._data is not None and 0 < node.size == status.st_size and (suspect or path in self._data.sample)

    def _report_new(self, branch: Branch, name: bytes) -> None:
        """Reports a name that was not recorded, unless it is one that a scan leaves out."""
        path = branch.below(name)
        try:
            mode = os.lstat(name).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            self._findings.add(path, *why_closed(error), subtree=branch.subtree)
            return
        is_directory = stat.S_ISDIR(mode)
        if is_made_up(name, is_directory=is_directory) or self._volume.hide.first_match(
            path, is_directory=is_directory
        ):
            return
        kind = type_name(mode)
        message = f"is new: a {kind}, in a directory that was recorded completely; mounts of the layer do not show it"
        self._findings.add(path, "new", message, subtree=branch.subtree)


def _mode_for(mode: int, acl: bytes) -> int | None:
    """The mode that a scan records without the ACL."""
    try:
        return mode_without_acl(mode, acl)
    except ValueError:
        return None
