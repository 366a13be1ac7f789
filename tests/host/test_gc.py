"""`gc` removes what nobody uses, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")
AT_ONCE = ("--keep", "1", "--min-age", "0")


def _generations(host: Host) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in host.store.glob("generations/0*"))


def _publish(host: Host, count: int) -> None:
    for number in range(count):
        host.release(f"v{number + 2}", {"lib/file": str(number)})
        host.publish()


def test_the_newest_and_the_current_stay(host: Host) -> None:
    _publish(host, 5)
    host.activate("--generation", "2")
    host.call("deactivate", host.point)
    host.call("gc", host.store, "--keep", "2", "--min-age", "0")
    assert _generations(host) == [2, 5, 6]


def test_young_ones_stay(host: Host) -> None:
    _publish(host, 3)
    host.call("gc", host.store, "--keep", "1")
    assert _generations(host) == [1, 2, 3, 4]


def test_dry_run_removes_nothing(host: Host) -> None:
    _publish(host, 3)
    done = host.call("gc", host.store, *AT_ONCE, "--dry-run", "--json").messages
    assert [one["generation"] for one in done if one["message_type"] == "removed"] == [1, 2, 3]
    assert _generations(host) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "how", ["mkmeta", "by hand", "bind of the layer", "bind of a file's directory", "upper by hand"]
)
def test_whatever_is_mounted_stays(host: Host, how: str, tmp_path: Path) -> None:
    layer = next(host.store.glob("generations/000001-*/layer"))
    second, work = tmp_path / "second", tmp_path / "work"
    second.mkdir()
    work.mkdir()
    commands: dict[str, list[str | Path]] = {
        "mkmeta": [*host.command("activate", host.store, second, "--lower", host.volume, "--generation", "1")],
        "by hand": ["mount", "-t", "overlay", "x", "-o", f"ro,metacopy=on,lowerdir={layer}:{host.volume}", second],
        "bind of the layer": ["mount", "--bind", layer, second],
        "bind of a file's directory": ["mount", "--bind", layer / "grp/paint", second],
        "upper by hand": [
            *("mount", "-t", "overlay", "x", "-o"),
            f"metacopy=on,lowerdir={host.volume},upperdir={layer},workdir={layer}/../../w",
            second,
        ],
    }
    if how == "upper by hand":
        (layer / "../../w").mkdir()
    environment = {**os.environ, "LIBMOUNT_FORCE_MOUNT2": "always"}
    subprocess.run(commands[how], check=True, capture_output=True, env=environment)
    try:
        _publish(host, 2)
        assert "mounted at" in host.call("gc", host.store, *AT_ONCE).err
        assert _generations(host) == [1, 3]
    finally:
        subprocess.run(["umount", second], check=True)
    host.call("gc", host.store, *AT_ONCE)
    assert _generations(host) == [3]


def test_a_container_that_has_it_in_another_namespace(host: Host, tmp_path: Path) -> None:
    """Mounted only there, at a path that does not exist here."""
    layer = next(host.store.glob("generations/000001-*/layer"))
    script = (
        f"mount -t tmpfs x {tmp_path}/ns && mkdir {tmp_path}/ns/a && mount --bind {layer} {tmp_path}/ns/a && sleep 100"
    )
    (tmp_path / "ns").mkdir()
    other = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], start_new_session=True)
    try:
        time.sleep(0.5)
        _publish(host, 2)
        host.call("gc", host.store, *AT_ONCE)
        assert _generations(host) == [1, 3]
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    time.sleep(0.2)
    host.call("gc", host.store, *AT_ONCE)
    assert _generations(host) == [3]


def kill_collections(host: Host, times: int) -> int:
    """Kills `gc` at random points while a generation is mounted; the next call goes on, the mounted one stays."""
    host.activate()
    chance = random.Random(times)
    command = host.command("gc", host.store, *AT_ONCE)
    killed = 0
    for number in range(times):
        started = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        whole = time.monotonic() - started  # of one with little to do, on this machine as busy as it is now
        host.release(f"x{number}", {f"lib/{name}": name for name in map(str, range(30))})
        host.publish("grp/*/*")
        program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.4, 1.0) * whole)
        program.kill()
        killed += program.wait() == -signal.SIGKILL
        assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"
        assert 1 in _generations(host)
    host.call("gc", host.store, *AT_ONCE)
    assert _generations(host) == [1, times + 1]
    assert sorted(path.name[:6] for path in (host.store / "generations").iterdir()) == ["000001", f"{times + 1:06}"]
    return killed


def test_killed_collections(host: Host) -> None:
    assert kill_collections(host, 15) > 3


@pytest.mark.slow
def test_collections_killed_at_many_points(host: Host) -> None:
    assert kill_collections(host, 50) > 25
