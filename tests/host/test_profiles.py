"""Every profile on this kernel, over a real directory: what shows, what does not, and what is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Mount
from tests.host.hosts import Host
from tests.layer.layers import differences

pytestmark = pytest.mark.needs("root", "overlay")
READING = ("nested", "merge", "data-only")


@pytest.mark.parametrize("profile", READING)
@pytest.mark.needs("rsync")
def test_selected_subtrees_are_the_volumes_own(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    below = "grp/paint/v1"
    found = differences(host.volume / below, host.point / below)
    # the escaped form of the opaque attribute shows through one mount (formats/upper.md section 6)
    assert {line[:11] for line in found} == (set() if profile == "nested" else {".d........x"})
    assert subprocess.run([host.point / below / "bin/tool"], capture_output=True, check=True).stdout == b"one\n"


@pytest.mark.parametrize("profile", READING)
def test_what_a_selected_subtree_does_not_have_is_not_there(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    (host.volume / "grp/paint/v1/lib/late").write_text("")
    assert not (host.point / "grp/paint/v1/lib/late").exists()
    assert sorted(os.listdir(host.point / "grp/paint/v1/lib")) == ["empty", "one"]


@pytest.mark.parametrize("profile", ["nested", "merge", "upper"])
def test_the_rest_shows_through_and_the_volume_may_grow(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    assert (host.point / "notes").read_text() == "not selected\n"
    host.release("v2", {"lib/two": "second\n"})
    assert (host.point / "grp/paint/v2/lib/two").read_text() == "second\n"
    assert sorted(os.listdir(host.point / "grp/paint")) == ["v1", "v2"]


def test_data_only_is_a_closed_tree(host: Host) -> None:
    host.activate("--profile", "data-only")
    assert os.listdir(host.point) == ["grp"]


def test_upper_writes_into_its_generation_and_nowhere_else(host: Host) -> None:
    host.activate("--profile", "upper")
    (host.point / "new").write_text("mine\n")
    (host.point / "grp/paint/v1/lib/one").write_text("changed\n")
    assert not (host.volume / "new").exists()
    assert (host.volume / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("deactivate", host.point)
    refused = host.activate(check=16)
    assert "was mounted writable" in refused.err
    host.activate("--profile", "upper")
    assert (host.point / "new").read_text() == "mine\n"
    host.call("deactivate", host.point)
    host.publish()  # the same manifest again: a generation that is as it was scanned
    host.activate()
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"


@pytest.mark.parametrize("profile", READING)
def test_the_layer_cannot_be_written_through(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    with pytest.raises(OSError, match="Read-only"):
        (host.point / "new").write_text("")


@pytest.mark.parametrize("profile", [*READING, "upper"])
@pytest.mark.parametrize("flags", ["nosuid,nodev", "noexec", ""])
def test_flags_of_the_volumes_mount_are_repeated(host: Host, mount: Mount, profile: str, flags: str) -> None:
    subprocess.run(["mount", "--bind", host.volume, host.volume], check=True)
    subprocess.run(["mount", "-o", f"remount,bind,rw,{flags}", host.volume], check=True)
    host.activate("--profile", profile, "--allow-setid")
    live = host.live()
    every = [live.mount, *([live.inner] if live.inner else [])]
    for one in every:
        assert {flag.decode() for flag in one.flags} & {"nosuid", "nodev", "noexec"} == set(
            filter(None, flags.split(","))
        )
    if flags == "noexec":
        with pytest.raises(PermissionError):
            subprocess.run([host.point / "grp/paint/v1/bin/tool"], check=False)
    host.call("deactivate", host.point)


def test_findmnt_shows_the_generation(host: Host) -> None:
    identifier = host.publish()
    host.activate()
    shown = subprocess.run(["findmnt", "-no", "SOURCE", host.point], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"mkmeta:{identifier[:12]}"


def test_auto_is_nested_and_says_what_a_lesser_profile_lacks(host: Host, mount: Mount) -> None:
    host.activate()
    assert host.live().profile == "nested"
    host.call("deactivate", host.point)
    below = mount("overlay", f"ro,lowerdir={host.volume}:{host.run}")
    done = host.call("activate", host.store, host.point, "--lower", below, "--other-root")
    assert host.live().profile == "merge"
    assert "the first stat of every file asks the volume" in done.err
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
    host.call("deactivate", host.point)


ODD = ["with space", "comma,colon:backslash\\quote'\"", "new\nline", "\udcff\udcfe", "=#hash", "long" * 60]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("profile", READING)
def test_paths_of_any_bytes(tmp_path: Path, name: str, profile: str) -> None:
    top = Host(tmp_path / name)
    try:
        top.release("v1", {"lib/one": "first\n"})
        top.publish()
        top.activate("--profile", profile)
        assert (top.point / "grp/paint/v1/lib/one").read_text() == "first\n"
        live = top.live()
        assert (live.profile, os.fsdecode(live.lower)) == (profile, str(top.volume))
        assert os.fsdecode(live.layer).startswith(str(top.store))
        assert top.activate().code == 0
        assert top.call("status", top.point, "--json").messages[0]["generation"] == 1
        top.call("refresh", top.point)
        top.call("deactivate", top.point)
        assert top.leftovers() == []
    finally:
        top.unmount_all()
