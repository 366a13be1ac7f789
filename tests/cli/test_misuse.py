"""What is typed by mistake: each gets a line that says what and where, mostly one that says what to do, and a code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.cli.parser import VERBS

MISUSE = """\
scan | 2 | required: ROOT, -o/--output
scan nothing -o x.mkm | 1 | nothing: cannot be scanned: no such file or directory
scan text -o x.mkm | 1 | text: cannot be scanned: not a directory
scan fifo -o x.mkm | 1 | fifo: cannot be scanned: not a directory
scan empty.d -o x.mkm | 12 | has nothing in it to record
scan vol -o dir | 2 | dir: is a directory
scan vol -o new/ | 2 | new/ names a directory: add the name of a file
scan vol -o vol/x.mkm | 2 | the manifest would lie inside ROOT
scan vol -o nothing/x.mkm | 1 | make its directory first
scan vol -o text/x.mkm | 1 | cannot be written: not a directory
scan vol -o /dev/full | 1 | /dev/full: cannot be written: no space left on device
scan vol -o x.mkm --select-from nothing | 2 | nothing: patterns cannot be read
scan vol -o x.mkm --select-from dir | 2 | dir: patterns cannot be read: is a directory
scan vol -o x.mkm --select-from none | 2 | the pattern files hold no pattern
scan vol -o x.mkm --select-from /dev/zero | 2 | no list of patterns
scan vol -o x.mkm --base nothing | 1 | nothing: no such file or directory
scan vol -o x.mkm --base text | 10 | text: header: this is not a mkmeta manifest
scan vol -o x.mkm --base dir | 1 | STORE/generations
scan vol -o x.mkm --base fifo | 1 | fifo: is a pipe
scan vol -o x.mkm --only rel | 2 | --only goes with --base
scan vol -o x.mkm --digest md5 | 2 | use verity,blake3
scan vol -o x.mkm -j -1 | 2 | is not a number of workers, from 1 to
scan vol -o x.mkm -j ٣ | 2 | is not a number of workers, from 1 to
scan vol -o x.mkm --on-error fial | 2 | did you mean fail?
scan vol -o x.mkm --select /rel | 2 | leave out the slash, and ROOT
scan vol -o x.mkm --select ../x | 2 | '../x' has a '..'
scan vol -o x.mkm --select {a,b} | 2 | write \\{ for a { in a name
scan vol -o x.mkm --hide [a | 2 | has a [ without a ]
scan vol -o x.mkm --select -x | 2 | write --select=-x if that is a value of --select
scan vol -o x.mkm --slect rel | 2 | did you mean --select?
scan vol -o x.mkm -Z | 2 | there is no option -Z
scan vol -o | 2 | expected one argument
scan vol -o=-- | 2 | '--' is no value of -o
scan vol -o-- | 2 | write ./-- for a file of that name
scan vol --base=-- -o x.mkm | 2 | '--' is no value of --base
deactivate dir --config=-- | 2 | '--' is no value of --config
scan vol vol -o x.mkm | 2 | there is nothing to do with the last of the arguments: vol
build | 2 | required: MANIFEST
build m.mkm | 2 | name either DEST or --store
build nothing new | 1 | nothing: no such file or directory
build dir new | 1 | dir: is a directory
build text new | 10 | this is not a mkmeta manifest
build fifo new | 1 | fifo: is a pipe
build m.mkm dir | 1 | dir: exists
build m.mkm text | 1 | text: exists and is not a directory
build m.mkm / | 1 | is not the name of a directory that can be made
build m.mkm new --store store | 2 | name either DEST or --store
build m.mkm --store text | 1 | text: cannot be made: not a directory
build m.mkm --store vol | 1 | vol: is no store and not empty
build m.mkm new --expect-id abc | 2 | 'abc' is not an ID of 64 hexadecimal digits
build m.mkm new --redirect-prefix '' | 2 | was a variable not set?
build m.mkm new --discard | 2 | --discard goes with --swap
build m.mkm new --base nothing | 1 | --base cannot be opened
build m.mkm new --format tar | 2 | 'tar' is not one of directory, erofs, composefs
build m.mkm new --format dir | 2 | did you mean
build m.mkm new -j 1000000 | 2 | is not a number from 1 to
build m.mkm --store new --wait 5y | 2 | '5y' is not a time span
show nothing | 1 | nothing: no such file or directory
show dir | 1 | dir: is a directory
show fifo | 1 | have it on standard input
show /dev/null | 10 | this is not a mkmeta manifest
show m.mkm m.mkm | 2 | show: there is nothing to do with the last of the arguments
show store | 1 | STORE/generations
ls m.mkm nothing | 1 | nothing: not in this manifest
ls m.mkm rel/f/x | 1 | rel/f/x: not in this manifest
ls vol | 1 | vol: is a directory, and no store
ls store rel | 2 | PATH goes with a manifest
dump m.mkm ../x | 1 | not in this manifest
diff m.mkm | 2 | required: B
diff - - | 2 | standard input cannot be both sides
diff m.mkm store --stat -R | 2 | not allowed with argument
explain m.mkm | 2 | required: PATH
explain m.mkm .. | 2 | a PATH cannot contain '..'
explain vol rel | 2 | name the manifest instead
verify nothing | 2 | nothing: there is no such layer
verify vol | 2 | vol: is no generation of a store
verify m.mkm | 2 | m.mkm: is no layer
verify text --manifest m.mkm | 2 | text: is no layer
verify none --manifest m.mkm | 2 | none: is no layer
verify fifo --manifest m.mkm | 2 | fifo: is no layer
verify store --sample 5% | 2 | --sample goes with --data
verify store --data | 2 | name it with --lower
verify store --lower vol --data --sample 500% | 2 | '500%' is not a share
merge m.mkm | 2 | required: -o/--output
merge m.mkm text -o x.mkm | 10 | text: header
merge - - -o x.mkm | 2 | standard input can be one of the manifests
prune m.mkm -o x.mkm | 2 | required: --drop
prune m.mkm --drop nothing -o x.mkm | 12 | no pattern matched anything
prune m.mkm --drop * -o x.mkm | 1 | nothing would be left
prune m.mkm --drop {a,b} -o x.mkm | 2 | has braces
publish m.mkm --pointer p | 1 | m.mkm: is no store, which is a directory
publish vol --pointer p | 1 | vol: is no store
publish store --pointer p --generation 99999999999999999999 | 2 | is not the number of a generation
activate store dir --profile nestd | 2 | did you mean nested?
activate store dir --verity maybe | 2 | 'maybe' is not one of off, on, require
activate store dir --generation x | 2 | 'x' is not a whole number
activate store dir -o rw | 2 | mount option rw: not one of
rollback dir --to 1.5 | 2 | '1.5' is not a whole number
gc store --keep 0 | 2 | from 1 to 1,000,000
gc store --min-age nan | 2 | 'nan' is not a time span
gc store --pace 2 | 2 | '2' is not a share
gc text | 1 | text: is no store, which is a directory
gc nothing | 1 | nothing: there is no such directory
suggest nothing | 1 | nothing: no such file or directory
observe --from starce x -o y | 2 | did you mean strace?
"""
ROWS = [tuple(cell.strip() for cell in line.split(" | ", 2)) for line in MISUSE.splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one of everything."""
    for name in ("vol/rel", "dir/sub", "empty.d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "vol/rel/f").write_text("x")
    (tmp_path / "text").write_text("no manifest at all")
    (tmp_path / "none").touch()
    os.mkfifo(tmp_path / "fifo")
    assert main(["scan", str(tmp_path / "vol"), "-o", str(tmp_path / "m.mkm"), "-q", "-j", "1"]) == 0
    assert main(["build", str(tmp_path / "m.mkm"), "--store", str(tmp_path / "store"), "--userxattr", "-q"]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.needs("user xattrs")
def test_misuse_gets_a_kind_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(place))
    capsys.readouterr()
    unkind = []
    for call, code, line in ROWS:
        try:
            got = main(shlex.split(call))
        except SystemExit as end:
            got = int(str(end.code))
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        kind = lines and len(lines) <= 3 and all(one.startswith("mkmeta: ") for one in lines) and not captured.out
        if str(got) != code or line not in captured.err or not kind or "usage:" in captured.err:
            unkind.append((call, got, captured.err))
        assert Path.cwd() == place, call
    assert unkind == []
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_knows_what_it_has_not(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([verb, "--verbos"], [verb, "--no-such-thing"], [verb, "-q", "--jsno"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        captured = capsys.readouterr()
        assert end.value.code == 2 and not captured.out
        assert re.match(rf"mkmeta: {verb}: there is no option --\S+\nmkmeta: .*\n$", captured.err)
        assert ("did you mean" in captured.err) == ("such" not in argv[1])


def test_verbs_that_there_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["sacn"], "did you mean scan?"),
        (["\x1b[2J"], "\\x1b[2J"),
        (["--json", "scan"], "mkmeta scan --json"),
    ):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([])
    captured = capsys.readouterr()
    assert end.value.code == 2 and "`mkmeta VERB --help`" in captured.err


@pytest.mark.parametrize("call", ["scan . -o {}/x.mkm", "scan {}/vol -o x.mkm", "scan {}/vol -o {}/x.mkm"])
def test_a_working_directory_that_is_gone(place: Path, call: str) -> None:
    """Is said where something is relative to it, and otherwise does not matter."""
    (place / "gone").mkdir()
    script = f'cd "$1/gone"; rmdir "$1/gone"; exec "$2" -m mkmeta {call.replace("{}", "$1")}'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["sh", "-c", script, "-", str(place), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if call.count("{}") == 2:
        assert done.returncode == 0, done.stderr
    else:
        gone = "mkmeta: the working directory is gone\nmkmeta: call it from another one\n"
        assert (done.returncode, done.stderr) == (1, gone)


@pytest.mark.needs("user xattrs")
def test_arguments_may_come_in_any_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "m.mkm", "--userxattr", "layer", "-q"]) == 0
    capsys.readouterr()
    for argv in (["ls", "m.mkm", "-R", "rel"], ["ls", "-R", "m.mkm", "--", "rel"], ["ls", "m.mkm", "-qR", "rel"]):
        assert main(argv) == 0
        assert capsys.readouterr().out == "f\n"
    assert main(["scan", "-qj1", "vol", "-o", "x.mkm", "--select=rel"]) == 0


@pytest.mark.needs("user xattrs")
def test_a_store_is_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["ls", "store"]) == 0
    assert re.fullmatch(r"000001-[0-9a-f]{12} \S+Z +2 entries directory current\n", capsys.readouterr().out)
    assert main(["explain", "store", str(place / "vol/rel/f")]) == 0
    assert capsys.readouterr().out.startswith("rel/f: file")


@pytest.mark.needs("root", "setpriv")
def test_an_ordinary_user(place: Path) -> None:
    """No traceback, and a word on what may be done."""
    for directory in [place, *place.parents][:4]:
        directory.chmod(directory.stat().st_mode | 0o055)
    (place / "m.mkm").chmod(0o644)
    (place / "closed.mkm").write_text("")
    (place / "closed.mkm").chmod(0)
    tops = [Path(sys.prefix), *Path(sys.prefix).parents, Path(__file__).parents[2]]
    if not all(top.stat().st_mode & 0o005 == 0o005 for top in tops):
        pytest.skip("this Python is not for everybody")
    for call, said in (
        ("scan vol -o x.mkm", "x.mkm: cannot be written: permission denied"),
        ("show closed.mkm", "closed.mkm: permission denied"),
        ("build m.mkm layer", "layer: cannot be created: permission denied"),
        ("gc store", "permission denied"),
        ("verify store", "run this as one of them"),
    ):
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "mkmeta"]
        done = subprocess.run([*user, *call.split()], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, (call, done.stderr)


@pytest.mark.parametrize("call", ["scan vol -o x.mkm -j 2", "build m.mkm layer --userxattr", "merge {} -o x.mkm"])
def test_too_few_open_files_are_said(place: Path, call: str) -> None:
    """At each limit it works, or says that it takes more; what it could not take away goes with the next."""
    shards = []
    for number in range(40):
        shards.append(f"shard{number}.mkm")
        (place / shards[-1]).write_bytes((place / "m.mkm").read_bytes())
    before = set(os.listdir(place))
    argv = call.format(" ".join(shards)).split()
    code = (
        "import resource, sys; limit = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_NOFILE, (limit,) * 2)"
    )
    code += "; from mkmeta.__main__ import main; sys.exit(main())"
    worked = []
    for limit in (7, 12, 200):
        command = [sys.executable, "-c", code, str(limit), *argv]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        worked.append(done.returncode == 0)
        if not worked[-1]:
            assert (done.returncode, "Traceback" in done.stderr) == (1, False), (limit, done.stderr)
            assert "too many open files (ulimit -n)" in done.stderr, (limit, done.stderr)
            assert all(".mkmeta-" in name for name in before ^ set(os.listdir(place))), limit
    assert (worked[0], worked[-1]) == (False, True)
    assert before ^ set(os.listdir(place)) in ({"x.mkm"}, {"layer"})
