"""`mkmeta activate`: put a layer over its volume, or switch to a newer one."""

from __future__ import annotations

import argparse
import os

from mkmeta.build import BuildOptions
from mkmeta.cli.arguments import filled, verity_digest
from mkmeta.cli.config_option import Flag, Listed, add_config, check_both
from mkmeta.cli.host_arguments import (
    add_allow_gap,
    add_mount_point,
    add_run_dir,
    add_wait,
    notes,
    run_directory,
)
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, UsageError, printable
from mkmeta.host.activation import Action, Activated, Request, activate
from mkmeta.host.following import Followed, Step, follow
from mkmeta.mounts.profile import Profile, Verity, parse_extra
from mkmeta.plan import Plan
from mkmeta.sinks.protocol import LayerKind

_CONFIG = {
    "store": "store",
    "point": "mount-point",
    "lower": "volume",
    "follow": "pointer",
    "profile": "profile",
    "userxattr": "userxattr",
    "format": "format",
    "verity": "verity",
    "options": "options",
    "other_root": "other-root",
    "allow_setid": "allow-setid",
    "over": "over",
    "allow_gap": "allow-gap",
    "run_dir": "run-dir",
}

_DESCRIPTION = """\
Mounts the current generation of a store over its volume, or, when an earlier one is mounted, replaces that by it under
running programs: a path is never missing, and what is open stays what it was. When it is mounted already, there is
nothing to do: run this as often as you like. MOUNTPOINT is made, if the directory above is there,
but not where a link leads nowhere, or where a layer was and somebody has removed the directory.
"""

_EPILOG = """\
profiles:
  nested     Linux 6.7: failed lookups, listings and stats are answered here, the rest shows through from the volume
  merge      the same, but the first stat of every file asks the volume
  data-only  Linux 6.5: only what the layer has is there
  upper      writable: changes go into this generation, which is then no longer what its manifest says
  auto       nested where the kernel proves able to, else merge

With --follow, the pointer file (see `mkmeta publish`) says which generation: its manifest is fetched from beside it and
built into STORE where needed. When nothing was published since the last call, that is one stat of the pointer; when
something was, but the layer is the same, stale names are dropped, as by `mkmeta refresh`.

examples:
  mkmeta activate /var/lib/mkmeta/sw /sw --lower /mnt/sw
  mkmeta activate /var/lib/mkmeta/sw /sw                         switch to the newest generation
  mkmeta activate /var/lib/mkmeta/sw /sw --generation 7          go to this one, older or newer
  mkmeta activate /mnt/sw/.mkmeta/sw.erofs /sw --lower /mnt/sw   an image that is in no store, here on the volume
  mkmeta activate /var/lib/mkmeta/sw /sw --lower /mnt/sw --follow /mnt/sw/.mkmeta/sw.json
  mkmeta activate --config /etc/mkmeta/sw.toml                   all that, as the layer file says

exit codes:
  0    it is mounted
  1    it cannot be mounted; what was mounted still is
  2    the command line is wrong
  11   the published manifest is not the one the pointer names
  14   another mkmeta is at it, for longer than --wait
  15   there is no such generation
  16   refused: it would show wrong data, hide something, or go back to an older generation unasked
  17   this kernel would leave a gap, and there is no --allow-gap
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "activate",
        summary="mount a layer over its volume, or switch to it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "store",
        metavar="STORE",
        type=filled,
        help="a store, as `mkmeta build --store` makes them, or an image, as `mkmeta build --format erofs` does",
    )
    add_mount_point(parser)
    parser.add_argument(
        "--lower",
        metavar="DIR",
        type=filled,
        help="the volume, mounted at another path than MOUNTPOINT; not needed to switch (default: as it is now)",
    )
    parser.add_argument(
        "--profile",
        choices=["auto", *map(str, Profile)],
        default="auto",
        help="how layer and volume are put together (see below)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--generation", metavar="N", type=int, help="mount this one, and make it the current one")
    which.add_argument("--follow", metavar="POINTER", type=filled, help="do what this file on the volume asks for")
    parser.add_argument(
        "--userxattr", action=Flag, help="with --follow: build layers as `mkmeta build --userxattr` does"
    )
    parser.add_argument(
        "--format",
        choices=tuple(LayerKind),
        help="with --follow: build layers as `mkmeta build --format` does (default: directory)",
    )
    parser.add_argument(
        "--verity",
        choices=[str(choice) for choice in Verity],
        default=str(Verity.OFF),
        help="compare the fs-verity digest of every data file when it is opened; the volume must have them",
    )
    parser.add_argument(
        "-o",
        "--options",
        metavar="OPTIONS",
        type=os.fsencode,
        action=Listed,
        default=[],
        help="more options for the overlay, comma-separated: xino, uuid, index, fsync, volatile",
    )
    parser.add_argument(
        "--other-root",
        action=Flag,
        help="mount it although the manifest was made from a directory of another name than --lower",
    )
    parser.add_argument(
        "--allow-setid",
        action=Flag,
        help="let set-ID bits, capabilities and devices of the layer take effect where the volume's own mount does; "
        "without it only those of a layer built with --expect-id do",
    )
    parser.add_argument("--over", action=Flag, help="mount it although that hides files or other mounts at MOUNTPOINT")
    parser.add_argument(
        "--image-digest",
        metavar="DIGEST",
        type=verity_digest,
        help="of an image outside of a store: refuse any but the one with this fs-verity digest, which `mkmeta build` "
        "prints; all of it is read",
    )
    add_allow_gap(parser)
    add_wait(parser, default=60)
    add_run_dir(parser)
    add_config(parser, _CONFIG)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Activates and reports."""
    check_both(args, "store", "point", "STORE and MOUNTPOINT")
    if args.generation is not None and "follow" in args.from_config:
        args.follow = None  # the command line wins
    if args.userxattr and not args.follow and "userxattr" not in args.from_config:
        raise UsageError("--userxattr goes with --follow; otherwise the layer is as it was built")
    if args.format and not args.follow and "format" not in args.from_config:
        raise UsageError("--format goes with --follow; otherwise the layer is as it was built")
    request = Request(
        point=args.point,
        store=args.store,
        lower=args.lower,
        profile=None if args.profile == "auto" else Profile(args.profile),
        generation=args.generation,
        verity=Verity(args.verity),
        extra=parse_extra(args.options),
        allow_gap=args.allow_gap,
        allow_setid=args.allow_setid,
        over=args.over,
        image_digest=args.image_digest,
        other_root=args.other_root,
        wait=args.wait,
    )
    run_dir = run_directory(args)
    if args.follow is None:
        report(activate(request, run_dir, notes(args)), args)
        return int(ExitCode.DONE)
    options = BuildOptions(
        kind=LayerKind(args.format or LayerKind.DIRECTORY),
        plan=Plan(userxattr=args.userxattr),
        jobs=min(2, len(os.sched_getaffinity(0))),
    )
    with ProgressLine(args, "build") as line:
        done = follow(
            request,
            args.follow,
            run_dir,
            notes(args),
            options=options,
            progress=lambda entries, _total: line.update(entries),
        )
    _report_followed(done, args)
    return int(ExitCode.DONE)


def report(done: Activated, args: argparse.Namespace) -> None:
    """Says what was activated, in one line or message."""
    before = done.before.short_id if done.before else None
    generation = done.generation
    number = generation.number or None  # an image of its own is none
    flags = [str(flag.name).lower() for flag in done.flags]
    if args.json:
        emit(
            "summary",
            action=str(done.action),
            **path_fields(done.point, "mountpoint"),
            generation=number,
            id=generation.about().id.hex(),
            profile=str(done.profile),
            **path_fields(done.lower, "lower"),
            flags=flags,
            before=before,
            seconds=round(done.seconds, 3),
        )
        return
    if args.quiet:
        return
    named = f"generation {number} ({generation.short_id})" if number else f"image {generation.short_id}"
    what = f"{named}, {done.profile} over {printable(done.lower)}"
    what += f", {','.join(flags)}" if flags else ""
    match done.action:
        case Action.UNCHANGED:
            note(f"{printable(done.point)}: {what}, as before")
        case Action.MOUNTED:
            note(f"{printable(done.point)}: mounted {what}")
        case Action.SWITCHED:
            note(f"{printable(done.point)}: switched from {before} to {what}")


def _report_followed(done: Followed, args: argparse.Namespace) -> None:
    if done.activated is not None:
        report(done.activated, args)
        return
    seconds = round(done.refreshed.seconds, 3) if done.refreshed else None
    if args.json:
        emit(
            "summary", action=str(done.step), **path_fields(os.path.realpath(args.point), "mountpoint"), seconds=seconds
        )
    elif not args.quiet:
        text = "refreshed, the layer is the same" if done.step is Step.REFRESHED else "nothing new"
        note(f"{printable(args.point)}: {text}")
