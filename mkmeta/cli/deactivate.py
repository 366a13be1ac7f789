"""`mkmeta deactivate`: take a layer away."""

from __future__ import annotations

import argparse

from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_mount_point, add_run_dir, add_wait, notes, run_directory
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, printable
from mkmeta.host.deactivation import Left, deactivate

_DESCRIPTION = """\
Unmounts a layer. The store and the volume stay as they are; the volume is asked nothing, as its server may be dead.
Where a mount namespace of somebody else still has the layer, its inner mount stays, and this says who that is.
"""

_EPILOG = """\
examples:
  mkmeta deactivate /sw
  mkmeta deactivate /sw --detach     although programs have files of it open

exit codes:
  0    it is not mounted any more
  1    it is in use, or cannot be unmounted
  2    the command line is wrong
  14   another mkmeta is at it, for longer than --wait
  20   no layer is mounted there
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "deactivate", summary="unmount a layer", description=_DESCRIPTION, epilog=_EPILOG)
    add_mount_point(parser)
    parser.add_argument(
        "--detach", action="store_true", help="also when it is in use: programs keep what they have open until they end"
    )
    add_wait(parser, default=60)
    add_run_dir(parser)
    add_config(parser, {"point": "mount-point", "run_dir": "run-dir"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Unmounts and reports."""
    live, left = deactivate(args.point, run_directory(args), notes(args), detach=args.detach, wait=args.wait)
    if args.json:
        fields = {**path_fields(live.point, "mountpoint"), "short_id": live.short_id, "profile": str(live.profile)}
        emit("summary", **fields, left=left_fields(left) if left else None)
    elif not args.quiet:
        note(f"{printable(live.point)}: unmounted {live.short_id}")
        if left:
            note(f"note: {left_text(left)}")
    return int(ExitCode.DONE)


def left_fields(left: Left) -> dict[str, object]:
    """For JSON: an inner mount that has to stay."""
    users = [{"process": process, "command": command} for process, command in left.users]
    copies = [path_fields(path) for path in left.copies]
    return {**path_fields(left.inner, "inner"), "short_id": left.short_id, "users": users, "copies": copies}


def left_text(left: Left) -> str:
    """The same for people."""
    if not left.users and not left.copies:
        if not left.complete:
            return f"the inner mount {printable(left.inner)} is left; who has its layer, only root can see"
        return f"the inner mount {printable(left.inner)} is nobody's any more: `mkmeta gc` removes it"
    where = [f"at {printable(path)}, by bind" for path in left.copies]
    where += [
        f"in the mount namespace of {who if process is None else f'process {process} ({who})'}"
        for process, who in left.users
    ]
    more = f" and {len(where) - 5} more" if len(where) > 5 else ""
    return (
        f"layer {left.short_id} is still mounted: {', '.join(where[:5])}{more}; its volume stays busy, and the inner "
        f"mount {printable(left.inner)} stays, until `mkmeta gc` after that has ended"
    )
