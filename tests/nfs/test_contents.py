"""Layers with small files inside, over NFS: what is whole in a layer is asked of nobody, in any profile.

That is what old kernels gain by, which have no profile but merge: so these run on the oldest one too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nfs.conftest import Connect
from tests.nfs.hosts import NfsHost
from tests.nfs.server import VERSIONS, Client, call
from tests.nfs.test_mounts import differences
from tests.nfs.volumes import make_volume, names

pytestmark = [pytest.mark.nfs, pytest.mark.oldest, pytest.mark.needs("NFS sandbox", "EROFS mounts")]

DIRECTORIES, FILES = 40, 20
SIZE = 1000  # bytes of each file
KINDS = ("directory", "erofs")
ASKED = {"merge": 2, "nested": 2, "data-only": 0}  # requests: for the directory above, which is the volume's too


@pytest.fixture
def host(connect: Connect, tmp_path: Path) -> Iterator[NfsHost]:
    made = NfsHost(tmp_path / "host", client=connect())
    yield made
    made.unmount_all()


def activate(host: NfsHost, profile: str, *select: str, inline: str) -> None:
    """Scans, builds, and mounts over a volume of which nothing is cached but what that asks for."""
    manifest = host.top / "sw.mkm"
    patterns = [argument for pattern in select for argument in ("--select", pattern)]
    host.call("scan", host.served, *patterns, "--inline", inline, "-o", manifest)
    host.call("build", manifest, "--store", host.store, "--format", host.kind)
    host.client.remount()
    host.activate("--profile", profile, "--other-root")
    assert (host.live().image is not None) == (host.kind == "erofs")


def use(client: Client, root: Path) -> int:
    """Misses, listings, attributes and contents of all that is below `root`; returns the requests it took."""
    with client.rpcs() as sent:
        for directory in range(DIRECTORIES):
            place = root / "sw" / f"d{directory:02}"
            with pytest.raises(FileNotFoundError):
                os.stat(place / "none")
            files = os.listdir(place)
            assert len(files) == FILES
            for name in files:
                assert os.stat(place / name).st_size == SIZE
                assert (place / name).read_bytes() == b"%02d" % directory * (SIZE // 2)
    return sent.total()


def test_800_files_opened_and_read_cold(host: NfsHost, version: str, profile: str) -> None:
    for directory in range(DIRECTORIES):
        place = host.served / "sw" / f"d{directory:02}"
        place.mkdir(parents=True)
        for number in range(FILES):
            (place / f"f{number:02}").write_bytes(b"%02d" % directory * (SIZE // 2))
    host.client.remount()
    plain = use(host.client, host.volume)
    assert plain > DIRECTORIES * FILES
    for host.kind in KINDS:
        activate(host, profile, "sw/*", inline="64K")
        asked = use(host.client, host.point)
        print(f"| {os.uname().release} | {version} | {host.kind} | {profile} | {plain} | {asked} |")
        assert asked <= ASKED[profile]
        host.call("deactivate", host.point)


def test_shows_what_plain_nfs_shows(host: NfsHost, version: str, profile: str) -> None:
    """Of each kind of file, some inside and some on the volume: names, attributes, contents."""
    host.kind = dict(zip(VERSIONS, KINDS, strict=True))[version]
    make_volume(host.served)
    activate(host, profile, "**" if profile == "data-only" else "grp/*/*/lib", inline="100")
    apart = [] if profile == "data-only" else ["hf          grp/b/v1/lib/same => grp/a/v1/lib/module1.py"]
    assert differences(host.volume, host.point) == apart
    assert len(names(host.point)) == len(names(host.volume)) > 60
    assert not os.path.lexists(host.point / "grp/a/v1/lib/none")
    host.call("status", host.point)
    call(*host.command("verify", host.store, "--lower", host.volume, "--data"))
    host.call("deactivate", host.point)
    assert host.leftovers() == []
