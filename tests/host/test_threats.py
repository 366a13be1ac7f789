"""formats/threats.md: each line names a test, and it exists."""

from __future__ import annotations

import re
from pathlib import Path

from mkmeta.mounts.users import command_of
from tests.store.processes import fork, wait

PAGE = Path(__file__).parents[2] / "formats" / "threats.md"
TESTS = Path(__file__).parents[1]
_NAMED = re.compile(r"`([a-z/]+/test_\w+\.py)(?:::(test_\w+))?`")


def _rows() -> list[str]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "| test |" not in line]
    return [row for row in rows if not row.startswith(("| who |", "| root ", "| the volume's server", "| whoever "))]


def test_every_line_names_tests_that_exist() -> None:
    assert len(_rows()) > 15
    for row in _rows():
        named = _NAMED.findall(row)
        assert named, row
        for path, name in named:
            text = (TESTS / path).read_text()
            assert not name or f"def {name}(" in text, (path, name)


def test_names_of_processes_are_one_line() -> None:
    def named() -> int:
        Path("/proc/self/comm").write_bytes(b"a\nb\x1b[2J")
        return int(command_of("self") != r"a\x0ab\x1b[2J")  # type: ignore[arg-type]

    assert wait(fork(named)) == 0
