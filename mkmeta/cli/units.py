"""`mkmeta units`: the systemd units of a layer."""

from __future__ import annotations

import argparse
import os
import sys

from mkmeta.cli.arguments import filled
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.config import read_config
from mkmeta.errors import ExitCode, MkmetaError, printable, reason
from mkmeta.host.units import DIRECTORY, Unit, instance_of, mounts, publishes, units_of
from mkmeta.manifest.output import atomic_output

_DESCRIPTION = """\
Prints the systemd units that mount a layer at boot, follow its pointer, and remove old generations, as its layer file
says, and the one that watches the volume for releases, for one machine of a site; or installs them. The units are the
same for all layers: each reads its own file when it runs. Only the paths that systemd itself has to know are written
once more: call this again when `volume`, `store` or `manifest` change.
"""

_EPILOG = """\
Nothing is started: the last lines say how. To be rid of a layer's units, disable them, and remove
mkmeta-*@NAME.service.d.

examples:
  mkmeta units --config /etc/mkmeta/sw.toml
  mkmeta units --config /etc/mkmeta/sw.toml --install
  mkmeta units --config sw.toml --install /run/systemd/system      until the next boot

exit codes:
  0    printed, or installed
  1    they cannot be written
  2    the command line or the layer file is wrong
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "units", summary="print or install systemd units", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "--config", metavar="FILE", type=filled, required=True, help="the layer file (formats/layer.toml.md)"
    )
    parser.add_argument(
        "--install",
        metavar="DIR",
        nargs="?",
        const=DIRECTORY,
        type=filled,
        help=f"write them to DIR, replacing older ones (without DIR: {DIRECTORY.decode()})",
    )
    parser.add_argument(
        "--program",
        metavar="PATH",
        type=_program,
        help="what the units start (default: the mkmeta that writes them)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints or installs."""
    config = read_config(os.path.abspath(args.config))
    units = units_of(config, args.program or _own_program())
    if args.install is None:
        _print(units, args)
        return int(ExitCode.DONE)
    for unit in units:
        path = os.path.join(args.install, unit.name.encode())
        state = _write(path, unit.text)
        if args.json:
            emit("unit", **path_fields(path), state=state)
        elif not args.quiet:
            note(f"{printable(path)}: {state}")
    name = instance_of(config)
    enable = []
    if mounts(config):
        timers = ("refresh", "gc") if config.pointer is not None else ("gc",)
        enable = [f"mkmeta-activate@{name}.service", *(f"mkmeta-{timer}@{name}.timer" for timer in timers)]
    watch = f"mkmeta-watch@{name}.service" if publishes(config) else None
    if args.json:
        emit("summary", **path_fields(args.install, "directory"), units=len(units), enable=enable, watch=watch)
    elif not args.quiet:
        if enable:
            note(f"next: systemctl daemon-reload && systemctl enable --now {' '.join(enable)}")
        if watch is not None:
            note(f"on one machine of the site: systemctl daemon-reload && systemctl enable --now {watch}")
    return int(ExitCode.DONE)


def _print(units: list[Unit], args: argparse.Namespace) -> None:
    for number, unit in enumerate(units):
        if args.json:
            emit("unit", **path_fields(unit.name.encode()), text=unit.text.decode("utf-8", "backslashreplace"))
            continue
        head = f"# --- {unit.name}\n".encode()
        sys.stdout.flush()
        sys.stdout.buffer.write((b"\n" if number else b"") + head + unit.text)
    if args.json:
        emit("summary", directory=None, units=len(units), enable=None, watch=None)


def _write(path: bytes, text: bytes) -> str:
    """Puts one in its place. Raises MkmetaError."""
    state = "written"
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "rb") as stream:
            state = "unchanged" if stream.read(len(text) + 1) == text else "replaced"
    except FileNotFoundError:
        pass
    except OSError as error:
        raise MkmetaError(f"cannot be written: {reason(error)}", path=path) from None
    if state != "unchanged":
        with atomic_output(path, follow=False) as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
    return state


def _own_program() -> list[str]:
    """How this very program was started."""
    called = os.path.abspath(sys.argv[0])
    if os.path.basename(called) == "mkmeta" and os.access(called, os.X_OK):
        return [called]
    return [sys.executable, "-m", "mkmeta"]


def _program(text: str) -> list[str]:
    if not os.path.isabs(text) or "\n" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return [text]
