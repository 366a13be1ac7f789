"""Images over NFS: a layer in one file, beside the volume or on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nfs.conftest import KERNEL, Connect
from tests.nfs.hosts import NfsHost
from tests.nfs.test_mounts import differences
from tests.nfs.volumes import make_volume

pytestmark = [pytest.mark.nfs, pytest.mark.oldest, pytest.mark.needs("NFS sandbox", "EROFS mounts")]
GAP = () if KERNEL >= (6, 5) else ("--allow-gap",)


@pytest.fixture
def host(connect: Connect, tmp_path: Path) -> Iterator[NfsHost]:
    made = NfsHost(tmp_path / "host", client=connect(""))
    made.kind = "erofs"
    make_volume(made.served)
    yield made
    made.unmount_all()


def test_shows_what_plain_nfs_shows(host: NfsHost, profile: str) -> None:
    host.publish("**" if profile == "data-only" else "grp/*/*/lib")
    host.activate("--profile", profile)
    live = host.live()
    assert (live.profile, live.image is not None) == (profile, True)
    apart = [] if profile == "data-only" else ["hf          grp/b/v1/lib/same => grp/a/v1/lib/module1.py"]
    assert differences(host.volume, host.point) == apart
    host.kind = "directory"
    host.publish("**" if profile == "data-only" else "grp/*/*/lib")
    host.activate("--profile", profile, *GAP)
    assert host.live().image is None
    host.call("rollback", host.point, *GAP)
    assert host.live().image is not None
    host.call("status", host.point)
    host.call("deactivate", host.point)
    assert host.leftovers() == []


def test_an_image_on_the_volume(host: NfsHost) -> None:
    """A host without a store: the layer is read from the server, as far as it is used."""
    host.call("scan", host.served, "--select", "grp/*/v*", "--inline", "64K", "-o", host.top / "sw.mkm")
    image = host.served / "sw.erofs"
    digest = host.call("build", "--format", "erofs", host.top / "sw.mkm", image).out.split()[0]
    host.client.remount()
    host.call("activate", host.volume / "sw.erofs", host.point, "--lower", host.volume, "--image-digest", digest)
    assert (host.point / "grp/b/v1/doc/readme").read_text() == "how to use b/v1"
    assert (host.point / "sw.erofs").stat().st_size == image.stat().st_size
    host.call("status", host.point)
    host.call("deactivate", host.point)
    assert host.leftovers() == []
