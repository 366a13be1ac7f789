"""What a manifest takes of memory, whatever it says: at most 150 MB per process, and 60 MB when it is harmless.

The kernel's own figure: ru_maxrss of the processes that a command started and waited for.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import DirectoryKind, Entry, Inode, Root, Xattrs
from tests.conftest import Mount
from tests.layer.manifests import make_directory
from tests.vectors.trees import INFO, MTIME, add_directory, regular, total_of

pytestmark = pytest.mark.needs("root", "trusted xattrs")

HOSTILE, HARMLESS, WIDEST = 150, 60, 200  # MB
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
# A build into nothing: what it costs to read a manifest and to plan its nodes.
_NULL_BUILD = """
import sys
from mkmeta.build import BuildOptions, build
from mkmeta.manifest.reader import ManifestReader
from mkmeta.sinks.protocol import LayerKind, Published

class Nowhere:
    kind = LayerKind.DIRECTORY
    ordered = sys.argv[2] == "0"
    links_in_place = False
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def begin(self, root, inodes, data): pass
    def writer(self, counts, links, contents): return self
    def directory(self, path, node, children):
        for _ in children: pass
    def settle(self): pass
    def links(self, rows):
        for _ in rows: pass
    def finish(self, root, counts): return Published("none")

with ManifestReader.open(sys.argv[1]) as reader:
    build(reader, Nowhere(), BuildOptions(jobs=int(sys.argv[2]) or 1))
"""

Siblings = Callable[[ManifestWriter], list[Entry]]


def measured(*command: str | Path, code: int = 0) -> int:
    """The largest resident set of any process of a command, in MB."""
    arguments = [sys.executable, "-c", _MEASURED, *map(str, command)]
    output = subprocess.run(arguments, capture_output=True, check=True, text=True).stdout
    found, kilobytes = map(int, output.split())
    assert found == code
    return kilobytes >> 10


def mkmeta(*arguments: str | Path, code: int = 0) -> int:
    return measured(sys.executable, "-m", "mkmeta", *arguments, code=code)


def write_chain(path: Path, depth: int, siblings: Siblings, xattrs: Xattrs = (), mtime_ns: int = MTIME) -> Path:
    """A manifest of directories in each other, each with siblings beside the next."""
    inode = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=mtime_ns, xattrs=xattrs)
    with path.open("wb") as stream, ManifestWriter(stream) as writer:
        entries = siblings(writer)
        for _ in range(depth):
            children = add_directory(writer, entries)
            below = make_directory(inode, children, total_of(entries), DirectoryKind.OPAQUE)
            entries = [Entry(b"d", below), *siblings(writer)]
        top = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=mtime_ns)
        children = add_directory(writer, entries)
        root = make_directory(top, children, total_of(entries), DirectoryKind.MERGE)
        writer.finish(Root(directory=root, links=None, digests=()), INFO, None)
    return path


def files(count: int) -> Siblings:
    made: list[Entry] = []  # when it is asked for, not when tests are collected

    def make(_writer: ManifestWriter) -> list[Entry]:
        made.extend(Entry(b"f%07d" % number, regular(number)) for number in range(len(made), count))
        return made

    return make


def directories(count: int) -> Siblings:
    inode = Inode(mode=0o040755, uid=0, gid=0, mtime_ns=MTIME)

    def make(writer: ManifestWriter) -> list[Entry]:
        empty = make_directory(inode, add_directory(writer, []), 0, DirectoryKind.OPAQUE)
        return [Entry(b"e%07d" % number, empty) for number in range(count)]

    return make


LARGE: Xattrs = tuple((b"user.%02d" % number, bytes(65_000)) for number in range(14))  # with the rest, under 1 MiB


def test_large_attributes_on_every_directory_of_the_way(tmp_path: Path, mount: Mount) -> None:
    """180 MB, if they were kept for a path."""
    place = mount("tmpfs")  # ext4 holds no such xattrs
    one = write_chain(tmp_path / "one.mkm", 200, files(1), LARGE)
    other = write_chain(tmp_path / "other.mkm", 200, files(1), LARGE, MTIME + 1)
    assert mkmeta("build", "-q", one, place / "layer") < HOSTILE
    assert mkmeta("verify", "-q", place / "layer", "--manifest", one, "-j", "2") < HOSTILE
    assert mkmeta("diff", one, other, code=4) < HOSTILE
    assert mkmeta("diff", one, place / "layer") < HOSTILE


def test_a_harmless_tree(tmp_path: Path) -> None:
    manifest = write_chain(tmp_path / "manifest.mkm", 20, files(2000))
    assert mkmeta("build", "-q", manifest, tmp_path / "layer") < HARMLESS
    assert mkmeta("verify", "-q", tmp_path / "layer", "--manifest", manifest) < HARMLESS
    assert mkmeta("diff", manifest, tmp_path / "layer") < HARMLESS


@pytest.mark.slow
@pytest.mark.parametrize(("siblings", "jobs"), [(files(300), 0), (directories(300), 8)], ids=["files", "directories"])
def test_deep_and_wide(tmp_path: Path, siblings: Siblings, jobs: int) -> None:
    """Entries by the hundred thousand that a small manifest holds, as deep as paths allow."""
    manifest = write_chain(tmp_path / "one.mkm", 2040, siblings)
    assert measured(sys.executable, "-c", _NULL_BUILD, manifest, str(jobs)) < HOSTILE
    if jobs == 0:
        other = write_chain(tmp_path / "other.mkm", 2040, siblings, mtime_ns=MTIME + 1)
        assert mkmeta("diff", "--stat", manifest, other, code=4) < HOSTILE


@pytest.mark.slow
@pytest.mark.parametrize("siblings", [files(1_000_000), directories(100_000)], ids=["files", "directories"])
def test_a_wide_directory(tmp_path: Path, siblings: Siblings) -> None:
    manifest = write_chain(tmp_path / "manifest.mkm", 0, siblings)
    assert mkmeta("build", "-q", manifest, tmp_path / "layer") < WIDEST
    assert mkmeta("verify", "-q", tmp_path / "layer", "--manifest", manifest) < WIDEST
    assert mkmeta("diff", manifest, tmp_path / "layer") < WIDEST


@pytest.mark.slow
def test_contents_pass_through(tmp_path: Path) -> None:
    """80 MB of them: scanned, scanned again, built, checked."""
    random, volume = Random(1), tmp_path / "volume"
    for directory in range(1000):
        (volume / f"d{directory}").mkdir(parents=True)
        for number in range(20):
            (volume / f"d{directory}/f{number}").write_bytes(random.randbytes(4000))
    first, again = tmp_path / "first.mkm", tmp_path / "again.mkm"
    assert mkmeta("scan", volume, "-q", "-j", "2", "--inline", "64K", "-o", first) < 1.5 * HARMLESS
    assert mkmeta("scan", volume, "-q", "-j", "2", "--base", first, "-o", again) < 1.5 * HARMLESS
    assert mkmeta("scan", volume, "-q", "--base", first, "--only", "d1", "-o", again) < 1.5 * HARMLESS
    assert mkmeta("build", "-q", "--format", "erofs", again, tmp_path / "image") < HARMLESS
    assert mkmeta("build", "-q", again, tmp_path / "layer") < HARMLESS
    assert mkmeta("show", "--check", again) < HARMLESS
