"""The manuals: mkmeta(1), a page a verb from its parser, section 5 from formats/. `python -m tools.manuals DIR`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkmeta import __version__
from mkmeta.cli.parser import GROUPS, VERBS, make_parser
from tools.roff import escaped, flowing, literal, markdown, section, tagged, title

TOP = Path(__file__).resolve().parents[1]
_FORMATS = {
    "mkmeta-manifest": ("manifest.md", "the file that mkmeta scan writes"),
    "layer.toml": ("layer.toml.md", "the file that describes a layer of mkmeta"),
}


def manuals() -> dict[str, str]:
    """All pages, by file name."""
    top = make_parser([])
    parsers = dict(_parsers(top))
    found = {"mkmeta.1": _top_page(top, parsers)}
    for verb, parser in parsers.items():
        found[f"mkmeta-{verb}.1"] = _verb_page(verb, parser, _summary(top, verb))
    for name, (page, what) in _FORMATS.items():
        lines = [title(name, 5, _date(), __version__), section("name"), f"{escaped(name)} \\- {escaped(what)}"]
        text = (TOP / "formats" / page).read_text(encoding="utf-8")
        first, _, rest = text.partition("\n\n")
        assert first.startswith("# ")
        opening, _, sections = rest.partition("\n## ")
        lines += [section("description"), *markdown(opening), *(markdown("## " + sections) if sections else ())]
        found[f"{name}.5"] = _text([*lines, *_see_also(["mkmeta(1)"])])
    return found


def _date() -> str:
    """That of the newest entry of CHANGELOG.md, so that the same source gives the same pages."""
    match = re.search(r"(?m)^## \S+ \((\d{4}-\d\d-\d\d)\)", (TOP / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert match is not None
    return match[1]


def _parsers(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in VERBS:
                yield verb, action.choices[verb]


def _summary(top: argparse.ArgumentParser, verb: str) -> str:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                if choice.metavar == verb:
                    return choice.help or ""
    raise AssertionError(verb)


def _top_page(top: argparse.ArgumentParser, parsers: dict[str, argparse.ArgumentParser]) -> str:
    lines = [
        title("mkmeta", 1, _date(), __version__),
        section("name"),
        "mkmeta \\- overlayfs metadata layers for read\\-only software volumes",
        section("synopsis"),
        ".B mkmeta",
        ".I VERB",
        "\\&...",
        section("description"),
        *_prose(top.description or ""),
    ]
    for group, verbs in GROUPS.items():
        lines.append(section(group))
        for verb in verbs:
            lines += tagged(f"**mkmeta-{verb}(1)**", _summary(top, verb))
    lines += _prose((top.epilog or ""), headings=True)
    return _text(
        [*lines, *_see_also([*(f"mkmeta-{verb}(1)" for verb in parsers), *(f"{name}(5)" for name in _FORMATS)])]
    )


def _verb_page(verb: str, parser: argparse.ArgumentParser, summary: str) -> str:
    usage = re.sub(r"^usage: +", "", parser.format_usage().replace("\n", " "))
    lines = [
        title(f"mkmeta-{verb}", 1, _date(), __version__),
        section("name"),
        f"mkmeta\\-{verb} \\- {escaped(summary)}",
        section("synopsis"),
        *flowing(usage),
        section("description"),
        *_prose(parser.description or "", headings=True),
        section("options"),
    ]
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.help is not argparse.SUPPRESS:
                lines += tagged(_invocation(action), _help(parser, action))
    lines += _prose(parser.epilog or "", headings=True, first=section("notes"))
    return _text([*lines, *_see_also(["mkmeta(1)", "layer.toml(5)"])])


def _invocation(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else (action.dest if action.choices is None else "")
    if action.choices is not None and not isinstance(action.metavar, str):
        value = "|".join(map(str, action.choices))
    if not action.option_strings:
        return f"**{value}**"
    names = ", ".join(action.option_strings)
    return f"**{names}**" if action.nargs == 0 else f"**{names} {value}**"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    return formatter._expand_help(action) if action.help else ""


def _prose(text: str, *, headings: bool = False, first: str | None = None) -> Iterator[str]:
    """Help's own text: paragraphs, and blocks `word:` with indented lines below, which become sections."""
    fresh = True
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        indented = len(lines) > 1 and all(line.startswith(" ") for line in lines[1:])
        head = re.fullmatch(r"([a-z][a-z ]*):(.*)", lines[0])
        if headings and indented and head:
            yield section({"exit codes": "exit status"}.get(head[1], head[1]))
            if head[2].strip():
                yield from flowing(head[2])
            made = list(literal(line.removeprefix("  ") for line in lines[1:]))
            yield from made if head[2].strip() else made[1:]
            first, fresh = section("notes"), True
            continue
        if first is not None:
            yield first
            first, fresh = None, True
        if not fresh:
            yield ".PP"
        if indented:
            yield from flowing(lines[0])
            yield from literal(line.removeprefix("  ") for line in lines[1:])
        else:
            yield from flowing(block)
        fresh = False


def _see_also(pages: list[str]) -> list[str]:
    lines = [section("see also")]
    for number, page in enumerate(pages):
        name, _, place = page.rstrip(")").partition("(")
        lines.append(f".BR {escaped(name)} ({place}){',' if number + 1 < len(pages) else ''}")
    return lines


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def write(where: Path) -> list[Path]:
    """Writes all pages to man1 and man5 of a directory; returns them."""
    found = []
    for name, text in manuals().items():
        path = where / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        found.append(path)
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
