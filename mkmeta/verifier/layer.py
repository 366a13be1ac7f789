"""A layer on disk against the plan of what it should be: every node, nothing missing, nothing more.

The oracle is `compiler.plan`, applied to what lstat(2), listxattr(2) and getxattr(2) say. Nothing is followed and
nothing but directories is opened: whatever lies in a layer is looked at and named, links, fifos and devices included.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter, OrderedDict
from collections.abc import Collection
from pathlib import Path

from mkmeta.compiler.inspection import LABEL_XATTRS, inode_differences, node_differences, read_xattrs, xattr_differences
from mkmeta.compiler.links import LinkNames
from mkmeta.compiler.plan import Plan
from mkmeta.compiler.sharing import SHARED, is_shared
from mkmeta.errors import MkmetaError, printable, reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, Entry, LinkRow, PrimaryRow, type_name
from mkmeta.verifier.walk import Reporter, Task

_PENDING = b"mkmeta-pending"  # a killed swap may leave it on the root: formats/upper.md section 5
_CAP_SYS_ADMIN = 21  # linux/capability.h
_DIRECTORIES_OPEN = 32  # links of a directory mostly lead to a few others
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE)


class Layer:
    """A layer that is open for verification. A context manager."""

    def __init__(self, path: bytes, plan: Plan, reader: ManifestReader) -> None:
        """Raises MkmetaError when it cannot be verified: there is none, or its xattrs are not shown to us."""
        self._reader = reader
        self._plan = plan
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
            # Names whose attributes are those of another name, and names that have others.
            self._links = LinkNames(reader.links())
            primaries = (LinkRow(row.path, b"") for row in reader.links() if isinstance(row, PrimaryRow))
            self._primaries = LinkNames(primaries)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self._links.__exit__()
        self._primaries.__exit__()

    def visitor(self) -> LayerVisitor:
        """For a worker process."""
        return LayerVisitor(self.fd, self._plan, self._links, self._primaries, shared=self.shared)

    def check_root(self, report: Reporter) -> None:
        """The root itself: its attributes, and the ID it carries."""
        reader, plan = self._reader, self._plan
        task = Task(b"", reader.root.directory, None)
        node = plan.root(reader.root, reader.id)
        id_name = plan.namespace + b"mkmeta"
        try:
            os.fchdir(self.fd)
            for what, message in inode_differences(b".", node.inode, os.lstat(b".")):
                report.add(task, b"", what, message)
            found = read_xattrs(b".")
        except OSError as error:
            report.add(task, b"", "unreadable", f"cannot be read: {reason(error)}")
            return
        carried = found.pop(id_name, None)
        if carried is None:
            report.add(task, b"", "id", f"carries no manifest ID ({printable(id_name)})")
        elif carried != reader.id:
            report.add(task, b"", "id", f"carries the ID {carried.hex()} instead of {reader.id.hex()}")
        ignored = LABEL_XATTRS | {plan.namespace + _PENDING, plan.namespace + SHARED}
        for what, message in xattr_differences(node.xattrs[:-1], found, ignored=ignored):
            report.add(task, b"", what, message)

    def check_links(self, report: Reporter, subtree_of: SubtreeFinder) -> None:
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
                    task = Task(b"", self._reader.root.directory, subtree_of(row.path))
                    report.add(task, row.path, "link", message)


class SubtreeFinder:
    """Says which subtree a path is in, for paths that ascend in tree order or nearly."""

    def __init__(self, reader: ManifestReader) -> None:
        self._reader = reader

    def __call__(self, path: bytes) -> bytes:
        """The topmost directory above `path`, or `path` itself, that is no part of the skeleton."""
        names = path.split(b"/")
        for depth in range(1, len(names)):
            above = b"/".join(names[:depth])
            node = self._reader.find(above)
            if isinstance(node, Directory) and node.kind:
                return above
        return path


class Looker:
    """Looks at paths below a directory, following no link on the way. A context manager; keeps directories open."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def __enter__(self) -> Looker:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)

    def look(self, path: bytes) -> os.stat_result | None:
        """What lstat(2) says; None when the path cannot be reached."""
        directory, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False)
        except OSError:
            return None

    def _directory(self, path: bytes) -> int:
        fd = self._open.get(path)
        if fd is None:
            fd = open_beneath(path, os.O_PATH | os.O_DIRECTORY, dir_fd=self._top)
            self._open[path] = fd
            if len(self._open) > _DIRECTORIES_OPEN:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return fd


class LayerVisitor:
    """Compares directories of a layer with the plan. For a process of its own: changes the working directory."""

    def __init__(self, top: int, plan: Plan, links: LinkNames, primaries: LinkNames, *, shared: bool) -> None:
        self.counts: Counter[str] = Counter()
        self._top = top
        self._plan = plan
        self._links = links
        self._primaries = primaries
        self._shared = shared

    def visit(self, task: Task, entries: list[Entry], report: Reporter) -> Collection[bytes]:
        """Compares everything in a directory; its own attributes were compared with the entry above."""
        try:
            fd = open_beneath(task.path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
            try:
                os.fchdir(fd)
                names = {os.fsencode(name) for name in os.listdir(fd)}
            finally:
                os.close(fd)
        except OSError as error:
            report.add(task, b"", *why_closed(error))
            return ()
        prefix = task.path + b"/" if task.path else b""
        for name, node in entries:
            if name not in names:
                report.add(task, name, "missing", f"is missing: a {type_name(node.mode)}")
        for name in sorted(names - {name for name, _ in entries}):
            report.add(task, name, "extra", f"should not be there{_type_of(name)}")
        # The attributes of a further name of an inode are those of its primary: check_links says whether it is one.
        mine = [entry for entry in entries if entry.name in names and prefix + entry.name not in self._links]
        there = set()
        for planned in self._plan.children(task.path, mine):
            name = planned.name
            try:
                status = os.lstat(name)
                for what, message in node_differences(name, planned, status):
                    report.add(task, name, what, message)
            except OSError as error:
                report.add(task, name, "unreadable", f"cannot be read: {reason(error)}")
                continue
            if not isinstance(planned.inode, Directory):
                if wrong_count(status.st_nlink, 1, shared=self._shared) and prefix + name not in self._primaries:
                    report.add(task, name, "link", f"has {status.st_nlink} hard links instead of 1")
            elif stat.S_ISDIR(status.st_mode):
                there.add(name)
        self.counts["layer"] += len(entries)
        return there


def why_closed(error: OSError) -> tuple[str, str]:
    """What to say of a directory that cannot be opened or listed."""
    if error.errno == errno.EXDEV:
        return "unreadable", "is a mount point: what is below it is not looked at"
    if error.errno in _GONE:
        return "missing", f"is gone, or was replaced meanwhile: {reason(error)}"
    return "unreadable", f"cannot be read: {reason(error)}"


def wrong_count(found: int, recorded: int, *, shared: bool) -> bool:
    """Whether an inode has the wrong number of names; one that is shared with other layers may have more."""
    return found < recorded or (found > recorded and not shared)


def _type_of(name: bytes) -> str:
    try:
        return f": a {type_name(os.lstat(name).st_mode)}"
    except OSError:
        return ""


def sees_trusted_xattrs() -> bool:
    """Whether the kernel shows us trusted.* xattrs: CAP_SYS_ADMIN in the initial user namespace."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    identity = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    return identity and bool(int(status["CapEff"], 16) >> _CAP_SYS_ADMIN & 1)
