"""The command line's grammar: the verbs and what they share."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NoReturn

from mkmeta import __version__
from mkmeta.cli.config_option import VerbParser
from mkmeta.cli.kind_parser import KindParser, did_you_mean
from mkmeta.cli.verb import Verbs
from mkmeta.errors import ExitCode, legible

# Each is the module `mkmeta.cli.VERB`; help lists them in this order, by group.
GROUPS: Final = {
    "set up": ("init", "units", "doctor"),
    "compile": ("scan", "build", "merge", "prune", "import"),
    "inspect": ("show", "ls", "dump", "diff", "explain", "verify"),
    "serve": ("activate", "rollback", "refresh", "deactivate", "gc"),
    "publish": ("release", "watch", "publish", "fleet"),
    "observe": ("status", "observe", "suggest", "predict", "promote"),
}
VERBS: Final = tuple(verb for verbs in GROUPS.values() for verb in verbs)

_DESCRIPTION = """\
Records selected parts of a read-only software volume (scan) and turns the record into an overlayfs layer
of metadata, and of small files if you want (build). Mounted over the volume (activate), the layer answers
lookups, listings and stats locally; all other data still comes from the volume, and whatever was not
selected still shows through.
"""

_EPILOG = """\
examples:
  mkmeta scan /mnt/sw --select 'grp/*/v*/lib' -o sw.mkm
  mkmeta build sw.mkm --store /var/lib/mkmeta/sw
  mkmeta activate /var/lib/mkmeta/sw /sw --lower /mnt/sw
  mkmeta init /mnt/sw                                       all that in one file, for --config FILE

`mkmeta VERB --help` explains a verb, with its exit codes.
"""


class _TopParser(KindParser):
    """The parser of `mkmeta` itself; its help lists the verbs by group."""

    verbs: Verbs[argparse.ArgumentParser]

    def check_options(self, args: Iterable[str]) -> None:
        """Ends the program with an error where there is no verb, or none of that name. All else is the verb's."""
        first = next(iter(args), None)
        if first is None:
            self.print_help(sys.stderr)
            raise SystemExit(int(ExitCode.USAGE))
        if first in VERBS or first in self._option_string_actions:
            return
        if first.startswith("-"):
            self.fail(f"{legible(first)} is not for mkmeta itself", "options follow the verb: mkmeta scan --json ...")
        meant = did_you_mean(first, VERBS)
        self.fail(f"there is no verb '{legible(first)}'", meant or f"there are {', '.join(VERBS)}")

    def in_order(self, args: Sequence[str]) -> list[str]:
        """As they are: the verb comes first."""
        return list(args)

    def error(self, message: str) -> NoReturn:
        """As any parser; what is left over when a verb has all it takes is the verb's."""
        verb, _, rest = message.partition("unrecognized arguments: ")
        if rest and not verb:
            (parser,) = self.verbs.choices.values()
            parser.error(f"there is nothing to do with the last of the arguments: {rest}")
        super().error(message)

    def format_help(self) -> str:
        """The page of `mkmeta --help`."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        known = {str(choice.metavar): choice for choice in self.verbs._choices_actions}
        for group, verbs in GROUPS.items():
            formatter.start_section(group)
            formatter.add_arguments([known[verb] for verb in verbs if verb in known])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action is not self.verbs])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def make_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of `mkmeta`, for a command line; the namespace it returns has `run`, the verb's function.

    Only the verb that the command line begins with is imported, and all of them where it begins with something else.
    """
    given = sys.argv[1:2] if argv is None else argv[:1]
    parser = _TopParser(
        prog="mkmeta",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mkmeta {__version__}")
    parser.verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=VerbParser)
    for verb in given if given and given[0] in VERBS else VERBS:
        importlib.import_module(f"mkmeta.cli.{verb}").add_parser(parser.verbs)
    return parser
