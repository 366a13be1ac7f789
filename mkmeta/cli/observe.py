"""`mkmeta observe`: which directories are asked for what, as a profile."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from mkmeta.cli.arguments import check_stdin_once, filled
from mkmeta.cli.host_arguments import seconds
from mkmeta.cli.output import emit, note
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.demand.importing import import_files
from mkmeta.demand.live import observe
from mkmeta.demand.profile import COUNT_MAX, Header, ProfileMount, ProfileReader, Source, write_profile
from mkmeta.demand.tally import Tally, normal
from mkmeta.demand.tracing import trace
from mkmeta.errors import ExitCode, UsageError
from mkmeta.manifest.output import atomic_output, spooled_output
from mkmeta.manifest.reader import ManifestReader

_SECONDS_MAX: Final = 366 * 86_400
_LOST: Final = {
    "directories": "calls in more directories than a profile names",
    "files": "opened files beyond those a profile names",
    "paths": "calls by a path that is too long, or holds a NUL",
    "relative": "calls by a relative path, of a process whose directory is not known: --cwd says it",
    "cut": "calls whose path or line was not printed completely",
    "lines": "lines that were not understood",
    "chroot": "calls of processes that changed their root, to one that is not known",
    "drops": "calls for which a table of the kernel had no room",
    "overruns": "events for which a buffer had no room",
    "inodes": "calls in directories whose path was not found",
}

_DESCRIPTION = """\
Counts what is asked of the directories of a volume: names that are not there, stats, opens, listings. The profile it
writes is what suggest, predict and promote read.

  observe FILE... --from KIND    from what other programs wrote:
      strace     strace -f -y -e trace=%file,fchdir,clone,clone3,fork,vfork; any version since 5, with -ff, times
      ld-debug   LD_DEBUG=libs LD_DEBUG_OUTPUT=FILE, which the loader of any program writes
      bpftrace   examples/observe.bt, of all programs of a host, as root
      env        an environment (env, env -0, /proc/PID/environ): what its search paths would ask in vain
  observe MOUNT... -- COMMAND    runs a program under strace; no rights are needed
  observe MOUNT... --seconds N   all programs of this host, as far as the server of an NFS mount hears of it: totals for
      any user, as root also by directory, where the kernel has histograms (CONFIG_HIST_TRIGGERS). A --base says where
      directories are; without, the mount is listed for that
"""

_EPILOG = """\
examples:
  mkmeta observe /sw -o sw.profile -- /sw/grp/paint/v1/bin/paint --version
  mkmeta observe /mnt/sw --seconds 600 --base sw.mkm -o sw.profile
  mkmeta observe --from strace trace.txt --root /sw -o sw.profile
  LD_DEBUG=libs LD_DEBUG_OUTPUT=ld paint; mkmeta observe --from ld-debug ld.* --root /sw -o sw.profile
  env -0 | mkmeta observe --from env - --program paint --root /sw -o sw.profile

exit codes:
  0    done; what was lost is said, and is in the profile
  1    something cannot be read or run; no profile was written
  2    wrong arguments
  14   another observe is at it on this host
  130  interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "observe",
        summary="count which directories are asked for what",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.usage = "mkmeta observe (MOUNT... --seconds N | --from KIND FILE...) -o PROFILE [...] [-- COMMAND ...]"
    parser.add_argument("what", metavar="MOUNT|FILE", nargs="*", type=filled, help="mount points, or files; - is stdin")
    parser.add_argument(
        "-o", "--output", metavar="PROFILE", type=filled, required=True, help="where it goes; - is stdout"
    )
    group = parser.add_argument_group("observing this host")
    group.add_argument("--seconds", metavar="SPAN", type=seconds, help="for so long: 90, 15m, 1h")
    group.add_argument("--base", metavar="MANIFEST", type=filled, help="a manifest of the volume, for paths")
    group = parser.add_argument_group("importing")
    group.add_argument(
        "--from", dest="source", choices=["strace", "ld-debug", "bpftrace", "env"], help="what FILEs are"
    )
    group.add_argument(
        "--root",
        metavar="DIR",
        type=filled,
        action="append",
        default=[],
        help="the volume's mount point where it was observed; what is elsewhere is only counted together (default: /)",
    )
    group.add_argument("--cwd", metavar="DIR", type=filled, help="where the traced program was started")
    group.add_argument(
        "--program", metavar="NAME", type=filled, action="append", default=[], help="with env: what would be run"
    )
    parser.set_defaults(run=run)
    parse = parser.parse_known_args

    def parse_up_to_command(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """argparse would take the words behind `--` for more of the positional arguments before it."""
        words = list(args)
        end = words.index("--") if "--" in words else len(words)
        parsed, rest = parse(words[:end], namespace)
        parsed.command = [os.fsencode(word) for word in words[end + 1 :]]
        return parsed, rest

    parser.parse_known_args = parse_up_to_command  # type: ignore[method-assign]


def run(args: argparse.Namespace) -> int:
    """Observes, and writes the profile."""
    if args.json and args.output == b"-":
        raise UsageError("--json and a profile cannot both go to stdout", hint="name a file with -o")
    started = time.time_ns()
    code = 0
    if args.source is not None:
        tally = _imported(args)
        header = Header(source=Source(args.source), mounts=_mounts(tally.points))
    elif args.seconds is not None:
        tally = _tally_of_mounts(args)
        with contextlib.ExitStack() as stack:
            base = stack.enter_context(ManifestReader.open(args.base)) if args.base is not None else None
            source, mounts = observe(tally, args.seconds, base=base, note=note)
        header = Header(source=source, mounts=mounts, **_here(started))
    else:
        tally, code = _traced(args)
        header = Header(source=Source.STRACE, mounts=_mounts(tally.points), **_here(started))
    _write(args, header, tally)
    if code:
        note(f"mkmeta: the command ended with {code}")
    return int(ExitCode.DONE)


def _imported(args: argparse.Namespace) -> Tally:
    if args.command or args.seconds is not None:
        raise UsageError("--from excludes --seconds and a COMMAND")
    if not args.what:
        raise UsageError("--from needs files", hint="name them, or - for standard input")
    check_stdin_once(args.what)
    if args.cwd is not None and args.cwd[:1] != b"/":
        raise UsageError("is no absolute path", path=args.cwd, hint="give --cwd from / on")
    tally = Tally(_points(args.root or [b"/"]))
    stdin = sys.stdin.buffer
    import_files(tally, Source(args.source), args.what, stdin=stdin, cwd=args.cwd, programs=args.program)
    return tally


def _here(started: int) -> dict[str, Any]:
    host = os.uname()
    return {"host": host.nodename, "kernel": host.release, "started_ns": started, "ended_ns": time.time_ns()}


def _tally_of_mounts(args: argparse.Namespace) -> Tally:
    for option, value in (("--root", args.root), ("--cwd", args.cwd), ("--program", args.program)):
        if value:
            raise UsageError(f"{option} goes with --from")
    if not args.what:
        raise UsageError("name a mount point", hint="mkmeta observe /sw -o sw.profile -- COMMAND")
    if args.command and args.seconds is not None:
        raise UsageError("--seconds and a COMMAND exclude each other")
    if args.seconds is not None and args.seconds > _SECONDS_MAX:
        raise UsageError("--seconds is more than a year", hint="a profile is written at the end: observe for 1h, again")
    return Tally(_points([os.path.realpath(point) for point in args.what]))


def _traced(args: argparse.Namespace) -> tuple[Tally, int]:
    tally = _tally_of_mounts(args)
    if not args.command:
        raise UsageError("give --seconds, or a COMMAND", hint="mkmeta observe /sw -o sw.profile -- COMMAND")
    return tally, trace(tally, args.command)


def _points(given: Sequence[bytes]) -> list[bytes]:
    for point in given:
        if point[:1] != b"/":
            raise UsageError("is no absolute path", path=point, hint="name the volume's mount point from / on")
    return [normal(point).rstrip(b"/") or b"/" for point in given]


def _mounts(points: Sequence[bytes]) -> tuple[ProfileMount, ...]:
    return tuple(ProfileMount(point=point) for point in points)


def _write(args: argparse.Namespace, header: Header, tally: Tally) -> None:
    lost = {name: min(count, COUNT_MAX) for name, count in tally.lost.items()}
    header = replace(header, lost=lost, outside=min(tally.outside, COUNT_MAX))
    with spooled_output(sys.stdout.buffer) if args.output == b"-" else atomic_output(args.output) as stream:
        rows = write_profile(stream, header, tally.rows())
        stream.seek(0)
        for _ in ProfileReader(stream, args.output).rows():  # no profile appears that nobody would read
            pass
        stream.seek(0, os.SEEK_END)
    if args.json:
        emit("summary", source=str(header.source), rows=rows, outside=header.outside, lost=dict(header.lost))
        return
    for name, count in header.lost.items():
        if count:
            note(f"lost: {count} {_LOST.get(name, name)}")
    if not args.quiet:
        note(f"{rows} rows; {header.outside} calls were elsewhere")
    if not rows and not args.quiet:
        note("nothing below the mount points was asked for: is --root the volume's place in what was observed?")
