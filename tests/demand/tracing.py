"""Runs a program under bpftrace with the script that is shipped; from its start to its end, whoever else runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples/observe.bt"


def bpftrace(output: Path, program: str, *words: str | Path, keys: int = 200_000, length: int = 200) -> None:
    """What the maps hold goes to `output`, counts of other programs too; `keys` and `length` are bpftrace's limits."""
    source = output.with_name("program.py")
    source.write_text(program)
    limits = {
        **{"BPFTRACE_STRLEN": f"{length}", "BPFTRACE_MAP_KEYS_MAX": f"{keys}"},
        **{"BPFTRACE_MAX_STRLEN": f"{length}", "BPFTRACE_MAX_MAP_KEYS": f"{keys}"},
    }
    with output.open("wb") as stream:
        subprocess.run(
            ["bpftrace", "-c", " ".join(map(str, (sys.executable, "-S", source, *words))), SCRIPT],
            check=True,
            stdout=stream,
            env={**os.environ, **limits},
        )
