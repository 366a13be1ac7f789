"""Refreshing: stale names go, what is in use stays, and so do the mount's options."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from mkmeta.linux.mount import FilesystemContext
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.mark.parametrize("profile", ["nested", "merge", "upper"])
def test_a_release_that_was_asked_for_too_early_shows_up(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    late = host.point / "grp/paint/v2/lib/two"
    assert not late.exists()
    host.release("v2", {"lib/two": "second\n"})
    assert not late.exists()  # the kernel remembers the answer: otherwise nobody needs a refresh
    host.call("refresh", host.point)
    assert late.read_text() == "second\n"


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_nothing_in_use_is_touched(host: Host, profile: str) -> None:
    subprocess.run(["mount", "--bind", host.volume, host.volume], check=True)
    subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev", host.volume], check=True)
    host.activate("--profile", profile)
    before = host.stack()
    directory = os.open(host.point / "grp", os.O_RDONLY)
    with (host.point / "grp/paint/v1/lib/one").open() as file:
        for _ in range(3):
            host.call("refresh", host.point)
        assert file.read() == "first\n"
    assert os.listdir(directory) == ["paint"]
    os.close(directory)
    assert host.stack() == before
    host.call("deactivate", host.point)


def test_the_path_for_kernels_without_fspick(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.activate()
    late = host.point / "grp/paint/v2/lib/two"
    assert not late.exists()
    host.release("v2", {"lib/two": "second\n"})
    before = host.stack()

    def missing(_path: bytes) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(FilesystemContext, "pick", missing)
    host.call("refresh", host.point)
    assert late.read_text() == "second\n"
    assert host.stack() == before


def test_an_inner_mount_that_is_gone_is_said(host: Host) -> None:
    host.activate()
    inner = host.live().inner_path
    assert inner is not None
    subprocess.run(["umount", inner], check=True)
    assert "inner mount is not reachable" in host.call("refresh", host.point, check=1).err
    assert "inner mount is not reachable" in host.call("status", host.point, check=22).err
    assert host.activate("--json").messages[-1]["action"] == "switched"
    host.call("refresh", host.point)
    host.call("status", host.point)
    assert host.leftovers() == []


def test_it_says_what_it_cost(host: Host) -> None:
    host.activate()
    for number in range(1000):
        assert not (host.point / f"nothing-{number}").exists()
    (message,) = host.call("refresh", host.point, "--json").messages
    assert 0 <= float(str(message["seconds"])) < 60
    assert int(str(message["names"])) > 500


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only"])
def test_a_file_replaced_on_the_volume(host: Host, profile: str) -> None:
    """What a local volume shows after a refresh: the new state, not what was there before."""
    host.activate("--profile", profile)
    path = host.point / "grp/paint/v1/lib/one"
    assert path.read_text() == "first\n"
    new = host.volume / "grp/paint/v1/lib/.new"
    new.write_text("other\n")
    new.rename(host.volume / "grp/paint/v1/lib/one")
    host.call("refresh", host.point)
    assert path.read_text() == "other\n"


def test_without_proc_sys(host: Host) -> None:
    """As in some containers: then it is not known how many names went."""
    host.activate()
    late = host.point / "grp/paint/v2/lib/two"
    assert not late.exists()
    host.release("v2", {"lib/two": "second\n"})
    script = 'mount -t tmpfs none /proc/sys && exec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-"]
    command += [*host.command("refresh", host.point), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert '"names": null' in done.stdout
    assert late.read_text() == "second\n"


def test_a_mount_on_top_is_not_refreshed_in_its_place(host: Host) -> None:
    """It would be made read-only."""
    host.activate()
    subprocess.run(["mount", "-t", "tmpfs", "mkmeta-other", host.point], check=True)
    host.call("refresh", host.point, check=20)
    (host.point / "written").write_text("")
