"""What verbs print, for people or for programs: results on stdout, everything else on stderr.

With `--json`, stdout carries one object per line, each with a `message_type`; formats/cli.md lists them.
"""

from __future__ import annotations

import json
import sys

from mkmeta.errors import MkmetaError, legible, path_fields

__all__ = ["begin", "emit", "note", "path_fields", "report_error"]

_WITH_VERB = frozenset({"summary", "exit_error", "progress"})


class _Call:
    """The command line that this process is at."""

    verb: str | None = None
    as_json = False


def begin(verb: str | None, *, as_json: bool) -> None:
    """A command line begins, of this verb, if it has one; errors are messages with `as_json`."""
    _Call.verb = verb
    _Call.as_json = as_json


def emit(message_type: str, **fields: object) -> None:
    """Prints one JSON message."""
    verb = {"verb": _Call.verb} if message_type in _WITH_VERB else {}
    print(json.dumps({"message_type": message_type, **verb, **fields}), flush=True)


def note(text: str) -> None:
    """Prints a line for people, on stderr; of anything in it, a terminal obeys nothing."""
    print(legible(text), file=sys.stderr, flush=True)


def report_error(error: MkmetaError) -> int:
    """Prints the one line an error is, and its hint. Returns the exit code."""
    code = int(error.exit_code)
    if _Call.as_json:
        fields: dict[str, object] = {"code": code, "message": legible(error.message), "hint": error.hint}
        emit("exit_error", **fields, **(path_fields(error.path) if error.path is not None else {}))
    note(f"mkmeta: {error}")
    if error.hint:
        note(f"mkmeta: {error.hint}")
    return code
