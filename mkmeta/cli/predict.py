"""`mkmeta predict`: what a layer will save, before anybody mounts it."""

from __future__ import annotations

import argparse
import sys

from mkmeta.cli.arguments import check_stdin_once, filled
from mkmeta.cli.manifest_argument import add_manifest_argument, open_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.suggest import share
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.config_keys import size_of
from mkmeta.demand.prediction import KINDS, PLAIN, PROFILES, Prediction, Predictor
from mkmeta.demand.reading import read_profiles
from mkmeta.errors import ExitCode, UsageError, printable
from mkmeta.mounts.profile import Profile

_STAY_SHOWN = 20

_DESCRIPTION = """\
Says how many requests the programs in the profiles send to the file server without a layer, and with that of MANIFEST,
by kind and by how it is mounted; each profile stands for one client with empty caches. Contents that the manifest
holds count as held. Misses that stay are listed by directory.

  misses    names that are not there          opens   to open and close files, LOOKUPs included
  stats     names that are, and not opened    reads   of files read once, by the MiB
  listings  of directories                    way     to directories: LOOKUP and ACCESS

With --min-gain it is a gate for a pipeline: exit code 4 when less is saved.
"""

_EPILOG = """\
examples:
  mkmeta predict sw.mkm sw.profile
  mkmeta predict sw.mkm host*.profile --profile merge --min-gain misses=99% --min-gain 50%
  mkmeta predict sw.mkm sw.profile --inline 64K

exit codes:
  0    done
  1    a profile is damaged, or something cannot be read
  2    wrong arguments
  4    less is saved than --min-gain
  10   the manifest is not valid
  130  interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "predict", summary="say what a layer will save", description=_DESCRIPTION, epilog=_EPILOG)
    add_manifest_argument(parser)
    parser.add_argument("profiles", metavar="PROFILE", nargs="+", type=filled, help="made by mkmeta observe")
    parser.add_argument(
        "--profile",
        choices=[str(one) for one in PROFILES],
        default=str(Profile.NESTED),
        help="how the layer will be mounted: what --min-gain and the misses that stay are about (default: nested)",
    )
    parser.add_argument(
        "--min-gain",
        metavar="[KIND=]SHARE",
        type=minimal_gain,
        action="append",
        default=[],
        help="what must be saved at least, of all requests or of one kind: 50%%, misses=99%%; may be given many times",
    )
    parser.add_argument("--nfs", choices=["3", "4.2"], default="4.2", help="the volume's protocol (default: 4.2)")
    parser.add_argument(
        "--inline", metavar="SIZE", type=_size, default=0, help="as if files up to SIZE were held by the layer: 64K"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predicts."""
    if args.manifest == "-" and b"-" in args.profiles:
        raise UsageError("standard input cannot be both manifest and profile")
    check_stdin_once(args.profiles)
    lost = 0
    with open_manifest(args.manifest) as reader:
        predictor = Predictor(reader, nfs=args.nfs, inline=args.inline)
        for profile in args.profiles:
            demand = read_profiles([profile], reader.info.root, sys.stdin.buffer)
            lost += demand.lost.total()
            predictor.add(demand)
    prediction = predictor.prediction
    if lost:
        note(f"the profiles miss {lost} calls: there will be more requests than these, before and after")
    (_emit if args.json else _print)(args, prediction)
    under = [(kind, least) for kind, least in args.min_gain if prediction.gain(args.profile, kind) < least]
    for kind, least in under:
        note(f"{kind or 'requests'}: {prediction.gain(args.profile, kind):.1%} is saved, {least:.1%} was asked for")
    return int(ExitCode.DIFFERENT if under else ExitCode.DONE)


def _print(args: argparse.Namespace, prediction: Prediction) -> None:
    names = (PLAIN, *PROFILES)
    print(f"{'requests':<10}" + "".join(f"{name:>12}" for name in names))
    for kind in KINDS:
        print(f"{kind:<10}" + "".join(f"{prediction.requests[name][kind]:>12}" for name in names))
    print(f"{'all':<10}" + "".join(f"{sum(prediction.requests[name].values()):>12}" for name in names))
    print(f"{'saved':<10}{'':>12}" + "".join(f"{prediction.gain(name):>12.1%}" for name in PROFILES))
    stay = sorted(prediction.stay.items(), key=lambda pair: (-pair[1], pair[0])) if args.profile != "data-only" else []
    for path, count in stay[:_STAY_SHOWN]:
        print(f"stays: {count} misses in {printable(path) or 'the root'}")
    if len(stay) > _STAY_SHOWN:
        print(f"stays: {sum(n for _, n in stay[_STAY_SHOWN:])} misses in {len(stay) - _STAY_SHOWN} more directories")


def _emit(args: argparse.Namespace, prediction: Prediction) -> None:
    for path, count in sorted(prediction.stay.items(), key=lambda pair: (-pair[1], pair[0])):
        emit("stays", **path_fields(path), misses=count)
    for name in PROFILES:
        emit("prediction", profile=str(name), requests=prediction.requests[name], gain=round(prediction.gain(name), 6))
    emit(
        "summary",
        requests=prediction.requests[PLAIN],
        profile=args.profile,
        gain=round(prediction.gain(args.profile), 6),
    )


def minimal_gain(text: str) -> tuple[str | None, float]:
    """What must be saved at least: `50%`, `misses=99%`."""
    kind, equals, least = text.rpartition("=")
    if equals and kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return kind or None, share(least)


def _size(text: str) -> int:
    try:
        return size_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
