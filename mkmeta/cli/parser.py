"""The command line's grammar: the verbs and what they share."""

from __future__ import annotations

import argparse

from mkmeta import __version__
from mkmeta.cli import (
    activate,
    build,
    deactivate,
    doctor,
    dump,
    gc,
    ls,
    publish,
    refresh,
    rollback,
    scan,
    show,
    status,
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


def make_parser() -> argparse.ArgumentParser:
    """The parser of `mkmeta`; the namespace it returns has `run`, the verb's function."""
    parser = argparse.ArgumentParser(
        prog="mkmeta",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mkmeta {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (scan, build, publish, activate, status, rollback, deactivate, refresh, gc, doctor, show, ls, dump):
        verb.add_parser(verbs)
    return parser
