"""`mkmeta verify` as it is called: stores and generations, output, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.errors import ExitCode
from tests.host.hosts import Host, host_in

pytestmark = pytest.mark.needs("root", "trusted xattrs")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host on which nothing is mounted, so that nothing need be unmounted."""
    return next(host_in(tmp_path / "host"))


def call(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, list[str], str]:
    before = os.getcwd()
    try:
        code = main(["verify", *map(str, args)])
    except SystemExit as usage:
        code = int(str(usage.code))
    finally:
        os.chdir(before)
    seen = capsys.readouterr()
    return code, seen.out.splitlines(), seen.err


def generation(host: Host) -> Path:
    return Path(os.path.realpath(host.store / "current"))


def test_a_store_a_generation_and_its_layer_are_the_same(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    (generation(host) / "layer/grp/paint/v1/lib/one").chmod(0o600)
    line = "layer: grp/paint/v1/lib/one: mode is 0600 instead of 0644"
    for name in (host.store, host.store / "current", generation(host), generation(host) / "layer"):
        assert call(capsys, name)[:2] == (4, [line]), name


def test_nothing_to_say(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, host.store, "--lower", host.volume, "--data")
    assert (code, out) == (0, [])
    assert "all as recorded" in err and "data of 2 files by reading 25 B" in err
    assert call(capsys, host.store, "-q") == (0, [], "")


def test_a_layer_outside_of_a_store(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = host.top / "sw.mkm"
    options = ["--redirect-prefix", "some/where", "--no-verity"]
    assert main(["build", str(manifest), str(tmp_path / "layer"), *options]) == 0
    assert main(["build", str(manifest), str(tmp_path / "user"), "--userxattr"]) == 0
    capsys.readouterr()
    assert call(capsys, tmp_path / "layer", "--manifest", manifest, *options)[0] == 0
    assert call(capsys, tmp_path / "user", "--manifest", manifest)[0] == 0, "the root says which namespace"
    assert call(capsys, tmp_path / "layer", "--manifest", manifest)[0] == 4
    code, _, err = call(capsys, tmp_path / "layer")
    assert code == 2 and "--manifest" in err
    code, _, err = call(capsys, host.store, "--no-verity")
    assert code == 2 and "a generation says itself" in err


@pytest.mark.parametrize("option", [["--data"], ["--sample", "5%"], ["--lower", ".", "--data", "--seed", "x"]])
def test_options_that_do_not_go_together(host: Host, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert call(capsys, host.store, *option)[0] == ExitCode.USAGE


@pytest.mark.parametrize("share", ["0", "101%", "-1", "five", "nan", "1e3"])
def test_shares_that_are_none(host: Host, capsys: pytest.CaptureFixture[str], share: str) -> None:
    assert call(capsys, host.store, "--lower", host.volume, "--data", f"--sample={share}")[0] == ExitCode.USAGE


def test_many_findings_are_grouped_by_subtree(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.release("v2", {f"lib/{number:02}": "x" for number in range(30)})
    host.publish()
    for path in (host.volume / "grp/paint/v2/lib").iterdir():
        path.chmod(0o600)
    (host.volume / "grp/paint/v1/bin/tool").chmod(0o600)
    code, out, err = call(capsys, host.store, "--lower", host.volume)
    assert code == 4
    assert out == [
        "volume: grp/paint/v1/bin/tool: mode is 0600 instead of 0755",
        *(f"volume: grp/paint/v2/lib/{number:02}: mode is 0600 instead of 0644" for number in range(10)),
        "grp/paint/v2: 20 findings more; --all prints them",
    ]
    assert "31 findings in 2 subtrees" in err
    code, out, _ = call(capsys, host.store, "--lower", host.volume, "--all", "-j", "3")
    assert (code, len(out)) == (4, 31) and out == sorted(out)
    code, out, _ = call(capsys, host.store, "--lower", host.volume, "--json")
    *messages, summary = map(json.loads, out)
    assert (code, len(messages)) == (4, 31)
    assert messages[-1] == {
        "message_type": "finding",
        "side": "volume",
        "path": "grp/paint/v2/lib/29",
        "what": "mode",
        "message": "mode is 0600 instead of 0644",
        "subtree": "grp/paint/v2",
    }
    assert (summary["findings"], summary["subtrees"]) == (31, 2)


def test_what_makes_it_impossible(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, host.store, "--lower", tmp_path / "no")
    assert code == 1 and "cannot be opened" in err
    (tmp_path / "empty").mkdir()
    assert main(["scan", str(host.volume), "--select", "notes", "-o", str(tmp_path / "other.mkm")]) == 0
    other = tmp_path / "other.mkm"
    shutil.copy(other, generation(host) / "manifest.mkm")
    assert call(capsys, host.store)[0] == ExitCode.ID_MISMATCH
    (generation(host) / "manifest.mkm").write_bytes(b"no manifest")
    assert call(capsys, host.store)[0] == ExitCode.BAD_MANIFEST
    shutil.rmtree(generation(host))
    assert call(capsys, host.store)[0] == ExitCode.FAILED


def test_a_generation_that_was_written_to_says_so(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    (generation(host) / "written").touch()
    assert "was mounted writable" in call(capsys, host.store)[2]


@pytest.mark.needs("setpriv")
def test_who_cannot_see_trusted_xattrs_is_told(host: Host) -> None:
    for path in (host.top, *host.top.parents):
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    command = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", sys.executable, "-m", "mkmeta"]
    top = Path(__file__).parents[2]
    command += ["verify", str(host.store)]
    for closed in ("manifest.mkm", "private"):
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=top)
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        assert ("is for the store's owner and root" in result.stderr) == (closed == "manifest.mkm"), result.stderr
        (generation(host) / closed).chmod(0o755)
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=top)
    assert (result.returncode, result.stdout) == (1, ""), result.stderr
    assert "shown to root only" in result.stderr
