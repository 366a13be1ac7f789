"""An image is what the directory is: compared by the kernel over random trees, and through overlays of both."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import subprocess
import sys
import tempfile
import unittest.mock
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mkmeta.build import BuildOptions
from mkmeta.linux.mount import MNT_DETACH, MountFlags, umount2
from mkmeta.linux.mount import mount as mount_file
from mkmeta.model import DigestName, Symlink
from mkmeta.plan import Plan
from mkmeta.sinks.erofs import assembly
from tests import strategies as some
from tests.conftest import Mount
from tests.erofs.images import build_image, check_image, looks, tame
from tests.layer.layers import build_layer
from tests.layer.manifests import manifest_from, manifest_of
from tests.property.test_manifests import links_of
from tests.vectors.trees import Leaf, Tree, regular, write_tree

pytestmark = pytest.mark.needs("root", "EROFS mounts", "trusted xattrs", "fsck.erofs")

CASES = some.digest_sets.flatmap(lambda digests: st.tuples(st.just(digests), some.trees(digests).map(tame)))
mounting = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def written(tree: Tree, digests: tuple[DigestName, ...], *, linked: bool) -> bytes:
    stream = io.BytesIO()
    write_tree(stream, tree, links=links_of(tree) if linked else None, digests=digests)
    return stream.getvalue()


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tmpfs, which holds everything that a manifest can say."""
    where = tmp_path_factory.mktemp("memory")
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", where], check=True)
    yield where
    umount2(os.fsencode(where), MNT_DETACH)


def compare(manifest: bytes, memory: Path, plan: Plan | None = None) -> None:
    """Asserts that image and directory look alike."""
    with tempfile.TemporaryDirectory(dir=memory) as name:
        layer, image, mounted = (Path(name) / part for part in ("layer", "image", "mounted"))
        mounted.mkdir()
        build_layer(manifest, layer, BuildOptions(plan=plan or Plan()))
        result = build_image(manifest, image, plan)
        check_image(image)
        with unittest.mock.patch.object(assembly, "_ENOUGH", 0):  # so that several processes write it
            build_image(manifest, Path(name) / "again", plan, jobs=3)
        assert (Path(name) / "again").read_bytes() == image.read_bytes()
        digest = subprocess.run(["fsverity", "digest", image], capture_output=True, check=True, text=True).stdout
        assert result.published.verity is not None and digest.split()[0] == f"sha256:{result.published.verity.hex()}"
        subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, mounted], check=True)
        try:
            assert looks(mounted) == looks(layer)
        finally:
            subprocess.run(["umount", mounted], check=True)


@pytest.mark.needs("fsverity")
@mounting
@given(CASES, st.booleans(), st.booleans(), st.booleans())
def test_random_trees(
    memory: Path, case: tuple[tuple[DigestName, ...], Tree], linked: bool, userxattr: bool, verity: bool
) -> None:
    digests, tree = case
    compare(written(tree, digests, linked=linked), memory, Plan(userxattr=userxattr, verity=verity))


def test_directories_of_many_blocks(memory: Path) -> None:
    """Names before the dots, between them and behind; blocks that are just full; more than are held at once."""
    odd = [b"!", b"+x", b"-", b".!", b".-", b"...", b"..a", b".a", b"0", b"~"]
    wide = Tree(children={**{name: regular(1) for name in odd}, **{b"w%04d" % n: Tree() for n in range(2500)}})
    before = Tree(children={b"!%04d" % number: regular() for number in range(1500)})
    between = Tree(children={b".!%04d" % number: regular(2**53) for number in range(1500)})
    children: dict[bytes, Tree | Leaf] = {b"wide": wide, b"before": before, b"between": between}
    for size in range(150, 158):  # names that fill a block to the last byte, or not quite
        names = {b"%03d" % number + b"n" * size: regular() for number in range(80)}
        children[b"n%d" % size] = Tree(children=names)
    compare(manifest_from(Tree(children=children)), memory)


def test_hard_links_across_directories(memory: Path) -> None:
    """The first name in tree order need not be the first in the image."""
    leaves = {b"a%03d" % number: regular(number + 1) for number in range(3000)}
    tree = Tree(
        children={
            b"a": Tree(children={b"b": Tree(children={b"c": Tree(children=leaves)})}),
            b"d": Tree(children=leaves),
            b"e": regular(1),
        }
    )
    links = {b"d/" + name: b"a/b/c/" + name for name in leaves} | {b"e": b"a/b/c/a000"}
    compare(manifest_from(tree, links=links), memory)


def test_xattrs_of_every_size_and_number(memory: Path) -> None:
    """More shared ones than a node takes, values that only differ at their ends, entries across blocks."""
    shared = tuple((b"trusted.%03d" % number, b"") for number in range(140))
    leaves: dict[bytes, Tree | Leaf] = {
        b"%04d" % number: dataclasses.replace(regular(number), xattrs=shared[: number % 141]) for number in range(500)
    }
    for size in range(0, 5000, 97):
        big = ((b"user.big", bytes(size) + b"%d" % (size % 3)), (b"user.same", b"s" * size))
        leaves[b"big%d" % size] = leaves[b"again%d" % size] = dataclasses.replace(regular(1), xattrs=big)
    leaves[b"most"] = dataclasses.replace(regular(1), xattrs=((b"user.most", b"m" * 65535),))
    for size in (1, 31, 32, 33, 3900, 4000, 4001, 4063, 4064, 4095):
        for more in range(3):
            target = bytes([ord("t") + more]) * size
            name = b"link%d-%d" % (size, more)
            xattrs = ((b"trusted.x", b"x" * (37 * more)),)
            link = Symlink(mode=0o120777, uid=0, gid=70000 * more, mtime_ns=more, target=target, xattrs=xattrs)
            leaves[name] = link
    compare(manifest_from(Tree(children={b"d": Tree(children=leaves)})), memory)


@pytest.mark.parametrize(
    "size", [1, 4096, 4097, 2**32 - 1, 2**32, 2**43, 2**43 + 1, 2**53 - 2**43 * 8, 2**53 - 1, 2**53]
)
def test_sizes(memory: Path, size: int) -> None:
    compare(manifest_from(Tree(children={b"f%d" % number: regular(size) for number in range(40)})), memory)


def test_the_same_bytes_however_it_is_built(tmp_path: Path) -> None:
    """By any number of processes, whatever the seed of their hashes."""
    leaves = {b"%d" % number: regular(number % 7) for number in range(400)}
    tree = Tree(children={b"%d" % number: Tree(children=leaves) for number in range(40)})
    manifest = tmp_path / "manifest.mkm"
    manifest.write_bytes(manifest_from(tree, links={b"3/5": b"1/5", b"0/9": b"0/2"}))
    images = set()
    for jobs, seed in ((1, 0), (2, 1), (3, 2), (4, 3)):
        command = [sys.executable, "-m", "mkmeta", "build", "-q", "--format", "erofs", "--swap", "-j", str(jobs)]
        command += [str(manifest), str(tmp_path / "image")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": str(seed)}, capture_output=True)
        images.add((tmp_path / "image").read_bytes())
    assert len(images) == 1


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("how", ["merge", "data-only", "nested"])
def test_overlays_of_both_look_alike(tmp_path: Path, mount: Mount, overlay: Mount, how: str) -> None:
    """Image and directory over the same volume: what they show, and the data that is read through them."""
    volume = tmp_path / "volume"
    for path in ("grp/v1/lib", "grp/v2/empty", "other"):
        (volume / path).mkdir(parents=True)
    (volume / "grp/v1/lib/module.py").write_text("content\n")
    (volume / "grp/v1/lib/link").symlink_to("module.py")
    (volume / "grp/v1/again").hardlink_to(volume / "grp/v1/lib/module.py")
    os.setxattr(volume / "grp/v1/lib", "user.x", b"1")
    manifest = manifest_of(volume, skeleton=(b"grp",), verity=True)
    build_layer(manifest, tmp_path / "layer")
    build_image(manifest, tmp_path / "image")
    (volume / "grp/v3").mkdir()
    seen = []
    for layer in (tmp_path / "layer", mount("erofs", "ro,loop", tmp_path / "image")):
        top = overlay(layer, volume, how)
        assert (top / "grp/v1/lib/module.py").read_text() == "content\n"
        assert (top / "grp/v3").exists() == (how != "data-only")
        assert not (top / "grp/v1/nothing").exists()
        seen.append(looks(top))
    assert seen[0] == seen[1]


def test_a_mount_without_a_loop_device(tmp_path: Path) -> None:
    build_image(manifest_from(Tree(children={b"file": regular(3)})), tmp_path / "image")
    (tmp_path / "mounted").mkdir()
    try:
        mount_file(bytes(tmp_path / "image"), bytes(tmp_path / "mounted"), b"erofs", MountFlags.RDONLY)
    except OSError as error:
        if error.errno != errno.ENOTBLK:
            raise
        pytest.skip("a kernel before 6.12, or a temporary directory on tmpfs")
    assert (tmp_path / "mounted/file").stat().st_size == 3
    umount2(bytes(tmp_path / "mounted"))
