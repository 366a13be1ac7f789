"""What a script gives when a variable of its is not set, or a number is mistyped: one clear line, and nothing done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mkmeta.__main__ import main

EMPTY = [
    ["scan", "volume", "--select", "", "-o", "m.mkm"],
    ["scan", "volume", "--select", "a", "--hide", "", "-o", "m.mkm"],
    ["scan", "volume", "--select-from", "", "-o", "m.mkm"],
    ["scan", "volume", "-o", ""],
    ["scan", "", "-o", "m.mkm"],
    ["build", "m.mkm", ""],
    ["build", "m.mkm", "--store", ""],
    ["build", "m.mkm", "layer", "--base", ""],
    ["publish", "", "--pointer", "p"],
    ["publish", "store", "--pointer", ""],
    ["gc", ""],
]


@pytest.mark.parametrize("argv", EMPTY, ids=" ".join)
def test_an_empty_argument(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "volume").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "is empty: was a variable not set?" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["volume"]


@pytest.mark.parametrize("verb", ["activate"])
def test_an_empty_store_is_not_the_working_directory(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("volume", "sw", "run"):
        (tmp_path / name).mkdir()
    try:
        code = main([verb, "", "sw", "--lower", "volume", "--run-dir", "run"])
    except SystemExit as usage:
        code = int(str(usage.code))
    assert code == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["0", "-1", "x", "1000000", "9" * 5000])
def test_as_many_workers_as_take_a_machine_down(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "volume").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["scan", "volume", "-j", jobs, "-o", "m.mkm"])
    assert caught.value.code == 2
    assert "is not a number of workers, from 1 to" in capsys.readouterr().err
