"""`mkmeta build --store` and `mkmeta publish` as commands: what they print where, and what they exit with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.store.store import Store
from tests.store.stores import ONE, TWO, generations, id_of, ignore, names

pytestmark = pytest.mark.needs("trusted xattrs")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two manifests."""
    (tmp_path / "one.mkm").write_bytes(ONE)
    (tmp_path / "two.mkm").write_bytes(TWO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Capture = pytest.CaptureFixture[str]


def test_build_text(place: Path, capsys: Capture) -> None:
    assert main(["build", "one.mkm", "--store", "store"]) == 0
    first = capsys.readouterr()
    assert main(["build", "one.mkm", "--store", "store"]) == 0
    assert main(["build", "-q", "two.mkm", "--store", "store"]) == 0
    rest = capsys.readouterr()
    assert first.out == id_of(ONE) + "\n"
    assert first.err.startswith("added generation 1: 3 entries, ")
    assert rest == (f"{id_of(ONE)}\n{id_of(TWO)}\n", "generation 1 is already that manifest\n")
    assert len(generations(place / "store")) == 2


def test_build_json(place: Path, capsys: Capture) -> None:
    for _ in range(2):
        assert main(["build", "--json", "one.mkm", "--store", "store"]) == 0
    output = capsys.readouterr()
    first, second = map(json.loads, output.out.splitlines())
    layer = f"{place}/store/generations/000001-{id_of(ONE)[:12]}/layer"
    common = {
        "message_type": "summary",
        "verb": "build",
        "id": id_of(ONE),
        "dest": layer,
        "generation": 1,
        "entries": 3,
    }
    assert first.items() >= {**common, "built": True, "links": 0}.items()
    assert second == {**common, "built": False}
    assert output.err == ""


def test_build_from_standard_input(place: Path) -> None:
    command = [sys.executable, "-m", "mkmeta", "build", "-q", "-", "--store", str(place / "store")]
    result = subprocess.run(command, input=ONE, capture_output=True, check=False, cwd=Path(__file__).parents[2])
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{id_of(ONE)}\n".encode(), b"")
    generation = Store.open(os.fsencode(place / "store")).generation(1)
    assert Path(os.fsdecode(generation.manifest)).read_bytes() == ONE


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name either DEST or --store"),
        (["layer", "--store", "store"], 2, "name either DEST or --store"),
        (["--store", "store", "--swap"], 2, "--swap and --discard go with DEST"),
        (["--store", "store", "--discard"], 2, "--swap and --discard go with DEST"),
        (["--store", "store", "--expect-id", "0" * 64], 11, "not the expected one"),
        (["--store", "absent/x/store"], 1, "absent/x/store: cannot be made: no such file or directory"),
        (["--store", "."], 1, ".: is no store and not empty"),
    ],
)
def test_build_refusals(place: Path, capsys: Capture, arguments: list[str], code: int, message: str) -> None:
    assert main(["build", "one.mkm", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) <= 2
    assert names(place) == ["one.mkm", "two.mkm"]


def test_a_bad_manifest_makes_no_store(place: Path) -> None:
    (place / "junk").write_bytes(b"junk" * 100)
    assert main(["build", "junk", "--store", "store"]) == 10
    assert not (place / "store").exists()


def test_build_waits_only_as_long_as_told(place: Path, capsys: Capture) -> None:
    store = Store.open_or_create(b"store")
    with store.build_lock("build", wait=0, note=ignore):
        assert main(["build", "one.mkm", "--store", "store", "--wait", "0"]) == 14
        assert f"in use by process {os.getpid()} (mkmeta build)" in capsys.readouterr().err
        assert main(["build", "one.mkm", "--store", "store", "--wait", "0.3"]) == 14
        assert f"waiting for process {os.getpid()} (mkmeta build)" in capsys.readouterr().err.splitlines()[0]
    assert main(["build", "one.mkm", "--store", "store", "--wait", "0"]) == 0


@pytest.fixture
def store(place: Path, capsys: Capture) -> Path:
    """A store of two generations."""
    for manifest in ("one.mkm", "two.mkm"):
        assert main(["build", "-q", manifest, "--store", "store"]) == 0
    capsys.readouterr()
    return place / "store"


def test_publish_text(store: Path, capsys: Capture) -> None:
    assert main(["publish", "store", "--pointer", "sw.json"]) == 0
    assert capsys.readouterr() == (f"{id_of(TWO)}\n", "sw.json names generation 2 (serial 1)\n")
    assert main(["publish", "store", "--pointer", "sw.json", "--generation", "1", "--rollback"]) == 0
    text = "sw.json names generation 1, and has clients go back to it (serial 2)\n"
    assert capsys.readouterr() == (f"{id_of(ONE)}\n", text)
    assert main(["publish", "-q", "store", "--pointer", "sw.json"]) == 0
    assert capsys.readouterr() == (f"{id_of(TWO)}\n", "")
    assert set(names(store)) >= {"publish.lock"}


def test_publish_json(store: Path, capsys: Capture) -> None:
    assert main(["publish", "--json", str(store), "--pointer", "sw.json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {
        "message_type": "summary",
        "verb": "publish",
        "id": id_of(TWO),
        "generation": 2,
        "serial": 1,
        "rollback": False,
        "pointer": "sw.json",
        "manifest": f"sw.json-000002-{id_of(TWO)[:12]}.mkm",
    }
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["store", "--pointer", "sw.json", "--generation", "9"], 15, "has no generation 9; it has 1, 2"),
        (["store", "--pointer", "sw.json", "--generation", "1"], 1, "names generation 2, which is newer than 1"),
        (["absent", "--pointer", "sw.json"], 1, "absent: there is no such directory"),
        ([".", "--pointer", "sw.json"], 1, ".: is no store: it has no store.json"),
        (["store", "--pointer", "absent/x/sw.json"], 1, "absent/x/sw.json: the directory it goes into does not exist"),
        (["store", "--pointer", "store"], 2, "store: is a directory"),
        (["empty", "--pointer", "sw.json"], 15, "has no current generation"),
    ],
)
def test_publish_refusals(store: Path, capsys: Capture, arguments: list[str], code: int, message: str) -> None:
    Store.open_or_create(b"empty")
    assert main(["publish", "-q", "store", "--pointer", "sw.json"]) == 0
    before = (store.parent / "sw.json").read_bytes()
    capsys.readouterr()
    assert main(["publish", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) <= 2  # there may be a hint
    assert (store.parent / "sw.json").read_bytes() == before


@pytest.mark.parametrize("number", ["0", "-1", "x", "9007199254740992", "9" * 5000, "²", "1.0"])
def test_numbers_of_no_generation(store: Path, number: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["publish", "store", "--pointer", "sw.json", f"--generation={number}"])
    assert caught.value.code == 2


def test_publish_does_not_wait_for_a_build(store: Path, capsys: Capture) -> None:
    opened = Store.open(b"store")
    with opened.build_lock("build", wait=0, note=ignore), opened.lock("gc", wait=0, note=ignore):
        assert main(["publish", "-q", "store", "--pointer", "sw.json", "--wait", "0"]) == 0
    with opened.publish_lock("publish", wait=0, note=ignore):
        assert main(["publish", "store", "--pointer", "sw.json", "--wait", "0"]) == 14
    assert f"in use by process {os.getpid()} (mkmeta publish)" in capsys.readouterr().err
