"""btrfs subvolumes in what is scanned: other devices, but no mount points. overlayfs follows redirects into them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mkmeta.manifest.reader import ManifestReader
from tests.conftest import Mount
from tests.layer.layers import build_layer
from tests.scanner.helpers import scan_tree


@pytest.fixture
def volume(tmp_path: Path, mount: Mount) -> Path:
    """A subvolume in a directory, and another in that."""
    image = tmp_path / "image"
    try:
        image.touch()
        os.truncate(image, 300 << 20)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("this machine lacks: mkfs.btrfs")
    volume = mount("btrfs", "loop", image) / "volume"
    volume.mkdir()
    for path, content in (("rel", "one"), ("rel/lib/deep", "two")):
        (volume / path).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["btrfs", "-q", "subvolume", "create", volume / path], check=True, capture_output=True)
        (volume / path / "file").write_text(content)
        os.link(volume / path / "file", volume / path / "link")
    return volume


@pytest.mark.needs("root", "loop mounts", "overlay", "trusted xattrs")
def test_they_are_recorded_and_served(tmp_path: Path, volume: Path, overlay: Mount) -> None:
    assert len({os.lstat(volume / path).st_dev for path in (".", "rel", "rel/lib/deep")}) == 3
    scanned = scan_tree(volume)
    assert scanned.report.left_out == ()
    with ManifestReader.open(str(scanned.path)) as reader:
        assert [row.path for row in reader.links()] == [
            b"rel/file", b"rel/lib/deep/file", b"rel/lib/deep/link", b"rel/link",
        ]  # fmt: skip
    build_layer(scanned.path.read_bytes(), tmp_path / "layer")
    for how in ("merge", "data-only", "nested"):
        point = overlay(tmp_path / "layer", volume, how)
        assert ((point / "rel/link").read_text(), (point / "rel/lib/deep/file").read_text()) == ("one", "two"), how


@pytest.mark.needs("root", "loop mounts")
def test_their_places_in_a_snapshot_are_left_out(volume: Path) -> None:
    """A snapshot does not go into subvolumes: empty directories stand for them, with the time of the last look."""
    subprocess.run(
        ["btrfs", "-q", "subvolume", "snapshot", "-r", volume / "rel", volume / "snap"], check=True, capture_output=True
    )
    (volume / "snap2").mkdir()
    subprocess.run(
        ["btrfs", "-q", "subvolume", "snapshot", "-r", volume / "rel/lib/deep", volume / "snap2/whole"],
        check=True,
        capture_output=True,
    )
    scanned = scan_tree(volume)
    why = "stands for a subvolume that is not in this btrfs snapshot: its times are made up"
    assert scanned.left_out() == {b"snap": f"snap/lib/deep: {why}"}
    assert {b"rel/lib/deep/file", b"snap2/whole/file"} < set(scanned.nodes())
    assert scan_tree(volume / "snap").left_out() == {b"lib": f"lib/deep: {why}"}
    assert scan_tree(volume / "snap", "lib/deep", "file").left_out() == {b"lib/deep": why}
