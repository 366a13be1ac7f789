"""The loop: it settles, it does not swing, it hides nothing, and no profile or kill does harm."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.demand import history as history_module
from mkmeta.demand.history import (
    KEPT_MAX,
    TAKEN_MAX,
    Held,
    History,
    HistoryError,
    Weight,
    decode,
    encode,
    read_history,
    write_history,
)
from mkmeta.demand.profile import Row
from mkmeta.demand.promotion import Policy, decide, fade, take
from mkmeta.demand.reading import Demand
from mkmeta.demand.spool import Spool
from tests.demand.profiles import DAY_NS, age, make_profile, misses
from tests.demand.site import Site
from tests.store.processes import run_killed


def test_cold_goes_on_trial_and_twice_as_late_the_next_time() -> None:
    site, history, policy = Site(3, 1), History(), Policy(cold_ns=10 * DAY_NS)
    path = b"grp/p1/v0/lib"
    came: list[int] = []
    went: list[int] = []
    for day in range(1, 120):
        fade(history, day * DAY_NS, policy)
        if path not in history.selected():
            take(history, Demand({path: [50, 0, 0, 0, 0, 50, 0, 0]}), site)
        for change in decide(history, site, set(), policy).changes:
            (came if change.added else went).append(day)
    assert came[0] == 1 and len(came) == len(went) + 1
    spans = [gone - there for there, gone in zip(came, went, strict=False)]
    assert spans == sorted(spans) and spans[0] == 11 and spans[1] == 21 and spans[2] >= 41


def test_what_is_gone_or_would_hide_something_goes_at_once() -> None:
    site, history, policy = Site(3, 2), History(), Policy()
    fade(history, DAY_NS, policy)
    for product in range(3):
        take(history, Demand({b"grp/p%d/v1/lib" % product: [50, 0, 0, 0, 0, 50, 0, 0]}), site)
    decide(history, site, set(), policy)
    assert len(history.selected()) == 3
    site.releases[0].remove(1)
    fade(history, 2 * DAY_NS, policy)
    changes = decide(history, site, {b"grp/p1/v1/lib/cache"}, policy).changes
    assert [(change.path, change.added) for change in changes] == [
        (b"grp/p0/v1/lib", False),
        (b"grp/p1/v1/lib", False),
    ]
    assert history.selected() == {b"grp/p2/v1/lib"}


HISTORY = History(
    7, {b"a/\xff": Weight(1.5, 2.0), b"b": Weight(2.5, 1.0)}, {b"a": Held(1, 2, 3, 4, 5, 6)}, [(b"x", 1, 2)], True, 8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def read_damaged(content: bytes) -> None:
    """Either it is a history still, or it is a HistoryError."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with contextlib.suppress(HistoryError):
            read_history(os.fsencode(file.name))


@given(st.binary(max_size=300), st.integers(0, 1000))
def test_a_damaged_history_is_one_kind_of_error(noise: bytes, at: int) -> None:
    text = encode(HISTORY)
    assert decode(io.BytesIO(text)) == HISTORY
    place = at % len(text)
    read_damaged(text[:place] + noise + text[place + len(noise) :])


@given(st.data())
def test_a_history_with_any_value_is_one_kind_of_error(data: st.DataObject) -> None:
    """Each line is JSON still, with another value in one place, or none."""
    records = [json.loads(line) for line in encode(HISTORY).splitlines()]
    record = data.draw(st.sampled_from(records))
    key = data.draw(st.sampled_from(sorted(record)))
    del record[key]
    if data.draw(st.integers(0, 4)):
        record[key] = data.draw(JSON)
    read_damaged(b"".join(json.dumps(one).encode() + b"\n" for one in records))


def test_a_history_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    for name in os.listdir(tmp_path):
        with pytest.raises(HistoryError):
            read_history(os.fsencode(tmp_path / name))


def test_the_longest_first_line_is_read_again() -> None:
    taken = [(b"\xff%0254d" % number, 2**64 - 1, -(2**63)) for number in range(KEPT_MAX)]
    history = History(7, taken=taken)
    assert decode(io.BytesIO(encode(history))) == history


@pytest.mark.parametrize(
    "row", ['{"path": 5, "weight": 1}', '{"path": ["a"], "weight": 1}', '{"path_b64": 5}', '{"a": 1}']
)
def test_a_row_of_other_types_is_one_clear_line(
    row: str, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_history(bytes(tmp_path / "history"), History(7))
    head, end = (tmp_path / "history").read_text().splitlines()
    (tmp_path / "history").write_text(f"{head}\n{row}\n{end}\n")
    promote(tmp_path, code=1)
    assert "is no history of mkmeta promote, or damaged" in capsys.readouterr().err


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    top = tmp_path / "sw"
    for release in ("paint/v1", "paint/v2", "pixel/v1"):
        (top / "grp" / release / "lib").mkdir(parents=True)
    age(top)
    (tmp_path / "spool").mkdir()
    return top


def command(top: Path) -> list[str]:
    files = ["--history", str(top / "history"), "--selection", str(top / "select")]
    return ["promote", str(top / "spool"), "--root", str(top / "sw"), *files]


def promote(top: Path, *arguments: str, code: int = 0) -> None:
    assert main([*command(top), *arguments]) == code


def put(top: Path, name: str, rows: list[Row]) -> Path:
    return make_profile(top / "spool" / name, "/sw", rows)


def selection(top: Path) -> list[str]:
    return [line for line in (top / "select").read_text().splitlines() if not line.startswith("#")]


def test_a_run(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "a.profile", [misses("grp/paint/v1/lib", 100)])
    put(tmp_path, ".b.profile", [misses("grp/pixel/v1/lib", 100)])
    ran = tmp_path / "ran"
    release = f'cat "$MKMETA_SELECTION" >>{ran}'
    promote(tmp_path, "--dry-run")
    assert sorted(os.listdir(tmp_path)) == ["spool", "sw"], "a dry run leaves nothing"
    assert "+ grp/paint/v1/lib: 100 misses a day, 1 inodes" in capsys.readouterr().out
    promote(tmp_path, "--run", release + "; exit 7", code=1)
    assert os.listdir(tmp_path / "spool") == [".b.profile"]
    assert selection(tmp_path) == ["grp/paint/v1/lib"]
    promote(tmp_path, "--run", release)
    promote(tmp_path, "--run", release)
    assert ran.read_text().count("grp/paint/v1/lib\n") == 2, "what failed is run again, what went well is not"
    os.rename(tmp_path / "spool/.b.profile", tmp_path / "spool/b.profile")
    put(tmp_path, "c.profile", [misses("grp/paint/v2/lib", 100)])
    promote(tmp_path)
    assert selection(tmp_path) == ["grp/*/v*/lib"]
    (volume / "grp/pixel/v2/lib").mkdir(parents=True)
    age(volume)
    promote(tmp_path)
    assert selection(tmp_path) == ["grp/*/v*/lib"], "tomorrow's release is selected by the same line"


def test_a_hostile_spool(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = tmp_path / "spool"
    (spool / "noise.profile").write_bytes(os.urandom(10_000))
    (spool / "link.profile").symlink_to("/etc/passwd")
    os.mkfifo(spool / "fifo.profile")
    with (spool / "large.profile").open("wb") as file:
        file.truncate(1 << 40)
    (spool / "directory.profile").mkdir()
    (spool / "other").touch()
    put(tmp_path, "greedy.profile", [misses("grp/paint/v1/lib", 2**62), misses("grp", 2**62)])
    promote(tmp_path)
    told = capsys.readouterr().err
    for name in ("noise", "link", "fifo", "large"):
        assert f"not counted: {name}.profile" in told
    assert "directory" not in told
    assert sorted(os.listdir(spool)) == ["directory.profile", "other"]
    assert Path("/etc/passwd").exists()
    with (tmp_path / "history").open("rb") as stream:
        assert sum(weight.misses for weight in decode(stream).weights.values()) <= 1_000_001


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A run that is killed before any of its steps: the next one counts nothing twice and loses nothing."""
    for step in itertools.count():
        top = tmp_path / str(step)
        (top / "sw/grp/paint/v1/lib").mkdir(parents=True)
        age(top / "sw")
        (top / "spool").mkdir()
        put(top, "a.profile", [misses("grp/paint/v1/lib", 64)])
        killed = run_killed(functools.partial(main, command(top)), step)
        if killed:
            promote(top)
        assert selection(top) == ["grp/paint/v*/lib"]
        with (top / "history").open("rb") as stream:
            history = decode(stream)
        assert history.weights.keys() == {b"grp/paint/v1/lib"} and history.taken == []
        assert history.weights[b"grp/paint/v1/lib"].misses == pytest.approx(64, abs=1)
        assert os.listdir(top / "spool") == []
        if not killed:
            break
    assert step > 30


def test_any_time_of_a_profile_is_read_again(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts a profile into the spool chooses its mtime; before 1970, the history was damaged for ever."""
    profile = put(tmp_path, "old.profile", [misses("grp/paint/v1/lib", 64)])
    os.utime(profile, (-(2**31), -(2**31)))
    with monkeypatch.context() as patched:
        patched.setattr(Spool, "remove", lambda self, profile: False)
        promote(tmp_path)
    promote(tmp_path)
    assert not profile.exists()
    with (tmp_path / "history").open("rb") as stream:
        assert decode(stream).weights[b"grp/paint/v1/lib"].misses == pytest.approx(64, abs=1), "counted once"


def test_a_clock_that_was_ahead_is_said(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows which of two times is right; what waits for time to pass would wait without a word."""
    write_history(bytes(tmp_path / "history"), History(updated_ns=time.time_ns() + 400 * DAY_NS + DAY_NS // 4))
    promote(tmp_path)
    assert "400 days ahead of this clock" in capsys.readouterr().err
    promote(tmp_path, "--json", "--dry-run")
    write_history(bytes(tmp_path / "history"), History(updated_ns=time.time_ns()))
    capsys.readouterr()
    promote(tmp_path)
    assert "ahead" not in capsys.readouterr().err


def test_no_more_is_written_than_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of one run may name more directories together than a history has room for."""
    monkeypatch.setattr(history_module, "PATHS_MAX", 3)
    weights = {b"%d" % number: Weight(float(number), 1.0) for number in range(10)}
    held = {b"h%d" % number: Held(dropped_ns=number) for number in range(10)}
    held[b"s"] = Held(since_ns=1)
    write_history(bytes(tmp_path / "history"), History(1, weights, held))
    found = read_history(bytes(tmp_path / "history"))
    assert found.weights.keys() == {b"9", b"8", b"7"} and found.held.keys() == {b"s", b"h9", b"h8"}


def test_what_cannot_be_removed_takes_no_place(volume: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for number in range(TAKEN_MAX + 1):
        (spool / f"{number}.profile").mkdir()
        os.utime(spool / f"{number}.profile", (0, 0))
    put(tmp_path, "a.profile", [misses("grp/paint/v1/lib", 64)])
    promote(tmp_path)
    assert selection(tmp_path) == ["grp/paint/v1/lib"], "directories are not waited for"
    assert not (spool / "a.profile").exists()
    for number in range(TAKEN_MAX):
        (spool / f"stays{number:04}.profile").touch()
        os.utime(spool / f"stays{number:04}.profile", (number, number))
    put(tmp_path, "b.profile", [misses("grp/pixel/v1/lib", 64)])
    with Spool(bytes(spool)) as opened:
        old = opened.profiles()
        assert len(old) == TAKEN_MAX and b"b.profile" not in {one[0] for one in old}
        taken = opened.profiles(set(old))
        assert [one[0] for one in taken if one not in old] == [b"b.profile"] and set(old) <= set(taken)
        for number in range(TAKEN_MAX):
            os.unlink(spool / f"stays{number:04}.profile")
        assert [one[0] for one in opened.profiles(set(old))] == [b"b.profile"]
