"""Images of hostile manifests mount, and can be walked, without a word of fsck.erofs or of the kernel."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.errors import BuildError, FormatError
from mkmeta.linux.mount import MNT_DETACH, umount2
from tests.erofs.images import build_image, check_image
from tests.layer.layers import paths
from tests.property.mutations import Taken, mutate
from tests.vectors.make_vectors import VECTORS

FILES = sorted(path for path in VECTORS.glob("*/manifest.mkm") if path.stat().st_size < 100_000)
REJECTED = sorted((VECTORS / "reject").glob("*.mkm"))
_HARMLESS = ("mounted with root inode", "EXPERIMENTAL")

pytestmark = pytest.mark.needs("root", "EROFS mounts", "fsck.erofs")


def kernel_says() -> list[str]:
    """What the kernel has said of EROFS until now, but for good news."""
    lines = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", check=True).stdout.splitlines()
    return [line for line in lines if "erofs" in line and not any(word in line for word in _HARMLESS)]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    where = tmp_path_factory.mktemp("memory")
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-test", where], check=True)
    yield where
    umount2(os.fsencode(where), MNT_DETACH)


def walk(image: Path, at: Path) -> None:
    """Mounts an image, and asks for everything in it by name."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, at], check=True, capture_output=True)
    try:
        for path in (b".", *paths(at)):
            real = os.path.join(os.fsencode(at), path)
            os.lstat(real)
            for name in os.listxattr(real, follow_symlinks=False):
                os.getxattr(real, name, follow_symlinks=False)
            if os.path.islink(real):
                os.readlink(real)
    finally:
        subprocess.run(["umount", at], check=True)


def attack(memory: Path, dice: random.Random, count: int) -> tuple[int, int]:
    """Builds so many mutants of each vector, whose digests are true. Returns how many were built, and refused."""
    before = kernel_says()
    image = memory / "image"
    built = refused = 0
    for path in FILES:
        taken = Taken(path.read_bytes())
        for _ in range(count):
            victim = dice.choice(sorted(taken.objects))
            mutant = taken.with_object(victim, mutate(taken.objects[victim], dice))
            image.unlink(missing_ok=True)
            try:
                build_image(mutant, image)
            except (FormatError, BuildError):
                refused += 1
                assert not image.exists()
                continue
            built += 1
            try:
                check_image(image)
                if built % 10 == 0:
                    walk(image, memory / "mounted")
            except BaseException:
                (memory.parent / "finding.mkm").write_bytes(mutant)
                raise
    assert [line for line in kernel_says() if line not in before] == []
    return built, refused


def test_mutants(memory: Path) -> None:
    built, refused = attack(memory, random.Random(1), 12)
    assert built > 10 and refused > built


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_mutants(memory: Path) -> None:
    """MKMETA_MUTANTS=100000 makes more of them, others each time: that takes an hour or two."""
    count = int(os.environ.get("MKMETA_MUTANTS", "0"))
    seed = int.from_bytes(os.urandom(4), "big") if count else 2
    print(f"seed {seed}")  # noqa: T201 - shown when it fails
    attack(memory, random.Random(seed), (count or 4000) // len(FILES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_vector(memory: Path, path: Path) -> None:
    """Those with larger files than an image takes are refused, and say so."""
    image = memory / "vector"
    image.unlink(missing_ok=True)
    try:
        build_image(path.read_bytes(), image)
    except BuildError as error:
        assert "an image takes" in str(error) or "xattr" in str(error)
        return
    check_image(image)
    walk(image, memory / "mounted")


@pytest.mark.parametrize("path", REJECTED, ids=lambda path: path.stem)
def test_what_is_no_manifest_makes_no_image(memory: Path, path: Path) -> None:
    """A build reads what it needs, and facts are not among it: what is wrong with them alone does not show."""
    image = memory / "rejected"
    image.unlink(missing_ok=True)
    try:
        build_image(path.read_bytes(), image)
    except (FormatError, BuildError):
        assert not image.exists()
    else:
        check_image(image)
