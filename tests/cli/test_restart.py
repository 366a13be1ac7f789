"""What the environment has for other programs does not change this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# What Python and the script that pip makes have loaded when mkmeta begins is nobody's to keep out but the user's
NAMES = ("msgpack", "zstandard", "blake3", "tqdm", "argparse", "dataclasses", "json", "pickle", "socket", "typing")
PROGRAM = str(Path(sys.executable).with_name("mkmeta"))


def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A call as a user's shell makes it, without what the tests' own has for Python."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [PROGRAM, *args],
        env={**own, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("data\n")
    assert run("scan", "-q", tmp_path / "volume", "-o", tmp_path / "m.mkm").returncode == 0
    return tmp_path / "m.mkm"


@pytest.mark.parametrize("name", NAMES)
def test_modules_of_other_programs_are_not_taken_for_ours(tmp_path: Path, recorded: Path, name: str) -> None:
    (tmp_path / "theirs" / name).mkdir(parents=True)
    (tmp_path / "theirs" / name / "__init__.py").write_text("raise SyntaxError('for another Python')\n")
    done = run("ls", recorded, PYTHONPATH=f"/nowhere:{tmp_path / 'theirs'}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "file\n", "")


def test_the_exit_code_is_ours(recorded: Path) -> None:
    for environment in ({}, {"PYTHONINSPECT": "1"}, {"PYTHONINSPECT": "1", "PYTHONPATH": "/nowhere"}):
        assert run("ls", recorded, **environment).returncode == 0
        done = run("ls", recorded, "nothing", **environment)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), environment
        assert run("ls", **environment).returncode == 2


def test_where_it_is_found_through_pythonpath_alone_it_runs(recorded: Path) -> None:
    """As environment modules and packages of some kinds have it: all of it, or only what it needs."""
    site = next(Path(place) for place in sys.path if (Path(place) / "msgpack").is_dir())
    script = (
        "import sys; sys.argv[0] = 'mkmeta'; from mkmeta.__main__ import console_script; sys.exit(console_script())"
    )
    command = [sys._base_executable, "-c", script, "ls", str(recorded)]  # type: ignore[attr-defined]
    done = subprocess.run(command, env={"PYTHONPATH": f"{TOP}:{site}"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "file\n", "")
