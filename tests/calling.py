"""Calls of the program as a user makes them, but in this process, which is faster."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mkmeta.__main__ import main


@dataclass(frozen=True)
class Result:
    """What a call of the program gave."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The JSON messages on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


def call(arguments: Sequence[str], *, check: int | None = 0) -> Result:
    """Calls a verb; `check` is the exit code it must have."""
    out, err = io.StringIO(), io.StringIO()
    before = os.stat(".")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as usage:
            code = int(str(usage.code))
    assert os.path.samestat(os.stat("."), before), (arguments, "it has left the working directory")
    assert check is None or code == check, (arguments, code, out.getvalue(), err.getvalue())
    return Result(code, out.getvalue(), err.getvalue())
