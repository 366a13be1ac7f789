"""`import mkmeta`: its page's examples, and that it costs the command line nothing."""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mkmeta
from mkmeta.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture
def manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifests of the page, in the working directory."""
    monkeypatch.chdir(tmp_path)
    release = tmp_path / "volume" / "grp" / "v1"
    release.mkdir(parents=True)
    (release / "tool").write_text("first\n")
    (release / "tool").chmod(0o644)
    (release / "link").symlink_to("tool")
    os.utime(release / "tool", ns=(0, 0))
    os.utime(release, ns=(0, 0))
    assert main(["scan", "volume", "--select", "grp/*", "-o", "sw.mkm", "-q"]) == 0
    (release / "tool").write_text("second\n")
    (release / "new").touch()
    assert main(["scan", "volume", "--select", "grp/*", "-o", "later.mkm", "-q"]) == 0
    shutil.copy(PAGE, "api.md")


@pytest.mark.usefixtures("manifests")
def test_the_examples_of_the_page() -> None:
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert found.attempted > 15
    assert found.failed == 0


@pytest.mark.usefixtures("manifests")
def test_a_plan_is_what_is_built() -> None:
    assert main(["build", "sw.mkm", "layer", "--userxattr", "-q"]) == 0
    with mkmeta.open_manifest(Path("sw.mkm")) as manifest:
        for path, planned in manifest.plan(mkmeta.Plan(userxattr=True)):
            where = os.path.join(b"layer", path)
            if not isinstance(planned.inode, mkmeta.Symlink):
                there = {os.fsencode(name): os.getxattr(where, name) for name in os.listxattr(where)}
                assert there == dict(planned.xattrs)
        assert [path for path, _ in manifest.plan()] == [path for path, _ in manifest.walk()]
        with pytest.raises(KeyError):
            manifest.list(b"grp/v1/tool")


def test_all_is_there() -> None:
    assert all(getattr(mkmeta, name) is not None for name in mkmeta.__all__)
    assert set(mkmeta.__all__) <= set(dir(mkmeta))
    with pytest.raises(AttributeError):
        mkmeta.no_such_name  # noqa: B018


def test_it_is_imported_when_it_is_used() -> None:
    code = "import sys, mkmeta; assert not [name for name in sys.modules if name.startswith('mkmeta.')]; mkmeta.diff"
    subprocess.run([sys.executable, "-c", code], check=True)
