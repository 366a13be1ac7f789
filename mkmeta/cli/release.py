"""`mkmeta release`: from the volume to the hosts, in one command."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_wait, notes, seconds
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.predict import minimal_gain
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, UsageError, printable
from mkmeta.mounts.profile import Profile
from mkmeta.publisher.gate import Gate
from mkmeta.publisher.release import Released, Request, Step, release
from mkmeta.publisher.retiring import wait_for_hosts
from mkmeta.publisher.site import Site
from mkmeta.scanner.options import OnError

_WAIT: Final = 600  # seconds for others who publish: each reads a release, and may build a layer

# All that a publisher takes from the layer file: nothing of it can be given here
KEYS: Final = (
    *("volume", "manifest", "store", "pointer", "select", "hide", "drop-xattr", "digests", "hard-links"),
    *("format", "redirect-prefix", "userxattr", "no-verity", "marker", "staging", "reports", "profile"),
)

_AFTER: Final = 2 * 86400.0  # seconds that are waited for hosts
_NAMED: Final = 10  # hosts in a message

_DESCRIPTION = """\
Publishes what was just released on the volume: looks whether it is complete and selected, scans it and nothing else,
compares it once more with what was recorded, builds the next layer, and announces it to the hosts. What is gone from
the volume is named likewise, and no longer recorded. Without PATH, everything that is selected is looked at.

Any step that fails ends it, with the pointer as it was. Calls at the same time wait for each other.

--retire takes a release out of the layer that is going to be deleted: hosts go on seeing it, straight from the volume,
until it is. It ends when no host reports an older layer, if hosts do (mkmeta status --report), or --after is over.

With --predict it says what the layer saves of what hosts ask for; --min-gain is a gate before anything is built.

Without a 'store' in the layer file, or with --manifest-only, no layer is built here: hosts build it from the manifest.
That needs no root.
"""

_EPILOG = """\
The last line on stdout is the ID of the manifest. docs/release.md says more, and has hooks for rez, Spack and others.

examples:
  mkmeta release --config /etc/mkmeta/sw.toml grp/paint/v1.2
  mkmeta release --config /etc/mkmeta/sw.toml /mnt/sw/grp/paint/v1.2 --dry-run
  mkmeta release --config /etc/mkmeta/sw.toml --retire grp/paint/v1.0
  mkmeta release --config /etc/mkmeta/sw.toml grp/paint/v1.2 --predict farm.profile --min-gain misses=99%
  mkmeta release --config /etc/mkmeta/sw.toml                                     looks at everything

exit codes:
  0    published, or there was nothing new to publish
  1    failed, or a profile is damaged; the pointer is as it was
  2    the command line is wrong, or PATH is neither on the volume nor recorded
  3    published, but parts were left out, which was allowed with --on-error leave-out
  4    a release changed while it was published, or less would be saved than --min-gain; nothing was
  10   the manifest that it would be added to is not a valid one
  12   nothing is selected, or what is to be retired is not recorded
  13   something cannot be recorded as it is; nothing was published
  14   others were publishing for longer than --wait
  24   a release is not complete yet; nothing was published
  25   retired, but after --after hosts still have it, or their reports cannot be read
  130  interrupted; the pointer is as it was, or names the new generation
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "release", summary="publish what was released", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=filled,
        nargs="*",
        help="a release: relative to the volume, or absolute below it; no pattern",
    )
    parser.add_argument(
        "--retire",
        metavar="PATH",
        type=filled,
        action="append",
        default=[],
        help="take this out of the layer, before it is deleted; may be given many times",
    )
    parser.add_argument(
        "--after",
        metavar="TIME",
        type=seconds,
        help="with --retire: wait at most so long for hosts to report that none has what was retired (default: 2d "
        "where the layer file has 'reports'; else there is nothing to wait for, and it is waited just so long)",
    )
    parser.add_argument(
        "--predict",
        metavar="PROFILE",
        type=filled,
        action="append",
        default=[],
        help="say what the new layer saves of the requests in PROFILE, made by mkmeta observe; may be given many times",
    )
    parser.add_argument(
        "--min-gain",
        metavar="[KIND=]SHARE",
        type=minimal_gain,
        action="append",
        default=[],
        help="with --predict: publish nothing if less is saved, of all requests or of one kind: 50%%, misses=99%%",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, scan and verify, but change nothing")
    parser.add_argument(
        "--manifest-only", action="store_true", help="build no layer here, although the layer file names a store"
    )
    parser.add_argument(
        "--quiet-for",
        metavar="TIME",
        type=seconds,
        default=0.0,
        help="refuse a release in which a change is younger than this (default: who names it says it is complete)",
    )
    parser.add_argument(
        "--on-error",
        choices=[str(choice) for choice in OnError],
        help="what to do about something that cannot be recorded as it is: fail (the default with PATH), or leave its "
        "subtree out, which then falls through (the default without)",
    )
    add_wait(parser, default=_WAIT)
    add_config(parser, {key: key for key in KEYS})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publishes and says what."""
    if args.config is None:
        raise UsageError(
            "release needs the layer file", hint="--config FILE; mkmeta init writes one (formats/layer.toml.md)"
        )
    site = Site.of(
        args.config, manifest_only=args.manifest_only, quiet=args.quiet_for, wait=args.wait, note=notes(args)
    )
    started = time.monotonic()
    on_error = args.on_error or (OnError.FAIL if args.paths or args.retire else OnError.LEAVE_OUT)
    request = Request(
        paths=tuple(args.paths),
        retire=tuple(args.retire),
        on_error=OnError(on_error),
        dry_run=args.dry_run,
        gate=_gate(site, args),
    )
    if args.after is not None and not args.retire:
        raise UsageError("--after goes with --retire", hint="nothing else is waited for")
    done = release(site, request, lambda step: _tell(step, args))
    held = _wait(done, args) if args.retire and done.published is not None else []
    _report(done, held, time.monotonic() - started, args)
    if held:
        return int(ExitCode.HELD)
    return int(ExitCode.INCOMPLETE if done.left_out else ExitCode.DONE)


def _gate(site: Site, args: argparse.Namespace) -> Gate | None:
    """What the layer must save. Raises UsageError, ProfileError."""
    if not args.predict:
        if args.min_gain:
            raise UsageError("--min-gain needs profiles", hint="--predict PROFILE, made by mkmeta observe")
        return None
    mount = args.config.profile
    known = Profile.NESTED if mount in (None, "auto") else Profile(mount)
    return Gate.of(args.predict, site.root, args.min_gain, known, sys.stdin.buffer)


def _wait(done: Released, args: argparse.Namespace) -> list[str]:
    """Waits until no host has what was retired. Returns those that may still have it."""
    assert done.published is not None
    started = time.monotonic()
    after = args.after if args.after is not None else _AFTER if args.config.reports is not None else 0.0
    held = wait_for_hosts(args.config.reports, done.published.pointer.generation, after)
    if held:
        first = ", ".join(held[:_NAMED])
        note(f"mkmeta: {len(held)} hosts still have, or may have, what was retired: {first}")
    text = "hosts still have it" if held else "no host has it" if args.config.reports else "no reports to wait for"
    _tell(Step("wait", time.monotonic() - started, text), args)
    return held


def _tell(step: Step, args: argparse.Namespace) -> None:
    if args.json:
        emit("step", step=step.name, seconds=round(step.seconds, 3), text=step.text)
    elif not args.quiet:
        note(f"{step.name:<8} {step.seconds:7.2f} s  {step.text}")


def _report(done: Released, held: list[str], took: float, args: argparse.Namespace) -> None:
    for path, why in done.left_out:
        if args.json:
            emit("left_out", **path_fields(path), reason=why)
        else:
            note(f"left out: {printable(path)}: {why}")
    for word, paths in (("through", done.through), ("hidden", done.hidden), ("gone", done.gone)):
        for path in paths:
            if args.json:
                emit("path", **path_fields(path), state=word)
            elif not args.quiet:
                note(f"{_WORDS[word]}: {printable(path)}")
    published = done.published
    for name, why in published.stubborn if published else ():
        note(f"mkmeta: {printable(name)}: an old manifest that cannot be removed: {why}")
    if args.json:
        emit(
            "summary",
            id=done.id.hex(),
            entries=done.entries,
            generation=published.pointer.generation if published else None,
            serial=published.pointer.serial if published else None,
            published=published is not None and published.written,
            left_out=len(done.left_out),
            held=len(held),
            seconds=round(took, 3),
        )
        return
    if args.dry_run and not args.quiet:
        note("a dry run: nothing was changed")
    print(done.id.hex())


_WORDS: Final = {
    "through": "not selected, hosts see it straight from the volume",
    "hidden": "hidden by the layer file",
    "gone": "gone from the volume, no longer recorded",
}
