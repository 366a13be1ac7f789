"""Writing nodes to an upper directory; formats/upper.md says what that leaves.

Every node is looked at after it was written: what the filesystem did not keep as it was planned is an error, so a layer
that exists is exact.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, assert_never

from mkmeta.errors import BuildError
from mkmeta.linux.syscalls import open_beneath
from mkmeta.manifest.contents import Contents
from mkmeta.model import ACL_XATTRS, NO_CONTENT, NS, Device, Directory, Inode, RegularFile, Special, Symlink, Xattrs
from mkmeta.plan import PlannedNode
from mkmeta.sinks.directory.diagnosis import Attempt, Diagnosis
from mkmeta.sinks.directory.sharing import SharedLayer, share
from mkmeta.sinks.protocol import WHOLE, WHOLE_BYTES

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PERMISSIONS = 0o7777
_WRITABLE = 0o600  # an ordinary user sets user.* xattrs on what he may write; the mode comes after them
_NEW_DIRECTORY = 0o700
_BLOCK = 512  # bytes, unit of st_blocks


# What is counted of the files of a layer, but for those that hold data.
XATTR_FILES: Final = "xattr_files"  # that take blocks all the same: their xattrs did not fit into the inode
XATTR_BYTES: Final = "xattr_bytes"  # of these
SHARED: Final = "shared"  # that cost nothing: they are hard links to files of the base


class NodeWriter:
    """Writes directories below `top`, an open directory nobody else writes to.

    Changes the process's current directory and umask: for worker processes of its own, but for `finish`.
    """

    def __init__(self, top: int, counts: Counter[str], base: SharedLayer | None, contents: Contents | None) -> None:
        """`base`: a layer whose files are linked to where they are just as planned. `contents`: of whole files."""
        self._contents = contents
        self._counts = counts
        self._top = top
        self._base = base
        self._diagnosis = Diagnosis(top)
        status = os.fstat(top)
        self._creator = (status.st_uid, status.st_gid)  # what new nodes belong to, also on a mount with `grpid`

    def directory(self, path: bytes, node: PlannedNode, children: Iterable[PlannedNode]) -> None:
        """Creates everything in the empty directory at `path`, directories empty, and finishes it.

        The root is finished by who publishes the layer. Raises BuildError naming the node.
        """
        fd = self._fill(path, children)
        try:
            if path:
                self.finish(fd, path, node)
        finally:
            os.close(fd)

    def settle(self) -> None:
        """The kernel has it all."""

    def _fill(self, path: bytes, children: Iterable[PlannedNode]) -> int:
        """Creates what is in a directory. Returns it open."""
        try:
            fd = open_beneath(path, _OPEN_DIRECTORY, dir_fd=self._top)
        except OSError as error:
            raise self._diagnosis.explain(error, path, Attempt.CREATE) from None
        source = self._base.directory(path) if self._base else None
        try:
            os.fchdir(fd)  # xattrs of links and special files have only names to be set by
            prefix = path + b"/" if path else b""
            for node in children:
                if source is None or not self._share(node, prefix, source, fd):
                    self._create(node, prefix)
        except BaseException:
            os.close(fd)
            raise
        finally:
            if source is not None:
                os.close(source)
        return fd

    def finish(self, fd: int, path: bytes, node: PlannedNode) -> None:
        """Gives the directory open as `fd` its own attributes, after everything in it was created.

        What is created later inside the directories below does not change this one any more.
        """
        self._dress(fd, path, node, created=_NEW_DIRECTORY)

    def _share(self, node: PlannedNode, prefix: bytes, source: int, fd: int) -> bool:
        """Links the base's file, if there is data to it and it is just as planned."""
        if type(node.inode) is not RegularFile or not node.inode.size:
            return False
        try:
            status = share(node, source, fd, lambda: self._content(node, prefix))
        except OSError as error:
            raise self._diagnosis.explain(error, prefix + node.name, Attempt.LINK) from None
        self._counts[SHARED] += status is not None
        return status is not None

    def _create(self, node: PlannedNode, prefix: bytes) -> None:
        name, inode = node.name, node.inode
        match inode:
            case RegularFile():
                self._create_file(node, inode, prefix)
            case Directory():
                self._make(lambda: os.mkdir(name, _NEW_DIRECTORY), prefix + name)
            case Symlink():
                self._make(lambda: os.symlink(inode.target, name), prefix + name)
                self._dress(name, prefix + name, node, created=inode.mode & _PERMISSIONS)
            case Device():
                device = os.makedev(inode.major, inode.minor)
                self._make(
                    lambda: os.mknod(name, stat.S_IFMT(inode.mode) | _WRITABLE, device), prefix + name, Attempt.DEVICE
                )
                self._dress(name, prefix + name, node, created=_WRITABLE)
            case Special():
                self._make(lambda: os.mknod(name, stat.S_IFMT(inode.mode) | _WRITABLE), prefix + name)
                self._dress(name, prefix + name, node, created=_WRITABLE)
            case _:
                assert_never(inode)

    def _make(self, call: Callable[[], None], path: bytes, step: Attempt = Attempt.CREATE) -> None:
        try:
            call()
        except OSError as error:
            raise self._diagnosis.explain(error, path, step) from None

    def _content(self, node: PlannedNode, prefix: bytes) -> bytes:
        """Of a file that is whole. Raises FormatError when the manifest is damaged."""
        if node.content == NO_CONTENT:
            return b""
        assert self._contents is not None
        return self._contents.read(node.content, prefix + node.name)

    def _create_file(self, node: PlannedNode, inode: RegularFile, prefix: bytes) -> None:
        content = self._content(node, prefix)
        created = inode.mode & 0o777 | _WRITABLE
        step = Attempt.CREATE
        try:
            fd = os.open(node.name, _NEW_FILE, created)
            try:
                if content:
                    step = Attempt.DATA
                    _write(fd, content)
                    self._counts[WHOLE] += 1
                    self._counts[WHOLE_BYTES] += len(content)
                elif inode.size:
                    step = Attempt.SIZE
                    os.ftruncate(fd, inode.size)
                self._dress(fd, prefix + node.name, node, created)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._diagnosis.explain(error, prefix + node.name, step) from None

    def _dress(self, place: int | bytes, path: bytes, node: PlannedNode, created: int) -> None:
        """Sets owner, xattrs, mode, ACLs and mtime, in the one order that keeps all of them, and looks at the result.

        A change of owner clears set-id bits and capabilities, and an ACL is a part of the mode. `place` is a descriptor
        or a name in the current directory, `created` are the permission bits it has been made with.
        """
        inode, xattrs = node.inode, node.xattrs
        follow = type(place) is int  # a name may be a link's; a descriptor cannot be asked not to be followed
        step = Attempt.OWNER
        try:
            if (inode.uid, inode.gid) != self._creator:
                os.chown(place, inode.uid, inode.gid, follow_symlinks=follow)
            acls = self._set_xattrs(place, path, xattrs, follow)
            permissions = inode.mode & _PERMISSIONS
            if permissions != created:
                step = Attempt.MODE
                os.chmod(place, permissions)
            if acls:
                self._set_acls(place, path, acls, follow)
            step = Attempt.TIME
            os.utime(place, ns=(inode.mtime_ns, inode.mtime_ns), follow_symlinks=follow)
            status = os.stat(place, follow_symlinks=follow)
        except OSError as error:
            detail = f"owner {inode.uid}:{inode.gid}" if step is Attempt.OWNER else ""
            raise self._diagnosis.explain(error, path, step, detail) from None
        _check(status, inode, path or b"/")
        if status.st_blocks and type(inode) is RegularFile and node.content == NO_CONTENT:
            self._counts[XATTR_FILES] += 1
            self._counts[XATTR_BYTES] += status.st_blocks * _BLOCK

    def _set_xattrs(self, place: int | bytes, path: bytes, xattrs: Xattrs, follow: bool) -> Xattrs:
        """Sets all but the ACLs, which it returns."""
        acls: Xattrs = ()
        for pair in xattrs:
            name, value = pair
            if name in ACL_XATTRS:
                acls += (pair,)
                continue
            try:
                os.setxattr(place, name, value, follow_symlinks=follow)
            except OSError as error:
                raise self._diagnosis.explain_xattr(error, path, name, len(value)) from None
        return acls

    def _set_acls(self, place: int | bytes, path: bytes, acls: Xattrs, follow: bool) -> None:
        for name, value in acls:
            try:
                os.setxattr(place, name, value, follow_symlinks=follow)
                kept = os.getxattr(place, name, follow_symlinks=follow)
            except OSError as error:
                raise self._diagnosis.explain_xattr(error, path, name, len(value)) from None
            if kept != value:
                raise BuildError(f"the filesystem keeps another {name.decode()} than was recorded", path=path)


def _check(status: os.stat_result, inode: Inode, path: bytes) -> None:
    """Raises BuildError unless the filesystem kept everything as it was set."""
    if status.st_mtime_ns != inode.mtime_ns:
        raise BuildError(
            f"the filesystem keeps mtime {_seconds(status.st_mtime_ns)} instead of {_seconds(inode.mtime_ns)}",
            path=path,
            hint="put the layer on a filesystem with a wider range of times: btrfs or tmpfs; xfs to 2486, ext4 to 2446",
        )
    # The permission bits of a link mean nothing to Linux, which has no call to set them.
    if status.st_mode != inode.mode and not stat.S_ISLNK(inode.mode):
        raise BuildError(
            f"the mode became {status.st_mode:o} instead of {inode.mode:o}",
            path=path,
            hint="set-group-id takes CAP_FSETID or membership of the group; an ACL must fit the mode",
        )
    if (status.st_uid, status.st_gid) != (inode.uid, inode.gid):
        raise BuildError(f"the filesystem keeps owner {status.st_uid}:{status.st_gid}", path=path)
    if isinstance(inode, RegularFile) and status.st_size != inode.size:
        raise BuildError(f"the filesystem keeps size {status.st_size} instead of {inode.size}", path=path)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _seconds(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, NS)
    return f"{seconds}.{rest:09}"
