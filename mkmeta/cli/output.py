"""What verbs print, for people or for programs: results on stdout, everything else on stderr.

With `--json`, stdout carries one object per line, each with a `message_type`; formats/cli.md lists them.
"""

from __future__ import annotations

import json
import sys

from mkmeta.errors import MkmetaError, path_fields

__all__ = ["emit", "note", "path_fields", "report_error"]


def emit(message_type: str, **fields: object) -> None:
    """Prints one JSON message."""
    print(json.dumps({"message_type": message_type, **fields}), flush=True)


def note(text: str) -> None:
    """Prints a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def report_error(error: MkmetaError, *, as_json: bool) -> None:
    """Prints the one line an error is, and its hint."""
    if as_json:
        fields: dict[str, object] = {"code": int(error.exit_code), "message": error.message, "hint": error.hint}
        emit("exit_error", **fields, **(path_fields(error.path) if error.path is not None else {}))
    note(f"mkmeta: {error}")
    if error.hint:
        note(f"mkmeta: {error.hint}")
