"""Looking at directories of a tree that is compared, whatever is in them: only they are opened, nothing is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from mkmeta.errors import reason
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.cursor import Recorded
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.sorter import ExternalSorter
from mkmeta.manifest.walk import Branch
from mkmeta.model import Directory, type_name
from mkmeta.verifier.findings import Reporter

_CAP_SYS_ADMIN = 21  # linux/capability.h
_DIRECTORIES_OPEN = 32  # links of a directory mostly lead to a few others
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


def enter(branch: Branch, top: int, findings: Reporter) -> bool:
    """Makes a recorded directory, below the open directory `top`, the working directory. Says why if it cannot."""
    try:
        fd = open_beneath(branch.path, os.O_PATH | os.O_NOFOLLOW, dir_fd=top)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                os.fchdir(fd)
                return True
            message = f"is a {type_name(mode)} instead of a directory"
            findings.add(branch.path, "type", message, subtree=branch.subtree)
        finally:
            os.close(fd)
    except FileNotFoundError:
        findings.add(branch.path, "missing", "is missing: a directory", subtree=branch.subtree)
    except OSError as error:
        findings.add(branch.path, *why_closed(error), subtree=branch.subtree)
    return False


def why_closed(error: OSError) -> tuple[str, str]:
    """What to say of a directory that cannot be opened or listed."""
    if error.errno == errno.EXDEV:
        return "unreadable", "is a mount point: what is below it is not looked at"
    if error.errno in _GONE:
        return "missing", f"is gone, or was replaced meanwhile: {reason(error)}"
    return "unreadable", f"cannot be read: {reason(error)}"


@contextlib.contextmanager
def sorted_names() -> Iterator[Iterator[bytes]]:
    """The names in the working directory, ascending; however many there are, most are on disk. Raises OSError."""
    with ExternalSorter() as names:
        with os.scandir(b".") as entries:
            for entry in entries:
                names.add(entry.name)
        yield iter(names)


def paired(names: Iterator[bytes], entries: Iterator[Recorded]) -> Iterator[tuple[bytes, bool, Recorded | None]]:
    """What is there beside what is recorded: each name, whether it is there, and its entry. Both ascend."""
    name, entry = next(names, None), next(entries, None)
    while name is not None or entry is not None:
        if entry is None or (name is not None and name < entry.name):
            assert name is not None
            yield name, True, None
            name = next(names, None)
        elif name == entry.name:
            yield name, True, entry
            name, entry = next(names, None), next(entries, None)
        else:
            yield entry.name, False, entry
            entry = next(entries, None)


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


def sees_trusted_xattrs() -> bool:
    """Whether the kernel shows us trusted.* xattrs: CAP_SYS_ADMIN in the initial user namespace."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    identity = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    return identity and bool(int(status["CapEff"], 16) >> _CAP_SYS_ADMIN & 1)
