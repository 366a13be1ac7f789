"""Completion for bash and zsh (by shtab) and fish, from the parsers. `python -m tools.completion DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab

from mkmeta.cli.parser import make_parser

PLACES = {
    "bash": "bash-completion/completions/mkmeta",
    "zsh": "zsh/site-functions/_mkmeta",
    "fish": "fish/vendor_completions.d/mkmeta.fish",
}
_DIRECTORIES = frozenset(("DIR", "ROOT", "STORE", "MOUNTPOINT", "VOLUME", "LOWER"))
_NO_FILES = frozenset(
    ("N", "ID", "PATTERN", "SECONDS", "SPAN", "SHARE", "N%", "TEXT", "LIST", "OPTIONS", "NAME", "SIZE")
)


def completions() -> dict[str, str]:
    """The text for each shell."""
    found = {}
    for shell in ("bash", "zsh"):
        parser = make_parser([])
        for _, verb in _verbs(parser):
            for action in verb._actions:
                _mark(action)
        found[shell] = shtab.complete(parser, shell=shell)
    return {**found, "fish": "".join(line + "\n" for line in _fish(make_parser([])))}


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _mark(action: argparse.Action) -> None:
    """Tells shtab what to offer for a value."""
    if action.nargs == 0 or action.choices is not None:
        return
    if action.metavar in _DIRECTORIES:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.metavar not in _NO_FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _fish(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "complete -c mkmeta -f"
    summaries = {
        str(choice.metavar): choice.help or ""
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
    }
    for name, summary in summaries.items():
        yield f"complete -c mkmeta -n __fish_use_subcommand -a {name} -d {_quoted(summary)}"
    for option in ("-s h -l help", "-l version"):
        yield f"complete -c mkmeta -n __fish_use_subcommand {option}"
    for name, verb in _verbs(parser):
        within = f"complete -c mkmeta -n '__fish_seen_subcommand_from {name}'"
        for action in verb._actions:
            if not action.option_strings:
                yield (
                    f"{within} -a '(__fish_complete_directories)'" if action.metavar in _DIRECTORIES else f"{within} -F"
                )
                continue
            names = " ".join(
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in action.option_strings
            )
            expanded = verb._get_formatter()._expand_help(action) if action.help else ""
            yield f"{within} {names}{_value(action)} -d {_quoted(expanded.split(';')[0].split('. ')[0][:80])}"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return f" -x -a {_quoted(' '.join(map(str, action.choices)))}"
    if action.metavar in _DIRECTORIES:
        return " -x -a '(__fish_complete_directories)'"
    return " -x" if action.metavar in _NO_FILES else " -r -F"


def _quoted(text: str) -> str:
    return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"


def write(where: Path) -> list[Path]:
    """Writes them below a directory as they lie in /usr/share; returns them."""
    found = []
    for shell, text in completions().items():
        path = where / PLACES[shell]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        found.append(path)
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
