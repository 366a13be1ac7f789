"""What every verb's parser has in common."""

from __future__ import annotations

import argparse

Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def add_verb(
    verbs: Verbs[argparse.ArgumentParser], name: str, *, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """A parser for one verb with the options all verbs have; `epilog` holds its examples and exit codes."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object per line instead of text")
    group.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    return parser
