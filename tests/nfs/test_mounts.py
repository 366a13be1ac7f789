"""Layers mounted over NFS: they show what plain NFS shows, and keep from the server what they should."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.nfs.conftest import PROFILES, Connect
from tests.nfs.server import Client, call
from tests.nfs.volumes import FILES, RELEASES, make_volume, names
from tests.real.test_volumes import UNESCAPED, compile_layer

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]

SELECTED = "grp/*/*/lib"
LIBS = [f"grp/{release}/lib" for release in RELEASES]
# The skeleton is the volume's too: of its directories, the root included, the server is asked once each
SKELETON = 1 + len({path for release in RELEASES for path in ("grp", f"grp/{release[0]}", f"grp/{release}")})


def differences(source: Path, merged: Path) -> list[str]:
    """What rsync would change in `merged`, apart from what README.md and formats/upper.md name."""
    command = ["rsync", "-aHAXn", "--delete", "--checksum", "--itemize-changes", "--modify-window=-1", UNESCAPED]
    # NFSv4 shows one on every name, in place of an ACL; a layer has none
    return call(*command, "--filter=-x system.nfs4_acl", f"{source}/", f"{merged}/").splitlines()


def cold_mount(client: Client, layer: Path, overlay: Mount, profile: str) -> Path:
    client.remount()
    return overlay(layer, client.where, profile)


def test_shows_what_plain_nfs_shows(
    connect: Connect, volume: Path, tmp_path: Path, overlay: Mount, profile: str
) -> None:
    make_volume(volume)
    client = connect()
    selected = () if profile == "data-only" else (SELECTED,)  # which shows nothing else
    merged = overlay(compile_layer(client.where, tmp_path, *selected), client.where, profile)
    assert differences(client.where, merged) == []
    assert differences(volume, merged) == []


def test_what_was_not_selected_falls_through(
    connect: Connect, volume: Path, tmp_path: Path, overlay: Mount, profile: str
) -> None:
    make_volume(volume)
    client = connect("actimeo=1")
    merged = cold_mount(client, compile_layer(client.where, tmp_path, SELECTED), overlay, profile)
    (volume / "grp/c/v1/lib").mkdir(parents=True)
    (volume / "grp/c/v1/lib/later.py").write_text("published after the scan")
    (volume / "grp/a/v1/lib/later.py").write_text("in a closed directory")
    shown = profile != "data-only"
    assert (merged / "grp/b/v1/doc/readme").exists() == shown
    assert (merged / "grp/c/v1/lib/later.py").exists() == shown
    assert ("c" in os.listdir(merged / "grp")) == shown
    if shown:
        assert (merged / "grp/a/v2/doc/readme").read_text() == "how to use a/v2"
        assert (merged / "grp/c/v1/lib/later.py").read_text() == "published after the scan"
    assert not (merged / "grp/a/v1/lib/later.py").exists()
    assert (merged / "grp/a/v1/lib/module1.py").read_text() == "a/v1 1\n" * 2


def miss(root: Path) -> int:
    """Asks every selected directory, and those below it, for names that are not there; returns how often."""
    asked = 0
    for lib in LIBS:
        for below in ("", "deep", "deep/er"):
            for number in range(20):
                with pytest.raises(FileNotFoundError):
                    os.stat(root / lib / below / f"no-such-name-{number}")
                asked += 1
    return asked


def list_all(root: Path) -> int:
    """Lists every selected directory; returns how many names that shows."""
    return sum(len(os.listdir(root / lib / below)) for lib in LIBS for below in ("", "deep", "deep/er"))


def stat_all(root: Path) -> int:
    """Asks for the attributes of files; returns of how many."""
    return sum(os.stat(root / lib / f"module{number}.py").st_size > 0 for lib in LIBS for number in range(FILES))


def first_use(client: Client, root: Path) -> dict[str, Counter[str]]:
    """RPCs for misses, listings and stats, in this order."""
    sent = {}
    for use in (miss, list_all, stat_all):
        with client.rpcs() as sent[use.__name__]:
            assert use(root) >= len(LIBS)
    return sent


def test_server_is_not_asked(connect: Connect, volume: Path, tmp_path: Path, overlay: Mount, profile: str) -> None:
    make_volume(volume)
    client = connect()
    layer = compile_layer(client.where, tmp_path, SELECTED)
    client.remount()
    plain = first_use(client, client.where)
    assert plain["miss"].total() >= miss(client.where), "plain NFS asks the server for every name"
    assert plain["stat_all"].total() + plain["list_all"].total() > len(LIBS)
    sent = first_use(client, cold_mount(client, layer, overlay, profile))
    if profile == "data-only":
        assert {use: counter.total() for use, counter in sent.items()} == {"miss": 0, "list_all": 0, "stat_all": 0}
        return
    assert sent["miss"]["LOOKUP"] == SKELETON - 1 and sent["miss"].total() <= 2 * SKELETON
    assert sent["list_all"].total() == 0
    if profile == "nested":
        assert sent["stat_all"].total() == 0
    else:
        assert sent["stat_all"]["LOOKUP"] == len(LIBS) * (FILES + 1), "the lower file is looked up, and its directory"


def test_misses_do_not_reach_the_server_later_either(
    connect: Connect, volume: Path, tmp_path: Path, overlay: Mount, profile: str
) -> None:
    """Whatever is cached of the volume's attributes: a closed directory is the layer's alone."""
    make_volume(volume)
    client = connect("noac")
    merged = cold_mount(client, compile_layer(client.where, tmp_path, SELECTED), overlay, profile)
    asked = miss(merged)
    with client.rpcs() as sent:
        miss(merged)
    # with noac, each walk through a directory of the skeleton asks for that
    assert sent.total() == 0 if profile == "data-only" else set(sent) <= {"GETATTR", "ACCESS"}
    assert sent["LOOKUP"] == 0 and asked == miss(merged)


def as_user(uid: int, path: Path) -> subprocess.CompletedProcess[str]:
    """`cat` of a file as an ordinary user."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "cat", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_root_squash(connect: Connect, volume: Path, tmp_path: Path, overlay: Mount, profile: str) -> None:
    """Data is read as whoever mounted: what root may not read on the server, nobody reads through the mount."""
    make_volume(volume)
    private = "grp/a/v1/lib/module5.py"
    os.chown(volume / private, 1000, 1000)
    (volume / private).chmod(0o640)
    layer = compile_layer(volume, tmp_path, SELECTED)
    client = connect(export="root_squash")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    assert as_user(1000, client.where / private).stdout == "a/v1 5\n" * 6, "its owner reads it on plain NFS"
    merged = cold_mount(client, layer, overlay, profile)
    assert (merged / private).stat().st_mode & 0o777 == 0o640
    with pytest.raises(PermissionError) as error:
        (merged / private).read_text()
    assert error.value.errno == errno.EACCES
    assert "Permission denied" in as_user(1000, merged / private).stderr
    assert (merged / "grp/a/v1/lib/module6.py").read_text() == "a/v1 6\n" * 7
    assert as_user(1000, merged / "grp/a/v1/lib/module6.py").stdout == "a/v1 6\n" * 7


def test_profiles_are_those_of_the_kernel(connect: Connect, volume: Path, tmp_path: Path, overlay: Mount) -> None:
    """What README.md says of kernels: an older one refuses the data-only mount, rather than showing something else."""
    make_volume(volume)
    client = connect()
    layer = compile_layer(client.where, tmp_path, SELECTED)
    if "data-only" in PROFILES:
        assert len(names(overlay(layer, client.where, "data-only"))) > 60
    else:
        with pytest.raises(OSError, match="wrong fs type, bad option"):
            overlay(layer, client.where, "data-only")
