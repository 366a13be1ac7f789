"""`mkmeta suggest`: which directories to select, from what was observed."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time

from mkmeta.cli.arguments import check_stdin_once, filled
from mkmeta.cli.host_arguments import seconds
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.demand.cover import Cover, choose, settle
from mkmeta.demand.inlining import Inlining, inlining
from mkmeta.demand.patterns import Line, lines
from mkmeta.demand.picture import page
from mkmeta.demand.reading import Demand, read_profiles
from mkmeta.demand.shape import NoShape, Shape, VolumeShape
from mkmeta.errors import ExitCode, UsageError, human_bytes, printable
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS

_LEFT_SHOWN = 20
_MATCHES_SHOWN = 3

_DESCRIPTION = """\
Prints what to select so that most of the misses in the profiles are answered by a layer, for as few inodes as can be:
selection lines for scan --select-from, best first, each with the misses it saves (all of them, and the share with
those before it) and the inodes it costs. A pattern stands for directories that differ in a name where it matches, of
what is there now, nothing but those, or fewer others that were asked in vain as well.

Never selected as a whole: a directory that releases appear in (it has a subdirectory called like a version), one
outside of releases that changed within --settled, a release that changed within an hour, one that programs write
into, and the root. What stays unanswered is listed, with the reason.

Without --root nothing is known of the volume: all directories count as one inode, none is checked, and there are no
patterns.
"""

_EPILOG = """\
examples:
  mkmeta suggest sw.profile --root /mnt/sw >select.txt && mkmeta scan /mnt/sw --select-from select.txt -o sw.mkm
  mkmeta suggest host*.profile --root /mnt/sw --base sw.mkm --cover 95% --max-entries 500000
  mkmeta suggest sw.profile --root /mnt/sw --html misses.html

exit codes:
  0    done
  1    a profile is damaged, or something cannot be read
  2    wrong arguments
  10   the base is not a valid manifest
  12   nothing to select: no misses, or none that may be
  130  interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "suggest", summary="say which directories to select", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("profiles", metavar="PROFILE", nargs="+", type=filled, help="made by observe; - reads stdin")
    parser.add_argument("--root", metavar="ROOT", type=filled, help="the volume, to see how large things are")
    parser.add_argument("--base", metavar="MANIFEST", type=filled, help="a manifest of it: less has to be looked at")
    parser.add_argument("--cover", metavar="SHARE", type=share, default=0.99, help="of the misses (default: 99%%)")
    parser.add_argument("--max-entries", metavar="N", type=entry_count, help="inodes the selection may cost at most")
    parser.add_argument(
        "--settled",
        metavar="SPAN",
        type=seconds,
        default=seconds("30d"),
        help="a directory outside of releases that has not changed for so long may be selected (default: 30d)",
    )
    parser.add_argument("--html", metavar="FILE", type=filled, help="write a picture of it: one page, for a browser")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Suggests."""
    if args.base is not None and args.root is None:
        raise UsageError("--base goes with --root")
    check_stdin_once(args.profiles)
    root = os.path.realpath(args.root) if args.root is not None else None
    with contextlib.ExitStack() as stack:
        demand = read_profiles(args.profiles, root, sys.stdin.buffer)
        base = stack.enter_context(ManifestReader.open(args.base)) if args.base is not None else None
        shape: Shape = NoShape()
        if root is not None:
            now_ns = demand.ended_ns or time.time_ns()
            shape = VolumeShape(root, base, now_ns=now_ns, settled_ns=int(args.settled * NS))
        hot, out = settle(demand, shape)
        cover = choose(hot, shape, cover=args.cover, max_cost=args.max_entries)
        selected, unwritable, cover = lines(cover, shape, max_cost=args.max_entries)
        opens, inlined = inlining(demand, shape, (one.path for one in cover.chosen))
    if args.html is not None:
        with atomic_output(args.html) as stream:
            stream.write(page(cover, hot.misses, "Misses by directory").encode())
    for choice in unwritable:
        note(f"cannot be written as a line, and is left out: {printable(choice.path)}")
    _warn(demand, out)
    show = _emit if args.json else _print
    show(cover, selected, opens, inlined)
    return int(ExitCode.DONE if selected else ExitCode.NOTHING_SELECTED)


def _warn(demand: Demand, out: int) -> None:
    for name, count in demand.lost.items():
        note(f"the profiles miss {count} calls ({name}): formats/profile.md says what that means")
    if out + demand.elsewhere:
        note(f"{out + demand.elsewhere} misses are not on the volume")


def _print(cover: Cover, selected: list[Line], opens: int, inlined: list[Inlining]) -> None:
    share = cover.gain / cover.misses if cover.misses else 0.0
    print(f"# {cover.misses} misses; these lines answer {cover.gain} ({share:.1%}) with {cover.cost} inodes")
    so_far = 0
    for line in selected:
        so_far += line.gain
        print(f"# saves {line.gain} misses ({so_far / cover.misses:.1%} with those above), costs {line.cost} inodes")
        if len(line.chosen) > 1:
            names = ", ".join(printable(one.path) for one in line.chosen[:_MATCHES_SHOWN])
            more = f" and {len(line.chosen) - _MATCHES_SHOWN} more" if len(line.chosen) > _MATCHES_SHOWN else ""
            print(f"# matches {names}{more}")
        sys.stdout.flush()
        sys.stdout.buffer.write(line.pattern + b"\n")
        sys.stdout.buffer.flush()
    for left in cover.left[:_LEFT_SHOWN]:
        print(f"# left: {left.misses} misses in {printable(left.path) or 'the root'}: {left.why}")
    if len(cover.left) > _LEFT_SHOWN:
        rest = cover.left[_LEFT_SHOWN:]
        print(f"# left: {sum(one.misses for one in rest)} misses in {len(rest)} more directories")
    for one in inlined if opens else ():
        print(
            f"# scan --inline {one.size >> 10}K: answers {one.opens} of {opens} opens too, "
            f"of {one.files} files with {human_bytes(one.bytes)}"
        )


def _emit(cover: Cover, selected: list[Line], opens: int, inlined: list[Inlining]) -> None:
    for line in selected:
        emit(
            "selection",
            **path_fields(line.pattern, "pattern"),
            misses=line.gain,
            entries=line.cost,
            matches=[path_fields(one.path) for one in line.chosen],
        )
    for left in cover.left:
        emit("left", **path_fields(left.path), misses=left.misses, reason=left.why)
    emit(
        "summary",
        misses=cover.misses,
        saved=cover.gain,
        entries=cover.cost,
        exact=cover.exact,
        opens=opens,
        inline=[one._asdict() for one in inlined],
    )


def share(text: str) -> float:
    """A share: 99%, or 0.99."""
    try:
        value = float(text[:-1] + "e-2") if text.endswith("%") else float(text)  # the nearest to it, as of a quotient
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, such as 99% or 0.99")
    return value


def entry_count(text: str) -> int:
    """A number of inodes."""
    if not text.isdecimal() or not 1 <= int(text[:20]) < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of entries, at least 1")
    return int(text)
