"""examples/systemd: what systemd itself says of the units, and that they call the program as it is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mkmeta.cli.parser import make_parser

UNITS = Path(__file__).parents[2] / "examples" / "systemd"
PROGRAM = "/opt/mkmeta/bin/mkmeta"  # where README installs it
NAMES = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".timer"))
SETTINGS = {"STORE": "/var/lib/mkmeta/sw", "LOWER": "/mnt/sw", "MOUNTPOINT": "/sw", "OPTIONS": "--profile merge"}

# systemd.exec(5): each of these gives the service a mount namespace of its own, whose mounts stay in there
NAMESPACED = re.compile(
    r"^(Private(Mounts|Tmp|Devices|Network|IPC|Users|PIDs)|Protect\w+|\w+Paths|Bind\w+|TemporaryFileSystem|Root\w+|"
    r"MountFlags|MountAPIVFS|MountImages|Extension\w+|DynamicUser|LogNamespace|NetworkNamespacePath|LoadCredential\w*)=",
    re.MULTILINE,
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units that call a program which exists."""
    copy = tmp_path / "units"
    shutil.copytree(UNITS, copy)
    stub = tmp_path / "mkmeta"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    for name in NAMES:
        (copy / name).write_text((copy / name).read_text().replace(PROGRAM, str(stub)))
    return copy


def verify(units: Path) -> tuple[int, str]:
    """systemd's verdict on all of them; by itself it ends with 0 whatever it says."""
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--recursive-errors=yes",
        *(str(units / name) for name in NAMES),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in result.stderr.splitlines() if "mkmeta" in line]
    return len(ours), result.stderr


def test_they_are_there() -> None:
    expected = {"activate@.service", "refresh@.service", "refresh@.timer", "gc@.service", "gc@.timer"}
    assert {name.removeprefix("mkmeta-") for name in NAMES} == expected


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
@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".service")])
def test_systemd_would_miss_the_program(units: Path, name: str) -> None:
    """Where a shell calls it, the shell is what systemd looks for."""
    text = (units / name).read_text()
    (units / name).write_text(re.sub(r"(?m)^(Exec\w+=)\S+", r"\1/no/such/program", text))
    assert verify(units)[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".service")])
def test_mounts_are_made_where_all_can_see_them(name: str) -> None:
    assert NAMESPACED.findall((UNITS / name).read_text()) == []
    assert NAMESPACED.search("Type=oneshot\nPrivateTmp=yes\n")


def _setting(known: dict[str, str], match: re.Match[str]) -> str:
    return known[match[1]]


def commands(pointer: str) -> Iterator[tuple[str, list[str]]]:
    """What the units run, with the settings filled in as systemd and the shell would."""
    settings = {"POINTER": pointer, **SETTINGS}
    for name in NAMES:
        text = (UNITS / name).read_text()
        defaults = dict(pair.split("=") for pair in " ".join(re.findall(r"(?m)^Environment=(.*)", text)).split())
        for line in re.findall(r"(?m)^Exec\w+=(.*)", text):
            known = {**defaults, **settings}
            by_systemd = re.sub(r"(?<!\$)\$\{(\w+)\}", partial(_setting, known), line).replace("$$", "$")
            words = shlex.split(by_systemd)
            if words[0] == "/bin/sh":
                script = words[2].replace(f"exec {PROGRAM}", "printf '%s\\n' " + PROGRAM)
                shell = subprocess.run(["sh", "-c", script], env=known, capture_output=True, text=True, check=False)
                if not pointer and "POINTER:?" in script:
                    assert "POINTER: is not in the .conf" in shell.stderr
                    continue
                words = shell.stdout.splitlines()
            yield name, words


@pytest.mark.parametrize("pointer", ["", "/mnt/sw/.mkmeta/with space.json"])
def test_they_call_the_program_as_it_is(pointer: str) -> None:
    seen = set()
    for name, (program, *arguments) in commands(pointer):
        assert program == PROGRAM
        args = make_parser().parse_args(arguments)
        seen.add((name, arguments[0]))
        if arguments[0] == "activate":
            assert args.lower == b"/mnt/sw"
            assert args.follow == (pointer.encode() or None)
            assert args.profile == "merge"
    expected = {
        ("mkmeta-activate@.service", "activate"),
        ("mkmeta-activate@.service", "deactivate"),
        ("mkmeta-gc@.service", "gc"),
    }
    assert seen == (expected | {("mkmeta-refresh@.service", "activate")} if pointer else expected)


def test_the_settings_are_those_the_units_read() -> None:
    read = set(re.findall(r"(?m)^(\w+)=", (UNITS / "sw.conf").read_text()))
    used = {
        name
        for unit in NAMES
        for line in re.findall(r"(?m)^Exec\w+=(.*)", (UNITS / unit).read_text())
        for name in re.findall(r"\$\{?([A-Z_]+)", line)
    }
    assert read == used
    drop_in = (UNITS / "mkmeta-activate@sw.service.d" / "volume.conf").read_text()
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", (UNITS / "sw.conf").read_text()))
    assert f"RequiresMountsFor={settings['LOWER']} {settings['STORE']}\n" in drop_in
