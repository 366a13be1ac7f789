"""The other importers, and the verb: the loader, strace and the environment's search paths tell the same."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.demand import elf
from mkmeta.demand.importers import bpftrace, environment
from mkmeta.demand.profile import ProfileReader, Row
from mkmeta.demand.tally import Tally

PROGRAM = shutil.which("rsync") or sys.executable  # with some libraries


def rows_of(profile: Path) -> dict[str, Row]:
    with profile.open("rb") as stream:
        return {row.path.decode(): row for row in ProfileReader(stream, b"p").rows() if not row.is_file}


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """A volume with directories for LD_LIBRARY_PATH, of which the last has what PROGRAM needs."""
    volume = tmp_path / "volume"
    for number in range(5):
        (volume / f"lib{number}").mkdir(parents=True)
    for line in subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow:
            shutil.copy(rest.split(" (")[0], volume / "lib4" / name)
    return volume


def search_path(volume: Path) -> str:
    return ":".join(str(volume / f"lib{number}") for number in range(5))


@pytest.mark.needs("strace")
def test_loader_strace_and_environment_agree(libraries: Path, tmp_path: Path) -> None:
    environment = {"LD_LIBRARY_PATH": search_path(libraries), "PATH": os.environ["PATH"]}
    command = [PROGRAM, "--version"]
    traced, logged, would = tmp_path / "strace.profile", tmp_path / "ld.profile", tmp_path / "env.profile"
    own = ("env", *(f"{k}={v}" for k, v in environment.items()))
    assert main(["observe", str(libraries), "-o", str(traced), "--", *own, *command]) == 0
    log = {**environment, "LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": str(tmp_path / "ld")}
    subprocess.run(command, env=log, check=True, stdout=subprocess.DEVNULL)
    logs = [str(path) for path in tmp_path.glob("ld.[0-9]*")]
    assert main(["observe", "--from", "ld-debug", *logs, "--root", str(libraries), "-o", str(logged)]) == 0
    (tmp_path / "environ").write_bytes(b"".join(f"{k}={v}\0".encode() for k, v in environment.items()))
    arguments = ["--program", PROGRAM, "--root", str(libraries), "-o", str(would)]
    assert main(["observe", "--from", "env", str(tmp_path / "environ"), *arguments]) == 0
    strace, loader, env = rows_of(traced), rows_of(logged), rows_of(would)
    hwcaps = {name for name in loader if "glibc-hwcaps" in name}
    assert hwcaps, "the loader tries its subdirectories first"
    for directory in ("lib0", "lib3"):
        assert strace[directory].misses > 2
        # Whether there is a glibc-hwcaps, the loader asks with stat, which its log does not tell
        assert env[directory].misses == loader[directory].misses + 1
        assert 0 <= strace[directory].misses - loader[directory].misses <= 3
    assert loader["lib4"].opens == env["lib4"].opens == strace["lib4"].opens > 2


def test_places_of_those_that_a_library_is_loaded_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each $ORIGIN is that of whose list it is in, a RUNPATH is for own needs alone, and no list has a place twice."""
    top = os.fsencode(tmp_path)
    for name in ("bin/p", "lib1/one.so", "lib2/two.so", "lib3/three.so"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    own = (b"$ORIGIN/../lib1/", b"$ORIGIN/../lib1", b"$ORIGIN/../lib2")
    needs = {
        b"bin/p": elf.Needs((b"one.so",), own, ()),
        b"lib1/one.so": elf.Needs((b"two.so",), (b"$ORIGIN",), ()),
        b"lib2/two.so": elf.Needs((b"three.so",), (b"/none",), (b"$ORIGIN", b"$ORIGIN/../lib3")),
        b"lib3/three.so": elf.Needs((b"four.so",), (), ()),
    }
    monkeypatch.setattr(environment, "_read_needs", lambda path: needs.get(os.path.relpath(path, top)))
    tally = Tally([top])
    environment.read(tally, io.BytesIO(b"LD_LIBRARY_PATH=" + top + b"/bin;" + top + b"/bin/"), [top + b"/bin/p"])
    found = {row.path: (row.misses - 1, row.opens) for row in tally.rows() if not row.is_file}  # 1: glibc-hwcaps
    # two.so is looked for in lib1 twice, of one.so and p; three.so in bin, lib2, lib3; four.so in lib1 twice, lib2, bin
    # and lib1 and lib2 are written in two ways: each way is asked for glibc-hwcaps
    assert found == {b"lib1": (4 + 1, 1), b"lib2": (2 + 1, 1), b"bin": (2, 0), b"lib3": (0, 1)}


def test_the_loader_that_ends_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (
        "     12:\tfind library=a.so [0]; searching\n     12:\t search path=/sw/x:/sw/y\t\t(LD_LIBRARY_PATH)\n"
        "     12:\t  trying file=/sw/x/a.so\n     12:\t  trying file=/sw/y/a.so\n"
        "     12:\t search cache=/etc/ld.so.cache\n"
        "     12:\t  trying file=/lib/a.so\n     12:\t\n     12:\tfind library=b.so [0]; searching\n"
        "     12:\t  trying file=/sw/x/b.so\n     13:\t  trying file=/sw/y/c.so\n     12:\t\n"
    )
    (tmp_path / "ld.1").write_text(log)
    profile = tmp_path / "p"
    assert main(["observe", "--from", "ld-debug", str(tmp_path / "ld.1"), "--root", "/sw", "-o", str(profile)]) == 0
    found = rows_of(profile)
    assert (found["x"].misses, found["x"].opens, found["y"].misses, found["y"].opens) == (1, 1, 1, 1)
    assert "1 calls were elsewhere" in capsys.readouterr().err


def test_the_maps_of_bpftrace() -> None:
    tally = Tally([b"/sw"])
    long = b"/sw/" + b"x" * 195
    bpftrace.read(
        tally,
        io.BytesIO(
            b"Attaching 9 probes...\n\n@calls: 123\n@misses[/sw/a/x]: 20\n@misses[/sw/a/y]: 1\n@stats[/sw/a/z]: 2\n"
            b"@opens[/sw/b/[1]: 2]: 3\n@misses[relative]: 4\n@opens[]: 1\n@misses[" + long + b"]: 5\nLost 6 events\n"
        ),
    )
    found = {row.path: row for row in tally.rows() if not row.is_file}
    assert found[b"a"][1:4] == (21, 2, 0) and found[b"a"].first_misses == 2
    assert found[b"b"].opens == 3
    assert tally.lost == {"relative": 4, "cut": 6, "overruns": 6, "drops": 123 - 36}


def test_all_variables_of_an_environment(tmp_path: Path) -> None:
    for name in ("p/one", "m/man1", "py"):
        (tmp_path / name).mkdir(parents=True)
    variables = {"PATH": "none:p", "PYTHONPATH": "py:no", "PERL5LIB": "perl", "MANPATH": "m:n", "LD_LIBRARY_PATH": "l"}
    text = "".join(
        f"{name}={':'.join(f'{tmp_path}/{one}' for one in value.split(':'))}\n" for name, value in variables.items()
    )
    (tmp_path / "env").write_text(text + "PATHS=relative\nnothing\n")
    call = ["--root", str(tmp_path), "-o", str(tmp_path / "profile")]
    assert main(["observe", "--from", "env", str(tmp_path / "env"), *call]) == 0
    found = rows_of(tmp_path / "profile")
    assert {name: (row.misses, row.stats, row.listings) for name, row in found.items()} == {
        "": (1, 1, 0),  # PYTHONPATH
        **{"none": (1, 0, 0), "p": (1, 0, 0), "perl": (2, 0, 0), "l": (2, 0, 0), "n": (1, 0, 0)},
        **{"py": (0, 0, 1), "m/man1": (0, 0, 1)},
    }


@given(st.data())
def test_any_elf_gives_its_needs_or_nothing(data: st.DataObject) -> None:
    with open(PROGRAM, "rb") as program:
        content = bytearray(program.read(300_000))
    before = needs_of(bytes(content))
    assert before is None or before.needed
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.one_of(st.integers(0, 800), st.integers(0, len(content) - 8)))
        value = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(value)] = value
    needs_of(bytes(content[: data.draw(st.sampled_from([len(content), 64, 600]))]))


def needs_of(content: bytes) -> elf.Needs | None:
    fd = os.memfd_create("elf")
    try:
        os.write(fd, content)
        return elf.needs(fd)
    finally:
        os.close(fd)


@pytest.mark.needs("gcc")
def test_needs_are_those_readelf_shows(tmp_path: Path) -> None:
    source = tmp_path / "lib.c"
    source.write_text("int one(void) { return 1; }\n")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "libone.so", source], check=True)
    for flag, wanted in (("--disable-new-dtags", "rpath"), ("--enable-new-dtags", "runpath")):
        out = tmp_path / wanted
        link = [f"-Wl,{flag},-rpath,/sw/a:$ORIGIN/../lib", "-Wl,--no-as-needed", f"-L{tmp_path}", "-lone"]
        subprocess.run(["gcc", "-shared", "-o", out, source, *link], check=True)
        found = needs_of(out.read_bytes())
        assert found is not None
        assert getattr(found, wanted) == (b"/sw/a", b"$ORIGIN/../lib")
        assert set(found.needed) == {b"libone.so", b"libc.so.6"}


def test_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "p")
    calls = [
        (["--from", "strace", str(tmp_path / "none"), "-o", out], 1, "none"),
        (["--from", "strace", "-o", out], 2, "needs files"),
        (["--from", "env", "x", "--root", "sw", "-o", out], 2, "absolute"),
        (["--from", "env", "x", "-o", out, "--", "true"], 2, "exclude"),
        (["/sw", "--root", "/sw", "-o", out], 2, "--from"),
        (["-o", out, "--", "true"], 2, "name a mount point"),
        (["/sw", "--seconds", "1000000000000", "-o", out], 2, "more than a year"),
        (["--from", "strace", "-", "-", "-o", out], 2, "only once"),
    ]
    for arguments, code, word in calls:
        assert main(["observe", *arguments]) == code, arguments
        assert word in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_no_profile_that_its_reader_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, profile = tmp_path / "trace", tmp_path / "p"
    trace.write_text('stat("/sw/a\\0b/x", 0x7f) = -1 ENOENT (No)\nstat("/sw/a/x", 0x7f) = -1 ENOENT (No)\n')
    call = ["observe", "--from", "strace", str(trace), "-o", str(profile)]
    assert main([*call, "--root", "/sw"]) == 0
    assert "lost: 1 calls by a path that is too long, or holds a NUL" in capsys.readouterr().err
    assert set(rows_of(profile)) == {"a"}
    profile.unlink()
    for roots in (["/" + "x" * 5000], [f"/sw{number}" for number in range(65)]):
        assert main([*call, *(word for root in roots for word in ("--root", root))]) == 1
        assert "mount" in capsys.readouterr().err
        assert os.listdir(tmp_path) == ["trace"]


@pytest.mark.needs("strace")
def test_a_command_that_fails_is_observed_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "p"
    script = f"test -e {tmp_path}/no; exit 3"
    assert main(["observe", str(tmp_path), "-o", str(profile), "--", "sh", "-c", script]) == 0
    assert "ended with 3" in capsys.readouterr().err
    assert rows_of(profile)[""].misses == 1


def test_so_much_is_read_of_an_elf_file_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many DT_NEEDED as a table holds, each of another string."""
    entries = [(elf.DT_STRTAB, 1 << 20), *((elf.DT_NEEDED, 2 * number) for number in range((256 << 10) // 16 - 1))]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    head = b"\x7fELF\2\1".ljust(32, b"\0") + struct.pack("<Q14xHH", 64, 56, 2).ljust(32, b"\0")
    load = struct.pack("<IIQQQQQQ", elf.PT_LOAD, 0, 0, 0, 0, 2 << 20, 2 << 20, 0)
    where = struct.pack("<IIQQQQQQ", elf.PT_DYNAMIC, 0, 4096, 0, 0, len(dynamic), len(dynamic), 0)
    content = ((head + load + where).ljust(4096, b"\0") + dynamic).ljust(1 << 20, b"\0") + b"a\0" * 20_000
    read, sizes = os.pread, list[int]()

    def pread(fd: int, size: int, at: int) -> bytes:
        sizes.append(size)
        return read(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    found = needs_of(content)
    assert found is not None and len(found.needed) == 1000
    assert sum(sizes) <= 5 << 20
