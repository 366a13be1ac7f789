"""The units of both sides: what systemd says of them, and that they call the program as it is."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mkmeta.cli.parser import make_parser

EXAMPLES = Path(__file__).parents[2] / "examples" / "observe"
PROGRAM = "/opt/mkmeta/bin/mkmeta"


@pytest.mark.parametrize("name", ["mkmeta-observe.service", "mkmeta-promote.service"])
def test_units_call_what_there_is(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    variables = dict(
        word.split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.M) for word in line.split()
    )
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.M)
    for variable, value in variables.items():
        command = command.replace("${" + variable + "}", value)
    program, *words = shlex.split(command)
    assert program == PROGRAM and "$" not in command
    assert make_parser(words).parse_args(words).run is not None


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    stub = tmp_path / "mkmeta"
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    for path in EXAMPLES.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, str(stub)))
    units = [str(path) for path in sorted(tmp_path.glob("*.*"))]
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "mkmeta-" in line] == []
