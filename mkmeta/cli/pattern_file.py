"""Files with patterns: one a line. formats/patterns.md has the rules."""

from __future__ import annotations

import sys
from typing import Final

from mkmeta.errors import UsageError, reason

_SIZE_MAX: Final = 16 << 20  # bytes; more is no list that anybody means to match every name with
_BLANK: Final = b" \t\r"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def read_pattern_file(file: bytes) -> list[bytes]:
    """The patterns in a file; `-` is standard input. Raises UsageError."""
    shown = b"standard input" if file == b"-" else file
    try:
        if file == b"-":
            content = sys.stdin.buffer.read(_SIZE_MAX + 1)
        else:
            with open(file, "rb") as stream:
                content = stream.read(_SIZE_MAX + 1)
    except OSError as error:
        raise UsageError(f"patterns cannot be read: {reason(error)}", path=shown) from None
    if len(content) > _SIZE_MAX:
        raise UsageError(f"is more than {_SIZE_MAX >> 20} MiB: no list of patterns", path=shown)
    return parse_patterns(content)


def parse_patterns(content: bytes) -> list[bytes]:
    r"""The patterns in a file's content. Blanks around a line do not count, unless a backslash is before them."""
    patterns = []
    for line in content.removeprefix(_BYTE_ORDER_MARK).split(b"\n"):
        pattern = line.lstrip(_BLANK)
        if pattern and not pattern.startswith(b"#"):
            patterns.append(_without_blanks(pattern))
    return [pattern for pattern in patterns if pattern]


def _without_blanks(pattern: bytes) -> bytes:
    """Without the blanks at its end, up to one that a backslash takes the meaning from."""
    end = len(pattern.rstrip(_BLANK))
    backslashes = end - len(pattern[:end].rstrip(b"\\"))
    return pattern[: end + backslashes % 2 if end < len(pattern) else end]
