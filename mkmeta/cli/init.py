"""`mkmeta init`: a first layer file, after a look at this host."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from mkmeta.cli.arguments import filled
from mkmeta.cli.host_arguments import runtime_directory
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.config import parse_config
from mkmeta.config_text import Value, config_text
from mkmeta.errors import ExitCode, MkmetaError, UsageError, printable, reason
from mkmeta.host.doctor import Patient, diagnose
from mkmeta.host.finding import Finding, Level
from mkmeta.host.volume import look
from mkmeta.manifest.output import atomic_output

_SECONDS = 10.0  # for the volume to answer
_NAME = re.compile(rb"[A-Za-z0-9_.:-]{1,100}")

_DESCRIPTION = """\
Writes a layer file (formats/layer.toml.md) for a volume: what to scan, where to keep layers, where to mount them. Asks
the host what `mkmeta doctor` asks, writes what that finds beside the keys it is about, and asks you nothing: read the
file, change what should be otherwise, and give it to the other verbs with --config. Nothing else is made.
"""

_EPILOG = """\
NAME, by default the last part of VOLUME's path, is in all other paths: for root, the file is /etc/mkmeta/NAME.toml, the
store /var/lib/mkmeta/NAME, the mount point /NAME; for others, they are below $XDG_CONFIG_HOME, $XDG_DATA_HOME and the
home directory, and layers are for mounts in user namespaces.

examples:
  mkmeta init /mnt/sw
  mkmeta init /mnt/sw --select 'grp/*/v*/lib' --select 'tools/**/python' --mount-point /site/sw
  mkmeta init /mnt/sw -o -                                     only print it

exit codes:
  0    written
  1    it cannot be written, or the volume does not answer
  2    the command line is wrong, or there is such a file
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(verbs, "init", summary="write a first layer file", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("volume", metavar="VOLUME", type=filled, help="where the volume is mounted")
    parser.add_argument("--name", metavar="NAME", type=_name, help="of the layer, on all its hosts (default: VOLUME's)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=filled, help="the file to write, or - for stdout (default: see below)"
    )
    parser.add_argument("--force", action="store_true", help="also when FILE exists: what it says is lost")
    parser.add_argument(
        "--select",
        metavar="PATTERN",
        type=filled,
        action="append",
        default=[],
        help="what to record, as for scan; without any, all is recorded",
    )
    parser.add_argument("--mount-point", metavar="DIR", type=filled, help="where users find the software")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks, and writes."""
    if args.output == b"-" and args.json:
        raise UsageError("--json and the layer file cannot both go to stdout", hint="name a file with -o")
    volume = look(os.path.abspath(args.volume), _SECONDS).path
    name = args.name or os.path.basename(volume)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{printable(name)!r} cannot be the name of a layer", hint="give another with --name")
    places = _Places.of(name)
    output = args.output or places.config
    if output != b"-" and not args.force and os.path.lexists(output):
        raise UsageError("exists", path=output, hint="--force replaces it; -o names another")
    values = _values(args, volume, name, places)
    store = values["store"]
    assert isinstance(store, bytes)
    patient = Patient(
        lower=volume,
        store=store,
        runtime_dir=runtime_directory(),
        userxattr=bool(values.get("userxattr")),
    )
    found = [finding for finding in diagnose(patient) if not _goes_without_saying(finding)]
    data = config_text(_head(found, output), values, _remarks(found))
    parse_config(data, output)  # what is written can be read
    _write(output, data)
    _report(args, output, found)
    return int(ExitCode.DONE)


class _Places:
    """Where things of a layer are, for this user."""

    def __init__(self, config: bytes, data: bytes, point: bytes) -> None:
        self.config = config
        self.data = data
        self.point = point

    @classmethod
    def of(cls, name: bytes) -> _Places:
        """For root, in the directories that hosts have; for others, in their own (the XDG base directories)."""
        if os.geteuid() == 0:
            return cls(b"/etc/mkmeta/%b.toml" % name, b"/var/lib/mkmeta/" + name, b"/" + name)
        home = os.path.expanduser(b"~")
        config = os.environb.get(b"XDG_CONFIG_HOME") or home + b"/.config"
        data = os.environb.get(b"XDG_DATA_HOME") or home + b"/.local/share"
        return cls(config + b"/mkmeta/%b.toml" % name, data + b"/mkmeta/" + name, home + b"/" + name)


def _values(args: argparse.Namespace, volume: bytes, name: bytes, places: _Places) -> dict[str, Value]:
    found: dict[str, Value] = {
        "volume": volume,
        "manifest": places.data + b".mkm",
        "store": places.data,
        "pointer": volume + b"/.mkmeta/%b.json" % name,
        "mount-point": os.path.abspath(args.mount_point or places.point),
    }
    if args.select:
        found["select"] = args.select
    if os.geteuid() != 0:
        found["userxattr"] = True
    return found


def _head(found: Sequence[Finding], output: bytes) -> list[str]:
    file = "FILE" if output == b"-" else printable(os.path.abspath(output))
    head = [
        "A layer of mkmeta: what is recorded of a volume, and where that is mounted over it. formats/layer.toml.md, or "
        "layer.toml(5), explains each key. Where the command line says something too, that wins.",
        "",
        f"On the host that publishes:  mkmeta scan --config {file} && mkmeta build --config {file} && mkmeta publish "
        f"--config {file}",
        f"On the hosts that mount it:  mkmeta units --config {file} --install",
    ]
    about = [finding for finding in found if _key_of(finding) is None]
    if about:
        head += ["", "This host, by `mkmeta doctor`:"]
        head += [_words(finding) for finding in about]
    return head


def _remarks(found: Sequence[Finding]) -> dict[str, list[str]]:
    remarks: dict[str, list[str]] = {}
    for finding in found:
        key = _key_of(finding)
        if key is not None:
            remarks.setdefault(key, []).append(_words(finding))
    return remarks


def _goes_without_saying(finding: Finding) -> bool:
    return finding.level is Level.OK or (finding.id == "store" and finding.level is Level.NOTE)  # there is none yet


def _key_of(finding: Finding) -> str | None:
    """The key that a finding of doctor's is about; None: the host."""
    if finding.id.startswith(("profile-", "containers", "switching")):
        return "profile"
    if finding.path is None or finding.id == "run-dir":
        return None
    return "store" if finding.id.startswith("store") else "volume"


def _words(finding: Finding) -> str:
    return f"- {finding.level}: {finding.message}. -> {finding.hint}"


def _write(output: bytes, data: bytes) -> None:
    if output == b"-":
        sys.stdout.buffer.write(data)
        return
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), 0o755, exist_ok=True)
    except OSError as error:
        raise MkmetaError(f"its directory cannot be made: {reason(error)}", path=output) from None
    with atomic_output(output) as stream:
        os.fchmod(stream.fileno(), 0o644)
        stream.write(data)


def _report(args: argparse.Namespace, output: bytes, found: Sequence[Finding]) -> None:
    bad = sum(finding.level in (Level.WARNING, Level.FAILURE) for finding in found)
    if args.json:
        emit("summary", **path_fields(output, "file"), warnings=bad, notes=len(found) - bad)
    elif not args.quiet and output != b"-":
        word = f"; what doctor found is beside the keys: {bad} warnings or failures" if bad else ""
        note(f"{printable(output)}: written{word}")
        note(f"next: read it, then mkmeta scan --config {printable(output)}")


def _name(text: str) -> bytes:
    raw = os.fsencode(text)
    if not _NAME.fullmatch(raw):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits and _.:- only")
    return raw
