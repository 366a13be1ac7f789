"""`mkmeta promote`: the selection follows what hosts observe."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_wait, notes, seconds
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.pattern_file import parse_patterns
from mkmeta.cli.suggest import entry_count, share
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.demand.history import History, read_history, write_history
from mkmeta.demand.patterns import Line, selected_by
from mkmeta.demand.profile import ProfileReader
from mkmeta.demand.promotion import Outcome, Policy, decide, fade, take
from mkmeta.demand.reading import Demand, add_profile
from mkmeta.demand.shape import VolumeShape
from mkmeta.demand.spool import Spool
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable
from mkmeta.manifest.output import atomic_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import NS
from mkmeta.store.lock import held

_DESCRIPTION = """\
Takes the profiles that hosts have put into the directory SPOOL, adds what they counted to the history, lets the rest of
it fade, and writes the selection anew when it changes: what is hot comes in, what is cold goes, within a budget of
inodes. Then it runs what releases a selection, again and again until that ends well. For a timer, on the host that
publishes; one run after another.

A directory that is selected stays until nothing was asked of it for --cold, or, after two weeks, something else gains
twice as much in its place; if dropping it was wrong, it is held twice as long the next time. What would hide something
is never selected, and dropped at once: the rules are those of mkmeta suggest. Changes wait for one another, until they
gain --min-gain of all misses together, or for --patience: each costs the hosts a new layer.
"""

_EPILOG = """\
examples:
  mkmeta promote /srv/profiles --root /mnt/sw --history sw.history --selection sw.select --run 'release-sw'
  mkmeta promote /srv/profiles --config /etc/mkmeta/sw.toml --history sw.history --selection sw.select --dry-run

exit codes:
  0    done, or nothing to do
  1    something cannot be read or written, or what releases it failed: the next run goes on
  2    wrong arguments
  10   the base is not a valid manifest
  14   another promote is at it
  130  interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "promote",
        summary="have the selection follow what hosts observe",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("spool", metavar="SPOOL", type=filled, help="where hosts put profiles, as NAME.profile")
    parser.add_argument("--root", metavar="ROOT", type=filled, required=True, help="the volume")
    parser.add_argument("--history", metavar="FILE", type=filled, required=True, help="what is remembered between runs")
    parser.add_argument(
        "--selection", metavar="FILE", type=filled, required=True, help="where the lines for scan --select-from go"
    )
    parser.add_argument("--base", metavar="MANIFEST", type=filled, help="of the volume: less has to be looked at")
    parser.add_argument(
        "--run", metavar="COMMAND", dest="release", type=filled, help="a shell command that releases it"
    )
    parser.add_argument("--cover", metavar="SHARE", type=share, default=0.99, help="of the misses (default: 99%%)")
    parser.add_argument(
        "--max-entries", metavar="N", type=entry_count, default=1_000_000, help="inodes at most (default: %(default)s)"
    )
    parser.add_argument(
        "--min-gain",
        metavar="SHARE",
        type=share,
        default=0.05,
        help="make changes at once that answer so many more of all misses (default: 5%%)",
    )
    for name, default, what in (
        ("half-life", "7d", "after so long, misses count half"),
        ("cold", "90d", "drop what was not asked for so long"),
        ("patience", "7d", "make changes that gain less than --min-gain after so long"),
        ("settled", "30d", "as for suggest"),
    ):
        parser.add_argument(
            f"--{name}", metavar="SPAN", type=seconds, default=seconds(default), help=f"{what} (default: {default})"
        )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be done")
    add_wait(parser, default=0)
    add_config(parser, {"root": "volume", "base": "manifest"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Promotes."""
    if not args.half_life or not args.cold:
        raise UsageError("--half-life and --cold must be longer than nothing")
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(Spool(args.spool))
        if not args.dry_run:
            stack.enter_context(held(args.history + b".lock", "promote", wait=args.wait, note=notes(args)))
        history = read_history(args.history)
        base = None
        if args.base is not None and os.path.exists(args.base):
            base = stack.enter_context(ManifestReader.open(args.base))
        outcome, changed = _promote(args, spool, history, base)
        if not args.dry_run and history.unreleased and args.release is not None:
            _release(args, history)
    _show(args, outcome, history, changed)
    return int(ExitCode.DONE)


def _promote(
    args: argparse.Namespace, spool: Spool, history: History, base: ManifestReader | None
) -> tuple[Outcome, bool]:
    """Counts, decides, writes; in an order in which a run that is killed is taken up by the next one."""
    policy = Policy(
        cover=args.cover,
        budget=args.max_entries,
        half_life_ns=int(args.half_life * NS),
        cold_ns=int(args.cold * NS),
        worth=args.min_gain,
        patience_ns=int(args.patience * NS),
    )
    now = time.time_ns()
    root = os.path.realpath(args.root)
    shape = VolumeShape(root, base, now_ns=now, settled_ns=int(args.settled * NS))
    ahead = (history.updated_ns - now) / (86_400 * NS)
    if ahead > 1:
        note(f"the last run was {ahead:.0f} days ahead of this clock: until then no time passes, and little changes")
    fade(history, now, policy)
    counted = set(history.taken)
    written: set[bytes] = set()
    taken = spool.profiles(counted)
    for profile in taken:
        if profile in counted:
            continue
        demand = Demand()

        def use(stream: BinaryIO, demand: Demand = demand, name: bytes = profile[0]) -> None:
            add_profile(demand, ProfileReader(stream, name), root, name)

        try:
            spool.read(profile, use)
        except MkmetaError as error:
            note(f"not counted: {error}")
            continue
        written |= take(history, demand, shape)
    before = _content(args.selection)
    outcome = decide(history, shape, written, policy, selected_by(parse_patterns(before or b""), shape))
    text = b"".join(_selection(outcome.lines)) if outcome.lines is not None else before or b""
    for choice in outcome.unwritable:
        note(f"cannot be written as a line, and is left out: {printable(choice.path)}")
    changed = text != (before or b"")
    if args.dry_run:
        return outcome, changed
    history.taken = taken
    history.unreleased = history.unreleased or changed
    write_history(args.history, history)
    if changed:
        with atomic_output(args.selection) as stream:
            stream.write(text)
    left = [profile for profile in taken if not spool.remove(profile)]
    if left != history.taken:
        history.taken = left
        write_history(args.history, history)
    if left:
        note(f"{len(left)} profiles are counted, and cannot be removed: give {printable(args.spool)} to this user")
    return outcome, changed


def _selection(lines: Iterable[Line]) -> Iterator[bytes]:
    """The lines, in the order of their bytes: the same for the same selection, whatever it gains today."""
    yield b"# written by mkmeta promote: what is changed by hand is lost\n"
    for line in sorted(lines, key=lambda line: line.pattern):
        yield line.pattern + b"\n"


def _content(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _release(args: argparse.Namespace, history: History) -> None:
    """Runs the command; the history says until it ends well that it is to be run."""
    environment: dict[Any, Any] = {**os.environb, b"MKMETA_SELECTION": os.path.abspath(args.selection)}
    code = subprocess.run([b"sh", b"-c", args.release], env=environment, check=False).returncode
    if code:
        raise MkmetaError(
            f"what releases the selection ended with {code}", hint="the selection is written; the next run tries again"
        )
    history.unreleased = False
    write_history(args.history, history)


def _show(args: argparse.Namespace, outcome: Outcome, history: History, changed: bool) -> None:
    entries = sum(one.cost for one in outcome.selected)
    if args.json:
        for change in outcome.changes:
            emit("change", **path_fields(change.path), added=change.added, reason=change.why)
        counts = {"selected": len(outcome.selected), "entries": entries, "waiting": outcome.waiting}
        emit("summary", **counts, changed=changed, dry_run=args.dry_run)
        return
    for change in outcome.changes:
        print(f"{'+' if change.added else '-'} {printable(change.path)}: {change.why}")
    if not args.quiet:
        note(f"{len(outcome.selected)} directories with {entries} inodes are selected")
        if outcome.waiting:
            note(f"{outcome.waiting} changes wait: they gain less than --min-gain, and have not waited for --patience")
        if history.unreleased and args.release is None and not args.dry_run:
            note("nothing releases it: --run COMMAND would")
