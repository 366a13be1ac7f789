"""What is predicted is what was measured (docs/figures.md): on real NFS in tests/nfs/test_demand.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.cli.predict import minimal_gain
from mkmeta.demand.prediction import KINDS, PLAIN, Prediction
from mkmeta.demand.profile import Row
from mkmeta.mounts.profile import Profile
from tests.demand.profiles import make_profile

DIRECTORIES, FILES, MISSES = 40, 20, 30
# By use: plain, merge, data-only, nested; the table of docs/figures.md, NFS 4.2, Linux 6.12
MEASURED = {
    "misses": (1283, 2, 0, 2),
    "stats": (883, 883, 0, 2),
    "listings": (123, 2, 0, 2),
    "reads": (2483, 3283, 3283, 3283),
}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    top = tmp_path / "sw"
    for number in range(DIRECTORIES):
        directory = top / "sw" / f"d{number:02}"
        directory.mkdir(parents=True)
        for file in range(FILES):
            (directory / f"f{file:02}").write_bytes(b"x" * 1000)
    return top


def manifest_of(volume: Path, *arguments: str) -> str:
    path = str(volume.parent / "sw.mkm")
    assert main(["scan", str(volume), "-o", path, *arguments]) == 0
    return path


def rows(use: str) -> list[Row]:
    names = [b"sw/d%02d" % number for number in range(DIRECTORIES)]
    if use == "misses":
        return [Row(name, MISSES, first_misses=MISSES) for name in names]
    if use == "stats":
        return [Row(name, stats=FILES, first_stats=FILES) for name in names]
    if use == "listings":
        return [Row(name, listings=1) for name in names]
    files = [Row(name + b"/f%02d" % n, opens=1, first_opens=1, is_file=True) for name in names for n in range(FILES)]
    return [*(Row(name, opens=FILES, first_opens=FILES) for name in names), *files]


def predicted(manifest: str, profile: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, int]:
    capsys.readouterr()
    main(["predict", "--json", manifest, str(profile), *arguments])
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {m["profile"]: sum(m["requests"].values()) for m in messages if m["message_type"] == "prediction"}
    return {**found, "plain": sum(messages[-1]["requests"].values())}


@pytest.mark.parametrize("use", MEASURED)
def test_what_was_measured(use: str, volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(volume, "--select", "sw/*")
    found = predicted(manifest, make_profile(tmp_path / "p", "/sw", rows(use)), capsys)
    assert tuple(found[name] for name in ("plain", "merge", "data-only", "nested")) == MEASURED[use]


def test_contents_cost_nothing(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = make_profile(tmp_path / "p", "/sw", rows("reads"))
    held = predicted(manifest_of(volume, "--select", "sw/*", "--inline", "4K"), profile, capsys)
    assert (held["plain"], held["nested"], held["merge"], held["data-only"]) == (2483, 2, 2, 0)
    manifest = manifest_of(volume, "--select", "sw/*")
    assert predicted(manifest, profile, capsys, "--inline", "1K")["nested"] == 2
    assert predicted(manifest, profile, capsys, "--inline", "1G")["nested"] == 2
    assert predicted(manifest, profile, capsys, "--inline", "999")["nested"] == 3283


def test_a_gate(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(volume, "--select", "sw/d0*")
    profile = make_profile(tmp_path / "p", "/sw", [*rows("misses"), Row(b"none/here", 7, first_misses=7)])
    assert main(["predict", manifest, str(profile), "--min-gain", "misses=20%", "--min-gain", "20%"]) == 0
    capsys.readouterr()
    assert main(["predict", manifest, str(profile), "--min-gain", "misses=99%"]) == 4
    printed = capsys.readouterr()
    assert "stays: 30 misses in sw/d10" in printed.out
    assert "misses: 24.9% is saved, 99.0% was asked for" in printed.err
    assert main(["predict", manifest, str(profile), "--profile", "data-only", "--min-gain", "misses=99%"]) == 0


def test_two_clients_pay_twice(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(volume, "--select", "sw/*")
    one = make_profile(tmp_path / "p", "/sw", rows("misses"))
    alone = predicted(manifest, one, capsys)
    both = predicted(manifest, one, capsys, str(one))
    assert both == {name: 2 * count for name, count in alone.items()}


def test_what_is_not_there_is_asked_for_once(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(volume, "--select", "sw/*")
    deep = [Row(b"sw/d00/glibc-hwcaps/" + name, 50, first_misses=50) for name in (b"x86-64-v3", b"x86-64-v4")]
    found = predicted(manifest, make_profile(tmp_path / "p", "/sw", deep), capsys)
    assert found["plain"] == 1 + 2 + 3 and found["nested"] == 2


@pytest.mark.parametrize(
    "arguments", [["--min-gain", "no=1%"], ["--min-gain", "200%"], ["--inline", "x"], ["--inline", "1\u0662"]]
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", "m", "p", *arguments])
    assert end.value.code == 2


def test_a_share_that_is_just_reached_is_reached() -> None:
    """Of all shares of whole percents, and tenths of them."""
    for before in range(1, 200):
        for after in range(before + 1):
            requests = {name: dict.fromkeys(KINDS, 0) for name in (PLAIN, Profile.NESTED)}
            requests[PLAIN]["misses"], requests[Profile.NESTED]["misses"] = before, after
            gain = Prediction(requests, {}).gain(Profile.NESTED)
            tenths = 1000 * (before - after) // before
            if tenths:
                assert gain >= minimal_gain(f"{tenths / 10}%")[1] and gain >= minimal_gain(f"{tenths / 1000}")[1]
            if tenths < 1000:
                assert gain < minimal_gain(f"{(tenths + 1) / 10}%")[1]
