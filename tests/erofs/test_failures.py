"""A full disk, a full temporary directory, and a kill at any moment: the old image is there, or the new one, whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mkmeta.errors import MkmetaError
from mkmeta.sinks.erofs import assembly
from tests.conftest import Mount
from tests.erofs.images import build_image, check_image
from tests.layer.manifests import manifest_from
from tests.vectors.trees import Tree, regular


def many(count: int, size: int = 1) -> bytes:
    leaves = {b"%04d" % number: regular(size) for number in range(100)}
    return manifest_from(Tree(children={b"d%d" % number: Tree(children=leaves) for number in range(count // 100)}))


@pytest.mark.needs("root")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk(mount: Mount, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(assembly, "_ENOUGH", 0)
    place = mount("tmpfs", "size=300k")
    build_image(many(100), place / "image")
    first = (place / "image").read_bytes()
    with pytest.raises(MkmetaError, match="cannot be written: no space left on device") as caught:
        build_image(many(5000), place / "image", swap=True, jobs=jobs)
    assert caught.value.path == bytes(place / "image")
    assert os.listdir(place) == ["image"]
    assert (place / "image").read_bytes() == first


@pytest.mark.needs("root")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_temporary_directory(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(mount("tmpfs", "size=200k")))
    with pytest.raises(MkmetaError, match="temporary files cannot be written: no space left") as caught:
        build_image(many(5000), tmp_path / "image", jobs=jobs)
    assert caught.value.hint is not None and "TMPDIR" in caught.value.hint
    assert not (tmp_path / "image").exists()


@pytest.mark.needs("fsck.erofs")
def test_a_kill_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL to the whole group; what is left is at most one file, that the next build removes."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "old.mkm").write_bytes(many(1000))
    (tmp_path / "new.mkm").write_bytes(many(6000, size=2))
    command = [sys.executable, "-m", "mkmeta", "build", "-q", "--format", "erofs", "--swap", "-j2"]
    image = place / "image"

    def build(manifest: str) -> float:
        started = time.monotonic()
        subprocess.run([*command, tmp_path / manifest, image], check=True, capture_output=True)
        return time.monotonic() - started

    longest = build("new.mkm")
    new = image.read_bytes()
    build("old.mkm")
    old = image.read_bytes()
    moments = random.Random(11)
    for _ in range(12):
        process = subprocess.Popen(
            [*command, tmp_path / "new.mkm", image], start_new_session=True, stdout=-3, stderr=-3
        )
        time.sleep(moments.uniform(0.2, 1) * longest)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert image.read_bytes() in (old, new)
        left = set(os.listdir(place)) - {"image"}
        assert len(left) <= 1 and all(name.startswith(".image.mkmeta-") for name in left)
        build("old.mkm")
        assert os.listdir(place) == ["image"]
    check_image(image)


def test_a_signal_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "new.mkm").write_bytes(many(30000))
    command = [
        sys.executable,
        "-m",
        "mkmeta",
        "build",
        "-q",
        "--format",
        "erofs",
        tmp_path / "new.mkm",
        place / "image",
    ]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM)  # the last: before it handled signals
    left = os.listdir(place)
    assert left == ["image"] or (left == [] and process.returncode != 0)
    if left:  # the signal came too late
        check_image(place / "image")
