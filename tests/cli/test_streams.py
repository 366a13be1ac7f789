"""Standard streams that are closed, full or gone, in any encoding: as a process of its own has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.cli.streams import _is_of_single_bytes

NAMES = [
    "plain",
    "I\u0307",
    "\u65e5\u672c",
    "\udcff",
    "\\xff",
    "\u00e9",
    "\udce9",
    "\\xc3\\xa9",
    "a\nb",
    "a\\x0ab",
    "\x1b[2J",
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("streams")
    (top / "volume/rel").mkdir(parents=True)
    for name in NAMES:
        (top / "volume/rel" / name).touch()
    for number in range(3000):
        (top / f"volume/rel/file{number}").symlink_to("nowhere")
    assert main(["scan", str(top / "volume"), "-o", str(top / "sw.mkm"), "-q"]) == 0
    return top / "sw.mkm"


def sh(script: str, manifest: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of sh with $MK and $M, a manifest, in a directory of its own."""
    names = {"MK": f"{sys.executable} -m mkmeta", "M": str(manifest), "V": str(manifest.parent / "volume")}
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
    done = subprocess.run(
        ["sh", "-c", script], cwd=manifest.parent, env=kept | names | environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_nothing_from_what_was_done(manifest: Path, closed: str) -> None:
    output = manifest.parent / "new.mkm"
    assert sh(f"$MK scan $V -o {output} {closed}", manifest).returncode == 0
    assert main(["show", "--check", str(output)]) == 0
    output.unlink()


def test_what_is_closed_is_named(manifest: Path) -> None:
    for verb in ("show $M", "ls $M", "dump $M", "explain $M rel"):
        done = sh(f"$MK {verb} >&-", manifest)
        assert done.returncode == 1 and b"standard output: is closed" in done.stderr
    done = sh("$MK ls - <&-", manifest)
    assert done.returncode == 1 and done.stderr == b"mkmeta: standard input: bad file descriptor\n"
    done = sh("$MK prune $M --drop rel/plain -o - >&-", manifest)
    assert done.returncode == 2 and b"standard output is closed" in done.stderr


@pytest.mark.parametrize(
    "verb", ["ls -lR $M", "dump $M", "dump --json $M", "diff -R $M other.mkm", "--help", "ls --help"]
)
def test_a_reader_that_goes(manifest: Path, verb: str) -> None:
    if not (manifest.parent / "other.mkm").exists():
        (manifest.parent / "other").mkdir()
        (manifest.parent / "other/x").touch()
        assert main(["scan", str(manifest.parent / "other"), "-o", str(manifest.parent / "other.mkm"), "-q"]) == 0
    done = sh(f"$MK {verb} | head -c 1", manifest)
    assert len(done.stdout) == 1 and done.stderr == b""
    done = sh(f"{{ $MK {verb}; echo $? >&2; }} | true", manifest)
    assert int(done.stderr) in (0, 4, 128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    "verb", ["ls $M", "ls --json $M", "dump $M", "show $M", "show --json $M", "--version", "scan --help"]
)
def test_a_full_disk(manifest: Path, verb: str) -> None:
    done = sh(f"$MK {verb} >/dev/full", manifest)
    assert done.returncode == 1 and done.stderr == b"mkmeta: standard output: no space left on device\n"


def test_a_full_stderr_is_no_reason_to_fail(manifest: Path) -> None:
    assert sh("$MK scan $V -o new2.mkm 2>/dev/full", manifest).returncode == 0


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONIOENCODING": "shift_jis"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"PYTHONIOENCODING": "utf-16"},
    ],
    ids=str,
)
def test_in_any_encoding_no_two_names_are_alike(manifest: Path, environment: dict[str, str]) -> None:
    done = sh("$MK ls $M rel", manifest, **environment)
    assert done.returncode == 0, done.stderr
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    lines = done.stdout.decode(encoding).splitlines()
    assert len(lines) == len(set(lines)) == len(NAMES) + 3000
    assert all(line.isprintable() for line in lines)
    assert (
        sh("$MK ls -l $M nothing-\u65e5-\x1b[2J; $MK \u65e5\x1b[2J", manifest, **environment).stderr.count(b"\x1b") == 0
    )


def test_an_argument_means_the_bytes_it_is(manifest: Path) -> None:
    """Also where Python would decode it by an encoding that knows no such letters."""
    for environment in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = sh("$MK ls --json $M \"rel/$(printf '\\351')\"", manifest, **environment)
        assert json.loads(done.stdout)["path_b64"] == "cmVsL+k="


def test_streams_by_their_other_names(manifest: Path) -> None:
    expected = sh("$MK ls $M", manifest).stdout
    for script in (
        "$MK ls - <$M",
        "$MK ls /dev/stdin <$M",
        "cat $M | $MK ls /dev/stdin",
        "cat $M | $MK ls /dev/fd/0",
        "exec 5<$M; $MK ls /dev/fd/5",
        "cat $M | $MK ls /dev/fd/6 6<&0",
        "$MK prune $M --drop rel/plain -o /dev/stdout | $MK ls -",
        "$MK prune $M --drop rel/plain -o - >>appended; $MK ls appended",
        "echo rel | $MK scan $V -q --select-from /dev/stdin -o - | $MK ls -",
        "$MK scan $V -q -o /dev/fd/7 7>seven >/dev/null 2>&1; $MK ls seven",
        "{ $MK scan $V -q -o /dev/fd/7 7>&1 >/dev/null | $MK ls -; }",
    ):
        done = sh(script, manifest)
        assert done.stdout == expected, (script, done)


def test_which_encodings_have_one_spelling() -> None:
    assert [name for name in ("latin-1", "cp1252", "koi8-r", "cp037") if not _is_of_single_bytes(name)] == []
    assert [name for name in ("big5", "shift_jis", "euc-jp", "gb18030", "euc-kr") if _is_of_single_bytes(name)] == []


def test_interrupted_while_it_scans(manifest: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkmeta",
        "scan",
        "/usr",
        "--digest",
        "none",
        "-o",
        str(manifest.parent / "all.mkm"),
    ]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any(name.startswith(".all.mkm") for name in os.listdir(manifest.parent)):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and err == b"mkmeta: interrupted\n"
    message = json.loads(out.splitlines()[-1])
    assert (message["message_type"], message["verb"], message["code"]) == ("exit_error", "scan", 130)


def test_usage_errors_are_messages(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ["ls", "--json"],
        ["ls", "--json", "--nothing", "m"],
        ["nothing", "--json"],
        ["show", "m", "n", "--json"],
    ):
        with pytest.raises(SystemExit):
            main(argv)
        message = json.loads(capsys.readouterr().out)
        verb = argv[0] if argv[0] != "nothing" else None
        assert (message["message_type"], message["code"], message["verb"]) == ("exit_error", 2, verb)
