"""Writes man(7) pages: of plain text as help has it, and of the Markdown that formats/ is written in.

Only what these use is known: headings, paragraphs, lists, tables, indented blocks, `code`, **bold** and links. Pages
are clean under `mandoc -T lint`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

_WIDTH: Final = 60  # of source lines: mandoc wants at most 80 bytes, escapes included
_CODE: Final = re.compile(r"``(.+?)``|`([^`]+)`|\*\*(.+?)\*\*|\[([^]]+)\]\([^)]*\)")
_BULLET: Final = re.compile(r"(?:- |[0-9]+\. )")


def title(name: str, section: int, date: str, version: str) -> str:
    """The first line of a page; `date` as 2026-01-31."""
    return f'.TH {name.upper()} {section} {date} "mkmeta {version}" "mkmeta"'


def escaped(text: str) -> str:
    """Text in which nothing means anything to roff; not for the start of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)


def _line(text: str) -> str:
    return "\\&" + text if text.startswith((".", "'")) else text


def literal(lines: Iterable[str]) -> Iterator[str]:
    """Lines as they are."""
    yield from (".PP", ".RS 4", ".nf")
    for line in lines:
        yield _line(escaped(line.rstrip())) or "\\&"
    yield from (".fi", ".RE")


def flowing(text: str) -> Iterator[str]:
    """Words that are filled, with Markdown's marks in them; a sentence begins a line."""
    marked = _CODE.sub(_marked, " ".join(text.split()))
    for sentence in re.split(r"(?<=[.;:!?]) (?=\S)", marked):
        for line in textwrap.wrap(sentence, _WIDTH, break_long_words=False, break_on_hyphens=False):
            yield _line(_restored(line))


def _marked(match: re.Match[str]) -> str:
    code, plain, bold, link = match.groups()
    if link is not None:
        return re.sub(r"[`*]", "", link)
    return "\x01" + (code or plain or bold).replace(" ", "\x03") + "\x02"


def _restored(line: str) -> str:
    return escaped(line).replace("\x01", "\\fB").replace("\x02", "\\fR").replace("\x03", " ")


def tagged(tag: str, text: str) -> Iterator[str]:
    """A term and what it means."""
    yield ".TP"
    yield from list(flowing(tag))[:1] or ["\\&"]
    yield from list(flowing(text)) or ["\\&"]


def section(name: str) -> str:
    """A heading."""
    return f".SH {_quoted(name.upper())}"


def _quoted(text: str) -> str:
    clean = escaped(re.sub(r"[`*]", "", text)).replace('"', "\\(dq")
    return f'"{clean}"' if " " in clean else clean


def markdown(text: str) -> Iterator[str]:
    """A page of formats/, without its first heading."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    after_heading = True
    for block in blocks:
        lines = block.split("\n")
        if lines[0].startswith("# "):
            continue
        if heading := re.match(r"(##+) (.*)", lines[0]):
            yield section(heading[2]) if heading[1] == "##" else f".SS {_quoted(heading[2])}"
            after_heading = True
            lines = lines[1:]
            if not lines:
                continue
        yield from _block(lines, after_heading=after_heading)
        after_heading = False


def _block(lines: list[str], *, after_heading: bool) -> Iterator[str]:
    if all(line.startswith("    ") for line in lines) or lines[0].startswith("```"):
        body = [line.removeprefix("    ") for line in lines if not line.startswith("```")]
        made = list(literal(body))
        yield from made[1:] if after_heading else made
    elif lines[0].startswith("|"):
        rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines
        ]
        for row in rows[2:]:
            rest = [cell for cell in row[1:] if cell]
            yield from tagged(row[0], "; ".join(rest))
    elif _BULLET.match(lines[0]):
        for item in re.split(r"\n(?=(?:- |[0-9]+\. ))", "\n".join(lines)):
            yield '.IP "\\(bu" 3'
            yield from list(flowing(_BULLET.sub("", item, count=1))) or ["\\&"]
    else:
        if not after_heading:
            yield ".PP"
        yield from flowing("\n".join(lines))
