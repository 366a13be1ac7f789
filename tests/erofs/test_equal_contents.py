"""Files with the same content have the same blocks in an image; the kernel reads in each what it should."""

from __future__ import annotations

import os
import subprocess
import unittest.mock
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from mkmeta.digest import ContentDigest
from mkmeta.model import DigestName, DirectoryKind, RegularFile
from mkmeta.plan import Plan
from mkmeta.sinks.erofs import assembly
from tests.erofs.images import build_image, check_image
from tests.vectors.trees import MTIME, Leaf, Tree, write_tree

pytestmark = pytest.mark.needs("root", "EROFS mounts", "fsck.erofs")

SIZES = (1, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8192, 70_000)
BLOCK = 4096


def file(random: Random, content: bytes) -> RegularFile:
    """With this content; everything else differs, so that tails lie in other places."""
    xattrs = ((b"trusted.x", random.randbytes(random.randrange(40))),) if random.random() < 0.5 else ()
    digest = ContentDigest(blake3(content).digest())
    mtime = MTIME - random.choice((0, 1))
    return RegularFile(mode=0o100644, uid=0, gid=0, mtime_ns=mtime, xattrs=xattrs, size=len(content), blake3=digest)


@pytest.mark.parametrize("seed", range(3))
def test_equal_contents_share_their_blocks(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    pool = [random.randbytes(size) for size in SIZES for _ in range(2)]
    files: dict[bytes, bytes] = {}
    top: dict[bytes, Tree | Leaf] = {}
    for number in range(6):
        below: dict[bytes, Tree | Leaf] = {}
        for name in range(random.randrange(40)):
            content = random.choice(pool)
            below[b"%d" % name] = file(random, content)
            files[b"%d/%d" % (number, name)] = content
        top[b"%d" % number] = Tree(children=below)
    manifest = tmp_path / "m.mkm"
    with manifest.open("w+b") as stream:
        tree = Tree(children=top, kind=DirectoryKind.MERGE)
        write_tree(stream, tree, digests=(DigestName.BLAKE3,), contents=pool)
    image, again, mounted = tmp_path / "image", tmp_path / "again", tmp_path / "mounted"
    build_image(manifest.read_bytes(), image)
    check_image(image)
    with unittest.mock.patch.object(assembly, "_ENOUGH", 0):  # several processes write it, and share across their parts
        build_image(manifest.read_bytes(), again, jobs=3)
    assert again.read_bytes() == image.read_bytes()
    build_image(manifest.read_bytes(), again, Plan(inline=False), swap=True)
    tails = sum(len(content) % BLOCK + 64 for content in files.values() if len(content) % BLOCK <= BLOCK // 2)
    data = sum(-(-len(content) // BLOCK) * BLOCK for content in set(files.values()))
    assert image.stat().st_size <= again.stat().st_size + data + 2 * tails + BLOCK
    mounted.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, mounted], check=True)
    try:
        assert {path: (mounted / os.fsdecode(path)).read_bytes() for path in files} == files
    finally:
        subprocess.run(["umount", mounted], check=True)
