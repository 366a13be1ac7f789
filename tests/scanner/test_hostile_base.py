"""A base may be anything, with IDs that are true: a scan on it refuses it, or writes a manifest as valid as that is."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from mkmeta.errors import MkmetaError
from mkmeta.manifest.check import check
from mkmeta.manifest.reader import ManifestReader
from mkmeta.scanner import base as base_module
from mkmeta.scanner import performing
from tests.property.mutations import Taken, accepts, mutate
from tests.scanner.helpers import Scanned, scan_tree

MUTANTS = 30


def replace(data: bytes, dice: random.Random) -> bytes:
    """The object with something else in the place of an element, at any depth."""
    value: Any = msgpack.unpackb(data, raw=False)
    within = value
    while within:
        place = dice.randrange(len(within))
        if not isinstance(within[place], list) or dice.random() < 0.3:
            within[place] = dice.choice((None, 0, 1 << 63, -1, b"", "text", [], [1, 2, 3], True, 0.5))
            break
        within = within[place]
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scanned:
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)
    root = tmp_path / "volume"
    for number in range(6):
        directory = root / f"r{number % 2}/d{number}"
        directory.mkdir(parents=True)
        for name in "abc":
            (directory / name).write_text(name * number)
    os.link(root / "r0/d0/a", root / "r0/d2/linked")
    (root / "r1/link").symlink_to("d1")
    os.mkfifo(root / "r1/fifo")
    time.sleep(0.05)  # several ticks of the clock of change times
    return scan_tree(root, "r*")


@pytest.mark.parametrize("seed", range(4))
def test_mutants(
    first: Scanned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(performing, "MOMENT", dice.choice((0, 60)))
    taken = Taken(first.path.read_bytes())
    refused = 0
    for _ in range(MUTANTS):
        if dice.random() < 0.6:
            victim = dice.choice(sorted(taken.objects))
            change = dice.choice((mutate, replace))
            data = taken.with_object(victim, change(taken.objects[victim], dice))
        else:
            frame = dice.choice(taken.records)
            data = taken.with_record(frame, mutate(taken.frames[frame], dice))
        (tmp_path / "base").write_bytes(data)
        try:
            with ManifestReader.open(str(tmp_path / "base")) as reader:
                again = scan_tree(tmp_path / "volume", "r*", output=tmp_path / "again", base=reader)
        except MkmetaError:
            refused += 1
        else:
            with ManifestReader.open(str(again.path)) as reader:
                if accepts(data):  # what cannot be compared with the volume is believed
                    check(reader)
        assert "Traceback" not in capfd.readouterr().err
    assert 0 < refused < MUTANTS
