"""What waits in memory while a scan goes on is bounded by what was found to be in directories of the same depth."""

from __future__ import annotations

from pathlib import Path

import pytest

from mkmeta.scanner import forecast, governor
from mkmeta.scanner import scan as scan_module
from mkmeta.scanner.forecast import Forecast
from tests.scanner.helpers import scan_tree


def test_what_came_back_tells_what_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "WAITING_MAX", 200)
    tells = Forecast()
    for number in range(3):
        assert tells.fits(b"a/%d" % number)
        tells.handed_out(number, b"a/%d" % number)
    assert not tells.fits(b"a/3"), "of what nothing is known some are enough"
    for number in range(3):
        tells.came_back(number, 100)
    tells.handed_out(3, b"a/3")
    assert tells.fits(b"a/4")
    tells.handed_out(4, b"a/4")
    assert not tells.fits(b"a/5")
    tells.came_back(3, 0)
    assert tells.fits(b"a/5") and tells.fits(b"a")
    tells.came_back(4, 0)
    for number in range(100):
        tells.handed_out(number, b"a/b/%d" % number)
        tells.came_back(number, 0)
    for number in range(100_000):
        tells.handed_out(number, b"a/b/%d" % number)
    assert tells.fits(b"a/b/x"), "directories with nothing in them bring nothing"


@pytest.mark.parametrize("workers", [1, 2])
def test_few_directories_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    volume = tmp_path / "volume"
    for outer in range(60):
        for inner in range(50):
            (volume / f"o{outer}" / f"i{inner}").mkdir(parents=True)
    plain = scan_tree(volume, "*", workers=workers)
    monkeypatch.setattr(forecast, "WAITING_MAX", 100)
    monkeypatch.setattr(governor, "LANES_MAX", 1)  # each lane has two tasks at least, whatever these bring
    most = 0
    add = scan_module._Scan._add_task

    def counted(scan: scan_module._Scan, *args: object) -> None:
        nonlocal most
        add(scan, *args)  # type: ignore[arg-type]
        most = max(most, len(scan._todo))

    monkeypatch.setattr(scan_module._Scan, "_add_task", counted)
    assert scan_tree(volume, "*", workers=workers, output=tmp_path / "again.mkm").id == plain.id
    assert 60 <= most <= 60 + (workers * 2 + 2) * 50
