"""Nodes whose end is a block's end, with and without xattrs, tails and data (formats/erofs.md, section 1)."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from mkmeta.digest import ContentDigest
from mkmeta.model import Device, DigestName, DirectoryKind, RegularFile, Special, Symlink, Xattrs
from tests.erofs.images import build_image, check_image
from tests.layer.manifests import manifest_from
from tests.vectors.trees import MTIME, Leaf, Tree, write_tree

pytestmark = pytest.mark.needs("root", "EROFS mounts", "trusted xattrs", "fsck.erofs")

FIFO = Special(mode=0o010644, uid=0, gid=0, mtime_ns=MTIME)
BLOCK, SLOT = 4096, 32
_XATTR_BLOCK = slice(1024 + 0x2C, 1024 + 0x30)  # of the superblock: the block in which the inodes end


def leaf(random: Random, contents: list[bytes]) -> Leaf:
    """A node of any form: compact or extended, with or without xattrs, tail, blocks, an array."""
    xattrs: Xattrs = random.choice(((), (), ((b"trusted.x", random.randbytes(random.randrange(60))),)))
    mtime = MTIME - random.choice((0, 1))
    match random.randrange(6):
        case 0:
            return Special(mode=0o010644, uid=0, gid=0, mtime_ns=mtime, xattrs=xattrs)
        case 1:
            return Device(mode=0o020600, uid=1 << 16, gid=0, mtime_ns=mtime, xattrs=xattrs, major=1, minor=3)
        case 2:
            target = b"t" * random.choice((1, 20, 32, 100, 4000, 4095))
            return Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=mtime, xattrs=xattrs, target=target)
        case 3:
            size = random.choice((0, 0, 1, 2**33))
            digest = ContentDigest(blake3(bytes(size) if size < 2 else b"large").digest())
            return RegularFile(mode=0o100644, uid=0, gid=0, mtime_ns=mtime, xattrs=xattrs, size=size, blake3=digest)
        case _:
            content = random.randbytes(random.choice((1, 4, 32, 2048, 2049, 4096, 4097)))
            contents.append(content)
            digest = ContentDigest(blake3(content).digest())
            return RegularFile(
                mode=0o100644, uid=0, gid=0, mtime_ns=mtime, xattrs=xattrs, size=len(content), blake3=digest
            )


def manifest(random: Random, pad: int, where: Path) -> bytes:
    """Of a few nodes, the same for the same numbers, moved by an xattr of the root, of `pad` bytes."""
    contents: list[bytes] = []
    children: dict[bytes, Tree | Leaf] = {b"%d" % n: leaf(random, contents) for n in range(random.randrange(1, 5))}
    if random.random() < 0.3:
        children[b"z"] = Tree(children={b"%d" % n: FIFO for n in range(random.choice((0, 1, 4)))})
    tree = Tree(xattrs=((b"trusted.pad", bytes(pad)),), children={b"d": Tree(children=children)})
    tree = dataclasses.replace(tree, kind=DirectoryKind.MERGE)
    with where.open("w+b") as stream:
        write_tree(stream, tree, digests=(DigestName.BLAKE3,), contents=sorted(set(contents)))
    return where.read_bytes()


@pytest.mark.parametrize("seed", range(6))
def test_nodes_that_end_with_a_block(tmp_path: Path, seed: int) -> None:
    """The last inode moves to the end of a block, slot by slot: fsck.erofs and the kernel read all of each image."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"

    def inodes_end(slots: int) -> int:
        """Builds it, with an xattr of the root of so many slots. Returns in which block its inodes end."""
        build_image(manifest(Random(seed), SLOT * slots, tmp_path / "m.mkm"), image, swap=True)
        return int.from_bytes(image.read_bytes()[_XATTR_BLOCK], "little")

    low, high = 1, 1 + BLOCK // SLOT
    first = inodes_end(low)
    assert inodes_end(high) > first
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if inodes_end(middle) == first else (low, middle)
    for slots in (low - 1, low, high + 1, high):
        inodes_end(slots)
        check_image(image)
    mounted.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, mounted], check=True)
    try:
        for path in mounted.rglob("*"):
            for name in os.listxattr(path, follow_symlinks=False):
                os.getxattr(path, name, follow_symlinks=False)
            if not path.is_symlink() and path.is_file() and path.stat().st_size <= 2 * BLOCK:
                assert len(path.read_bytes()) == path.stat().st_size
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_an_image_does_not_end_with_an_inode_without_xattrs(tmp_path: Path) -> None:
    """Of 4,096 bytes it would be; fsck.erofs reads 12 more."""
    pad = ((b"user.p", bytes(2600)),)
    build_image(manifest_from(Tree(xattrs=pad, children={b"d": Tree(children={b"x": FIFO})})), tmp_path / "image")
    data = (tmp_path / "image").read_bytes()
    assert len(data) == 2 * BLOCK and any(data[BLOCK - SLOT : BLOCK]) and not any(data[BLOCK:])
    assert int.from_bytes(data[1024 + 0x24 : 1024 + 0x28], "little") == 2
    check_image(tmp_path / "image")
