"""From those who release to programs that start on hosts, over NFS: docs/release.md as a whole.

A publisher and two hosts with NFS mounts of their own. Packages are released by the real rez with the hook of
examples/publish, trees like Spack's copied under the watcher's eyes, one is retired and deleted. All the while programs
start on the hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mkmeta.manifest.reader import ManifestReader
from tests.calling import call as mkmeta
from tests.nfs.conftest import KERNEL
from tests.nfs.farm import CACHED, GIVE_UP, NO_GAP, QUIET, Farm, farm, rows, wait_until
from tests.nfs.server import Server, call
from tests.publisher.test_hooks import HOOKS
from tests.real.test_volumes import UNESCAPED

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]

REZ: Final = Path(sys.executable).with_name("rez-release")
PARTS: Final = 12  # files that the program of a release reads
FRESH: Final = CACHED + 0.5  # seconds after which a client has asked again
Row = dict[str, Any]


@pytest.fixture
def site(server: Server, volume: Path, tmp_path: Path, version: str) -> Iterator[Farm]:
    with farm(server, volume, tmp_path, version) as made:
        yield made


def make_tree(top: Path, says: str) -> Path:
    """A release: a program that reads some files beside it, and says which release it is."""
    (top / "bin").mkdir(parents=True)
    (top / "lib/deep").mkdir(parents=True)
    for number in range(PARTS):
        (top / f"lib/deep/part{number}").write_text(f"said=${{said}}{number}\n")
    (top / "lib/link").symlink_to("deep/part0")
    lines = "\n".join(f'. "$here/lib/deep/part{number}"' for number in range(PARTS))
    (top / "bin/run").write_text(f'here=${{0%/bin/run}}\nsaid=\n{lines}\n. "$here/lib/link"\necho {says} $said\n')
    return top


def expected(release: str) -> str:
    """What the program of a release says."""
    return f"{says(release)} {''.join(map(str, range(PARTS)))}0\n"


def says(release: str) -> str:
    return release.replace("/", "-")


def rez_release(site: Farm, version: str) -> None:
    """Releases `paint` of a version with the real rez; its hook publishes before rez ends."""
    release = f"rez/paint/{version}"
    source = site.top / "src" / version
    make_tree(source / "payload", says(release))
    (source / ".stub").touch()  # what rez takes for a repository
    (source / "package.py").write_text(
        f'name = "paint"\nversion = "{version}"\nbuild_command = "cp -r {{root}}/payload/. {{install_path}}/"\n'
    )
    program = site.top / "mkmeta"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m mkmeta \"$@\"\n")
    program.chmod(0o755)
    (site.top / "rezconfig.py").write_text(
        f'release_packages_path = "{site.volume}/rez"\nlocal_packages_path = "{site.top}/local"\n'
        f'packages_path = [release_packages_path]\nplugin_path = ["{HOOKS}/rez"]\nrelease_hooks = ["mkmeta_release"]\n'
    )
    variables = {
        "MKMETA": str(program),
        "MKMETA_CONFIG": str(site.config),
        "MKMETA_MUST": "1",
        "HOME": str(site.top),
        "PYTHONPATH": os.getcwd(),
        "REZ_CONFIG_FILE": str(site.top / "rezconfig.py"),
    }
    site.tell("copying", release)
    command = [str(REZ), "--vcs", "stub", "-m", "released"]
    done = subprocess.run(command, cwd=source, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site.tell("published", release)


def recorded(site: Farm) -> set[str]:
    """The releases that are in the published manifest."""
    with ManifestReader.open(str(site.volume / ".mkmeta" / os.fsdecode(site.pointer.manifest))) as reader:
        paths = [os.fsdecode(path) for path, _ in reader.walk()]
    return {path.removesuffix("/bin/run") for path in paths if path.endswith("/bin/run")}


def copy_under_the_eyes(site: Farm, watched: Path, release: str) -> None:
    """Copies a tree to the volume, with a pass of the watcher halfway; returns when that has taken all of it.

    It waits until nothing has changed for longer than all this takes; then that is made true.
    """
    source = make_tree(site.top / "copied" / release, says(release))
    target = site.volume / release
    site.tell("copying", release)
    target.mkdir()
    call("cp", "-r", source / "bin", target)
    wait_until("a pass that waits for it", lambda: waits(watched, release), say=watched.read_text)
    assert release not in recorded(site)
    call("cp", "-r", source / "lib", target)
    call("date", "-s", f"{2 * QUIET} seconds")
    wait_until("the watcher took it", lambda: release in recorded(site), say=watched.read_text)
    site.tell("published", release)


def waits(watched: Path, release: str) -> bool:
    return any(row.get("path") == release and row.get("state") == "waiting" for row in rows(watched))


def retire(site: Farm, release: str) -> None:
    """Takes a release out of the layer, and deletes it when no host has it any more."""
    messages = site.mkmeta("release", "--retire", release, "--after", f"{GIVE_UP:g}", "--json").messages
    steps = {row["step"]: row["text"] for row in messages if "step" in row}
    assert steps["wait"] == "no host has it"
    site.tell("retired", release)
    shutil.rmtree(site.volume / release)


def verdict(site: Farm, host_polls: list[Row], start: Row) -> str | None:
    """What was wrong with a start of a program; None: nothing. None of it depends on how fast anything is.

    What was published before a poll began that ended before the start, has to be there, as it is. Before that, it is
    not there, or a part of it is not, as on the volume, or it is already there; never anything else. What is retired is
    deleted at once: until then it is there.
    """
    events = site.events

    def is_due(release: str) -> bool:
        published = events.get(("published", release))
        if published is None or events.get(("retired", release), start["ended"] + 1) <= start["ended"]:
            return False
        return any(published + FRESH <= poll["begun"] and poll["ended"] <= start["begun"] for poll in host_polls)

    if not NO_GAP and any(
        "switched" in poll["text"] and poll["begun"] <= start["ended"] and start["begun"] <= poll["ended"]
        for poll in host_polls
    ):
        return None  # before Linux 6.5, a switch has a gap
    if start["code"] == 0:
        right = start["out"] == expected(start["release"])
        if not right:
            return "said something else"
        newer = [one for _, one in events if one.startswith("rez/") and one > start["release"]]
        if start.get("newest") and any(is_due(one) for one in newer):
            return f"a newer one was published: {newer}"
        return None
    if events.get(("retired", start["release"]), start["ended"]) < start["ended"]:
        return None  # deleted while it ran: it had no business there any more
    if "No such file" not in start["err"]:
        return "failed"
    due = [start["release"]] if start["release"] else [one for _, one in events if one.startswith("rez/")]
    return "no such file" if any(is_due(one) for one in due) else None


def differences(site: Farm, name: int) -> list[str]:
    """What rsync would change in a host's mount to make it the volume."""
    command = ["rsync", "-aHAXn", "--delete", "--checksum", "--itemize-changes", "--modify-window=-1", UNESCAPED]
    but = ("--filter=-x system.nfs4_acl", "--exclude=/.mkmeta/reports")  # which hosts write to
    return site.hosts[name].call(*command, *but, f"{site.volume}/", f"{site.point}/").splitlines()


@pytest.mark.needs("rez", "rsync")
@pytest.mark.timeout(600)
def test_from_release_to_programs(site: Farm) -> None:
    began = time.monotonic()

    def at(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}")

    make_tree(site.volume / "spack/zlib-0", says("spack/zlib-0"))
    rez_release(site, "1.0")
    site.tell("published", "spack/zlib-0")
    at("the first is published, by rez")
    hosts = [site.boot("host1"), site.boot("host2")]
    at("hosts are up")
    with site.watching() as watched:
        copy_under_the_eyes(site, watched, "spack/zlib-1")
        at("the watcher took zlib-1, copied in two parts")
        rez_release(site, "1.1")
        at("rez released paint 1.1")
        retire(site, "rez/paint/1.0")
        serial = site.pointer.serial
        at("paint 1.0 is retired and deleted")
        wait_until("the watcher tells hosts to forget it", lambda: site.pointer.serial > serial, say=watched.read_text)
    generation = site.pointer.generation
    wait_until(
        "all hosts report what is published",
        lambda: (
            (found := site.fleet())["code"] == 0
            and (found["published"], found["current"]) == (generation, 2)
            and not found["holders"]  # a program that began before the switch may still run when a host reports
        ),
        say=lambda: (site.fleet(), [host.polls[-2:] for host in hosts]),
    )
    at("hosts have and report all of it")
    fleet = site.fleet()
    assert (fleet["behind"], fleet["degraded"], fleet["lost"], fleet["holders"]) == (0, 0, 0, []), fleet
    full = str(site.top / "full.mkm")
    if site.mkmeta("scan", "-q", "-o", full).out.strip() != site.pointer.id.hex():
        pytest.fail(
            "a full scan gives something else: " + mkmeta(["diff", str(site.top / "sw.mkm"), full], check=4).out
        )
    assert recorded(site) == {"spack/zlib-0", "spack/zlib-1", "rez/paint/1.1"}
    for name in range(len(hosts)):
        assert differences(site, name) == []
    site.stop()
    at("compared")
    for host in hosts:
        assert host.process.returncode == 0, (host.top / "complaints").read_text()
        assert [poll for poll in host.polls if poll["code"]] == []
        wrong = [(why, row) for row in host.starts if (why := verdict(site, host.polls, row))]
        if wrong:
            pytest.fail(json.dumps({"wrong": wrong[:3], "events": rows(site.announced), "polls": host.polls}, indent=1))
        counted = Counter((row["release"], row["code"] == 0) for row in host.starts)
        done_polls = Counter(json.loads(poll["text"].splitlines()[-1])["action"] for poll in host.polls)
        slowest = max(poll["ended"] - poll["begun"] for poll in host.polls)
        print(
            f"{host.name}: polls {dict(done_polls)}, at most {slowest:.1f} s; {len(host.starts)} starts {dict(counted)}"
        )
        assert all(counted[release, True] for release in ("spack/zlib-1", "rez/paint/1.1"))
        assert any(not worked for _, worked in counted), "names were asked for too early, which is what mounts remember"
    print(f"kernel {KERNEL}, NFS {site.version}: {time.monotonic() - began:.0f} s")
