"""The sink for an image: planned nodes become rows, in any number of processes, and the rows an image."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

from mkmeta.codec.acl import acl_permissions
from mkmeta.codec.erofs import SIZE_MAX, TYPES, XATTR_HEADER, XATTR_VALUE_MAX, XATTRS_MAX, encode_device
from mkmeta.errors import BuildError, printable
from mkmeta.manifest.contents import Contents
from mkmeta.manifest.link_lookup import LinkLookup
from mkmeta.model import ACL_XATTRS, NO_CONTENT, NS, Device, LinkRow, PrimaryRow, RegularFile, Symlink
from mkmeta.plan import PlannedNode
from mkmeta.sinks.erofs.assembly import Assembly
from mkmeta.sinks.erofs.collecting import Collector
from mkmeta.sinks.erofs.destination import ImageDestination
from mkmeta.sinks.erofs.nodes import TYPE_MASK, Row, layout_of, xattr_entries
from mkmeta.sinks.protocol import WHOLE, WHOLE_BYTES, DataBeyond, LayerKind, Published

IMAGE_BYTES: Final = "image_bytes"  # what is counted: the size of the image
_ACCESS_ACL: Final = b"system.posix_acl_access"
_COMPOSEFS_XATTRS_MAX: Final = 32767  # bytes of a node's, as mkcomposefs counts them
_COMPOSEFS_XATTR: Final = 7  # bytes it counts for each, beside name and value
_PERMISSIONS: Final = 0o777  # that an ACL is about
_USER: Final = b"user."
_KEPT_MAX: Final = 1 << 15  # contents whose place a process remembers


class ErofsSink:
    """Writes an image at `dest`, in any number of processes."""

    kind = LayerKind.EROFS
    ordered = False
    links_in_place = True

    def __init__(self, dest: bytes, *, jobs: int, swap: bool = False, composefs: int | None = None) -> None:
        """`jobs`: how many processes may write. `composefs`: the version of a composefs image; None: it is none."""
        self._destination = ImageDestination(dest, swap)
        self._jobs = jobs
        self._assembly = Assembly(jobs=jobs, composefs=composefs)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._assembly)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def begin(self, root: PlannedNode, inodes: int, data: DataBeyond) -> None:
        """Makes temporary files, after everything that can be refused was looked at."""
        self._filesystem = self._destination.check()
        self._root = make_row(root, b"", 0, b"", exact=self._assembly.composefs is not None)
        self._parts = [self._assembly.part() for _ in range(self._jobs)]
        # One byte for each, that the process takes which takes the part
        self._tickets, write_end = os.pipe()
        self._stack.callback(os.close, self._tickets)
        os.write(write_end, bytes(range(self._jobs)))
        os.close(write_end)

    def writer(self, counts: Counter[str], links: LinkLookup | None, contents: Contents | None) -> RowWriter:
        """For a worker process, or this one."""
        number = os.read(self._tickets, 1)[0]
        collector = Collector(number, self._parts[number])
        return RowWriter(collector, links, contents, counts, exact=self._assembly.composefs is not None)

    def links(self, rows: Iterable[PrimaryRow | LinkRow]) -> None:
        """They were in their places."""

    def finish(self, root: PlannedNode, counts: Counter[str]) -> Published:
        """Writes the image."""
        digest, size = self._assembly.write(self._root, self._destination.output())
        counts[IMAGE_BYTES] = size
        return Published(self._filesystem, verity=digest)


class RowWriter:
    """Collects directories, in one process."""

    def __init__(
        self,
        collector: Collector,
        links: LinkLookup | None,
        contents: Contents | None,
        counts: Counter[str],
        *,
        exact: bool,
    ) -> None:
        self._collector = collector
        self._links = links
        self._contents = contents
        self._counts = counts
        self._exact = exact
        self._kept: dict[int, int] = {}  # where contents are, by number, of some

    def directory(self, path: bytes, node: PlannedNode, children: Iterator[PlannedNode]) -> None:
        """Collects what is in the directory at `path`. Raises BuildError for what an image cannot hold."""
        prefix = path + b"/" if path else b""
        collector, links, exact = self._collector, self._links, self._exact
        add = collector.add
        for child in children:
            mode = child.inode.mode
            nlink, key = 1, b""
            if links is not None and (row := links[prefix + child.name]) is not None:
                if isinstance(row, LinkRow):
                    collector.add_link(child.name, TYPES[mode & TYPE_MASK], row.target)
                    continue
                nlink, key = row.nlink, row.path
            at = 0 if child.content == NO_CONTENT else self._content(child, prefix)
            add(child.name, TYPES[mode & TYPE_MASK], make_row(child, prefix, nlink, key, at, exact=exact))
        collector.end(path)

    def settle(self) -> None:
        """Writes what was collected to the temporary files. Raises MkmetaError when there is no room for them."""
        self._collector.settle()

    def _content(self, node: PlannedNode, prefix: bytes) -> int:
        """Keeps the content of a file that is whole. Raises FormatError when the manifest is damaged."""
        assert self._contents is not None and type(node.inode) is RegularFile
        self._counts[WHOLE] += 1
        self._counts[WHOLE_BYTES] += node.inode.size
        at = self._kept.get(node.content)
        if at is None:
            at = self._collector.content(self._contents.read(node.content, prefix + node.name))
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            self._kept[node.content] = at
        return at


def make_row(node: PlannedNode, prefix: bytes, nlink: int, key: bytes, at: int = 0, *, exact: bool) -> Row:
    """The row of a planned node; `prefix` and its name are its path. Raises BuildError for what no image can hold.

    `at`: where its content is among the collected, if it is whole.
    `exact`: what mkcomposefs takes, instead of what a directory of ours could hold.
    """
    name, inode, xattrs, content = node
    mode = inode.mode
    size = device = 0
    target = b""
    if type(inode) is RegularFile:
        size = inode.size
        if size > SIZE_MAX:
            raise BuildError(f"its size is {size} bytes, an image takes 2^53", path=prefix + name)
    elif type(inode) is Symlink:
        target = inode.target
        size = len(target)
    elif type(inode) is Device:
        device = encode_device(inode.major, inode.minor)
    if inode.xattrs:
        _check(node, prefix + name, exact=exact)
    bits, xattr_bytes, entries = xattr_entries(sorted(xattrs))
    if xattr_bytes > XATTRS_MAX:
        raise BuildError(f"its xattrs take {xattr_bytes} bytes, an image takes {XATTRS_MAX}", path=prefix + name)
    seconds, nanoseconds = divmod(inode.mtime_ns, NS)
    unit, data, blocks, tail = layout_of(mode, size, content=content != NO_CONTENT, exact=exact)
    if content != NO_CONTENT and not exact:
        data = 1 + content
    head = (
        mode, nlink, inode.uid, inode.gid, seconds, nanoseconds, size, data, blocks, tail, xattr_bytes,
    )  # fmt: skip
    return head, (device or unit, target, at, bits, entries, key)


def _check(node: PlannedNode, path: bytes, *, exact: bool) -> None:
    """Raises BuildError for recorded xattrs that an image does not take, or that no directory of ours could hold."""
    recorded = node.inode.xattrs
    if exact:
        size = sum([_COMPOSEFS_XATTR + len(name) + len(value) for name, value in recorded], XATTR_HEADER)
        if recorded and size > _COMPOSEFS_XATTRS_MAX:
            raise BuildError(
                f"its xattrs take {size} bytes, a composefs image takes {_COMPOSEFS_XATTRS_MAX}", path=path
            )
        return
    for name, value in recorded:
        problem = _problem(name, value, node.inode.mode)
        if problem:
            raise BuildError(f"xattr {printable(name)} {problem}", path=path or b"/")


def _problem(name: bytes, value: bytes, mode: int) -> str | None:
    if len(value) > XATTR_VALUE_MAX:
        return f"has {len(value)} bytes, an image takes {XATTR_VALUE_MAX}"
    if name.startswith(_USER):
        return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "goes on files and directories only"
    if name not in ACL_XATTRS:
        return None
    if stat.S_ISLNK(mode) or (name != _ACCESS_ACL and not stat.S_ISDIR(mode)):
        return "does not go on a file of this type"
    try:
        permissions = acl_permissions(value)
    except ValueError as error:
        return f"cannot be set: {error}"
    if name == _ACCESS_ACL and permissions != mode & _PERMISSIONS:
        return f"makes the mode {permissions:03o} instead of {mode & _PERMISSIONS:03o}"
    return None
