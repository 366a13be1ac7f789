"""What is suggested: never more than the best choice costs, never what would hide something, the same every time."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.demand import cover as cover_module
from mkmeta.demand.cover import Candidate, Choice, Cover, Hot, _exact, _greedy, choose, settle, with_above
from mkmeta.demand.patterns import lines, selected_by
from mkmeta.demand.profile import Row
from mkmeta.demand.reading import Demand
from mkmeta.demand.shape import ManifestShape, Measure, NoShape, Place, Shape, VolumeShape, is_version
from mkmeta.manifest.reader import ManifestReader
from tests.demand.profiles import age, make_profile, misses
from tests.demand.site import Site


@st.composite
def forests(draw: st.DrawFn) -> list[Candidate]:
    """Up to seven candidates, with gains and costs that grow upwards."""
    everything: list[Candidate] = []
    roots: list[Candidate] = []
    for number in range(draw(st.integers(1, 7))):
        above = draw(st.sampled_from([None, *everything]))
        one = Candidate(b"%d" % number, draw(st.integers(0, 20)), draw(st.integers(1, 20)))
        (roots if above is None else above.below).append(one)
        everything.append(one)
    for one in reversed(everything):
        one.gain += sum(below.gain for below in one.below)
        one.cost += sum(below.cost for below in one.below)
    return roots


def everything_in(roots: list[Candidate]) -> list[Candidate]:
    return [one for root in roots for one in (root, *everything_in(root.below))]


def by_force(roots: list[Candidate], wanted: float, max_cost: int | None) -> tuple[int, int]:
    """The cost and gain of the best choice, all being tried."""
    candidates = everything_in(roots)
    inside = {id(one): {id(below) for below in everything_in(one.below)} for one in candidates}
    best, most = None, (0, 0)
    for size in range(len(candidates) + 1):
        for choice in itertools.combinations(candidates, size):
            if any(id(a) in inside[id(b)] for a in choice for b in choice):
                continue
            cost, gain = sum(one.cost for one in choice), sum(one.gain for one in choice)
            if max_cost is not None and cost > max_cost:
                continue
            if gain >= wanted and (best is None or (cost, -gain) < best):
                best = (cost, -gain)
            most = min(most, (-gain, cost))
    return (best[0], -best[1]) if best is not None else (most[1], -most[0])


@given(forests(), st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.one_of(st.none(), st.integers(0, 60)))
def test_no_choice_is_better(roots: list[Candidate], cover: float, max_cost: int | None) -> None:
    wanted = cover * sum(root.gain for root in roots)
    found = _exact(roots, wanted, max_cost)
    assert found is not None
    assert (sum(one.cost for one in found), sum(one.gain for one in found)) == by_force(roots, wanted, max_cost)


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_share_that_is_just_reached_is_enough(percent: int) -> None:
    """In floats, 7 % of 100 are a little more than 7."""
    hot = Hot({b"a": percent, b"b": 1, b"c": 99 - percent}, set())
    costs = {b"b": Measure(2, None), b"c": Measure(1000, None)}
    found = choose(hot, NoShape(), cover=percent / 100, max_cost=None, cost_of=costs)
    assert [one.path for one in found.chosen] == [b"a"]


@given(forests(), st.sampled_from([0.5, 0.9, 1.0]))
def test_greedy_covers_what_is_asked_for(roots: list[Candidate], cover: float) -> None:
    wanted = cover * sum(root.gain for root in roots)
    found = _greedy(roots, wanted, None)
    assert sum(one.gain for one in found) >= wanted
    below = {id(one) for top in found for one in everything_in(top.below)}
    assert not below & {id(one) for one in found}
    cheapest = by_force(roots, wanted, None)[0]
    assert cheapest <= sum(one.cost for one in found) <= 3 * cheapest + 1  # none of many thousands was beyond 2.4


@pytest.mark.parametrize("merges", [cover_module._MERGES_MAX, 0], ids=["exact", "greedy"])
@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_what_is_read_does_not_matter(seed: int, merges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and profiles in any order, with many directories that are as good as others."""
    monkeypatch.setattr(cover_module, "_MERGES_MAX", merges)
    chance = random.Random(seed)
    site = Site(6, 3)
    paths = [b"grp/p%d/v%d/%s" % (p, v, n) for p in range(6) for v in range(3) for n in (b"lib", b"bin", b"none")]
    rows = [misses(os.fsdecode(chance.choice(paths)), chance.randint(1, 3)) for _ in range(60)]
    found = []
    for _ in range(4):
        chance.shuffle(rows)
        demand = Demand()
        for row in rows:
            demand.add(row, row.path, b"p")
        cover = choose(settle(demand, site)[0], site, cover=0.9, max_cost=None)
        assert cover.exact == (merges > 0)
        found.append((cover, lines(cover, site)))
    assert all(one == found[0] for one in found)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Three products with releases, a tool without, a directory that grows."""
    top = tmp_path / "sw"
    for release in ("paint/v1", "paint/v2", "pixel/v1"):
        for name in ("lib/one.so", "lib/deep/two.so", "bin/tool", "doc/a", "doc/b", "doc/c"):
            path = top / "grp" / release / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" * 100)
    for name in ("tools/perl/x.pm", "plugins/a.so"):
        (top / name).parent.mkdir(parents=True)
        (top / name).touch()
    (top / "grp/paint/current").symlink_to("v2")
    age(top)
    os.utime(top / "plugins")
    return top


def suggest(tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    profile = make_profile(tmp_path / "p", "/sw", rows)
    capsys.readouterr()
    assert main(["suggest", str(profile), *arguments]) == code
    return capsys.readouterr().out


def selected(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_directories_become_a_pattern(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [misses(f"grp/{name}/lib", 100) for name in ("paint/v1", "paint/current", "pixel/v1")]
    text = suggest(tmp_path, [*rows, misses("tools/perl", 60)], capsys, "--root", str(volume))
    assert selected(text) == ["tools/perl", "grp/*/v*/lib"]
    assert "# saves 300 misses (100.0% with those above), costs 12 inodes" in text
    assert "# matches grp/paint/v1/lib, grp/paint/v2/lib, grp/pixel/v1/lib" in text


def test_a_pattern_that_selects_more_is_none(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (volume / "grp/pixel/v2").mkdir()
    (volume / "grp/pixel/v2/lib").touch()  # a file would be recorded alone, and not seen when it changes
    age(volume)
    rows = [misses(f"grp/{name}/lib", 100) for name in ("paint/v1", "paint/v2", "pixel/v1")]
    text = suggest(tmp_path, rows, capsys, "--root", str(volume))
    assert selected(text) == ["grp/paint/v*/lib", "grp/pixel/v1/lib"]


def test_a_pattern_takes_in_what_another_was_to_be_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a/v1/p", "a/v1/r", "a/v2/z", "c/v1/p", "c/v1/r", "c/v2/z", "b/v1/q", "d/v1/q"]
    for name in names:
        (tmp_path / "sw" / name).mkdir(parents=True)
    age(tmp_path / "sw")
    hot = [name for name in names if "/v1/" in name]
    text = suggest(tmp_path, [misses(name, 9) for name in hot], capsys, "--root", str(tmp_path / "sw"))
    assert f"these lines answer {9 * len(hot)} " in text
    assert sum(map(int, re.findall(r"# saves (\d+) misses", text))) == 9 * len(hot)


@given(st.data())
def test_patterns_of_any_volume_select_what_was_chosen(data: st.DataObject) -> None:
    """Whatever is merged with what: each directory is in one line, and the lines select these and no others."""
    name = st.sampled_from([b"a", b"b", b"v1", b"v2", b"v3"])
    paths = data.draw(st.sets(st.tuples(name, name, name).map(b"/".join), min_size=1, max_size=16))
    chosen = data.draw(st.sets(st.sampled_from(sorted(paths)), min_size=1))
    cover = Cover([Choice(path, 1, 1) for path in sorted(chosen)], [], len(chosen), exact=True, others=[])
    found, unwritable, _ = lines(cover, _Tree(paths))
    assert not unwritable
    assert sorted(one.path for line in found for one in line.chosen) == sorted(chosen)
    assert selected_by([line.pattern for line in found], _Tree(paths)) == chosen


class _Tree:
    """Directories in memory."""

    def __init__(self, paths: set[bytes]) -> None:
        self.paths = with_above(paths)

    def directories(self, path: bytes) -> list[bytes]:
        return sorted(one.rpartition(b"/")[2] for one in self.paths if one.rpartition(b"/")[0] == path)

    def others(self, path: bytes) -> list[bytes]:
        return []

    def place(self, path: bytes) -> Place | None:
        return Place(path, None)

    def measure(self, path: bytes) -> Measure:
        return Measure(1, None)

    def size(self, path: bytes) -> int | None:
        return None


def test_what_would_hide_something_is_left(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(volume / "grp/paint/v2/lib/deep")
    rows = [
        *(misses(name, 10) for name in ("", "grp", "grp/paint", "plugins", "grp/paint/v2/lib", "none/at/all", "tools")),
        misses("grp/pixel/v1/lib", 10, writes=1),
        misses("grp/paint/v1/bin", 10),
    ]
    text = suggest(tmp_path, rows, capsys, "--root", str(volume))
    assert sorted(selected(text)) == ["grp/paint/v1/bin", "tools"]
    left = {match[1]: match[2] for match in re.finditer(r"# left: \d+ misses in (.*?): (.*)", text)}
    assert {name: why.split(":")[0] for name, why in left.items()} == {
        "the root": "the root always shows what the volume has as well",
        "grp": "releases appear in it",
        "grp/paint": "releases appear in it",
        "plugins": "it changed lately",
        "grp/paint/v2/lib": "something in it changed lately",
        "grp/pixel/v1/lib": "it is written into",
    }
    assert "# left: 11 misses in the root" in text, "a directory that is not there is asked for once"


def test_the_selection_can_be_scanned(volume: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    odd = os.fsdecode(b"tools/x*[y]\xff\\ z")
    (volume / odd).mkdir()
    age(volume)
    profile = make_profile(tmp_path / "p", "/sw", [misses(odd, 9)])
    chosen, manifest = tmp_path / "select", tmp_path / "m.mkm"
    assert main(["suggest", str(profile), "--root", str(volume)]) == 0
    chosen.write_bytes(capfdbinary.readouterr().out)
    assert main(["scan", str(volume), "--select-from", str(chosen), "-o", str(manifest)]) == 0
    capfdbinary.readouterr()
    assert main(["suggest", str(profile), "--root", str(volume), "--base", str(manifest)]) == 0
    assert capfdbinary.readouterr().out == chosen.read_bytes(), "and it is the same again"


def test_the_deepest_path_leads_somewhere(volume: Path) -> None:
    shape = VolumeShape(bytes(volume), None, now_ns=0, settled_ns=0)
    deep = b"/".join([b"a"] * 2047)
    for top in (b"grp", b"grp/paint/current", b"grp/paint"):
        before = len(shape._places)
        assert shape.place(top + b"/" + deep) == Place(top.replace(b"current", b"v2"), b"a")
        assert len(shape._places) <= before + 5, "what is below a missing name is not remembered"
    (volume / "loop").symlink_to("loop/x")
    (volume / "out").symlink_to("../..")
    for name in (b"loop", b"out"):
        assert shape.place(name) is None
        assert shape.place(name + b"/" + deep) is None


@pytest.mark.parametrize("seed", range(8))
def test_links_lead_where_the_kernel_says(seed: int, tmp_path: Path) -> None:
    """By name, `..` behind a link would be the directory that holds it, not the one above what it leads to."""
    choose, root = random.Random(seed), tmp_path / "volume"
    names = [root]
    for number in range(8):
        names.append(choose.choice(names) / f"d{number}")
        names[-1].mkdir(parents=True)
    directories = list(names)
    for number in range(12):
        link = choose.choice(directories) / f"l{number}"
        target = os.path.relpath(choose.choice(names), link.parent)
        target += choose.choice(["", "/", "/..", f"/../d{choose.randrange(8)}", "/../../.", "/../none"])
        link.symlink_to(target if seed % 2 or choose.random() < 0.7 else choose.choice(names))
        names.append(link)
    manifest = tmp_path / "m.mkm"
    assert main(["scan", "-q", str(root), "--select", "**", "--digest", "none", "-o", str(manifest)]) == 0
    with ManifestReader.open(os.fsencode(manifest)) as reader:
        shapes: list[Shape] = [VolumeShape(bytes(root), None, now_ns=0, settled_ns=0), ManifestShape(reader)]
        for name in names:
            led = Path(os.path.realpath(name))
            if not name.is_dir() or not led.is_relative_to(root):
                continue
            wanted = Place(os.fsencode(os.path.relpath(led, root)).replace(b".", b""), None)
            for shape in shapes[: 1 + seed % 2]:  # the manifest does not say where absolute links lead
                assert shape.place(os.fsencode(os.path.relpath(name, root)).replace(b".", b"")) == wanted, name


def test_the_order_of_profiles_does_not_matter(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("paint/v1/lib", "paint/v2/lib", "pixel/v1/lib", "pixel/v1/bin", "paint/v1/doc", "none/v1/lib")
    files = [str(make_profile(tmp_path / f"p{n}", "/sw", [misses(f"grp/{names[n]}", 7)])) for n in range(6)]
    told = []
    for order in (files, files[::-1], files[3:] + files[:3]):
        assert main(["suggest", *order, "--root", str(volume), "--cover", "60%"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] == told[2]


def test_within_a_budget(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [misses("grp/paint/v1/lib", 100), misses("grp/pixel/v1/bin", 30), misses("tools/perl", 80)]
    text = suggest(tmp_path, rows, capsys, "--root", str(volume), "--max-entries", "5")
    assert sorted(selected(text)) == ["grp/pixel/v*/bin", "tools/perl"]
    assert "not worth its inodes" in text
    suggest(tmp_path, rows[:1], capsys, "--root", str(volume), "--max-entries", "1", code=12)


def test_inline_by_opens(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (volume / "grp/paint/v1/lib/large.so").write_bytes(b"x" * 20_000)
    age(volume)
    files = [("one.so", 5), ("large.so", 2), ("none", 1)]
    rows = [Row(b"grp/paint/v1/lib/" + name.encode(), opens=n, first_opens=n, is_file=True) for name, n in files]
    text = suggest(tmp_path, [misses("grp/paint/v1/lib", 9), *rows], capsys, "--root", str(volume))
    assert "# scan --inline 4K: answers 5 of 8 opens too, of 1 files with 100 B" in text
    assert "# scan --inline 64K: answers 7 of 8 opens too, of 2 files" in text


def test_without_a_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = suggest(tmp_path, [misses("a", 990), misses("b", 9), misses("c", 1)], capsys)
    assert selected(text) == ["a"]


def test_a_profile_from_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_profile(tmp_path / "p", "/sw", [misses("a", 9)]).open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["suggest", "-", "-"]) == main(["predict", "m.mkm", "-", "-"]) == 2
        assert capsys.readouterr().err.count("standard input can be read only once") == 2
        assert main(["suggest", "-"]) == 0
        assert selected(capsys.readouterr().out) == ["a"]
        assert not stdin.closed


@pytest.mark.parametrize("name", ["v1", "1", "v1.2.3", "2024.1", "3.11rc1", "r12", "1_2-3", "v2beta"])
def test_versions(name: str) -> None:
    assert is_version(name.encode())


@pytest.mark.parametrize("name", ["lib64", "python3.11", "x", "", "v", "1" * 200 + "/", "lib.so.1"])
def test_no_versions(name: str) -> None:
    assert not is_version(name.encode())


def test_many_directories_by_greedy_cover() -> None:
    chance = random.Random(13)
    wanted = {b"d%d" % n: int(1e6 / (n + 1)) for n in range(30_000)}
    costs = {path: Measure(chance.randint(1, 5000), None) for path in wanted}
    cover = choose(Hot(wanted, set()), NoShape(), cover=0.99, max_cost=None, cost_of=costs)
    assert not cover.exact and cover.gain >= 0.99 * cover.misses
    assert cover == choose(Hot(wanted, set()), NoShape(), cover=0.99, max_cost=None, cost_of=costs)


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    chance = random.Random(13)
    rows = (
        misses(f"grp/product{n % 3000}/v{n // 3000 % 10}/lib", chance.randint(1, 10**6 // (1 + n % 3000)))
        for n in range(1_000_000)
    )
    profile = make_profile(tmp_path / "p", "/sw", rows)
    # By a process between: this one's own children, and its own size before exec(2), would count
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'mkmeta', 'suggest', sys.argv[1]], check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_maxrss, f'{used.ru_utime:.1f} s of CPU', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, profile], capture_output=True, check=True)
    figures = done.stderr.splitlines()[-1].decode()
    sys.stdout.write(figures + "\n")
    assert int(figures.split()[0]) < 100 << 10  # KiB
    assert done.stdout.count(b"\n") > 1000
