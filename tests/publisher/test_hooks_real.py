"""The hooks of examples/publish, called by real tools: rez, EasyBuild, which pip gets, and what npm has for pipelines.

GitLab's and GitHub's own runners need a server. gitlab-ci-local reads components as GitLab does, checks jobs against
its schema and runs them; action-validator has GitHub's schema of actions.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.publisher.sites import Site
from tests.publisher.test_hooks import HOOKS, environment, program, with_program

pytestmark = pytest.mark.slow

MODULECMD = """\
#!/bin/sh
# Stands in for Environment Modules: EasyBuild asks for its version, and adds to MODULEPATH.
for last; do :; done
case "$*" in
*--version*) echo 'Modules Release 5.3.0 (2023-05-14)' >&2 ;;
*use*) printf "import os\\nos.environ['MODULEPATH'] = '%s'\\n" "$last" ;;
esac
"""
EASYCONFIG = """\
easyblock = 'Tarball'
name = 'toy'
version = '{version}'
homepage = 'https://example.org'
description = 'A file.'
toolchain = SYSTEM
sources = ['toy-1.0.tar.gz']
sanity_check_paths = {{'files': ['{file}'], 'dirs': []}}
moduleclass = 'tools'
"""


def installed(top: Path, *packages: str) -> Path:
    """The programs of a virtual environment with some packages."""
    subprocess.run([sys.executable, "-m", "venv", str(top)], check=True)
    command = [str(top / "bin/pip"), "install", "-q", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot get {' '.join(packages)}")
    return top / "bin"


NODE_PACKAGES = ("gitlab-ci-local@4.52", "@action-validator/cli@0.6", "@action-validator/core@0.6")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of some npm packages; none of their install scripts is run."""
    top = tmp_path_factory.mktemp("node")
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--silent", "--prefix", str(top))
    done = subprocess.run(["npm", "install", *options, *NODE_PACKAGES], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot get {' '.join(NODE_PACKAGES)}")
    return top / "node_modules/.bin"


@pytest.fixture(scope="module")
def rez() -> Path:
    return Path(sys.executable).parent  # among the tests' own packages


@pytest.fixture(scope="module")
def easybuild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("easybuild"), "easybuild-framework", "easybuild-easyblocks")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that selects what the two make, and has published one release."""
    site = with_program(tmp_path)
    select(site)
    site.call("release", "-q")
    return site


def select(site: Site, more: str = "") -> None:
    line = 'select = ["grp/*/v*/lib", "rez/*/*", "software/*/*", "modules/*/*"]'
    site.configure(more)
    site.config.write_text(re.sub(r"(?m)^select = .*$", line, site.config.read_text()))


def recorded(site: Site) -> set[str]:
    """What is published, by its path."""
    listed = site.call("release", "-q").out  # nothing is new: the hook did all
    assert listed.strip() == site.pointer.id.hex()
    printed = subprocess.run(
        [str(program(site)), "ls", "-R", str(site.manifest)], capture_output=True, text=True, check=True
    )
    return set(printed.stdout.splitlines())


def rez_release(rez: Path, site: Site, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    source = site.top / "src" / name
    (source / "lib").mkdir(parents=True, exist_ok=True)
    (source / "lib/a.py").write_text(name)
    (source / ".stub").touch()
    command = "cp -r {root}/lib {install_path}/"
    (source / "package.py").write_text(f'name = "{name}"\nversion = "1.0"\nbuild_command = "{command}"\n')
    return subprocess.run(
        [str(rez / "rez-release"), "--vcs", "stub", "-m", "released"],
        cwd=source,
        env={
            **environment(site),
            "HOME": str(site.top),
            "REZ_CONFIG_FILE": str(site.top / "rezconfig.py"),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def configure_rez(site: Site, hooks: str) -> None:
    volume = site.volume / "rez"
    volume.mkdir(exist_ok=True)
    (site.top / "rezconfig.py").write_text(
        f'release_packages_path = "{volume}"\nlocal_packages_path = "{site.top}/local"\n'
        f"packages_path = [release_packages_path]\n{hooks}"
    )


def rez_forms(site: Site) -> dict[str, str]:
    """The two of the example, with the paths of here."""
    text = (HOOKS / "rez/rezconfig.py").read_text().replace("/etc/mkmeta/sw.toml", str(site.config))
    plugin, _, command = text.partition("# 2. ")
    command = re.sub(r"(?m)^# ?", "", command.partition("\n")[2]).replace('"mkmeta"', f'"{program(site)}"')
    return {"plugin": plugin.replace("/opt/mkmeta/share/rez", str(HOOKS / "rez")), "command": command}


@pytest.mark.needs("rez")
@pytest.mark.parametrize("form", ["plugin", "command"])
def test_rez(site: Site, rez: Path, form: str) -> None:
    configure_rez(site, rez_forms(site)[form])
    for number, name in enumerate(("paint", "brush", "canvas"), 2):
        done = rez_release(rez, site, name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert site.pointer.serial == number
    assert {f"rez/{name}/1.0/lib/a.py" for name in ("paint", "brush", "canvas")} <= recorded(site)
    before = site.state
    select(site, 'marker = "never"\n')
    done = rez_release(rez, site, "frame")
    assert done.returncode == 0, "the release stays one"
    warning = "not published by mkmeta (exit code 24)" if form == "plugin" else "command failed:"
    assert warning in done.stdout + done.stderr
    assert site.state == before
    if form == "plugin":
        done = rez_release(rez, site, "easel", MKMETA_MUST="1")
        assert done.returncode != 0
        assert "not published by mkmeta" in done.stderr + done.stdout
        assert "tags" not in (site.top / "src/easel/.stub").read_text()
        assert site.state == before


def eb(easybuild: Path, site: Site, version: str, file: str = "toy", **variables: str) -> tuple[int, str]:
    home = site.top / "modules"
    (home / "libexec").mkdir(parents=True, exist_ok=True)
    for tool in (home / "libexec/modulecmd.tcl", site.top / "bin/modulecmd.tcl"):
        tool.write_text(MODULECMD)
        tool.chmod(0o755)
    (site.top / "toy").write_text("toy")
    with tarfile.open(site.top / "toy-1.0.tar.gz", "w:gz") as tar:
        tar.add(site.top / "toy", "toy-1.0/toy")
    config = site.top / f"toy-{version}.eb"
    config.write_text(EASYCONFIG.format(version=version, file=file))
    options = ("--modules-tool=EnvironmentModules", "--module-syntax=Tcl", "--disable-rpath", f"--prefix={site.top}/eb")
    paths = (f"--installpath={site.volume}", f"--sourcepath={site.top}", f"--hooks={HOOKS}/easybuild/mkmeta_hooks.py")
    root = "--allow-use-as-root-and-accept-consequences"
    done = subprocess.run(
        [str(easybuild / "eb"), str(config), *options, *paths, root],
        cwd=site.top,
        env={
            **environment(site),
            "HOME": str(site.top),
            "MODULESHOME": str(home),
            "EB_PYTHON": str(easybuild / "python"),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_easybuild(site: Site, easybuild: Path) -> None:
    code, said = eb(easybuild, site, "1.0")
    assert code == 0, said
    expected = {"software/toy/1.0/toy", "software/toy/1.0/easybuild/toy-1.0.eb", "modules/all/toy/1.0"}
    assert site.pointer.serial == 2
    assert expected | {"modules/tools/toy/1.0"} <= recorded(site)
    before = site.state
    code, said = eb(easybuild, site, "2.0", file="no-such-file")
    assert (code != 0, site.state) == (True, before), "what failed is not published"
    select(site, 'marker = "never"\n')
    code, said = eb(easybuild, site, "3.0")
    assert (code != 0, site.state) == (True, before)
    assert "installed, but not published by mkmeta (exit code 24)" in said
    code, said = eb(easybuild, site, "4.0", MKMETA_MUST="0")
    assert (code, site.state) == (0, before), said
    assert "not published by mkmeta (exit code 24)" in said


def run_gitlab(node: Path, site: Site, project: Path, release: str) -> subprocess.CompletedProcess[str]:
    """A pipeline that includes the component, as its page says."""
    (project / ".gitlab-ci.yml").write_text(
        "stages: [deploy]\ninclude:\n  - local: templates/release.yml\n    inputs:\n"
        f"      path: {json.dumps(release)}\n      config: {json.dumps(str(site.config))}\n"
    )
    command = [str(node / "gitlab-ci-local"), "mkmeta-release"]
    variables = {"HOME": str(site.top), "GIT_CONFIG_GLOBAL": "/dev/null"}
    return subprocess.run(
        command, cwd=project, env=environment(site) | variables, capture_output=True, text=True, check=False
    )


def test_gitlab(site: Site, node: Path) -> None:
    project = site.top / "project"
    shutil.copytree(HOOKS / "gitlab", project)
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    subprocess.run([*git, "remote", "add", "origin", "git@example.org:tools/project.git"], check=True)
    site.make("paint/v2 $(touch gone)")
    done = run_gitlab(node, site, project, "grp/paint/v2 $(touch gone)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert site.pointer.serial == 2
    assert "grp/paint/v2 $(touch gone)/lib/m0.py" in recorded(site)
    assert not list(site.top.rglob("gone"))
    before = site.state
    select(site, 'marker = "never"\n')
    site.make("paint/v3")
    done = run_gitlab(node, site, project, "grp/paint/v3")
    assert done.returncode != 0
    assert "has no 'never', which 'marker' says a complete release has" in done.stdout + done.stderr
    assert site.state == before


def test_github(node: Path, tmp_path: Path) -> None:
    """As GitHub's schema has actions; what is not is refused, so that this says something."""
    action = (HOOKS / "github/action.yml").read_text()
    texts = {"good": action, "misspelt": action.replace("shell: bash", "shel: bash")}
    codes = {}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "action.yml").write_text(text)
        command = [str(node / "action-validator"), str(tmp_path / name / "action.yml")]
        codes[name] = subprocess.run(command, capture_output=True, check=False).returncode
    assert codes == {"good": 0, "misspelt": 1}
