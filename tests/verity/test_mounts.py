"""Layers mounted with --verity over a volume whose files have fs-verity: formats/mounts.md, by what the kernel does."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.codec.metacopy import encode_metacopy
from mkmeta.digest import verity_digest
from tests.host.hosts import Host

pytestmark = [pytest.mark.verity, pytest.mark.needs("fs-verity", "overlay")]

PROFILES = ("nested", "merge", "data-only")
FILES = {
    "lib/one": "first\n",
    "bin/tool": "#!/bin/sh\necho one\n",
}  # of tests/host/hosts.py, which has an empty one too
RELEASE = "grp/paint/v1"
ONE = f"{RELEASE}/lib/one"
OTHER = "fir5t\n"  # as long as what it replaces

profiles = pytest.mark.parametrize("profile", PROFILES)
checking = pytest.mark.parametrize("verity", ["on", "require"])


def enable(*paths: Path) -> None:
    """Gives files fs-verity."""
    for path in paths:
        subprocess.run(["fsverity", "enable", path], check=True)


def replace(path: Path, text: str, *, verity: bool) -> None:
    """Puts another file in the place of one; what has fs-verity cannot be written to."""
    new = path.with_name("new")
    new.write_text(text)
    if verity:
        enable(new)
    new.rename(path)


@pytest.fixture
def verified(host: Host) -> Host:
    """A host all of whose selected files have fs-verity, but for the empty one: a layer has that whole."""
    enable(*(host.volume / RELEASE / name for name in FILES))
    return host


def refused_with(path: Path) -> int | None:
    """The errno of opening a file, None when it opens; its stat works in any case."""
    assert path.stat().st_size == len(FILES["lib/one"])
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


@profiles
@checking
def test_what_is_as_recorded_reads(verified: Host, profile: str, verity: str) -> None:
    verified.activate("--profile", profile, "--verity", verity)
    assert verified.live().verity == verity
    for name, text in FILES.items():
        assert (verified.point / RELEASE / name).read_text() == text
    assert (verified.point / RELEASE / "lib/empty").read_bytes() == b""
    assert subprocess.run([verified.point / RELEASE / "bin/tool"], capture_output=True, check=True).stdout == b"one\n"


def other_with_it(host: Host) -> None:
    replace(host.volume / ONE, OTHER, verity=True)


def other_without(host: Host) -> None:
    replace(host.volume / ONE, OTHER, verity=False)


def same_without(host: Host) -> None:
    replace(host.volume / ONE, FILES["lib/one"], verity=False)


def digest_of_another(host: Host) -> None:
    (layer,) = host.store.glob("generations/*/layer")
    os.setxattr(layer / ONE, "trusted.overlay.metacopy", encode_metacopy(verity_digest(OTHER.encode())))


CHANGES = (other_with_it, other_without, same_without, digest_of_another)


@profiles
@checking
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_is_refused(verified: Host, profile: str, verity: str, change: Callable[[Host], None]) -> None:
    verified.activate("--profile", profile, "--verity", verity)  # which looks at the volume's files: change them later
    change(verified)
    assert refused_with(verified.point / ONE) == errno.EIO
    assert (verified.point / RELEASE / "bin/tool").read_text() == FILES["bin/tool"]


@profiles
@pytest.mark.parametrize("change", CHANGES)
def test_off_does_not_compare(verified: Host, profile: str, change: Callable[[Host], None]) -> None:
    verified.activate("--profile", profile, "--verity", "off")
    change(verified)
    assert refused_with(verified.point / ONE) is None
    assert (verified.point / ONE).read_text() == (verified.volume / ONE).read_text()


@profiles
def test_a_file_without_digest_opens_unless_required(verified: Host, profile: str) -> None:
    verified.call("build", verified.top / "sw.mkm", "--store", verified.store, "--no-verity")
    verified.activate("--profile", profile, "--verity", "on")
    assert (verified.point / ONE).read_text() == FILES["lib/one"]
    verified.call("deactivate", verified.point)
    refused = verified.activate("--profile", profile, "--verity", "require", check=16)
    assert "no fs-verity digests" in refused.err


@profiles
@checking
@pytest.mark.parametrize("plain", sorted(FILES))
def test_activate_names_a_file_without(host: Host, profile: str, verity: str, plain: str) -> None:
    enable(*(host.volume / RELEASE / name for name in FILES if name != plain))
    refused = host.activate("--profile", profile, "--verity", verity, check=16)
    assert f"{host.volume / RELEASE / plain}: --verity {verity}: this file has no fs-verity" in refused.err
    assert host.stack() == []


def test_a_switch_compares_with_the_new_layer(verified: Host) -> None:
    """And going back with the old one: the change that the new layer has recorded is one that the old has not."""
    verified.activate("--verity", "require")
    other_with_it(verified)
    assert refused_with(verified.point / ONE) == errno.EIO
    verified.publish()
    verified.activate("--verity", "require")
    assert (verified.point / ONE).read_text() == OTHER
    verified.call("rollback", verified.point)
    assert verified.live().verity == "require"
    assert refused_with(verified.point / ONE) == errno.EIO


def test_the_doctor_finds_it(verified: Host) -> None:
    enable(verified.volume / "notes", verified.volume / RELEASE / "lib/empty")  # it does not know what a layer has
    found = verified.call("doctor", "--lower", verified.volume, "--json").messages
    levels = {message["id"]: message["level"] for message in found if message["message_type"] == "check"}
    assert levels["lower-verity"] == "ok"
