"""examples/publish: what they run is run here, with the real mkmeta; rez and EasyBuild in test_hooks_real.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.publisher.sites import Site

TOP = Path(__file__).parents[2]
HOOKS = TOP / "examples/publish"
ODD = 'v2 it\'s $(touch gone) "x" `id` ; x'  # a release that a shell would take for commands


def with_program(top: Path) -> Site:
    """A site with one release published, and the program `mkmeta` beside it."""
    site = Site(top)
    site.call("release", "-q")
    (top / "bin").mkdir()
    program(site).write_text(f"#!/bin/sh\nPYTHONPATH='{TOP}' exec '{sys.executable}' -m mkmeta \"$@\"\n")
    program(site).chmod(0o755)
    return site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return with_program(tmp_path)


def program(site: Site) -> Path:
    return site.top / "bin/mkmeta"


def environment(site: Site) -> dict[str, str]:
    """With mkmeta in PATH, and the site's layer file."""
    path = f"{site.top}/bin:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MKMETA_CONFIG": str(site.config), "MKMETA": str(program(site))}


def run(site: Site, *command: str | Path, given: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a hook."""
    return subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env=environment(site) | variables,
        cwd=site.top,
    )


def broken(site: Site) -> tuple[bytes, bytes]:
    """A release that is not complete; and what must not change."""
    site.configure('marker = "done"\n')
    site.make("paint/v3")
    return site.state


def test_all_are_there_and_each_says_what_a_failure_does() -> None:
    pages = sorted(HOOKS.glob("*/README.md"))
    assert [page.parent.name for page in pages] == sorted(one.name for one in HOOKS.iterdir() if one.is_dir())
    listed = re.findall(r"\((\w+)/README\.md\)", (HOOKS / "README.md").read_text())
    assert sorted(listed) == [page.parent.name for page in pages]
    for page in pages:
        text = page.read_text()
        assert "**When it fails**, manifest and pointer are as they were" in text, page
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), (page, target)


def test_they_can_be_read() -> None:
    for path in HOOKS.rglob("*.py"):
        compile(path.read_bytes(), str(path), "exec")
    shells = [path for path in HOOKS.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh\n")]
    assert len(shells) == 2
    for path in shells:
        assert os.access(path, os.X_OK)
        subprocess.run(["sh", "-n", path], check=True)


def gitlab(inputs: dict[str, str]) -> tuple[dict[str, str], str]:
    """The environment and the script of the component's job, its inputs put in as GitLab does."""
    text = (HOOKS / "gitlab/templates/release.yml").read_text()
    specification = next(iter(yaml.safe_load_all(text)))["spec"]["inputs"]
    known = {name: one["default"] for name, one in specification.items() if "default" in (one or {})} | inputs
    assert set(specification) == set(known)
    used = re.findall(r"\$\[\[ inputs\.([\w-]+) \]\]", text)
    assert set(used) == set(specification)
    for name in used:
        value = known[name]
        raw = json.dumps(value) if not isinstance(value, str) else json.dumps(value)[1:-1]
        text = text.replace(f"$[[ inputs.{name} ]]", raw)
    (job,) = list(yaml.safe_load_all(text))[1].values()
    assert job["retry"]["exit_codes"] == [14, 24]
    return job["variables"], "\n".join(job["script"])


def github(inputs: dict[str, str]) -> tuple[dict[str, str], str]:
    """The environment and the script of the action's step."""
    action = yaml.safe_load((HOOKS / "github/action.yml").read_text())
    (step,) = action["runs"]["steps"]
    assert "${{" not in step["run"], "what is put into a script is taken for commands"
    known = {name: one.get("default", "") for name, one in action["inputs"].items()} | inputs
    used = {key: re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value) for key, value in step["env"].items()}
    return {key: known[match[1]] for key, match in used.items() if match is not None}, step["run"]


def jenkins(inputs: dict[str, str]) -> tuple[dict[str, str], str]:
    """The environment and the script of the step."""
    text = (HOOKS / "jenkins/vars/mkmetaRelease.groovy").read_text()
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")
    (script,) = re.findall(r"script: '([^']*)'", text)
    return {"MKMETA": "mkmeta", "MKMETA_PATH": inputs["path"]}, script


def pipeline(name: str, site: Site, path: str) -> subprocess.CompletedProcess[str]:
    """Runs what a pipeline would."""
    match name:
        case "gitlab":
            variables, script = gitlab({"path": path, "config": str(site.config)})
            command = ["sh", "-ec", script]
        case "github":
            variables, script = github({"paths": path + "\n", "config": str(site.config)})
            command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        case _:
            variables, script = jenkins({"path": path})
            command = ["sh", "-xec", script]
    return run(site, *command, **variables, GITHUB_OUTPUT=str(site.top / "output"))


@pytest.mark.parametrize("name", ["gitlab", "github", "jenkins"])
def test_pipelines(site: Site, name: str) -> None:
    site.make(f"paint/{ODD}")
    done = pipeline(name, site, f"grp/paint/{ODD}")
    assert done.returncode == 0, done.stderr
    assert site.names() == {"paint/v1", f"paint/{ODD}"}
    assert not (site.top / "gone").exists()
    if name == "github":
        assert (site.top / "output").read_text() == f"id={site.pointer.id.hex()}\n"
    else:
        assert done.stdout.strip() == site.pointer.id.hex()
    before = broken(site)
    for wrong, code in (("grp/paint/v3", 24), ("--retire=grp/paint/v1", 2), ("", 2)):
        assert pipeline(name, site, wrong).returncode == code, wrong
        assert site.state == before


def spack(site: Site) -> Path:
    """A stand-in: `install NAME`, `uninstall NAME`, and `find`, which lists the prefixes."""
    top = site.volume / "grp"
    script = f"""#!/bin/sh
case "$1" in
find) ls -d {top}/*/v* ;;
install) mkdir -p {top}/"$2"/lib && echo x >{top}/"$2"/lib/x.py && test "$3" != fails ;;
uninstall) rm -r {top}/"$2" ;;
esac
"""
    (site.top / "bin/spack").write_text(script)
    (site.top / "bin/spack").chmod(0o755)
    return HOOKS / "spack/mkmeta-spack"


def test_spack(site: Site) -> None:
    wrapper = spack(site)
    assert run(site, wrapper, "install", "hdf5/v1 odd").returncode == 0
    assert site.names() == {"paint/v1", "hdf5/v1 odd"}
    assert run(site, wrapper, "install", "hdf5/v2", "fails").returncode == 1
    assert site.names() == {"paint/v1", "hdf5/v1 odd", "hdf5/v2"}, "what it did install"
    assert run(site, wrapper, "uninstall", "hdf5/v1 odd").returncode == 0
    assert site.names() == {"paint/v1", "hdf5/v2"}
    state = broken(site)
    done = run(site, wrapper, "install", "hdf5/v3")
    assert done.returncode == 24
    assert "installed, but not published by mkmeta (exit code 24)" in done.stderr
    assert site.state == state


def event(kind: str, package: object, repo: str = "origin") -> str:
    return json.dumps({"event": kind, "repo": repo, "package": package}) + "\n"


def consume(site: Site, given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HOOKS / "spk/consume.py"), "--repo", "origin", "--prefix", "grp", "--tries", "2"]
    return run(site, *command, "--pause", "0", "--config", str(site.config), given=given)


def test_spk(site: Site) -> None:
    site.make("brush/v1")
    site.make("brush/v2")
    done = consume(site, event("publish", "brush/v1/BUILD") + "\n" + event("publish", "brush/v2", repo="tmp"))
    assert (done.returncode, site.names()) == (0, {"paint/v1", "brush/v1"}), done.stderr
    site.remove("brush/v1")
    assert consume(site, event("delete", "brush/v1")).returncode == 0
    assert site.names() == {"paint/v1"}


def test_spk_events_that_are_none(site: Site) -> None:
    before = site.state
    hostile: list[Any] = ["../v1", "a/../v1", "a", "a/b/c/d", "", ["a/v1"], None, "a/v1\n", "-x/v1", "/etc/x"]
    lines = [*(event("publish", package) for package in hostile), "[" * 50_000 + "\n", "{\n", '"x"\n', "x" * 70_000]
    done = consume(site, "".join(lines))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert all("passed over" in line for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) >= len(lines)
    assert site.state == before
    site.make("brush/v1")
    done = consume(site, event("publish", "brush/v9") + event("publish", "brush/v1"))
    assert (done.returncode, site.names()) == (1, {"paint/v1", "brush/v1"}), "one that fails keeps back no other"


def test_container_entry(site: Site) -> None:
    """Where owners are not seen as they are, nothing is recorded."""
    entry, maps = HOOKS / "container/entrypoint.sh", site.top / "proc"
    maps.mkdir()
    site.make("paint/v2")
    before = site.state
    arguments = ["release", "--config", str(site.config), "grp/paint/v2"]
    for uids, gids, code in ((1, 0, 2), (0, 1, 2), (0, 0, 0)):
        for name, mapped in (("uid_map", uids), ("gid_map", gids)):
            (maps / name).write_text("         0     100000      65536\n" if mapped else "0 0 4294967295\n")
        assert run(site, entry, *arguments, MKMETA_PROC=str(maps)).returncode == code
        assert (site.state == before) == (code == 2)
