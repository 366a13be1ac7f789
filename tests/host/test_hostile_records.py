"""Whatever stands in a store's records: each verb ends with a clear line, and gc can get rid of what nobody uses."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.calling import Result
from tests.host.hostile import PLACES, spoil
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")
ROUNDS = 150
AT_ONCE = ("--keep", "1", "--min-age", "0")


@pytest.fixture
def three(host: Host) -> Host:
    """A host with three generations, the second of which is mounted, and which follows a pointer of its own store."""
    for version in ("v2", "v3"):
        host.release(version, {"lib/file": version})
        host.publish()
    pointer = host.volume / "sw.json"
    for number in ("1", "2"):
        host.call("publish", host.store, "--pointer", pointer, "--generation", number)
    host.activate("--follow", pointer)
    return host


def _generation(host: Host, number: int) -> Path:
    return next(host.store.glob(f"generations/{number:06}-*"))


def _calls(host: Host, number: int, record: str) -> list[tuple[str | Path, ...]]:
    """A call of every verb that reads a record, none of which changes more than what is mounted and published."""
    layer = _generation(host, number) / "layer"
    mount = (host.store, host.point, "--lower", host.volume)
    pointer = host.volume / "sw.json"
    follow: list[tuple[str | Path, ...]] = [("activate", *mount, "--follow", pointer)]
    publish: list[tuple[str | Path, ...]] = [
        ("publish", host.store, "--pointer", pointer, "--generation", str(number), "--rollback")
    ]
    look: list[tuple[str | Path, ...]] = [
        ("verify", layer),
        ("explain", layer, "grp/paint"),
        ("diff", layer, _generation(host, 1)),
    ]
    if record == "manifest.mkm":
        return look + publish
    if record == "sw.json":
        return follow + publish
    if record not in ("generation.json", "store.json"):
        return follow
    return [
        *(follow + publish + look),
        ("status", host.point),
        ("status", host.point, "--json"),
        ("activate", *mount, "--generation", str(number)),
        ("activate", *mount),
        ("rollback", host.point),
        ("rollback", host.point, "--to", str(number)),
        ("gc", host.store, *AT_ONCE, "--dry-run", "--json"),
        ("gc", host.store, "--dry-run"),
        ("build", host.top / "sw.mkm", "--store", host.store),
        ("doctor", "--store", host.store),
        ("refresh", host.point),
    ]


def _check_clear(done: Result, what: object) -> None:
    """Asserts that a call ended as the page says: a known code, and lines without control characters."""
    assert done.code in (0, 1, 2, 3, 4, 10, 11, 14, 15, 16, 17, 20, 21, 22, 23), what
    lines = done.err.split("\n")
    assert all(line.isprintable() for line in lines), (what, lines)
    if done.code in (1, 2, 10, 11, 15, 16):
        assert any(line.startswith("mkmeta: ") for line in lines) or "FAIL" in done.out.upper(), (what, done)


def test_no_record_is_fatal(three: Host) -> None:
    chance = random.Random(20)
    (memory,) = (three.run / "followed").iterdir()
    for number in range(ROUNDS):
        which = chance.randint(1, 3)
        record = chance.choice(
            [
                *[_generation(three, which) / "generation.json"] * 4,
                three.store / "store.json",
                three.volume / "sw.json",
                memory,
            ]
        )
        kept = three.top / "kept"
        shutil.copy2(record, kept)
        what = (number, record.name, spoil(record, chance))
        calls = _calls(three, which, record.name)
        for call in chance.sample(calls, min(3, len(calls))):
            _check_clear(three.call(str(call[0]), *call[1:], check=None), (what, call))
            assert (three.point / "grp/paint/v1/lib/one").read_text() == "first\n"
        if record.is_dir() and not record.is_symlink():
            shutil.rmtree(record)
        else:
            record.unlink(missing_ok=True)
        kept.rename(record)
    three.activate("--generation", "3")
    three.call("status", three.point)


def _spoiled_generations(host: Host, count: int) -> None:
    """Fills the gap between generations 1 and 1000 with generations whose record is anything."""
    chance = random.Random(count)
    good = _generation(host, 1)
    for number in range(2, count + 2):
        one = host.store / "generations" / f"{number:06}-{chance.randbytes(6).hex()}"
        one.mkdir()
        (one / "layer").mkdir()
        record = one / "generation.json"
        about = json.loads((good / "generation.json").read_text()) | {"number": number}
        record.write_text(json.dumps(about))
        if number > count // 3:
            spoil(record, chance)
        elif number > count // 6:
            chance.choice(PLACES)(record)
        chance.choice(_LAYERS)(one / "layer")


def _keep(_layer: Path) -> None:
    pass


def _file(layer: Path) -> None:
    layer.rmdir()
    layer.touch()


def _dangling(layer: Path) -> None:
    layer.rmdir()
    layer.symlink_to("nowhere")


def _foreign(layer: Path) -> None:
    (layer / ("a" * 100)).mkdir()
    os.mkfifo(layer / "fifo")
    (layer / "\udcff\n").touch()


_LAYERS: list[Callable[[Path], None]] = [_keep, _keep, shutil.rmtree, _file, _dangling, _foreign]


def test_gc_removes_what_nobody_uses_whatever_it_says_of_itself(host: Host) -> None:
    host.activate()
    _spoiled_generations(host, 120)
    last = host.store / "generations" / "001000-0123456789ab"
    last.mkdir()
    host.call("gc", host.store, *AT_ONCE)
    # 1 is current; the highest stays, as its number must not come again
    left = sorted(path.name for path in (host.store / "generations").iterdir())
    newest = [name for name in left if name[:6] not in ("000001", "001000")]
    assert (left[0][:6], left[-1]) == ("000001", last.name)
    assert len(newest) <= 1  # the newest of those that can be read
    assert (host.point / "grp/paint/v1/lib/one").read_text() == "first\n"


def test_gc_keeps_the_newest_that_can_be_read(host: Host) -> None:
    host.activate()
    for version in ("v2", "v3", "v4", "v5"):
        host.release(version, {"lib/file": version})
        host.publish()
    for number in (4, 5):
        (_generation(host, number) / "generation.json").write_text("{")
    host.call("activate", host.store, host.point, "--generation", "1")
    host.call("gc", host.store, *AT_ONCE)
    assert sorted(int(path.name[:6]) for path in host.store.glob("generations/0*")) == [1, 3, 5]


def test_a_damaged_one_that_is_mounted_stays(host: Host) -> None:
    host.activate()
    for version in ("v2", "v3"):
        host.release(version, {"lib/file": version})
        host.publish()
    (_generation(host, 1) / "generation.json").write_text("{")
    done = host.call("gc", host.store, *AT_ONCE)
    assert "mounted at" in done.err
    host.call("deactivate", host.point)
    host.call("gc", host.store, *AT_ONCE)
    assert [path.name[:6] for path in host.store.glob("generations/0*")] == ["000003"]


@pytest.mark.parametrize("spoiled", ["built", "json"])
def test_the_age_of_one_that_lies_is_that_of_its_directory(host: Host, spoiled: str) -> None:
    """Neither a time in the future nor no time at all keeps it for ever; what was just built is young all the same."""
    for version in ("v2", "v3"):
        host.release(version, {"lib/file": version})
        host.publish()
    record = _generation(host, 1) / "generation.json"
    text = json.dumps(json.loads(record.read_text()) | {"built": "9999-01-01T00:00:00Z"})
    record.write_text(text if spoiled == "built" else text[:-1])
    assert "younger than --min-age" in host.call("gc", host.store, "--keep", "1", "--min-age", "1h").err
    host.call("gc", host.store, *AT_ONCE)
    assert [path.name[:6] for path in host.store.glob("generations/0*")] == ["000003"]


def test_one_of_a_newer_mkmeta_counts_as_any_other(host: Host) -> None:
    for version in ("v2", "v3", "v4"):
        host.release(version, {"lib/file": version})
        host.publish()
    (_generation(host, 3) / "generation.json").write_text('{"format": "mkmeta-generation", "version": 2, "new": 1}')
    host.call("gc", host.store, "--keep", "2", "--min-age", "0")
    assert sorted(path.name[:6] for path in host.store.glob("generations/0*")) == ["000003", "000004"]
    done = host.call("activate", host.store, host.point, "--lower", host.volume, "--generation", "3", check=1)
    assert "has version 2" in done.err and "use a newer mkmeta" in done.err


@pytest.mark.parametrize("target", ["nowhere", "generations/000009-0123456789ab", ""])
def test_a_current_that_names_nothing_is_set_anew_as_the_hint_says(host: Host, target: str) -> None:
    current = host.store / "current"
    current.unlink()
    if target:
        current.symlink_to(target)
    else:
        current.write_text("not a link")
    for verb, *more in (("gc", host.store), ("activate", host.store, host.point, "--lower", host.volume)):
        done = host.call(str(verb), *more, check=1)
        assert "is not the link to a generation" in done.err and "activate --generation N" in done.err
    host.activate("--generation", "1")
    assert current.readlink().name == _generation(host, 1).name
    host.call("gc", host.store)


def test_a_damaged_generation_that_a_pointer_asks_for_says_what_to_do(three: Host) -> None:
    three.call("deactivate", three.point)
    pointer = three.volume / "sw.json"
    (_generation(three, 2) / "generation.json").unlink()
    done = three.activate("--follow", pointer, check=1)
    assert "is missing" in done.err and "remove its directory" in done.err
    shutil.rmtree(_generation(three, 2))
    three.activate("--follow", pointer)
    assert (three.point / "grp/paint/v2/lib/file").read_text() == "v2"
