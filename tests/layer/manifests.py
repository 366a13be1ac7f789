"""Manifests for tests, without the scanner: from a real tree, or from entries written down by hand."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from mkmeta.digest import ObjectId, ObjectKind, VerityDigest, verity_digest
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import (
    Device,
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    Inode,
    LinkRow,
    Node,
    PrimaryRow,
    RegularFile,
    Root,
    Special,
    Symlink,
    tree_order,
)
from tests.vectors.trees import INFO, MTIME, Tree, encode_directory, regular, write_tree


class Maker:
    """Writes one manifest to memory."""

    def __init__(self, *, verity: bool = False) -> None:
        self.stream = io.BytesIO()
        self.writer = ManifestWriter(self.stream)
        self._verity = verity
        self._inodes: dict[tuple[int, int], list[bytes]] = {}

    def add_tree(self, top: Path, path: bytes = b"", skeleton: frozenset[bytes] = frozenset()) -> tuple[ObjectId, int]:
        """A directory as it is on disk; `skeleton` are the paths of those that merge. Returns its ID and entries."""
        entries = []
        total = 0
        for name in sorted(os.listdir(os.fsencode(top) + (b"/" + path if path else b""))):
            below = path + b"/" + name if path else name
            node = self._node(top, below, skeleton)
            entries.append(Entry(name, node))
            total += 1 + (node.entries if isinstance(node, Directory) else 0)
        return self.writer.add(ObjectKind.DIRECTORY, encode_directory(entries)), total

    def finish(self, root: Inode, children: ObjectId, entries: int, rows: list[PrimaryRow | LinkRow]) -> bytes:
        """The bytes of the manifest."""
        top = make_directory(root, children, entries, DirectoryKind.MERGE)
        links = self.writer.add_links(rows)
        digests = (DigestName.VERITY,) if self._verity else ()
        self.writer.finish(Root(directory=top, links=links, digests=digests), INFO, None)
        return self.stream.getvalue()

    def link_rows(self) -> list[PrimaryRow | LinkRow]:
        """Rows for the inodes met by `add_tree`."""
        rows: list[PrimaryRow | LinkRow] = []
        for paths in self._inodes.values():
            first, *others = sorted(paths, key=tree_order)
            if others:
                rows.append(PrimaryRow(first, len(paths)))
                rows += [LinkRow(other, first) for other in others]
        return sorted(rows, key=lambda row: tree_order(row.path))

    def _node(self, top: Path, path: bytes, skeleton: frozenset[bytes]) -> Node:
        real = os.fsencode(top) + b"/" + path
        status = os.lstat(real)
        common = inode_of(real, status)
        if stat.S_ISDIR(status.st_mode):
            children, entries = self.add_tree(top, path, skeleton)
            kind = DirectoryKind.MERGE if path in skeleton else DirectoryKind.OPAQUE
            return make_directory(common, children, entries, kind)
        if status.st_nlink > 1:
            self._inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
        return leaf_of(common, status, real, verity=self._verity)


def inode_of(real: bytes, status: os.stat_result) -> Inode:
    """What every kind of inode has."""
    names = sorted(map(os.fsencode, os.listxattr(real, follow_symlinks=False)))
    xattrs = tuple((name, os.getxattr(real, name, follow_symlinks=False)) for name in names)
    return Inode(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns, xattrs=xattrs)


def leaf_of(common: Inode, status: os.stat_result, real: bytes, *, verity: bool) -> Node:
    """The node of something that is no directory."""
    mode, uid, gid, mtime_ns, xattrs = common.mode, common.uid, common.gid, common.mtime_ns, common.xattrs
    if stat.S_ISREG(mode):
        digest: VerityDigest | None = None
        if verity:
            with open(real, "rb") as file:
                digest = verity_digest(file.read())
        return RegularFile(
            mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, size=status.st_size, verity=digest
        )
    if stat.S_ISLNK(mode):
        return Symlink(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, target=os.readlink(real))
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        return Device(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, major=major, minor=minor)
    return Special(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs)


def make_directory(common: Inode, children: ObjectId, entries: int, kind: DirectoryKind) -> Directory:
    """A directory node."""
    return Directory(
        mode=common.mode,
        uid=common.uid,
        gid=common.gid,
        mtime_ns=common.mtime_ns,
        xattrs=common.xattrs,
        children=children,
        entries=entries,
        kind=kind,
    )


def manifest_of(top: Path, *, skeleton: tuple[bytes, ...] = (), verity: bool = False) -> bytes:
    """The manifest of a whole tree."""
    maker = Maker(verity=verity)
    with maker.writer:
        children, entries = maker.add_tree(top, skeleton=frozenset(skeleton))
        raw = os.fsencode(top)
        return maker.finish(inode_of(raw, os.lstat(raw)), children, entries, maker.link_rows())


def manifest_from(tree: Tree, *, links: Mapping[bytes, bytes] | None = None) -> bytes:
    """The manifest of a tree written down by hand; the root merges. `links` maps paths to primaries."""
    stream = io.BytesIO()
    write_tree(stream, dataclasses.replace(tree, kind=DirectoryKind.MERGE), links=links)
    return stream.getvalue()


def chain(depth: int, name: bytes = b"d") -> bytes:
    """The manifest of directories nested `depth` deep, with a file in the innermost."""
    maker = Maker()
    top = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=MTIME)
    with maker.writer:
        entries = [Entry(b"file", regular(5))]
        for level in range(depth):
            children = maker.writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
            entries = [Entry(name, make_directory(top, children, level + 1, DirectoryKind.OPAQUE))]
        children = maker.writer.add(ObjectKind.DIRECTORY, encode_directory(entries))
        return maker.finish(top, children, depth + 1, [])
