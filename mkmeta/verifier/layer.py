"""A layer on disk against the plan of what it should be: every node, nothing missing, nothing more.

The oracle is `mkmeta.plan`, applied to what lstat(2), listxattr(2) and getxattr(2) say. A file that is not redirected
may be whole, whatever contents the manifest has: its data is compared with the recorded digests. Nothing is followed,
and nothing but directories and such files is opened: whatever lies in a layer is looked at and named, links, fifos and
devices included.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator

from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.descriptors import itself
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import Branch, Report
from mkmeta.model import DigestName, Directory, Entry, LinkRow, RegularFile, type_name
from mkmeta.plan import Plan, PlannedNode
from mkmeta.sinks.directory.inspection import (
    LABEL_XATTRS,
    inode_differences,
    node_differences,
    read_xattrs,
    xattr_differences,
)
from mkmeta.sinks.directory.sharing import is_shared
from mkmeta.verifier.data import DataChecker, Sample
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


class Layer:
    """A layer that is open for verification. A context manager."""

    side = Side.LAYER

    def __init__(self, path: bytes, plan: Plan, reader: ManifestReader) -> None:
        """Raises MkmetaError when it cannot be verified: there is none, or its xattrs are not shown to us."""
        self._reader = reader
        self.plan = plan
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = "name a layer, a generation, or a store"
            raise MkmetaError(f"cannot be opened: {reason(error)}", path=path, hint=hint) from None
        try:
            if not plan.userxattr and not sees_trusted_xattrs():
                raise MkmetaError(
                    "its trusted.* xattrs are shown to root only",
                    path=path,
                    hint="verify it as root; a layer built with --userxattr can be verified by whoever can read it",
                )
            self.shared = is_shared(self.fd)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def visitor(self, report: Report) -> LayerVisitor:
        """For a worker process."""
        return LayerVisitor(self, LinkLookup(self._reader), self._reader.root.digests, report)

    def check_root(self, findings: Reporter) -> None:
        """The root itself: its attributes, and the ID it carries."""
        reader, plan = self._reader, self.plan
        node = plan.root(reader.root, reader.id)
        try:
            for what, message in inode_differences(b".", node.inode, os.fstat(self.fd)):
                findings.add(b"", what, message)
            found = read_xattrs(itself(self.fd))
        except OSError as error:
            findings.add(b"", "unreadable", f"cannot be read: {reason(error)}")
            return
        id_name = plan.names.manifest_id
        carried = found.pop(id_name, None)
        if carried is None:
            findings.add(b"", "id", f"carries no manifest ID ({printable(id_name)})")
        elif carried != reader.id:
            findings.add(b"", "id", f"carries the ID {carried.hex()} instead of {reader.id.hex()}")
        ignored = LABEL_XATTRS | plan.names.marks  # a killed swap may leave `pending`: formats/upper.md section 5
        for what, message in xattr_differences(node.xattrs[:-1], found, ignored=ignored):
            findings.add(b"", what, message)

    def check_links(self, findings: Reporter, subtree_of: SubtreeFinder) -> None:
        """Hard links: every name is the same inode as its primary, and an inode has no more names than recorded."""
        with Looker(self.fd) as looker:
            for row in self._reader.links():
                status = looker.look(row.path)
                if status is None:
                    continue  # missing, which was found before
                message = None
                if isinstance(row, LinkRow):
                    primary = looker.look(row.target)
                    if primary is not None and not os.path.samestat(status, primary):
                        message = f"is not the same inode as {printable(row.target)}, of which it should be a hard link"
                elif wrong_count(status.st_nlink, row.nlink, shared=self.shared):
                    message = f"has {status.st_nlink} hard links instead of {row.nlink}"
                if message is not None:
                    findings.add(row.path, "link", message, subtree=subtree_of(row.path))


class LayerVisitor:
    """Compares directories of a layer with the plan. For a process of its own: changes the working directory."""

    def __init__(self, layer: Layer, links: LinkLookup, digests: Collection[DigestName], report: Report) -> None:
        """`digests`: what files that are whole can be compared with."""
        self._layer = layer
        self._links = links
        self._counts = report.counts
        self._findings = Reporter(Side.LAYER, report.tell)
        self._data = DataChecker(digests, Sample()) if digests else None

    def visit(self, branch: Branch, entries: Iterator[Recorded]) -> bool:
        """Compares a directory with all that is in it. What is a directory is compared when it is visited itself."""
        if not enter(branch, self._layer.fd, self._findings):
            return False
        try:
            if branch.path:  # the root is not like others: check_root
                planned = self._layer.plan.directory(branch.name, branch.directory)
                for what, message in node_differences(b".", planned, os.lstat(b".")):
                    self._findings.add(branch.path, what, message, subtree=branch.subtree)
            with sorted_names() as names:
                here = self._comparable(branch, names, entries)
                for planned in self._layer.plan.children(branch.path, here):
                    self._compare(branch, planned)
        except OSError as error:
            self._findings.add(branch.path, *why_closed(error), subtree=branch.subtree)
            return False
        return True

    def _comparable(self, branch: Branch, names: Iterator[bytes], entries: Iterator[Recorded]) -> Iterator[Entry]:
        """The entries whose attributes are to be compared here. Says which are missing, and what is more."""
        for name, is_there, entry in paired(names, entries):
            path = branch.below(name)
            if entry is None:
                message = f"should not be there{_type_of(name)}"
                self._findings.add(path, "extra", message, subtree=branch.subtree)
                continue
            self._counts["layer"] += 1
            if isinstance(entry.node, Directory):
                continue
            if not is_there:
                message = f"is missing: a {type_name(entry.node.mode)}"
                self._findings.add(path, "missing", message, subtree=branch.subtree)
            # Attributes of a further name of an inode are those of its primary: check_links says whether it is one.
            elif not self._links.is_link(path):
                yield Entry(name, entry.node)

    def _compare(self, branch: Branch, planned: PlannedNode) -> None:
        path = branch.below(planned.name)
        inode = planned.inode
        try:
            status = os.lstat(planned.name)
            whole = type(inode) is RegularFile and inode.size and stat.S_ISREG(status.st_mode)
            if whole and self._is_whole(planned.name):
                planned = PlannedNode(planned.name, inode, inode.xattrs)
            else:
                whole = False
            found = list(node_differences(planned.name, planned, status))
            if whole and isinstance(inode, RegularFile) and status.st_size == inode.size and self._data is not None:
                found += self._data.differences(planned.name, inode, Counter())
            for what, message in found:
                self._findings.add(path, what, message, subtree=branch.subtree)
        except OSError as error:
            self._findings.add(path, "unreadable", f"cannot be read: {reason(error)}", subtree=branch.subtree)
            return
        if wrong_count(status.st_nlink, 1, shared=self._layer.shared) and self._links[path] is None:
            message = f"has {status.st_nlink} hard links instead of 1"
            self._findings.add(path, "link", message, subtree=branch.subtree)

    def _is_whole(self, name: bytes) -> bool:
        """Whether a file of the layer holds data, which can be compared: with nothing to say that it is elsewhere."""
        names = self._layer.plan.names
        found = os.listxattr(name, follow_symlinks=False) if self._data is not None else [names.metacopy]
        return not {names.metacopy, names.redirect}.intersection(map(os.fsencode, found))


def wrong_count(found: int, recorded: int, *, shared: bool) -> bool:
    """Whether an inode has the wrong number of names; one that is shared with other layers may have more."""
    return found < recorded or (found > recorded and not shared)


def _type_of(name: bytes) -> str:
    try:
        return f": a {type_name(os.lstat(name).st_mode)}"
    except OSError:
        return ""
