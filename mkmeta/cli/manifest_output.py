"""The -o option of verbs that make manifests from manifests: a file that appears when it is complete, or stdout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from mkmeta.cli.arguments import output_file
from mkmeta.cli.streams import is_closed
from mkmeta.errors import UsageError
from mkmeta.manifest.output import atomic_output, spooled_output

_T = TypeVar("_T")


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option; its value is for `write_manifest`."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="MANIFEST",
        type=output_file,
        required=True,
        help="the manifest to write; it appears when it is complete. - is stdout (the ID goes to stderr then)",
    )


def check_stdout(args: argparse.Namespace) -> None:
    """Raises UsageError when the output is stdout, and that cannot be."""
    if args.output != b"-":
        return
    if args.json:
        raise UsageError("--json and a manifest cannot both go to stdout", hint="name a file with -o")
    if is_closed(1):
        raise UsageError("standard output is closed, and the manifest was to go there", hint="name a file with -o")
    if sys.stdout.isatty():
        raise UsageError("a manifest is not for a terminal", hint="name a file with -o, or use a pipe")


def write_manifest(args: argparse.Namespace, write: Callable[[BinaryIO], _T]) -> _T:
    """What `write` returns for the stream of the output. Raises UsageError when it cannot be stdout."""
    check_stdout(args)
    if args.output != b"-":
        with atomic_output(args.output) as stream:
            return write(stream)
    with spooled_output(sys.stdout.buffer) as stream:
        return write(stream)


def print_id(args: argparse.Namespace, manifest_id: bytes) -> None:
    """The last line of such a verb."""
    print(manifest_id.hex(), file=sys.stderr if args.output == b"-" else sys.stdout)
