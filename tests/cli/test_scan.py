"""`mkmeta scan` as users call it: what it prints, what it returns, what it leaves on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from tests.conftest import Mount


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    for release in ("a/v1", "a/v2", "b/v1"):
        (root / "grp" / release / "lib").mkdir(parents=True)
        (root / "grp" / release / "lib" / "module.py").write_text(release)
    return root


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "sw.mkm"


Capture = pytest.CaptureFixture[str]
Scan = Callable[..., int]


@pytest.fixture
def scan(volume: Path, output: Path) -> Scan:
    output.parent.mkdir()
    return lambda *options: main(["scan", str(volume), "-o", str(output), "-j", "1", *options])


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """A process of its own, for what needs one: signals, pipes, limits."""
    full = [sys.executable, "-m", "mkmeta", *map(str, command)]
    return subprocess.run(full, capture_output=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_id_is_the_last_line_of_stdout(scan: Scan, output: Path, capsys: Capture) -> None:
    assert scan() == 0
    printed = capsys.readouterr()
    with ManifestReader.open(str(output)) as reader:
        assert printed.out == reader.id.hex() + "\n"
        assert reader.info.root == os.fsencode(output.parent.parent / "volume")
        assert reader.info.counts["files"] == 3
    assert "recorded   12 entries" in printed.err
    assert os.listdir(output.parent) == ["sw.mkm"]


def test_quiet(scan: Scan, capsys: Capture) -> None:
    assert scan("-q") == 0
    printed = capsys.readouterr()
    assert (len(printed.out), printed.err) == (65, "")


def test_verbose_names_what_was_selected(scan: Scan, capsys: Capture) -> None:
    assert scan("-v", "--select", "grp/a/*/lib") == 0
    assert "recorded: grp/a/v2/lib: 2 entries" in capsys.readouterr().err


def test_json(scan: Scan, volume: Path, capsys: Capture) -> None:
    os.setxattr(volume / "grp/b/v1/lib", "user.overlay.opaque", b"y")
    assert scan("--json", "--select", "grp/*/v1", "--select", "no\udcff") == 3
    printed = capsys.readouterr()
    messages = [json.loads(line) for line in printed.out.splitlines()]
    assert [message["message_type"] for message in messages] == ["left_out", "unmatched", "summary"]
    assert messages[0]["path"] == "grp/b/v1" and "user.overlay.opaque" in messages[0]["reason"]
    assert messages[1]["pattern_b64"] == "bm//"
    assert messages[2]["files"] == 1 and messages[2]["left_out"] == 1 and len(messages[2]["id"]) == 64
    assert printed.err == ""


def test_what_was_taken_along_is_said(scan: Scan, volume: Path, output: Path, capsys: Capture) -> None:
    for path in (volume, *volume.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert scan() == 0
    assert "contents " not in capsys.readouterr().err
    (volume / "grp/b/v1/lib/module.py").write_bytes(b"x" * 1995)
    assert scan("--inline", "1K") == 0
    shares = "66 % of all files, as far as these are opened, 0 % of their bytes"
    line = f"contents   2 files are whole in layers (8 B): {shares}"
    assert line in capsys.readouterr().err.splitlines()
    assert main(["show", str(output)]) == 0
    assert line in capsys.readouterr().out.splitlines()
    (volume / "grp/a/v1/lib/module.py").chmod(0o600)
    again = ["--base", str(output), "--json"]
    for more, expected in (([], (1, 4)), (["--only", "grp/b"], (1, 4)), (["--inline", "2K"], (2, 1999))):
        assert scan(*again, *more) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (summary["inline"], summary["inline_bytes"]) == expected
    assert scan("--inline", "2K", "--select", "grp/a/v2") == 0
    assert "contents   1 file is whole in layers (4 B): 100 %" in capsys.readouterr().err
    assert scan("--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["inline"], summary["inline_bytes"]) == (0, 0)


def test_errors_as_json(scan: Scan, capsys: Capture) -> None:
    assert scan("--json", "--select", "nope") == 12
    message = json.loads(capsys.readouterr().out)
    assert (message["message_type"], message["code"]) == ("exit_error", 12)


def test_left_out_subtrees_are_named_and_exit_code_is_3(
    scan: Scan, volume: Path, output: Path, capsys: Capture
) -> None:
    os.setxattr(volume / "grp/b/v1/lib/module.py", "user.overlay.x", b"")
    assert scan("--select", "grp/*/v*") == 3
    assert "left out: grp/b/v1: grp/b/v1/lib/module.py: has the xattr" in capsys.readouterr().err
    with ManifestReader.open(str(output)) as reader:
        assert [path for path, _ in reader.info.left_out] == [b"grp/b/v1"]
        assert reader.find(b"grp/b") is None
    before = output.read_bytes()
    assert scan("--select", "grp/*/v*", "--on-error", "fail") == 13
    assert output.read_bytes() == before


def test_patterns_from_a_file_and_from_stdin(scan: Scan, volume: Path, output: Path, tmp_path: Path) -> None:
    patterns = tmp_path / "patterns"
    patterns.write_bytes(b"# two releases\r\n\n  grp/a/v1/lib\ngrp/a/v2/lib")
    assert scan("--select-from", str(patterns), "--select", "grp/b/v1/lib") == 0
    with ManifestReader.open(str(output)) as reader:
        assert reader.root.directory.entries == 12
        assert reader.info.select == (b"grp/b/v1/lib", b"grp/a/v1/lib", b"grp/a/v2/lib")
    result = run("scan", volume, "-o", "-", "--select-from", "-", input=b"grp/a/v1/lib\n")
    assert result.returncode == 0
    (tmp_path / "piped").write_bytes(result.stdout)
    with ManifestReader.open(str(tmp_path / "piped")) as reader:
        check(reader)
        assert result.stderr.decode().splitlines()[-1] == reader.id.hex()


BAD_CALLS = {
    "no such root": (["scan", "ROOT/nope", "-o", "OUT"], 1, "cannot be scanned: no such file or directory"),
    "root is a file": (["scan", "ROOT/grp/a/v1/lib/module.py", "-o", "OUT"], 1, "not a directory"),
    "absolute pattern": (["scan", "ROOT", "-o", "OUT", "--select", "/grp"], 2, "relative to ROOT"),
    "nothing matched": (["scan", "ROOT", "-o", "OUT", "--select", "x*"], 12, "no pattern matched anything"),
    "no patterns": (["scan", "ROOT", "-o", "OUT", "--select-from", "/dev/null"], 2, "hold no pattern"),
    "no pattern file": (["scan", "ROOT", "-o", "OUT", "--select-from", "ROOT/x"], 2, "patterns cannot be read"),
    "output inside": (["scan", "ROOT", "-o", "ROOT/grp/sw.mkm"], 2, "inside ROOT"),
    "output is a directory": (["scan", "ROOT", "-o", "/usr"], 2, "is a directory"),
    "no output directory": (["scan", "ROOT", "-o", "OUT/x/y"], 1, "cannot be written: "),
    "two things on stdout": (["scan", "ROOT", "-o", "-", "--json"], 2, "--json"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_get_one_clear_line(case: str, volume: Path, output: Path, capsys: Capture) -> None:
    output.parent.mkdir()
    call, code, message = BAD_CALLS[case]
    assert main([word.replace("ROOT", str(volume)).replace("OUT", str(output)) for word in call]) == code
    error = capsys.readouterr().err
    assert message in error.splitlines()[0]
    assert len(error.splitlines()) <= 2, "a line, and a hint"
    assert os.listdir(output.parent) == []


@pytest.mark.parametrize(
    "options", [["--digest", "md5"], ["-j", "0"], ["-j", "x"], ["--sel", "x"], ["--on-error", "x"]]
)
def test_bad_options_are_usage_errors(options: list[str], volume: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", str(volume), "-o", "x", *options])
    assert end.value.code == 2


def test_a_device_is_written_to_not_replaced(volume: Path) -> None:
    assert main(["scan", str(volume), "-o", "/dev/null", "-q"]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_link_to_the_manifest_stays(scan: Scan, output: Path) -> None:
    real = output.parent / "real.mkm"
    real.touch()
    output.symlink_to(real)
    assert scan() == 0
    assert output.is_symlink() and real.stat().st_size > 100


@pytest.mark.needs("root")
def test_full_disk(volume: Path, mount: Mount, capsys: Capture) -> None:
    small = mount("tmpfs", "size=64k")
    (small / "filler").write_bytes(bytes(60 << 10))
    old = small / "sw.mkm"
    old.write_bytes(b"old")
    assert main(["scan", str(volume), "-o", str(old), "-j", "1"]) == 1
    assert "cannot be written: no space left on device" in capsys.readouterr().err
    assert old.read_bytes() == b"old" and sorted(os.listdir(small)) == ["filler", "sw.mkm"]


def test_stdout_that_is_full(volume: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mkmeta", "scan", str(volume), "-o", "-"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert b"no space left on device" in result.stderr and b"Traceback" not in result.stderr


def _make_wide(volume: Path) -> None:
    for number in range(300):
        directory = volume / "wide" / f"d{number}"
        directory.mkdir(parents=True)
        for name in range(10):
            (directory / f"f{name}").write_text(f"{number} {name}")


def test_killed_at_any_time_leaves_the_old_manifest(scan: Scan, volume: Path, output: Path) -> None:
    _make_wide(volume)
    output.write_bytes(b"old")
    command = [sys.executable, "-m", "mkmeta", "scan", str(volume), "-o", str(output), "-q"]
    survivors = 0
    for step in range(12):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.05 * step)
        survivors += process.poll() is not None
        process.kill()
        process.wait()
        content = output.read_bytes()
        if content != b"old":
            with ManifestReader.open(str(output)) as reader:
                check(reader)
            output.write_bytes(b"old")
    assert survivors < 12
    deadline = time.monotonic() + 10
    while scan("-q") or len(os.listdir(output.parent)) > 1:  # workers of the last one killed may hold its lock a moment
        assert time.monotonic() < deadline, os.listdir(output.parent)
    with ManifestReader.open(str(output)) as reader:
        check(reader)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted(scan: Scan, volume: Path, output: Path, number: signal.Signals, code: int) -> None:
    os.mkfifo(volume / "patterns")
    command = [
        sys.executable,
        "-m",
        "mkmeta",
        "scan",
        str(volume),
        "-o",
        str(output),
        "--select-from",
        str(volume / "patterns"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    with (volume / "patterns").open("wb"):  # opens once it reads there, and waits for someone to write patterns
        for _ in range(20):  # Python misses one that comes when it is about to read, until it has
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=3)
                break
    assert process.returncode == code
    assert b"Traceback" not in errors and len(errors.splitlines()) == 1
    assert os.listdir(output.parent) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_started_with_a_signal_ignored(volume: Path, output: Path, number: signal.Signals) -> None:
    """As `nohup mkmeta ... &` is: it and its workers stay deaf to it, as every program must."""
    for entry in range(1000):
        (volume / f"grp/{entry}").touch()
    output.parent.mkdir()
    command: list[str | Path] = [sys.executable, "-m", "mkmeta", "scan", "-q", "-j2", volume, "-o", output]
    with _ignored(number):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        os.killpg(process.pid, number)
        time.sleep(0.01)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    with ManifestReader.open(str(output)) as reader:
        check(reader)


def test_started_without_news_of_children(volume: Path, output: Path, tmp_path: Path) -> None:
    """A program that ignores SIGCHLD hands that on, and the kernel then waits for the children of this one."""
    output.parent.mkdir()
    commands: list[tuple[int, list[str | Path]]] = [
        (0, ["scan", "-q", "-j", "2", volume, "-o", output]),
        (0, ["build", "-q", "-j", "2", output, tmp_path / "layer"]),
        (20, ["status", volume, "--run-dir", tmp_path]),
    ]
    for code, arguments in commands:
        with _ignored(signal.SIGCHLD):
            process = subprocess.Popen([sys.executable, "-m", "mkmeta", *arguments], stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, (arguments, errors)


@contextlib.contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_another_scan_to_the_same_file_is_not_disturbed(scan: Scan, output: Path) -> None:
    """Only leftovers nobody holds a lock on are removed."""
    import fcntl

    live, dead = (output.parent / f".sw.mkm.mkmeta-{name}" for name in ("live", "dead"))
    dead.touch()
    with live.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert scan("-q") == 0
    assert sorted(os.listdir(output.parent)) == [".sw.mkm.mkmeta-live", "sw.mkm"]


def test_memory_does_not_follow_the_tree(volume: Path, output: Path) -> None:
    """Four times the files, the same peak: nothing is kept per entry."""
    output.parent.mkdir()

    def peak() -> int:
        """KiB, of the largest process. Not ru_maxrss of the first one: it remembers the process that forked it."""
        script = """if True:
            import re, resource, sys
            from mkmeta.__main__ import main
            code = main(sys.argv[1:])
            own = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
            print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
            sys.exit(code)
        """
        command = [sys.executable, "-c", script, "scan", str(volume), "-o", str(output), "-q", "-j", "2"]
        return int(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])

    _make_wide(volume)
    small = peak()
    for copy in range(4):
        for number in range(300):
            directory = volume / f"wide{copy}" / f"d{number}"
            directory.mkdir(parents=True)
            for name in range(10):
                (directory / f"f{name}").touch()
    assert peak() < small + 4096
    assert small < 200 << 10
