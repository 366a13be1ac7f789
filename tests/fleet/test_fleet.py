"""Reports and what they come to: `mkmeta fleet`, hostile spools, and the wait of `release --retire`."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import re
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.errors import MkmetaError, StoreError
from mkmeta.fleet import report as report_module
from mkmeta.fleet import spool as spool_module
from mkmeta.fleet.report import REPORT_SIZE_MAX, STATES, Report, decode_report, host_name, write_report
from mkmeta.fleet.spool import Standing, holders_of_older, judge, read_spool
from tests.publisher.sites import Site

PAGE = Path(__file__).parents[2] / "formats" / "report.md"
Capture = pytest.CaptureFixture[str]


def report(host: str = "node1", generation: int = 7, state: str = "current", held: tuple[int, ...] = ()) -> Report:
    return Report(
        host=host,
        mountpoint=b"/sw",
        state=state,
        generation=generation,
        short_id="0123456789ab",
        profile="nested",
        held=held,
    )


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def put(spool: Path, one: Report, age: float = 0) -> None:
    write_report(os.fsencode(spool), one)
    when = time.time() - age
    os.utime(spool / f"{one.host}.json", (when, when))


def test_the_file_is_that_of_the_page() -> None:
    keys = re.findall(r"(?m)^\| `(\w+)` \|", PAGE.read_text())
    assert list(json.loads(report().encode())) == keys
    assert decode_report(report().encode(), b"spool/node1.json") == report()


def test_what_is_too_much_is_cut() -> None:
    long = Report(
        host="h",
        mountpoint=b"/" + b"\xff" * 4000,
        state="degraded",
        generation=1,
        short_id="",
        profile="none",
        held=tuple(range(1, 1000)),
        problems=("\U0001f600" * 500,) * 50,
    )
    data = long.encode()
    assert len(data) < REPORT_SIZE_MAX
    found = decode_report(data, b"h.json")
    assert (found.mountpoint, found.held, len(found.problems)) == (long.mountpoint, tuple(range(1, 65)), 8)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_report_or_an_error(data: bytes) -> None:
    try:
        decode_report(data, b"node1.json")
    except StoreError:
        return


@given(st.data())
def test_a_report_with_anything_in_a_key_is_one_or_an_error(data: st.DataObject) -> None:
    fields = json.loads(report().encode())
    key = data.draw(st.sampled_from(sorted(fields)))
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)
    fields[key] = data.draw(values)
    try:
        found = decode_report(json.dumps(fields).encode(), b"node1.json")
    except StoreError:
        return
    assert found.host == "node1"
    assert found.state in STATES


def test_names_of_hosts() -> None:
    assert host_name("a.b-c_1") == "a.b-c_1"
    assert host_name("../../etc") == "_._.._etc"
    for odd in ("", "..", ".x", "a/b", "é" * 300, "\udcff"):
        name = host_name(odd)
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", name), odd


def test_a_hostile_spool(spool: Path, tmp_path: Path) -> None:
    put(spool, report("good"))
    (spool / "link.json").symlink_to(spool / "good.json")
    os.mkfifo(spool / "fifo.json")
    (spool / "dir.json").mkdir()
    (spool / "large.json").write_bytes(b" " * (1 << 20))
    (spool / "other.json").write_bytes(report("good").encode())
    (spool / "deep.json").write_text("[" * 15000)
    (spool / os.fsdecode(b"\xff.json")).write_text("{}")
    (spool / ".hidden.json").write_text("x")
    (spool / "note.txt").write_text("x")
    found = read_spool(os.fsencode(spool))
    assert [heard.report.host for heard in found.heard] == ["good"]
    wrong = {os.fsdecode(name) for name, _ in found.unreadable}
    assert wrong == {"link.json", "fifo.json", "dir.json", "large.json", "other.json", "deep.json", "\udcff.json"}
    assert "good" not in holders_of_older(found, 7)
    assert "large" in holders_of_older(found, 7), "in doubt, in use"


def test_what_is_not_looked_at_counts_as_in_use(spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(spool_module, "FILES_MAX", 2)
    for host, generation in (("a", 7), ("b", 7), ("c", 6), ("d", 7)):
        put(spool, report(host, generation))
    found = read_spool(os.fsencode(spool))
    assert [heard.report.host for heard in found.heard] == ["a", "b"]
    assert holders_of_older(found, 7) == ["c", "d"]
    assert main(["fleet", str(spool)]) == 21
    assert "2 more files are not looked at" in capsys.readouterr().err
    assert main(["fleet", str(spool), "--json"]) == 21
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ignored"] == 2


def test_texts_of_any_characters_are_shown_as_lines(spool: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    texts = ["\ud800", "\udcff", "a\nb", "\x1b[2J", "é \\x"]
    fields = {**json.loads(report("a", state="degraded").encode()), "problems": texts}
    (spool / "a.json").write_text(json.dumps(fields))
    assert main(["fleet", "-q", str(spool)]) == 22
    (line,) = capfdbinary.readouterr().out.splitlines()
    assert line.split(b"; ")[1:] == [rb"\xed\xa0\x80", rb"\xff", rb"a\x0ab", rb"\x1b[2J", "é \\x".encode()]
    assert main(["fleet", "--json", str(spool)]) == 22
    first, _ = map(json.loads, capfdbinary.readouterr().out.splitlines())
    assert first["problems"] == texts


def test_others_can_read_a_report_whatever_the_umask(spool: Path) -> None:
    before = os.umask(0o077)
    try:
        write_report(os.fsencode(spool), report())
    finally:
        os.umask(before)
    assert (spool / "node1.json").stat().st_mode & 0o7777 == 0o644


@pytest.fixture
def on_one_day(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The time in reports; tests set it."""
    times = ["2026-01-31T12:00:00Z"]
    monkeypatch.setattr(report_module, "utc_now", lambda: times[0])
    return times


def interfere(what: str, path: Path, other: Path) -> None:
    """What others do to a report."""
    match what:
        case "written":
            path.write_text("{}")
        case "written with the same":
            path.write_bytes(path.read_bytes())
        case "replaced":
            path.with_name("new").write_bytes(path.read_bytes())
            path.with_name("new").rename(path)
        case "linked":
            os.link(path, path.with_name("link"))
        case "open to others":
            path.chmod(0o666)
        case "aged":
            os.utime(path, (1, 1))
        case _:
            path.unlink()
    match what:
        case "a link to another":
            path.symlink_to(other)
        case "another file":
            os.link(other, path)
        case "a fifo":
            os.mkfifo(path)


INTERFERENCES = (
    *("written", "written with the same", "replaced", "linked", "open to others", "aged"),
    *("removed", "a link to another", "another file", "a fifo"),
)


@pytest.mark.parametrize("what", INTERFERENCES)
def test_a_file_that_anybody_touched_is_written_anew(spool: Path, on_one_day: list[str], what: str) -> None:
    """And what is there in its place is left alone, whatever it is."""
    path, other = spool / "node1.json", spool.parent / "other"
    mark = write_report(os.fsencode(spool), report())
    other.write_bytes(path.read_bytes())
    os.utime(other, (1, 1))
    time.sleep(0.05)  # several ticks of the clock that change times are of
    interfere(what, path, other)
    before = path.lstat().st_ino if os.path.lexists(path) else None
    write_report(os.fsencode(spool), report(), mark)
    found = path.lstat()
    assert (found.st_ino != before, stat.S_ISREG(found.st_mode), found.st_mode & 0o777) == (True, True, 0o644)
    assert decode_report(path.read_bytes(), os.fsencode(path)) == report()
    assert found.st_mtime > 1
    assert other.stat().st_mtime == 1


def test_what_is_the_same_has_its_time_set_alone(spool: Path, on_one_day: list[str]) -> None:
    """Reports at random, each against whether it had to be written; the spool says the same in either case."""
    chance = random.Random(5)
    path, said, mark = spool / "node1.json", None, None
    renewed = 0
    for _ in range(200):
        one = report(generation=chance.choice([6, 7]), held=chance.choice([(), (4,)]))
        lost, later = chance.random() < 0.1, chance.random() < 0.1
        if later:
            on_one_day[0] = f"2026-02-{chance.randrange(1, 29):02}T12:00:00Z"
        before = (path.stat().st_ino, path.stat().st_ctime_ns, path.read_bytes()) if path.exists() else None
        now = (one, on_one_day[0])
        mark = write_report(os.fsencode(spool), one, None if lost else mark)
        inode, change_time, data = path.stat().st_ino, path.stat().st_ctime_ns, path.read_bytes()
        if now == said and not lost:
            renewed += 1
            assert before is not None
            assert (inode, data) == (before[0], before[2])
        elif before is not None:
            assert inode != before[0]
        assert (json.loads(data)["reported"], decode_report(data, b"node1.json")) == (on_one_day[0], one)
        assert before is None or change_time >= before[1]
        assert os.listdir(spool) == ["node1.json"]
        said = now
    assert renewed > 20


def test_a_renewed_report_is_one_of_now(spool: Path, on_one_day: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the server's clock, as a file that is written. What may not be touched is written, and that says why."""
    mark = write_report(os.fsencode(spool), report())
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "utime", lambda *arguments, **words: calls.append((*arguments, *words)))
    write_report(os.fsencode(spool), report(), mark)
    assert len(calls) == 1
    assert len(calls[0]) == 1, "no times are given: the server has one"

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    before = (spool / "node1.json").stat().st_ino
    write_report(os.fsencode(spool), report(), mark)
    assert (spool / "node1.json").stat().st_ino != before


def test_the_verb_remembers_what_it_reported(spool: Path, tmp_path: Path, on_one_day: list[str]) -> None:
    """In RUN; what is there instead of that is no mark, and without it the report is written all the same."""
    (tmp_path / "sw").mkdir()
    call = ["status", str(tmp_path / "sw"), "--run-dir", str(tmp_path / "run"), "--report", str(spool)]
    inodes: list[int] = []
    for damage in (None, None, b"", b"\xff" * 5000, None):
        (note,) = (tmp_path / "run/reports").iterdir() if inodes else (None,)
        if damage is not None and note is not None:
            note.write_bytes(damage)
        assert main(call) == 20
        (file,) = spool.iterdir()
        inodes.append(file.stat().st_ino)
    same = [one == other for one, other in itertools.pairwise(inodes)]
    assert same == [True, False, False, True]
    (tmp_path / "run/reports").rename(tmp_path / "away")
    (tmp_path / "run/reports").write_text("no directory")
    assert main(call) == 20
    assert len(list(spool.iterdir())) == 1


def test_no_host_lists_the_reports_of_all(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed one left is replaced all the same; of two at once, one is left to finish."""
    monkeypatch.setattr("mkmeta.manifest.output.list_names", lambda _fd: pytest.fail("it lists"))
    left = spool / ".node1.json.mkmeta-new"
    left.write_text("{")
    write_report(os.fsencode(spool), report())
    assert os.listdir(spool) == ["node1.json"]
    left.write_text("{")
    with left.open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        before = (spool / "node1.json").read_bytes()
        with pytest.raises(MkmetaError, match="file exists"):
            write_report(os.fsencode(spool), report("node1", 9))
        assert ((spool / "node1.json").read_bytes(), left.read_text()) == (before, "{")


def test_the_sum_against_an_oracle(spool: Path) -> None:
    chance = random.Random(1)
    expected: dict[str, Standing] = {}
    for number in range(60):
        one = report(f"n{number}", chance.choice([5, 6, 7]), chance.choice(STATES), (chance.choice([4, 5]),))
        age = chance.choice([0, 10_000])
        put(spool, one, age)
        expected[one.host] = (
            Standing.LOST
            if age
            else Standing(one.state)
            if one.state in ("degraded", "inactive")
            else Standing.CURRENT
            if one.generation == 7
            else Standing.BEHIND
        )
    heard = read_spool(os.fsencode(spool)).heard
    fleet = judge(heard, published=None, now=time.time(), lost=3600)
    assert fleet.published == 7
    assert {host: standing for host, (standing, _) in fleet.hosts.items()} == expected
    for number, hosts in fleet.holders().items():
        assert hosts == sorted(one.report.host for one in heard if number in (one.report.generation, *one.report.held))


def test_the_verb(spool: Path, tmp_path: Path, capsys: Capture) -> None:
    put(spool, report("a"))
    assert main(["fleet", str(spool)]) == 0
    assert capsys.readouterr().out == "generation 7: 1 hosts: 1 current\n"
    put(spool, report("b", 6, "behind", (5,)))
    put(spool, report("c"), 7200)
    metrics = tmp_path / "fleet.prom"
    assert main(["fleet", str(spool), "--metrics", str(metrics)]) == 21
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("behind: b: generation 6, reported ")
    assert lines[1].startswith("lost: c: generation 7, reported ")
    assert lines[2:4] == ["generation 5 is still had by 1: b", "generation 6 is still had by 1: b"]
    assert 'mkmeta_fleet_hosts{standing="lost"} 1\n' in metrics.read_text()
    put(spool, report("d", 7, "degraded"))
    (spool / "e.json").write_text("{")
    assert main(["fleet", str(spool), "--json"]) == 22
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [message["message_type"] for message in messages] == ["host"] * 4 + ["unreadable", "summary"]
    assert messages[-1]["holders"] == [{"generation": 5, "hosts": 1}, {"generation": 6, "hosts": 1}]
    assert main(["fleet", str(tmp_path / "none")]) == 1
    assert "cannot be listed" in capsys.readouterr().err


def test_two_thousand_hosts(spool: Path, capsys: Capture) -> None:
    for number in range(2000):
        (spool / f"n{number}.json").write_bytes(report(f"n{number}").encode())
    assert main(["fleet", str(spool)]) == 0
    assert "2000 current" in capsys.readouterr().out


def test_a_report_of_a_host_without_a_layer(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "sw").mkdir()
    call = ["status", str(tmp_path / "sw"), "--run-dir", str(tmp_path / "run"), "--report", str(spool)]
    assert main(call) == 20
    (heard,) = read_spool(os.fsencode(spool)).heard
    assert (heard.report.state, heard.report.generation) == ("inactive", 0)
    assert main([*call[:-1], str(tmp_path / "none")]) == 1


def test_retire_waits_for_hosts(tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path / "site")
    site.configure(f'reports = "{spool}"\n')
    site.make("paint/v2")
    site.call("release", "-q")
    put(spool, report("a", 1))
    put(spool, report("off", 0, "inactive"))
    done = site.call("release", "--retire", "grp/paint/v1", "--after", "0", check=25)
    assert "1 hosts still have, or may have, what was retired: a" in done.err
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 7:
            put(spool, report("a", site.pointer.generation))

    monkeypatch.setattr(time, "sleep", sleep)
    site.make("paint/v3")
    site.call("release", "-q", "grp/paint/v3")
    site.call("release", "-q", "--retire", "grp/paint/v2")
    assert naps == [1, 1, 1, 1, 1, 1.25, 1.5625], "a quarter of what was waited so far, at least a second"
