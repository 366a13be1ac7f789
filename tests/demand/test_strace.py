"""What strace prints, of every form, and strace itself as the oracle."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mkmeta.demand.importers.strace import StraceImporter, survey, unescape
from mkmeta.demand.importing import import_files
from mkmeta.demand.profile import Row, Source
from mkmeta.demand.tally import Tally


def imported(text: str | bytes, cwd: bytes | None = None, root: bytes = b"/sw") -> tuple[dict[bytes, Row], Tally]:
    tally = Tally([root])
    raw = text if isinstance(text, bytes) else text.encode()
    StraceImporter(tally, cwd).read(io.BytesIO(raw))
    return {row.path: row for row in tally.rows() if not row.is_file}, tally


LENGTH = 256 << 10
MISSES = {
    "plain": 'openat(AT_FDCWD, "/sw/a/x", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)',
    "-f": '77 openat(AT_FDCWD, "/sw/a/x", O_RDONLY) = -1 ENOENT (No such file or directory)',
    "-f to a terminal": '[pid    77] stat("/sw/a/x", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "-tt": '77 12:34:56.123456 access("/sw/a/x", F_OK) = -1 ENOENT (No such file or directory)',
    "-ttt": '77 1700000000.123456 access("/sw/a/x", F_OK) = -1 ENOENT (No such file or directory)',
    "-r": '     0.000123 lstat("/sw/a/x", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "-T": 'execve("/sw/a/x", ["x"], 0x7 /* 20 vars */) = -1 ENOENT (No such file or directory) <0.000012>',
    "-i -n": '[00007f0c8a5a1b3d] [ 257] openat(AT_FDCWD, "/sw/a/x", O_RDONLY) = -1 ENOENT (No such file or directory)',
    "-y": '77 statx(AT_FDCWD</home/u>, "/sw/a/x", 0, 0, 0x7f) = -1 ENOENT (No such file or directory)',
    "-y, a descriptor": '77 newfstatat(3</sw/a>, "x", 0x7f, 0) = -1 ENOENT (No such file or directory)',
    "-y, relative": '77 readlink("x", 0x7f, 10) = -1 ENOENT (No such file or directory)',
    "octal": r'stat("/sw/\141/x", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "-xx": r'stat("\x2f\x73\x77\x2f\x61\x2f\x78", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "up": 'stat("/sw/b/../a/./x", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "slashes": 'stat("/sw//a///x", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "unfinished": '7 stat("/sw/a/x",  <unfinished ...>\n8 getpid() = 8\n7 <... stat resumed>0x7f) = -1 ENOENT (x)',
    "unfinished, of old": '7 open("/sw/a/x", O_RDONLY <unfinished ...>\n7 <... open resumed> )       = -1 ENOENT (x)',
    "-Y": '77<perl> openat(AT_FDCWD, "/sw/a/x", O_RDONLY) = -1 ENOENT (No such file or directory)',
    "-Y to a terminal": '[pid 77<a b>] readlink("x", 0x7f, 10) = -1 ENOENT (No such file or directory)',
    "-r -tt": '77 17:25:24.168196 (+     0.000523) access("/sw/a/x", R_OK) = -1 ENOENT (No such file or directory)',
    "a slash at its end": 'stat("/sw/a/x//", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "a dot at its end": 'stat("x/.", 0x7ffe) = -1 ENOENT (No such file or directory)',
    "chdir": 'chdir("/sw/a/x") = -1 ENOENT (No such file or directory)',
    "unlink": 'unlink("x") = -1 ENOENT (No such file or directory)',
    "rename": 'renameat2(AT_FDCWD, "/sw/a/x", AT_FDCWD, "/sw/b/y", 0) = -1 ENOENT (No such file or directory)',
    "inotify": 'inotify_add_watch(5<anon_inode:inotify>, "x", IN_CREATE) = -1 ENOENT (No such file or directory)',
    "in a root": 'openat2(4</sw>, "/a/x", {flags=O_RDONLY, resolve=RESOLVE_IN_ROOT}, 24) = -1 ENOENT (No such file)',
    "words": 'execve("/sw/a/x", [") = 0", "= -1 ENOENT "], 0x7 /* 1 var */) = -1 ENOENT (No such file or directory)',
    "unfinished, no more": '7 openat(AT_FDCWD, "/sw/a/x", 0 <unfinished ...>\n7 <... openat resumed>) = -1 ENOENT (x)',
}


@pytest.mark.parametrize("text", MISSES.values(), ids=MISSES)
def test_a_miss(text: str) -> None:
    found, tally = imported(text + "\n", cwd=b"/sw/a")
    assert found == {b"a": Row(b"a", misses=1, first_misses=1)}
    assert not +tally.lost


def test_calls_by_kind() -> None:
    found, tally = imported(
        'execve("/sw/a/tool", ["tool"], 0x7 /* 2 vars */) = 0\n'
        'openat(AT_FDCWD, "/sw/a/lib", O_RDONLY|O_CLOEXEC) = 3\n'
        'openat(AT_FDCWD, "/sw/a/lib", O_RDONLY|O_CLOEXEC) = 3</sw/a/lib> <0.1>\n'
        'newfstatat(3, "", {st_mode=S_IFREG|0755, st_size=1, ...}, AT_EMPTY_PATH) = 0\n'
        'stat("/sw/a/lib", {st_mode=S_IFREG|0755, st_size=1, ...}) = 0\n'
        'readlink("/sw/a/link", "lib", 100) = 3\n'
        'openat(AT_FDCWD, "/sw/a", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 3\n'
        'openat(AT_FDCWD, "/sw/b/log", O_WRONLY|O_CREAT|O_APPEND, 0666) = 3\n'
        'rename("/sw/c/one", "/sw/d/two") = 0\n'
        'symlink("/sw/x/target", "/sw/e/link") = 0\n'
        'mkdir("/sw/a/new", 0777) = -1 EEXIST (File exists)\n'
        'open("/sw/a/b/c", O_RDONLY) = -1 ENOTDIR (Not a directory)\n'
        'open("/etc/passwd", O_RDONLY) = 3\n'
        "open(0x7ff, O_RDONLY) = -1 EFAULT (Bad address)\n"
        "+++ exited with 0 +++\n"
    )
    assert found.pop(b"a") == Row(b"a", 0, 2, 3, 1, 0, 0, 1, 2, known_listings=1)
    assert found == {path: Row(path, writes=1) for path in (b"b", b"c", b"d", b"e")}
    assert tally.outside == 1 and not +tally.lost
    assert sorted(row for row in tally.rows() if row.is_file) == [
        Row(b"a/lib", opens=2, first_opens=2, is_file=True),
        Row(b"a/tool", opens=1, first_opens=1, is_file=True),
    ]


def test_working_directories() -> None:
    miss = '"x", O_RDONLY) = -1 ENOENT (No such file or directory)'
    found, tally = imported(
        f"1 openat(AT_FDCWD, {miss}\n"
        '1 chdir("one") = 0\n'
        f"1 openat(AT_FDCWD, {miss}\n"
        "1 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 2\n"
        '2 openat(AT_FDCWD, "/sw/two", O_RDONLY|O_DIRECTORY) = 5\n'
        "2 fchdir(5) = 0\n"
        f"2 openat(AT_FDCWD, {miss}\n"
        f"1 openat(AT_FDCWD, {miss}\n"
        '1 openat(AT_FDCWD, "/sw/three", O_RDONLY|O_PATH) = 6\n'
        f"1 openat(6, {miss}\n"
        "1 vfork( <unfinished ...>\n"
        f"3 open({miss}\n"
        "1 <... vfork resumed>) = 3\n"
        "1 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES}, 88) = 4\n"
        '4 chdir("/sw/four") = 0\n'
        f"1 openat(AT_FDCWD, {miss}\n"
        f"1 openat(9, {miss}\n",
        cwd=b"/sw/zero",
    )
    misses = {path.decode(): row.misses for path, row in found.items() if row.misses}
    assert misses == {"zero": 1, "zero/one": 3, "two": 1, "three": 1, "four": 1}
    assert tally.lost == {"relative": 1}


NO_MISSES = {
    "words": 'execve("/sw/b/x", ["x", "= -1 ENOENT (No such file or directory)"], 0x7 /* 1 var */) = 0',
    "words, unfinished": '7 execve("/sw/b/x", [") = -1 ENOENT (x)"], 0x7 <unfinished ...>\n7 <... execve resumed>) = 0',
    "a name": 'openat(AT_FDCWD, "/sw/b/) = -1 ENOENT (x)", O_RDONLY) = 3</sw/b/) = -1 ENOENT (x)>',
    "no name": 'newfstatat(3, "", 0x7f, AT_EMPTY_PATH) = -1 ENOENT (No such file or directory)',
    "too late": "7 ???() = ?",
}


@pytest.mark.parametrize("text", NO_MISSES.values(), ids=NO_MISSES)
def test_no_miss(text: str) -> None:
    found, tally = imported(text + "\n")
    assert not sum(row.misses for row in found.values())
    assert not +tally.lost


def misses_of(text: str, cwd: bytes | None = b"/sw/zero") -> tuple[dict[str, int], Tally]:
    found, tally = imported(text, cwd)
    return {path.decode(): row.misses for path, row in found.items() if row.misses}, tally


MISS = '"x", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
THREAD = "flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD"


def test_a_thread_that_is_there_before_its_making_has_ended() -> None:
    misses, tally = misses_of(
        "1 clone3({" + THREAD + "} <unfinished ...>\n"
        f"2 open({MISS}"
        "1 <... clone3 resumed>, 88) = 2\n"
        '1 chdir("/sw/one") = 0\n'
        f"2 open({MISS}"
        '2 chdir("two") = 0\n'
        f"1 open({MISS}"
        '2 open("/sw/three", O_RDONLY) = 5\n'
        f"1 openat(5, {MISS}"
    )
    assert misses == {"zero": 1, "one": 1, "one/two": 1, "three": 1} and not +tally.lost


def test_a_thread_that_runs_a_program_goes_on_as_the_first() -> None:
    misses, tally = misses_of(
        "1 clone3({" + THREAD + "}, 88) = 2\n"
        '2 chdir("/sw/one") = 0\n'
        '2 execve("/sw/bin/tool", ["tool"], 0x7 /* 1 var */ <pid changed to 1 ...>\n'
        "1 +++ superseded by execve in pid 2 +++\n"
        "1 <... execve resumed>)             = 0\n"
        f"1 open({MISS}"
    )
    assert misses == {"one": 1} and not +tally.lost
    assert [row.path for row in tally.rows() if row.is_file] == [b"bin/tool"]


def test_a_child_that_has_ended_before_its_making() -> None:
    misses, tally = misses_of(
        "1 vfork( <unfinished ...>\n"
        '2 execve("/sw/b/x", ["x"], 0x7 /* 1 var */) = -1 ENOENT (No such file or directory)\n'
        "2 +++ exited with 127 +++\n"
        "1 <... vfork resumed>) = 2\n"
        '1 chdir("/sw/one") = 0\n'
        "1 fork() = 2\n"  # another of that number
        f"2 open({MISS}"
    )
    assert misses == {"b": 1, "one": 1} and not +tally.lost


def test_another_root() -> None:
    misses, tally = misses_of(
        f'1 open("/sw/a/x"{MISS[3:]}'
        '1 chroot("/sw/images/one") = 0\n'
        f'1 open("/lib/x"{MISS[3:]}'
        f'1 open("/lib/../../etc/x"{MISS[3:]}'
        f"1 open({MISS}"
        '1 chdir("/srv") = 0\n'
        f"1 open({MISS}"
        "1 fork() = 2\n"
        f'2 openat(AT_FDCWD, "/usr/x"{MISS[3:]}'
        f'3 open("/sw/a/x"{MISS[3:]}'
        '4 chroot("inner") = 0\n'
        f'4 open("/sw/a/x"{MISS[3:]}'
    )
    image = "images/one"
    assert misses == {
        "a": 1,
        **dict.fromkeys([f"{image}/{name}" for name in ("lib", "etc", "srv", "usr")], 1),
        "zero": 1,
    }
    assert tally.lost == {"relative": 1, "chroot": 2}  # whose 3 is, and so its root, nobody said


def test_files_of_threads_do_not_tell_who_moved_first(tmp_path: Path) -> None:
    trace = {
        1: f"open({MISS}clone3({{{THREAD}}}, 88) = 2\nopen({MISS}openat(AT_FDCWD</sw/two>, {MISS}"
        f"vfork() = 4\nopen({MISS}",
        2: f"clone3({{{THREAD}}}, 88) = 3\nopen({MISS}",
        3: f'chdir("/sw/three") = 0\nopen({MISS}',
        4: f'chdir("/sw/four") = 0\nopen({MISS}',  # is no thread, and nobody else's directory
    }
    for process, text in trace.items():
        (tmp_path / f"trace.{process}").write_text(text)
    files = [os.fsencode(path) for path in sorted(tmp_path.iterdir())]
    tally = Tally([b"/sw"])
    import_files(tally, Source.STRACE, files, stdin=io.BytesIO(), cwd=b"/sw/zero", programs=[])
    assert {row.path: row.misses for row in tally.rows()} == {b"zero": 1, b"two": 1, b"four": 1}
    assert tally.lost == {"relative": 4}


def test_so_many_processes_take_no_time() -> None:
    """Each of them was looked for among all others: minutes."""
    text = "".join(f"{process} getpid() = 1\n" for process in range(1, 40_000))
    text += "".join(f"{process} vfork( <unfinished ...>\n" for process in range(40_000, 80_000))
    misses, tally = misses_of(text + f"300000 open({MISS}")
    assert not misses and tally.lost == {"relative": 1}  # too many may have made the last one


def test_what_is_not_known_is_lost() -> None:
    found, tally = imported(
        'open("x", O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        'open("/sw/a/abc"..., O_RDONLY) = -1 ENOENT (No such file or directory)\n'
        "what a program printed\n"
        "5 <... open resumed>) = 3\n" + "x" * 3_000_000
    )
    assert not found
    assert tally.lost == {"relative": 1, "cut": 2, "lines": 2}


HOSTILE = {
    "spaces behind a process": b"7" + b" " * LENGTH,
    "spaces before a time": b" " * LENGTH + b"7",
    "digits": b"7" * LENGTH,
    "numbers of calls": b"[ 7] " * (LENGTH // 5) + b"[",
    "an open one": b"[pid" + b" " * LENGTH,
    "descriptors": b"rename(" + b"1" * LENGTH + b") = 0",
    "places": b"rename(" + b"AT_FDCWD<" * (LENGTH // 9) + b") = 0",
    "short places": b"rename(" + b"1<" * (LENGTH // 2) + b") = 0",
    "quotes": b"rename(" + b'"\\' * (LENGTH // 2) + b") = 0",
    "spaces before the mark": b"stat(" + b" " * LENGTH + b"<unfinished ...> x",
    "commas before the mark": b"stat(" + b", " * (LENGTH // 2) + b"<unfinished ...>",
    "marks": b"<unfinished ...>" * (LENGTH // 16) + b"x",
    "results": b'stat("/sw/a/x", 0' + b") = 1" * (LENGTH // 5) + b"= x",
    "wide results": b'stat("/sw/a/x"' + b")" + b" " * LENGTH,
    "endings": b'stat("/sw/a/x"' + b", = -1 ENOENT" * (LENGTH // 13),
    "resumed": b"resumed>" * (LENGTH // 8),
    "clones": b"clone(" * (LENGTH // 6),
    "results before a mark": b"x(" + b") = 1 " * (LENGTH // 6) + b">",
    "results with places": b"x(" + b") = 1<a\\" * (LENGTH // 8),
    "endings before a quote": b'execve("/sw/b/x", [' + b"= -1 ENOENT " * (LENGTH // 12) + b'"',
    "names of processes": b"7<" * (LENGTH // 2),
    "changed numbers": b"x(" + b" <pid changed to 7 ...>" * (LENGTH // 23) + b"y",
    "letters": b"a" * LENGTH,
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_takes_no_time(line: bytes) -> None:
    """In proportion to the length of a line; by its square, each of these would take minutes."""
    _, tally = imported(line + b"\n" + MISSES["plain"].encode() + b"\n")
    (misses,) = [row.misses for row in tally.rows() if row.path == b"a" and not row.is_file and row.misses]
    assert misses in (1, 2)  # some are themselves one
    assert survey(io.BytesIO(line + b"\n9 getpid() = 9\nclone(x) = 8\n")) == ({b"8": False}, False)


def test_only_paths_of_a_call_are_written_to() -> None:
    found, tally = imported(
        'setxattr("/sw/a/x", "user.name", "value", 5, 0) = 0\n'
        'renameat2(AT_FDCWD, "/sw/b/x", 5</sw/c>, "y", RENAME_NOREPLACE) = 0\n'
        'linkat(AT_FDCWD, "/sw/d/x", AT_FDCWD, "/sw/e/y", 0) = 0\n'
        'symlinkat("../x", AT_FDCWD, "/sw/f/y") = 0\n'
        'symlink("target", "/sw/g/y") = 0\n'
        'utimensat(5, NULL, [{tv_sec=1, tv_nsec=0}, "/sw/h/x"], 0) = 0\n'
    )
    assert set(found) == {b"a", b"b", b"c", b"d", b"e", b"f", b"g"}
    assert all(row.writes == 1 for row in found.values()) and not +tally.lost


def test_every_byte_of_a_name() -> None:
    name = bytes(n for n in range(1, 256) if n != ord("/"))
    text = b"".join(b"\\%o" % n if not chr(n).isalnum() else bytes([n]) for n in name)
    assert unescape(b"\\%o" % 255 + b'\\n\\\\\\"\\x41\\0') == b'\xff\n\\"A\0'
    # a digit after a short octal would be a part of it: strace writes all three then
    text = b"".join(b"\\%03o" % n for n in name)
    found, _ = imported(b'stat("/sw/' + text + b'/x", 0x7f) = -1 ENOENT (No such)\n')
    assert set(found) == {name}


SCRIPT = """
import os, subprocess, sys
top = sys.argv[1]
os.chdir(top + "/a")
for name in ("x", "y\\n", "z\\"", "\\udcff"):
    for _ in range(3):
        try: os.stat(name)
        except OSError: pass
    try: open("../b/" + name)
    except OSError: pass
fd = os.open(top + "/b", os.O_RDONLY | os.O_DIRECTORY)
try: os.stat("in b", dir_fd=fd)
except OSError: pass
os.listdir(top + "/a")
if len(sys.argv) < 3:
    os.stat("file")
    subprocess.run([sys.executable, "-S", __file__, top, "again"], check=True)
    pid = os.fork()
    if not pid:
        os.chdir("deep")
        os.path.exists("from a child")
        os._exit(0)
    os.waitpid(pid, 0)
    os.path.exists("from the parent")
"""
WANTED = {"a": (24 + 1, 1), "b": (8 + 2, 0), "a/deep": (1, 0)}  # misses, stats


@pytest.mark.needs("strace")
@pytest.mark.parametrize("options", [["-f"], ["-f", "-y"], ["-ff"], ["-f", "-tt", "-T", "-xx"], ["-ff", "-yy", "-r"]])
def test_strace_itself(options: list[str], tmp_path: Path) -> None:
    top = tmp_path / "volume"
    (top / "a/deep").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a/file").touch()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    traced = tmp_path / "trace"
    calls = "trace=%file,fchdir,?clone,?clone3,?fork,?vfork"
    command = ["strace", *options, "-e", calls, "-o", str(traced), sys.executable, "-S", str(script), str(top)]
    subprocess.run(command, check=True)
    files = [os.fsencode(path) for path in sorted(tmp_path.glob("trace*"))]
    assert (len(files) > 1) == ("-ff" in options)
    tally = Tally([os.fsencode(top)])
    import_files(tally, Source.STRACE, files, stdin=io.BytesIO(), cwd=os.fsencode(tmp_path), programs=[])
    found = {row.path.decode(): (row.misses, row.stats) for row in tally.rows() if row.misses or row.stats}
    found.pop("", None)  # the interpreter looks for itself along the way
    assert found == WANTED
    assert +tally.lost == Counter()
    first = {row.path: row.first_misses for row in tally.rows()}
    assert first[b"a"] == 4 + 1 and first[b"b"] == 4 + 1
