"""What an image takes of memory, however large it is: at most 150 MB in every process that is at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import DirectoryKind, Entry, Inode, RegularFile, Root
from tests.layer.manifests import make_directory
from tests.layer.test_memory import mkmeta
from tests.vectors.trees import INFO, MTIME, add_directory

LIMIT = 150  # MB
_TOP = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=MTIME)


def write_flat(path: Path, count: int, copies: int, width: int) -> Path:
    """A manifest of directories of `width` files, each with an xattr that `copies` of them have."""
    with path.open("wb") as stream, ManifestWriter(stream) as writer:
        above: list[Entry] = []
        for first in range(0, count, width):
            files = [
                Entry(
                    b"f%07d" % number,
                    RegularFile(
                        mode=0o100644, uid=0, gid=0, mtime_ns=MTIME + number, size=number + 1,
                        xattrs=((b"user.same", b"%060d" % (number // copies)),),
                    ),
                )
                for number in range(first, first + width)
            ]  # fmt: skip
            below = add_directory(writer, files)
            above.append(Entry(b"d%07d" % first, make_directory(_TOP, below, width, DirectoryKind.OPAQUE)))
        top = make_directory(_TOP, add_directory(writer, above), count + len(above), DirectoryKind.MERGE)
        writer.finish(Root(directory=top, links=None, digests=()), INFO, None)
    return path


@pytest.mark.parametrize(("copies", "width"), [(1, 20), (2, 20), (2, 200_000)], ids=["apart", "shared", "wide"])
def test_many_inodes(tmp_path: Path, copies: int, width: int) -> None:
    """Neither xattrs that all occur once nor those that all occur twice are held."""
    manifest = write_flat(tmp_path / "manifest.mkm", 200_000, copies, width)
    assert mkmeta("build", "-q", "--format", "erofs", manifest, tmp_path / "image") < LIMIT


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("copies", [1, 2])
def test_a_million_inodes(tmp_path: Path, copies: int) -> None:
    manifest = write_flat(tmp_path / "manifest.mkm", 1_000_000, copies, 20)
    assert mkmeta("build", "-q", "--format", "erofs", manifest, tmp_path / "image") < LIMIT


def test_a_long_text(tmp_path: Path) -> None:
    text = tmp_path / "tree.dump"
    with text.open("wb") as out:
        out.write(b"/ 4096 40755 2 0 0 0 0.0 - - -\n")
        for number in range(100_000):
            out.write(b"/f%d %d 100644 1 0 0 0 1.%d ab/%060d - -\n" % (number, number + 1, number, number // 2))
    assert mkmeta("build", "-q", "--format", "composefs", text, tmp_path / "image") < LIMIT
