"""`status`: read from the kernel and the store alone, with codes for monitoring."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.cli.status import _ago
from mkmeta.model import NS
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


def _mount(host: Host, check: int = 0) -> dict[str, object]:
    messages = host.call("status", host.point, "--json", check=check).messages
    (message,) = [one for one in messages if one["message_type"] == "mount"]
    return message


def test_what_is_mounted(host: Host) -> None:
    identifier = host.publish()
    host.activate("--profile", "merge")
    shown = _mount(host)
    assert shown["state"] == "current"
    assert (shown["generation"], shown["id"], shown["profile"]) == (1, identifier, "merge")
    assert (shown["lower"], shown["store"]) == (str(host.volume), str(host.store))
    assert time.time() - int(str(shown["built_ns"])) / 1e9 < 60
    assert (shown["holders"], shown["problems"]) == ([], [])
    text = host.call("status", host.point, "-v").out
    for part in (str(host.point), "generation 1", identifier, "merge over", "the first stat of every file"):
        assert part in text


def test_ages_are_in_words() -> None:
    spans = (-5, 0, 1, 2, 119, 120, 7199, 7200, 2 * 86400 - 1, 2 * 86400)
    assert [_ago(span * NS) for span in spans] == [
        *("0 seconds", "0 seconds", "1 second", "2 seconds", "119 seconds"),
        *("2 minutes", "119 minutes", "2 hours", "47 hours", "2 days"),
    ]


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only", "upper"])
def test_every_profile_is_recognised(host: Host, profile: str) -> None:
    host.activate("--profile", profile)
    assert _mount(host)["profile"] == profile


def test_no_state_is_kept(host: Host) -> None:
    """Everything in RUN but the inner mount may go."""
    host.activate()
    before = _mount(host)
    for path in host.run.iterdir():
        if path.name != "inner":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert _mount(host) == before


def test_a_newer_generation_is_said(host: Host) -> None:
    host.activate()
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    shown = _mount(host, check=21)
    assert (shown["state"], shown["generation"], shown["current"], shown["newest"]) == ("behind", 1, 2, 2)
    host.activate()
    host.call("rollback", host.point)
    shown = _mount(host)  # what `activate` would mount: nobody needs to be woken
    assert (shown["state"], shown["current"], shown["newest"]) == ("current", 1, 2)


@pytest.fixture
def sitters(host: Host) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs with something of generation 1 open: a file, a working directory, a mapping, an executable."""
    shutil.copy("/bin/sleep", host.volume / "grp/paint/v1/bin/sleep")
    host.publish()
    shutil.rmtree(next(host.store.glob("generations/000001-*")))
    host.activate()
    inside = host.point / "grp/paint/v1"
    with (inside / "lib/one").open() as file:
        programs = [
            subprocess.Popen(["sleep", "100"], stdin=file),
            subprocess.Popen(["sleep", "100"], cwd=inside / "lib"),
            subprocess.Popen(["sleep", "100"], cwd=host.point),
            subprocess.Popen([inside / "bin/sleep", "100"], cwd="/"),
        ]
    time.sleep(0.3)
    yield programs
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.parametrize("profile", ["nested", "merge", "data-only"])
def test_who_still_has_an_older_generation(host: Host, sitters: list[subprocess.Popen[bytes]], profile: str) -> None:
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.activate("--profile", profile)
    holders = {str(item["process"]): item for item in _mount(host)["holders"]}  # type: ignore[attr-defined]
    assert set(holders) == {str(program.pid) for program in sitters}
    assert {item["generation"] for item in holders.values()} == {2}
    assert all(item["command"] == "sleep" and not item["mounted"] for item in holders.values())
    kept = host.call("gc", host.store, "--keep", "1", "--min-age", "0").err
    assert "open in process" in kept
    for program in sitters:
        program.kill()
        program.wait()
    assert _mount(host)["holders"] == []
    assert host.call("gc", host.store, "--keep", "1", "--min-age", "0").out.startswith("000002-")


def test_another_namespace_that_still_has_an_older_one(host: Host) -> None:
    subprocess.run(["mount", "--bind", host.point, host.point], check=True)
    subprocess.run(["mount", "--make-private", host.point], check=True)
    host.activate()
    other = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sleep", "100"])
    try:
        time.sleep(0.3)
        host.release("v2", {"lib/two": "second\n"})
        host.publish()
        host.activate()
        expected = {"process": other.pid, "command": "sleep", "generation": 1, "mounted": True}
        assert _mount(host)["holders"] == [expected]
        done = host.call("gc", host.store, "--keep", "1", "--min-age", "0")
        assert (done.out, "mounted at" in done.err) == ("", True)
    finally:
        other.kill()
        other.wait()
    assert host.call("gc", host.store, "--keep", "1", "--min-age", "0").out.startswith("000001-")


def test_a_layer_bound_onto_itself_is_no_switch(host: Host) -> None:
    """As is done to make a mount private."""
    host.activate()
    subprocess.run(["mount", "--bind", host.point, host.point], check=True)
    assert _mount(host)["problems"] == []
    assert host.activate("--json").messages[-1]["action"] == "unchanged"
    host.call("status", host.point)
    assert len(host.stack()) == 1


def test_a_store_that_is_gone_is_said(host: Host) -> None:
    host.activate()
    host.store.rename(host.store.with_name("away"))
    shown = _mount(host, check=22)
    assert shown["state"] == "degraded"
    assert shown["problems"]


def test_a_generation_that_is_damaged_is_said(host: Host) -> None:
    host.activate()
    (next(host.store.glob("generations/0*")) / "generation.json").write_text("{")
    shown = _mount(host, check=22)
    assert (shown["generation"], shown["built_ns"]) == (1, None)


def test_of_several_mounts_the_worst_code(host: Host, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    host.activate()
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    host.call("activate", host.store, second, "--lower", host.volume)
    lines = host.call("status", "--json", check=21).messages
    ours = {str(line["mountpoint"]): line["state"] for line in lines if str(tmp_path) in str(line["mountpoint"])}
    assert ours == {str(host.point): "behind", str(second): "current"}
    host.call("deactivate", second)


def test_json_of_paths_that_are_not_text(tmp_path: Path) -> None:
    odd = Host(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    try:
        odd.release("v1", {"lib/one": "first\n"})
        odd.publish()
        odd.activate()
        shown = odd.call("status", odd.point, "--json").messages[0]
        assert {"mountpoint_b64", "lower_b64", "layer_b64", "store_b64"} <= set(shown)
        json.dumps(shown)
    finally:
        odd.unmount_all()


def test_an_ordinary_user_is_told_what_he_cannot_see(host: Host) -> None:
    """A healthy mount is not degraded for whoever may not look into the store, or at other people's processes."""
    for directory in (host.top, *host.top.parents):
        if os.stat(directory).st_uid == 0 and len(directory.parts) > 2:
            directory.chmod(0o755)
    host.activate()
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    for mode, code in ((0o755, 0), (0o700, 1)):
        host.store.chmod(mode)
        call = [*user, *host.command("status", host.point), "--json"]
        shown = subprocess.run(call, capture_output=True, text=True, check=False)
        assert shown.returncode == code, shown
        message = json.loads(shown.stdout)
        assert (message["state"], message["problems"]) == ("current" if code == 0 else "unknown", [])
        assert "only root may read" in str(message["unseen"])
