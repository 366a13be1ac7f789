"""Building images in tests, and looking at them: by fsck.erofs and by the kernel, not by mkmeta's own code."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
from pathlib import Path

from mkmeta.build import BuildOptions, BuildResult, build, sink_for
from mkmeta.model import ACL_XATTRS, RegularFile
from mkmeta.plan import Plan
from mkmeta.sinks.protocol import LayerKind
from tests.layer.layers import open_reader, paths
from tests.vectors.trees import Leaf, Tree

FSCK_DEPTH = 1000  # of directories in each other, more than which fsck.erofs 1.8 may not survive
_TIME_MAX = (2**63 - 2) * 10**9
_SIZE_MAX = 2**53
_VALUE_MAX = 65535


def build_image(
    manifest: bytes, dest: Path, plan: Plan | None = None, *, jobs: int = 1, swap: bool = False
) -> BuildResult:
    """Builds an image from a manifest in memory."""
    options = BuildOptions(kind=LayerKind.EROFS, jobs=jobs, plan=plan or Plan())
    with open_reader(manifest) as reader:
        return build(reader, sink_for(os.fsencode(dest), options, swap=swap), options)


def check_image(image: Path) -> None:
    """Asserts that fsck.erofs has nothing to say against it: its exit code alone means little."""
    result = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "<E>" not in output and "<W>" not in output, output


def tame(node: Tree | Leaf) -> Tree | Leaf:
    """The same without what an image or a directory cannot hold."""
    mode = node.mode

    def keeps(name: bytes) -> bool:
        return name not in ACL_XATTRS and (not name.startswith(b"user.") or stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    xattrs = tuple((name, value[:_VALUE_MAX]) for name, value in node.xattrs if keeps(name))
    mtime_ns = max(-_TIME_MAX, min(node.mtime_ns, _TIME_MAX))
    if isinstance(node, Tree):
        children = {name: tame(child) for name, child in node.children.items()}
        return dataclasses.replace(node, xattrs=xattrs, mtime_ns=mtime_ns, children=children)
    if isinstance(node, RegularFile):
        return dataclasses.replace(node, xattrs=xattrs, mtime_ns=mtime_ns, size=node.size % (_SIZE_MAX + 1))
    return dataclasses.replace(node, xattrs=xattrs, mtime_ns=mtime_ns)


Look = tuple[object, ...]


def looks(top: Path, *, hidden: tuple[bytes, ...] = ()) -> dict[bytes, Look]:
    """All that can be seen of a tree and should not depend on the filesystem it is on.

    Of each name: what lstat(2) and readlink(2) tell, all xattrs but the `hidden`, and the first name of the same inode.
    """
    found: dict[bytes, Look] = {}
    first: dict[int, bytes] = {}
    for path in sorted([b".", *paths(top)]):
        real = os.path.join(os.fsencode(top), path)
        status = os.lstat(real)
        is_directory = stat.S_ISDIR(status.st_mode)
        names = [os.fsencode(name) for name in os.listxattr(real, follow_symlinks=False)]
        found[path] = (
            # the permission bits of a link mean nothing, and a directory cannot keep others than it gives
            stat.S_IFMT(status.st_mode) if stat.S_ISLNK(status.st_mode) else status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            None if is_directory else (status.st_size, status.st_nlink, status.st_rdev),
            os.readlink(real) if stat.S_ISLNK(status.st_mode) else None,
            {name: os.getxattr(real, name, follow_symlinks=False) for name in names if name not in hidden},
            path if is_directory else first.setdefault(status.st_ino, path),
        )
    return found
