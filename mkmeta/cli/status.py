"""`mkmeta status`: what is mounted, and whether that is what should be."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from functools import partial

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.deactivate import left_fields, left_text
from mkmeta.cli.host_arguments import add_mount_point, add_run_dir, runtime_directory
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, MkmetaError, NotActiveError, UsageError, printable
from mkmeta.fleet.report import Report, host_name, write_report
from mkmeta.host.deactivation import left_here
from mkmeta.host.metrics import layer_metrics
from mkmeta.host.place import real_point
from mkmeta.host.prometheus import write_metrics
from mkmeta.host.status import SECONDS, Holder, Status, statuses
from mkmeta.linux.asking import NoAnswerError, ask
from mkmeta.model import NS
from mkmeta.mounts.run import RunDirectory
from mkmeta.sinks.protocol import LayerKind

_DESCRIPTION = """\
Says which layers are mounted on this host: generation, profile, volume, whether there is a newer one, and which
processes still have another one. All is read from the kernel's mount table and the store; a server that does not answer
is waited for three seconds, then that is said.
"""

_EPILOG = """\
examples:
  mkmeta status
  mkmeta status /sw
  mkmeta status /sw --json | jq .generation
  mkmeta status -q --config /etc/mkmeta/sw.toml --metrics /var/lib/prometheus/node-exporter/mkmeta.prom
  mkmeta status -q --config /etc/mkmeta/sw.toml --report /mnt/sw/.mkmeta/reports

exit codes: (for monitoring; of several mounts the highest)
  0    mounted, and what `mkmeta activate` would mount
  1    cannot be told: this user may not look at the store, for example
  2    the command line is wrong
  20   no layer is mounted (there)
  21   the store's current generation is newer
  22   something is wrong with the mount: it says what
"""


_STATES = {0: "current", 1: "unknown", 21: "behind", 22: "degraded"}


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "status", summary="say what is mounted", description=_DESCRIPTION, epilog=_EPILOG)
    add_mount_point(parser, optional=True)
    add_run_dir(parser)
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        type=filled,
        help="also write FILE for node_exporter's textfile collector; with --config, what is published as well",
    )
    parser.add_argument(
        "--report",
        metavar="SPOOL",
        type=filled,
        help="also leave a report of this one layer in the directory SPOOL, for mkmeta fleet (formats/report.md)",
    )
    add_config(parser, {"point": "mount-point", "run_dir": "run-dir"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks and reports."""
    run_dir = RunDirectory.at(args.run_dir, runtime_directory())
    found = statuses([real_point(args.point)] if args.point is not None else None, run_dir)
    left_over = left_here()
    if args.metrics is not None:
        states = [_STATES[_code(status)] for status in found]
        pointer = args.config.pointer if args.config else None
        write_metrics(args.metrics, layer_metrics(found, left_over, states, pointer))
    if args.report is not None:
        _report(found, args, run_dir)
    for left in left_over:
        if args.json:
            emit("left", **left_fields(left))
        elif not args.quiet:
            note(f"note: {left_text(left)}")
    if not found:
        raise NotActiveError("no layer is mounted here", path=args.point)
    for status in found:
        if args.json:
            _emit(status)
        else:
            _print(status, args)
    return max(int(_code(status)) for status in found)


def _report(found: list[Status], args: argparse.Namespace, run_dir: RunDirectory) -> None:
    """Leaves this host's report. A spool on a dead server is waited for no longer than anything else."""
    if len(found) > 1:
        raise UsageError("a report is about one layer, and several are mounted here", hint="name its MOUNTPOINT")
    host = host_name(os.uname().nodename)
    if found:
        (status,) = found
        report = Report(
            host=host,
            mountpoint=status.live.point,
            state=_STATES[_code(status)],
            generation=status.generation.number if status.generation else 0,
            short_id=status.live.short_id,
            profile=str(status.live.profile),
            held=tuple(holder.generation for holder in status.holders),
            problems=status.problems,
        )
    else:
        point = args.point if args.point is not None else b"/"
        report = Report(host=host, mountpoint=point, state="inactive", generation=0, short_id="", profile="none")
    last = run_dir.last_report(args.report)
    try:
        mark = ask(partial(write_report, args.report, report, last), SECONDS)
    except NoAnswerError:
        raise MkmetaError("does not answer: nothing was reported", path=args.report) from None
    with contextlib.suppress(OSError):  # without it the next report is written in full
        run_dir.remember_report(args.report, mark)


def _code(status: Status) -> ExitCode:
    if status.problems:
        return ExitCode.DEGRADED
    if status.behind:
        return ExitCode.BEHIND
    return ExitCode.FAILED if status.generation is None and status.unseen else ExitCode.DONE


def _emit(status: Status) -> None:
    live, generation = status.live, status.generation
    emit(
        "mount",
        **path_fields(live.point, "mountpoint"),
        state=_STATES[_code(status)],
        profile=str(live.profile),
        verity=str(live.verity),
        **path_fields(live.lower, "lower"),
        **path_fields(live.layer, "layer"),
        kind=str(LayerKind.EROFS if live.image else LayerKind.DIRECTORY),
        short_id=live.short_id,
        id=status.id.hex() if status.id else None,
        **(path_fields(status.store, "store") if status.store else {"store": None}),
        generation=generation.number if generation else None,
        built_ns=status.built_ns,
        current=status.current.number if status.current else None,
        newest=status.newest.number if status.newest else None,
        holders=[
            {"process": one.process, "command": one.command, "generation": one.generation, "mounted": one.mounted}
            for one in status.holders
        ],
        copies=[path_fields(path) for path in status.copies],
        problems=list(status.problems),
        unseen=list(status.unseen),
    )


def _print(status: Status, args: argparse.Namespace) -> None:
    live, generation = status.live, status.generation
    number = f"generation {generation.number}, " if generation else ""
    age = f", built {_ago(time.time_ns() - status.built_ns)} ago" if status.built_ns is not None else ""
    print(f"{printable(live.point)}: {number}{live.short_id}{age}")
    if not args.quiet:
        print(
            f"  {'image, ' if live.image else ''}{live.profile} over {printable(live.lower)}"
            + (f", verity={live.verity}" if live.verity != "off" else "")
        )
        if live.profile.lacks:
            print(f"  without: {live.profile.lacks}")
        if status.store:
            print(
                f"  store {printable(status.store)}, newest generation {status.newest.number if status.newest else '-'}"
            )
        if args.verbose:
            print(f"  ID {status.id.hex() if status.id else '-'}")
            print(f"  layer {printable(live.layer)}")
            if live.inner_path:
                print(f"  inner mount {printable(live.inner_path)}")
    if status.behind and status.current:
        print(f"  behind: the current generation is {status.current.number}; `mkmeta activate` switches to it")
    for holder in status.holders:
        print(f"  {_holds(holder)}")
    for path in status.copies:
        print(f"  a bind mount of it, or of an earlier one, is at {printable(path)}, and stays what it is")
    for text in status.unseen:
        note(f"note: {printable(live.point)}: not seen: {text}")
    for problem in status.problems:
        note(f"mkmeta: {printable(live.point)}: {problem}")


def _holds(holder: Holder) -> str:
    how = "is in a mount namespace with" if holder.mounted else "still has files open of"
    return f"process {holder.process} ({holder.command}) {how} generation {holder.generation}"


def _ago(span_ns: int) -> str:
    """A time span in its largest unit: `3 hours`."""
    seconds = max(0, span_ns // NS)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
