"""`mkmeta publish`."""

from __future__ import annotations

import argparse
import contextlib
import os

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import add_wait, notes
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, NoGenerationError, printable
from mkmeta.host.following import check_outside_layers
from mkmeta.store.pointer import Pointer, publish
from mkmeta.store.record import NUMBER_MAX
from mkmeta.store.store import Generation, Store

_WAIT = 600  # seconds for another publish: it copies a manifest

_DESCRIPTION = """\
Announces a generation of a store to clients: copies its manifest beside the pointer, a small file on the volume, and
then has the pointer name it. Clients run `mkmeta activate --follow`, which looks at the pointer only until it changes,
and then builds that manifest, verified by its ID, and mounts it. Publishing the same generation again has clients
forget the names they did not find: do that when something was added to the volume.
"""

_EPILOG = """\
The last line on stdout is the ID of the published manifest. Whoever can write to the pointer's directory decides what
clients mount. The pointer and the manifests beside it get the permissions your umask leaves: clients must be able to
read them. The directory is made, if the one above is there and not empty: then the volume is mounted.

examples:
  mkmeta scan /mnt/sw --select 'grp/*/v*/lib' -o sw.mkm
  mkmeta build sw.mkm --store /var/lib/mkmeta/sw
  mkmeta publish /var/lib/mkmeta/sw --pointer /mnt/sw/.mkmeta/sw.json
  mkmeta publish --config /etc/mkmeta/sw.toml
  mkmeta publish /var/lib/mkmeta/sw --pointer /mnt/sw/.mkmeta/sw.json --generation 6 --rollback

exit codes:
  0    clients that look at the pointer now are told of the generation
  1    it could not be published; the pointer is as it was
  2    the command line is wrong
  14   another publish did not end within --wait
  15   the store has no such generation
  130  interrupted; the pointer is as it was, or names the generation
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs, "publish", summary="announce a generation to clients", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("store", metavar="STORE", type=filled, help="made by mkmeta build --store")
    parser.add_argument(
        "--pointer",
        metavar="FILE",
        type=filled,
        required=True,
        help="file to make or replace; manifests appear beside it as FILE-NUMBER-ID.mkm, and old ones go",
    )
    parser.add_argument("--generation", metavar="N", type=_number, help="publish this one (default: the current one)")
    parser.add_argument(
        "--rollback",
        action="store_true",
        help="allow a generation older than the one the pointer names; clients go back to it",
    )
    add_wait(parser, default=_WAIT)
    add_config(parser, {"store": "store", "pointer": "pointer"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publishes and says what."""
    store = Store.open(args.store)
    with store.publish_lock("publish", wait=args.wait, note=notes(args)):
        generation = _generation(store, args.generation)
        with contextlib.suppress(OSError):  # `publish` says so
            check_outside_layers(_in_what_is_there(args.pointer))
        done = publish(store, args.pointer, generation, rollback=args.rollback, wait=args.wait, note=notes(args))
    for name, why in done.stubborn:
        note(f"mkmeta: {printable(name)}: an old manifest that cannot be removed: {why}")
    _report(done.pointer, args)
    return int(ExitCode.DONE)


def _generation(store: Store, number: int | None) -> Generation:
    if number is not None:
        return store.generation(number)
    generation = store.current()
    if generation is None:
        hint = "mkmeta build MANIFEST --store STORE adds one"
        raise NoGenerationError("has no current generation", path=store.path, hint=hint)
    return generation


def _in_what_is_there(path: bytes) -> bytes:
    """The same name, in the nearest directory on its way that exists."""
    directory, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return os.path.join(directory, name)


def _report(pointer: Pointer, args: argparse.Namespace) -> None:
    if args.json:
        emit(
            "summary",
            id=pointer.id.hex(),
            generation=pointer.generation,
            serial=pointer.serial,
            rollback=pointer.rollback,
            **path_fields(args.pointer, "pointer"),
            **path_fields(pointer.manifest, "manifest"),
        )
        return
    if not args.quiet:
        back = ", and has clients go back to it" if pointer.rollback else ""
        note(f"{printable(args.pointer)} names generation {pointer.generation}{back} (serial {pointer.serial})")
    print(pointer.id.hex())


def _number(text: str) -> int:
    if (
        not (text.isascii() and text.isdecimal())
        or len(text) > len(str(NUMBER_MAX))
        or not 1 <= int(text) <= NUMBER_MAX
    ):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a generation")
    return int(text)
