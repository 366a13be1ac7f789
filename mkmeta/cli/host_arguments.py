"""Arguments of the verbs that work on this host's mounts and stores."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import Flag
from mkmeta.cli.output import note
from mkmeta.config_keys import span
from mkmeta.mounts.run import RunDirectory


def add_mount_point(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """MOUNTPOINT, and where what belongs to mounts is kept."""
    parser.add_argument(
        "point",
        metavar="MOUNTPOINT",
        nargs="?" if optional else None,
        type=filled,
        help="where users find the software" + (" (default: every layer mounted on this host)" if optional else ""),
    )


def add_run_dir(parser: argparse.ArgumentParser) -> None:
    """--run-dir."""
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=filled,
        help="for inner mounts and locks; the same for all calls on a host "
        "(default: /run/mkmeta, or mkmeta in $XDG_RUNTIME_DIR for those who cannot write there)",
    )


def add_wait(parser: argparse.ArgumentParser, *, default: int) -> None:
    """--wait."""
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=seconds,
        default=float(default),
        help="how long to wait for another mkmeta that is at it (default: %(default)g)",
    )


def add_allow_gap(parser: argparse.ArgumentParser) -> None:
    """--allow-gap."""
    parser.add_argument(
        "--allow-gap",
        action=Flag,
        help="where the kernel cannot exchange mounts in one step (before Linux 6.5), take the old one away first",
    )


def run_directory(args: argparse.Namespace) -> RunDirectory:
    """RUN, as asked for."""
    runtime = runtime_directory()
    return RunDirectory.open(args.run_dir, runtime)


def notes(args: argparse.Namespace) -> Callable[[str], None]:
    """Where notes for people go: nowhere with -q or --json."""
    return (lambda _text: None) if args.quiet or args.json else note


def seconds(text: str) -> float:
    """A time span: a number of seconds, or with a unit: 90, 15m, 2d."""
    try:
        return span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def runtime_directory() -> bytes | None:
    """$XDG_RUNTIME_DIR; as nothing where it is not absolute (XDG Base Directory Specification)."""
    path = os.environb.get(b"XDG_RUNTIME_DIR", b"")
    return path if path.startswith(b"/") else None
