"""Layers with files that are whole: mounted, they serve them whatever the volume does; built, nothing is believed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from mkmeta.__main__ import main
from mkmeta.build import BuildOptions, BuildResult, build, sink_for
from mkmeta.errors import FormatError
from mkmeta.manifest.content_walk import INSIDE_BYTES, data_beyond, data_inside
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan
from mkmeta.sinks.protocol import LayerKind
from tests.conftest import Mount
from tests.erofs.images import check_image, looks
from tests.layer.layers import attributes, differences
from tests.scanner.helpers import Scanned, scan_tree
from tests.verifier.checking import brief, found

pytestmark = pytest.mark.needs("root", "trusted xattrs", "EROFS mounts", "fsck.erofs")

LIMIT = 64 << 10
# Around a block, around half of one, which is the longest tail, and around the limit
SIZES = (1, 2047, 2048, 2049, 4095, 4096, 4097, 6144, 6145, 8192, 40_000, LIMIT - 1, LIMIT, LIMIT + 1, 200_000)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root, random = tmp_path / "volume", Random(7)
    for part in ("grp/v1/lib", "grp/v2/lib", "other"):
        (root / part).mkdir(parents=True)
    for size in SIZES:
        (root / f"grp/v1/lib/f{size}").write_bytes(random.randbytes(size))
        (root / f"grp/v2/lib/f{size}").write_bytes(bytes(size))
    (root / "grp/v1/lib/run").write_bytes(b"#!/bin/sh\necho whole\n")
    (root / "grp/v1/lib/run").chmod(0o6755)
    os.setxattr(root / "grp/v1/lib/run", "user.x", b"1")
    (root / "grp/v1/again").hardlink_to(root / "grp/v1/lib/f4097")
    (root / "grp/v1/lib/link").symlink_to("run")
    (root / "grp/v1/private").write_bytes(b"p")
    (root / "grp/v1/private").chmod(0o600)
    (root / "other/file").write_text("falls through")
    return root


def scanned(volume: Path, **options: object) -> Scanned:
    return scan_tree(volume, "grp/*", inline=((b"", LIMIT),), **options)


def built(manifest: Path, dest: Path, **options: object) -> BuildResult:
    chosen = BuildOptions(**options)  # type: ignore[arg-type]
    with ManifestReader.open(str(manifest)) as reader:
        return build(reader, sink_for(os.fsencode(dest), chosen), chosen)


def is_whole(layer: Path, path: str) -> bool:
    return "trusted.overlay.metacopy" not in os.listxattr(layer / path)


@pytest.mark.parametrize("jobs", [1, 3])
def test_whole_files_and_the_others(volume: Path, tmp_path: Path, mount: Mount, jobs: int) -> None:
    manifest = scanned(volume).path
    result = built(manifest, tmp_path / "layer", jobs=jobs)
    image_result = built(manifest, tmp_path / "image", jobs=jobs, kind=LayerKind.EROFS)
    small = sum(0 < size <= LIMIT for size in SIZES)
    assert result.counts["inline"] == image_result.counts["inline"] == 2 * small + 1
    check_image(tmp_path / "image")
    image = mount("erofs", "ro,loop", tmp_path / "image")
    assert looks(image) == looks(tmp_path / "layer")
    for top in (tmp_path / "layer", image):
        for version in ("v1", "v2"):
            for size in SIZES:
                path = f"grp/{version}/lib/f{size}"
                assert is_whole(top, path) == (size <= LIMIT)
                assert (top / path).stat().st_size == size
                if size <= LIMIT:  # nobody reads others but through an overlay, which has them elsewhere
                    assert (top / path).read_bytes() == (volume / path).read_bytes()
        assert not [name for name in os.listxattr(top / "grp/v1/lib/run") if "overlay" in name]
        assert not is_whole(top, "grp/v1/private")
        assert (top / "grp/v1/again").stat().st_ino == (top / "grp/v1/lib/f4097").stat().st_ino
    sizes = {path: value[4] for path, value in attributes(tmp_path / "layer").items() if value[4] is not None}
    recorded = {path: value[4] for path, value in attributes(volume).items() if path in sizes}
    assert sizes == recorded


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("kind", LayerKind)
@pytest.mark.parametrize("how", ["merge", "nested"])
def test_they_are_served_without_the_volume(
    volume: Path, tmp_path: Path, mount: Mount, overlay: Mount, how: str, kind: LayerKind
) -> None:
    manifest = scanned(volume).path
    built(manifest, tmp_path / "layer", kind=kind)
    layer = tmp_path / "layer" if kind is LayerKind.DIRECTORY else mount("erofs", "ro,loop", tmp_path / "layer")
    before = tmp_path / "before"
    shutil.copytree(volume, before, symlinks=True)
    mounted = overlay(layer, volume, how)
    told = differences(volume, mounted)
    assert [line for line in told if not line.startswith(".d........x ")] == []
    for size in SIZES:  # what is whole is asked of nobody: not whether it is there, nor what is in it
        path = f"grp/v1/lib/f{size}"
        (volume / path).write_bytes(b"other")
        (volume / f"grp/v2/lib/f{size}").unlink()
        if size <= LIMIT:
            assert (mounted / path).read_bytes() == (before / path).read_bytes()
            assert (mounted / f"grp/v2/lib/f{size}").read_bytes() == bytes(size)
    (volume / "grp/v1/lib/run").unlink()
    assert subprocess.run([mounted / "grp/v1/lib/run"], capture_output=True, check=True).stdout == b"whole\n"
    assert (mounted / "other/file").read_text() == "falls through"
    (volume / "grp/v3").mkdir()
    assert (mounted / "grp/v3").is_dir()


def test_left_out_on_demand(volume: Path, tmp_path: Path) -> None:
    """--no-inline: what a manifest without contents gives, to the byte."""
    inline, plain = scanned(volume), scan_tree(volume, "grp/*", output=tmp_path / "plain.mkm")
    assert inline.id == plain.id
    for kind in LayerKind:
        one, other = tmp_path / f"one-{kind}", tmp_path / f"other-{kind}"
        result = built(inline.path, one, kind=kind, plan=Plan(inline=False))
        built(plain.path, other, kind=kind)
        assert result.counts["inline"] == 0
        if kind is LayerKind.EROFS:
            assert one.read_bytes() == other.read_bytes()
        else:
            assert looks(one) == looks(other)


@pytest.mark.parametrize("kind", LayerKind)
def test_what_is_not_as_its_digest_says_is_not_built(volume: Path, tmp_path: Path, kind: LayerKind) -> None:
    manifest = scanned(volume).path
    with ManifestReader.open(str(manifest)) as reader:
        assert reader.contents is not None
        _, frame, _, _ = reader.contents.table.row(0)
        data, _ = reader.contents.frame(frame)
    raw = manifest.read_bytes()
    at = raw.index(data) + len(data) - 9
    manifest.write_bytes(raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :])
    with pytest.raises(FormatError, match="damaged"):
        built(manifest, tmp_path / "layer", kind=kind)
    assert sorted(os.listdir(tmp_path)) == ["volume", "volume.mkm"]


def test_swapped_names_are_found(volume: Path, tmp_path: Path) -> None:
    """Frames that are valid, under names of others of the same size."""
    manifest = scan_tree(volume, "grp/*", inline=((b"**/f2047", LIMIT),)).path
    raw = bytearray(manifest.read_bytes())
    with ManifestReader.open(str(manifest)) as reader:
        assert reader.contents is not None and len(reader.contents) == 2
        start = reader.contents.table._offset
    one, two = raw[start + 32 : start + 44], raw[start + 76 : start + 88]
    raw[start + 32 : start + 44], raw[start + 76 : start + 88] = two, one
    manifest.write_bytes(raw)
    with pytest.raises(FormatError, match="another digest"):
        built(manifest, tmp_path / "layer")


class TestRoom:
    """What does not fit is known before anything is written; nothing else is refused."""

    @pytest.fixture
    def place(self, mount: Mount) -> Path:
        return mount("tmpfs", "size=1m")

    def test_too_much(self, volume: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number in range(20):
            (volume / f"grp/v1/lib/more{number}").write_bytes(Random(number).randbytes(60_000))
        manifest = scanned(volume).path
        data = 1_200_000 + 2 * sum(size for size in SIZES if size <= LIMIT) + 21  # 4,097 of them with two names
        layer = place / "layer"
        for option in ([], ["--dry-run"]):
            assert main(["build", str(manifest), str(layer), *option]) == 1
            said = capsys.readouterr().err.splitlines()
            assert said[-2].startswith(f"mkmeta: {layer if not option else place}: "), said
            assert "1.0 MiB" in said[-2]
        assert list(place.iterdir()) == []
        with ManifestReader.open(str(manifest)) as reader:
            assert data_inside(reader) == data_beyond(reader, data - 1) == data
            assert data_beyond(reader, data) == 0
        assert main(["build", str(manifest), str(layer), "--no-inline"]) == 0

    def test_names_of_one_file_take_it_once(self, volume: Path, place: Path) -> None:
        (volume / "grp/v1/lib/large").write_bytes(Random(1).randbytes(60_000))
        for number in range(30):
            (volume / f"grp/v1/name{number}").hardlink_to(volume / "grp/v1/lib/large")
        manifest = scanned(volume).path
        assert built(manifest, place / "layer").counts["inline_bytes"] < 1 << 20

    def test_what_is_only_said_refuses_nothing(self, volume: Path, place: Path) -> None:
        manifest = scanned(volume).path
        with ManifestReader.open(str(manifest)) as reader:
            reader.info = dataclasses.replace(reader.info, counts={INSIDE_BYTES: 1 << 60})
            chosen = BuildOptions()
            build(reader, sink_for(os.fsencode(place / "layer"), chosen), chosen)
            assert data_beyond(reader, 1 << 20) == 0


class TestBase:
    """Layers that share inodes."""

    def test_whole_files_are_shared_when_their_data_is_the_same(self, volume: Path, tmp_path: Path) -> None:
        first = scanned(volume).path
        built(first, tmp_path / "old")
        result = built(first, tmp_path / "new", base=os.fsencode(tmp_path / "old"))
        files = [path for path in (tmp_path / "new").rglob("*") if path.is_file() and not path.is_symlink()]
        assert result.counts["shared"] == len(files) - 1  # one has two names
        assert result.counts["inline"] == 0
        assert looks(tmp_path / "new") == looks(tmp_path / "old")

    def test_one_that_was_written_to_is_not(self, volume: Path, tmp_path: Path) -> None:
        manifest = scanned(volume).path
        built(manifest, tmp_path / "old")
        path = "grp/v1/lib/f4096"
        status = (tmp_path / "old" / path).stat()
        with (tmp_path / "old" / path).open("r+b") as file:
            file.write(b"!")
        os.utime(tmp_path / "old" / path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        built(manifest, tmp_path / "new", base=os.fsencode(tmp_path / "old"))
        assert (tmp_path / "new" / path).read_bytes() == (volume / path).read_bytes()
        assert (tmp_path / "new" / path).stat().st_ino != status.st_ino

    def test_whole_and_redirected_are_not_the_same(self, volume: Path, tmp_path: Path) -> None:
        manifest = scanned(volume).path
        for name, inline in (("old", True), ("new", False), ("newest", True)):
            base = {"new": tmp_path / "old", "newest": tmp_path / "new"}.get(name)
            built(manifest, tmp_path / name, plan=Plan(inline=inline), base=os.fsencode(base) if base else None)
        path = "grp/v1/lib/f4096"
        assert [is_whole(tmp_path / name, path) for name in ("old", "new", "newest")] == [True, False, True]
        assert (tmp_path / "newest" / path).read_bytes() == (volume / path).read_bytes()
        assert (tmp_path / "new" / path).read_bytes() == bytes(4096)


def test_verified(volume: Path, tmp_path: Path) -> None:
    manifest = scanned(volume).path
    built(manifest, tmp_path / "layer")
    assert found(manifest, tmp_path / "layer") == []
    file = tmp_path / "layer/grp/v1/lib/f8192"
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"?")
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
    os.truncate(tmp_path / "layer/grp/v2/lib/f4096", 9)
    assert brief(found(manifest, tmp_path / "layer")) == [
        ("layer", "grp/v1/lib/f8192", "digest"),  # BLAKE3
        ("layer", "grp/v1/lib/f8192", "digest"),  # fs-verity
        ("layer", "grp/v2/lib/f4096", "mtime"),
        ("layer", "grp/v2/lib/f4096", "size"),
    ]
    built(manifest, tmp_path / "redirected", plan=Plan(inline=False))
    assert found(manifest, tmp_path / "redirected") == []


def test_the_command_line(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, layer = str(tmp_path / "m.mkm"), str(tmp_path / "layer")
    assert main(["scan", str(volume), "--inline", "2K", "--inline", "grp/v2=0", "-o", manifest]) == 0
    assert main(["show", "--check", manifest]) == 0
    assert "files are whole in layers" in capsys.readouterr().out
    assert main(["build", manifest, layer]) == 0
    assert "files of them whole" in capsys.readouterr().err
    assert main(["verify", layer, "--manifest", manifest]) == 0
    capsys.readouterr()
    assert main(["explain", manifest, "grp/v1/lib/f2048"]) == 0
    assert "opened and read locally" in capsys.readouterr().out
    assert main(["scan", str(volume), "--inline", "2K", "--digest", "verity", "-o", manifest]) == 2
    assert "needs BLAKE3" in capsys.readouterr().err
    assert main(["scan", str(volume), "--inline-private", "-o", manifest]) == 2
    for rule in ("x", "=4", "4T", "-1", "a=", "99999999999999"):
        with pytest.raises(SystemExit):
            main(["scan", str(volume), f"--inline={rule}", "-o", manifest])
    assert main(["scan", str(volume), "--inline", "5M", "-o", manifest]) == 2


def test_contents_make_another_generation(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ID says nothing of them: a store has to."""
    store, plain, inline = (str(tmp_path / name) for name in ("store", "plain.mkm", "inline.mkm"))
    assert main(["scan", str(volume), "-o", plain]) == 0
    assert main(["scan", str(volume), "--inline", "4K", "-o", inline]) == 0
    calls = ([plain], [plain], [inline], [inline], [inline, "--no-inline"], [plain], [inline])
    generations = []
    for manifest, *more in calls:
        assert main(["build", manifest, "--store", store, *more]) == 0
        generations.append(len(os.listdir(Path(store) / "generations")))
        capsys.readouterr()
        assert main(["explain", store, "grp/v1/lib/f2048"]) == 0
        assert ("opened and read locally" in capsys.readouterr().out) == (manifest == inline and not more)
    assert generations == [1, 1, 2, 2, 3, 3, 4]


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("seed", range(12))
def test_random_volumes(tmp_path: Path, overlay: Mount, mount: Mount, seed: int) -> None:
    """What a mount of the image shows is the volume, whatever is whole in it and whatever is not."""
    random, volume = Random(seed), tmp_path / "volume"
    directories = [volume]
    volume.mkdir(parents=True)
    for number in range(random.randrange(1, 40)):
        parent = random.choice(directories)
        if random.random() < 0.2:
            directories.append(parent / f"d{number}")
            directories[-1].mkdir(mode=random.choice((0o755, 0o700, 0o711)))
            continue
        size = random.choice((0, random.randrange(5000), random.randrange(100_000)))
        (parent / f"f{number}").write_bytes(random.choice((bytes(size), random.randbytes(size))))
        (parent / f"f{number}").chmod(random.choice((0o644, 0o755, 0o600, 0o444)))
    rules = ((b"", random.choice((0, 1000, 5000, 1 << 20))), (b"d?", random.choice((0, 3000))))
    manifest = scan_tree(volume, inline=rules, inline_all=random.random() < 0.5).path
    built(manifest, tmp_path / "image", kind=LayerKind.EROFS, plan=Plan())
    check_image(tmp_path / "image")
    mounted = overlay(mount("erofs", "ro,loop", tmp_path / "image"), volume, "merge")
    assert [line for line in differences(volume, mounted) if not line.startswith(".d........x ")] == []
