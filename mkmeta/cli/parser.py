"""The command line's grammar: the verbs and what they share."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mkmeta import __version__
from mkmeta.cli.config_option import VerbParser

_VERBS = (
    *("scan", "build", "verify", "diff", "merge", "prune", "publish"),
    *("activate", "status", "rollback", "deactivate", "refresh", "gc", "doctor"),
    *("show", "explain", "ls", "dump"),
)

_DESCRIPTION = """\
Records selected parts of a read-only software volume (scan) and turns the record into an overlayfs layer
of metadata only (build). Mounted over the volume (activate), the layer answers lookups, listings and stats
locally; file data still comes from the volume, and whatever was not selected still shows through.
"""

_EPILOG = """\
examples:
  mkmeta scan /mnt/sw --select 'grp/*/v*/lib' -o sw.mkm
  mkmeta build sw.mkm --store /var/lib/mkmeta/sw
  mkmeta activate /var/lib/mkmeta/sw /sw --lower /mnt/sw

`mkmeta VERB --help` explains a verb, with its exit codes.
"""


def make_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of `mkmeta`, for a command line; the namespace it returns has `run`, the verb's function.

    Only the verb that the command line begins with is imported, and all of them where it begins with something else.
    """
    given = sys.argv[1:2] if argv is None else argv[:1]
    parser = argparse.ArgumentParser(
        prog="mkmeta",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mkmeta {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=VerbParser)
    for verb in given if given and given[0] in _VERBS else _VERBS:
        importlib.import_module(f"mkmeta.cli.{verb}").add_parser(verbs)
    return parser
