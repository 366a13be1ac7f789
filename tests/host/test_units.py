"""The systemd units: what systemd itself says of them, that they call the program as it is, and what `units` adds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.cli.parser import make_parser
from mkmeta.config import LayerConfig, parse_config, read_config
from mkmeta.errors import MkmetaError
from mkmeta.host.units import Unit, templates, units_of

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "examples" / "systemd"
FILE = EXAMPLES / "sw.toml"
PROGRAM = "/opt/mkmeta/bin/mkmeta"  # where README installs it
UNITS = {unit.name: unit.text.decode() for unit in templates()}
NAMES = sorted(UNITS)
SERVICES = [name for name in NAMES if name.endswith(".service")]

# systemd.exec(5): each of these gives the service a mount namespace of its own, whose mounts stay in there
NAMESPACED = re.compile(
    r"^(Private(Mounts|Tmp|Devices|Network|IPC|Users|PIDs)|Protect\w+|\w+Paths|Bind\w+|TemporaryFileSystem|Root\w+|"
    r"MountFlags|MountAPIVFS|MountImages|Extension\w+|DynamicUser|LogNamespace|NetworkNamespacePath|LoadCredential\w*)=",
    re.MULTILINE,
)


def example() -> LayerConfig:
    return parse_config(FILE.read_bytes(), b"/etc/mkmeta/sw.toml")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """All of the example's, calling a program which exists."""
    stub = tmp_path / "mkmeta"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    place(units_of(example(), [str(stub)]), tmp_path / "units")
    return tmp_path / "units"


def place(units: list[Unit], where: Path) -> None:
    for unit in units:
        (where / unit.name).parent.mkdir(parents=True, exist_ok=True)
        (where / unit.name).write_bytes(unit.text)


def verify(units: Path, instance: str = "sw") -> tuple[int, str]:
    """systemd's verdict on all of them; by itself it ends with 0 whatever it says."""
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=yes"]
    command += [str(units / name) for name in NAMES]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    ours = [line for line in result.stderr.splitlines() if "mkmeta" in line]
    return len(ours), result.stderr


def test_the_examples_are_what_the_program_prints() -> None:
    made = {unit.name: unit.text for unit in units_of(example(), [PROGRAM])}
    there = {str(path.relative_to(EXAMPLES)): path.read_bytes() for path in EXAMPLES.rglob("*") if path.is_file()}
    assert there.pop("sw.toml") == FILE.read_bytes()
    assert there == made


def test_they_are_all_there() -> None:
    expected = {"activate@.service", "refresh@.service", "refresh@.timer", "gc@.service", "gc@.timer"}
    assert {name.removeprefix("mkmeta-") for name in NAMES} >= expected


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_nothing_wrong(units: Path) -> None:
    assert verify(units) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("old", "new"),
    [("[Unit]\n", "[Unit]\nNoSuchKey=yes\n"), ("[Unit]\n", "[Unit]\nAfter=\n[NoSuchSection]\nx=y\n[Unit]\n")],
)
def test_systemd_would_find_what_is_wrong(units: Path, name: str, old: str, new: str) -> None:
    (units / name).write_text((units / name).read_text().replace(old, new))
    count, errors = verify(units)
    assert count, errors
    assert "NoSuch" in errors


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("name", SERVICES)
def test_systemd_would_miss_the_program(units: Path, name: str) -> None:
    text = (units / name).read_text()
    (units / name).write_text(re.sub(r"(?m)^(Exec\w+=)\S+", r"\1/no/such/program", text))
    assert verify(units)[0]


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_are_made_where_all_can_see_them(name: str) -> None:
    assert NAMESPACED.findall(UNITS[name]) == []
    assert NAMESPACED.search("Type=oneshot\nPrivateTmp=yes\n")


@pytest.mark.parametrize("name", SERVICES)
def test_they_call_the_program_as_it_is(name: str) -> None:
    config = dict(re.findall(r"(?m)^Environment=(CONFIG)=(.*)$", UNITS[name]))["CONFIG"]
    assert config == "/etc/mkmeta/%i.toml"
    for line in re.findall(r"(?m)^Exec\w+=(.*)", UNITS[name]):
        program, *arguments = shlex.split(line.replace("${CONFIG}", str(FILE)))
        assert program == PROGRAM
        args = make_parser(arguments).parse_args(arguments)
        expected = {"store": b"/var/lib/mkmeta/sw", "point": b"/sw", "lower": b"/mnt/sw", "keep": 3}
        assert {key: value for key, value in vars(args).items() if key in expected}.items() <= expected.items()
        assert args.config.path == os.fsencode(FILE)
        assert args.from_config or arguments[0] == "watch"  # which has no options for what the file says


def test_systemd_knows_the_paths_of_the_file() -> None:
    drop_in = {unit.name: unit.text.decode() for unit in units_of(example(), [PROGRAM])}
    text = drop_in["mkmeta-activate@sw.service.d/paths.conf"]
    assert "RequiresMountsFor=/mnt/sw /var/lib/mkmeta/sw\n" in text


@given(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\0" not in raw))
def test_any_path_comes_through(raw: bytes) -> None:
    """As systemd.syntax(7) takes words apart; checked with systemd itself below."""
    config = LayerConfig(path=b"/etc/mkmeta/sw.toml", volume=b"/" + raw, store=b"/s", mount_point=b"/p")
    try:
        units = {unit.name: unit.text for unit in units_of(config, [PROGRAM])}
    except MkmetaError:
        assert b"\n" in raw
        return
    line = re.findall(rb"(?m)^RequiresMountsFor=(.*)$", units["mkmeta-activate@sw.service.d/paths.conf"])
    assert len(line) == 1
    assert line[0].endswith(b" /s")
    word = line[0][:-3].replace(b"%%", b"%")
    if word.startswith(b'"'):
        assert word.endswith(b'"')
        word = re.sub(rb'\\(["\\])', rb"\1", word[1:-1])
    assert word == b"/" + raw


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("volume", ["/mnt/with space", '/mnt/"quoted"', "/mnt/back\\slash", "/mnt/100%", "/mnt/%n"])
def test_systemd_takes_odd_paths(volume: str, tmp_path: Path, units: Path) -> None:
    config = LayerConfig(path=b"/srv/odd %n/sw.toml", volume=volume.encode(), store=b"/s", mount_point=b"/p")
    program = shutil.which("true") or "/bin/true"
    shutil.rmtree(units)
    place(units_of(config, [program]), units)
    (units / "mkmeta-activate@sw.service").write_text((units / "mkmeta-activate@.service").read_text())
    assert verify(units) == (0, "")


def test_they_are_installed_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, where = tmp_path / "sw.toml", tmp_path / "system"
    file.write_bytes(FILE.read_bytes())
    assert main(["units", "--config", str(file), "--install", str(where), "--program", PROGRAM]) == 0
    err = capsys.readouterr().err
    assert "systemctl enable --now mkmeta-activate@sw.service mkmeta-refresh@sw.timer" in err
    assert (
        "on one machine of the site: systemctl daemon-reload && systemctl enable --now mkmeta-watch@sw.service" in err
    )
    expected = {unit.name: unit.text for unit in units_of(read_config(os.fsencode(file)), [PROGRAM])}
    assert {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()} == expected
    assert f"Environment=CONFIG={file}\n".encode() in expected["mkmeta-gc@sw.service.d/file.conf"]
    (where / "mkmeta-gc@.timer").write_text("old")
    assert main(["units", "--config", str(file), "--install", str(where), "--program", PROGRAM]) == 0
    err = capsys.readouterr().err
    assert err.count(": unchanged") == len(expected) - 1
    assert "mkmeta-gc@.timer: replaced" in err
    assert main(["units", "--config", str(file)]) == 0
    assert capsys.readouterr().out.count("# --- mkmeta-") == len(expected)


def test_a_host_that_only_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It mounts nothing: the layer file says neither where nor from what store."""
    file = tmp_path / "sw.toml"
    file.write_text('volume = "/mnt/sw"\nmanifest = "/srv/mkmeta/sw.mkm"\npointer = "/mnt/sw/.mkmeta/sw.json"\n')
    assert main(["units", "--config", str(file), "--install", str(tmp_path / "system"), "--program", PROGRAM]) == 0
    err = capsys.readouterr().err
    assert "systemctl enable --now mkmeta-watch@sw.service" in err
    assert "--now mkmeta-activate@" not in err
    drop_in = tmp_path / "system/mkmeta-watch@sw.service.d"
    assert "RequiresMountsFor=/mnt/sw /srv/mkmeta\n" in (drop_in / "paths.conf").read_text()
    assert f"Environment=CONFIG={file}\n" in (drop_in / "file.conf").read_text()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a b.toml", 'volume = "/v"\nstore = "/s"\nmount-point = "/p"', "cannot be the name of a unit"),
        ("sw.toml", 'volume = "/v"\nstore = "/s"', "does not say 'mount-point'"),
        ("sw.toml", 'volume = "/v\\n"\nstore = "/s"\nmount-point = "/p"', "cannot have a line break"),
    ],
)
def test_what_cannot_be_a_unit(
    name: str, text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["units", "--config", str(tmp_path / name), "--install", str(tmp_path / "system")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "system").exists()
