"""Writes layer files: what is known as a setting, what else could be said as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from mkmeta.config_keys import KEYS

Value = bool | int | bytes | Sequence[bytes]
_WIDTH: Final = 118  # characters, with what begins a comment
_ESCAPES: Final = {0x22: '\\"', 0x5C: "\\\\", 0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x7F: "\\u007F"} | {
    code: f"\\u{code:04X}" for code in range(0x20) if code not in (0x09, 0x0A, 0x0D)
}


def config_text(head: Sequence[str], values: Mapping[str, Value], remarks: Mapping[str, Sequence[str]]) -> bytes:
    """The bytes of a layer file: `values` by key, paragraphs of comment before all of it, and `remarks` before keys.

    Every key there is stands in it, those without a value commented out, with their example.
    """
    lines = [line for paragraph in head for line in _comment(paragraph)]
    for key in KEYS:
        lines += ["", *_comment(key.means + ".")]
        lines += [line for paragraph in remarks.get(key.name, ()) for line in _comment(paragraph)]
        value = values.get(key.name)
        lines.append(f"#{key.name} = {key.example}" if value is None else f"{key.name} = {toml(value)}")
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def toml(value: Value) -> str:
    """A value as TOML has it; bytes that are not UTF-8 as they are, by surrogates (formats/layer.toml.md)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return '"' + value.decode("utf-8", "surrogateescape").translate(_ESCAPES) + '"'
    return "[" + ", ".join(map(toml, value)) + "]"


def _comment(text: str) -> list[str]:
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return textwrap.wrap(clean, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) or ["#"]
