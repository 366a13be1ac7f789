"""Manifests with contents, changed at random: what still is one makes an image that fsck.erofs and the kernel take.

`MKMETA_FUZZ_SECONDS` says for how long (25), `MKMETA_FUZZ_SEED` with which numbers. A third of the changes keep digests
true, so that they get far. Whatever fails says which manifest it was, and holds it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from mkmeta.build import BuildOptions, build, sink_for
from mkmeta.errors import MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.sinks.protocol import LayerKind
from tests.erofs.images import check_image
from tests.scanner.helpers import make_sample, scan_tree
from tests.vectors.assemble import Draft, Value, add_contents, entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(24 * 3600), pytest.mark.needs("root", "EROFS mounts", "fsck.erofs")]

SECONDS = float(os.environ.get("MKMETA_FUZZ_SECONDS", "25"))
_MOUNTED = 20  # of how many images one is mounted and walked


def damaged(data: bytes, random: Random) -> bytes:
    """Some bytes are others, or gone, or there twice."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(changed))
        match random.randrange(4):
            case 0:
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                changed[at : at + random.randrange(1, 9)] = random.randbytes(random.randrange(9))
            case 2:
                start = random.randrange(len(changed))
                changed[at:at] = changed[start : start + random.randrange(1, 200)]
            case _:
                tail = -random.randrange(1, 400)  # tables and footer
                changed[tail] = random.randrange(256)
    return bytes(changed)


def made_up(random: Random) -> bytes:
    """Valid but for a number or two: sizes, modes, owners, times, places of contents, xattrs as no scan finds them."""
    draft = Draft()
    pool = [random.randbytes(random.choice((1, 2047, 2048, 2049, 4096, 6000, 70_000))) for _ in range(4)]
    rows: list[Value] = []
    for number in range(random.randrange(1, 12)):
        content = random.choice(pool)
        mode = random.choice((0o100644, 0o104755, 0o100000, 0o120777, 0o010644, 0o060660))
        name = b"%02d" % number + b"n" * random.choice((0, 0, 100, 253))
        by_type: dict[int, list[Value]] = {
            0o100000: [
                random.choice((len(content), len(content), 0, 2**53, 2**63 - 1)),
                blake3(content).digest(),
                None,
            ],
            0o120000: [random.choice((b"t", b"t" * 4095, b"../" * 500))],
            0o060000: [random.randrange(4096), random.randrange(2**20)],
        }
        fields = by_type.get(mode & 0o170000, [])
        row = entry(name, mode, *fields)
        row[2:6] = [random.choice((0, 65536, 2**32 - 2)), 0, random.choice((0, -1, 2**63 - 1, -(2**63))), 999_999_999]
        if random.random() < 0.3 and fields:
            row.append([b"trusted.x", random.randbytes(random.choice((0, 5, 3000)))])
        rows.append(row)
    root: dict[int, Value] = {9: ["blake3"]}
    parts = draft.finish(draft.folder(b"d", *rows), root=root) if number % 2 else draft.finish(*rows, root=root)
    add_contents(parts, *([content] for content in pool[: random.randrange(5)]))
    if parts.contents and random.random() < 0.3:
        row = random.choice(parts.contents)
        row[random.randrange(1, 4)] = random.choice((0, 1, 2, 3, 4096, 2**32 - 1))
    return parts.encode()


@contextlib.contextmanager
def told(seed: int, number: int, manifest: Path) -> Iterator[None]:
    """Every failure inside names the manifest, and has it in a form that survives a log."""
    try:
        yield
    except BaseException as error:
        held = base64.b85encode(zlib.compress(manifest.read_bytes(), 9)).decode()
        error.add_note(
            f"MKMETA_FUZZ_SEED={seed}: manifest {number}, at {manifest}:\nzlib.decompress(base64.b85decode({held!r}))"
        )
        raise


def test_what_a_failure_tells(tmp_path: Path) -> None:
    manifest = tmp_path / "m.mkm"
    manifest.write_bytes(bytes(range(256)))
    with pytest.raises(AssertionError) as caught, told(7, 3, manifest):
        raise AssertionError
    (note,) = caught.value.__notes__
    assert f"MKMETA_FUZZ_SEED=7: manifest 3, at {manifest}" in note
    held = note.rpartition("b85decode('")[2].rpartition("'))")[0]
    assert zlib.decompress(base64.b85decode(held)) == manifest.read_bytes()


def test_changed_manifests(tmp_path: Path) -> None:
    seed = int(os.environ.get("MKMETA_FUZZ_SEED", str(time.time_ns())))
    make_sample(tmp_path / "volume", privileged=True)
    (tmp_path / "volume/grp/a/v1/lib/huge").unlink()
    base = scan_tree(tmp_path / "volume", inline=((b"", 1 << 20),), inline_all=True).path.read_bytes()
    manifest, image, mounted = tmp_path / "m.mkm", tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    end = time.monotonic() + SECONDS
    tried = built = 0
    while time.monotonic() < end:
        tried += 1
        random = Random(f"{seed} {tried}")
        manifest.write_bytes(made_up(random) if random.random() < 0.34 else damaged(base, random))
        with told(seed, tried, manifest):
            if attack(manifest, image, mounted, walked=built % _MOUNTED == 0):
                built += 1
    print(f"seed {seed}: {built} images of {tried} manifests")  # noqa: T201 - shown with -rP
    assert tried > built > 0, f"seed {seed}: {built} images of {tried} manifests"


def attack(manifest: Path, image: Path, mounted: Path, *, walked: bool) -> bool:
    """Builds an image of a manifest, and has it checked, `walked` by the kernel too. Returns whether there is one."""
    options = BuildOptions(kind=LayerKind.EROFS)
    try:
        with ManifestReader.open(str(manifest)) as reader:
            build(reader, sink_for(os.fsencode(image), options, swap=True), options)
    except MkmetaError as error:
        assert error.message
        return False
    check_image(image)
    if walked:
        subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, mounted], check=True)
        try:
            for directory, _, files in os.walk(os.fsencode(mounted)):
                for name in files:
                    path = os.path.join(directory, name)
                    status = os.lstat(path)
                    whole = "trusted.overlay.metacopy" not in os.listxattr(path, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and whole and status.st_size < 1 << 24:
                        Path(os.fsdecode(path)).read_bytes()
        finally:
            subprocess.run(["umount", mounted], check=True)
    return True
