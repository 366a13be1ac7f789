"""`mkmeta explain`: why a path is served the way it is, and what that costs."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator

from mkmeta.cli.entries import utc
from mkmeta.cli.layer_argument import FoundLayer
from mkmeta.cli.manifest_argument import open_manifest
from mkmeta.cli.output import emit, path_fields
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, MountError, UsageError, human_bytes, legible, printable
from mkmeta.host.costs import PLAIN, Costs
from mkmeta.host.explain import Explanation, explain, seen
from mkmeta.linux.mountinfo import mounts
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Node, RegularFile, Symlink, type_name
from mkmeta.mounts.live import LiveMount, live_at
from mkmeta.plan import Plan

_DESCRIPTION = """\
Says why a path is served the way it is: by the layer, because it was recorded; by the volume, because it was not
selected or could not be recorded; or by nobody, because the directory it would be in was recorded completely without
it. Says which pattern selected it, where its data is, and what a lookup, a stat, a listing and an open of it cost in
each profile. For the mount point of a layer, the profile that is mounted is marked, and what the kernel says at this
moment stands beside what is recorded.
"""

_EPILOG = """\
WHERE is the mount point of a layer, a store, a generation of one, or a manifest. For a layer outside of a store, name
its manifest.

examples:
  mkmeta explain /sw grp/paint/v1.0/lib/libpaint.so
  mkmeta explain /sw /sw/grp/paint/v1.0/lib/no-such-name
  mkmeta explain /var/lib/mkmeta/sw grp/paint
  mkmeta explain sw.mkm grp/paint/v2.0 --json | jq '.costs.nested'

exit codes:
  0   explained, also when there is no such path
  1   WHERE has no manifest, or it cannot be read
  2   the command line is wrong
  10  the manifest is not a valid one
  11  the manifest in the store is not the one its generation was built from
  15  the store has no generation
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "explain",
        summary="say why a path is served the way it is",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("where", metavar="WHERE", help="mount point, store, generation, or manifest")
    parser.add_argument(
        "path", metavar="PATH", type=os.fsencode, help="relative to the root, or below WHERE or the volume"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explains."""
    where = os.path.realpath(os.fsencode(args.where))
    live = next(reversed(live_at(where, mounts())), None)
    reader, plan = _open(args.where, where, live)
    with reader:
        path = _path(args.path, where, live.lower if live else b"", reader.info.root)
        explanation = explain(reader, path, plan)
        kernel = seen(live, explanation) if live else None
        if args.json:
            _emit(reader, explanation, live, kernel)
        else:
            for line in _page(explanation, live, kernel):
                print(line)
    return int(ExitCode.DONE)


def _open(argument: str, where: bytes, live: LiveMount | None) -> tuple[ManifestReader, Plan]:
    """The manifest, and how the layer was built from it."""
    if live is None and not os.path.isdir(where):
        return open_manifest(argument), Plan()
    if live is not None and not live.layer:
        raise MountError(
            "its inner mount is not reachable, so its layer cannot be told",
            path=live.point,
            hint="activate it again, or name the store instead",
        )
    found = FoundLayer.at(live.layer if live else where)
    if found.generation is None:
        what = "the layer mounted here" if live else "this"
        raise UsageError(
            f"{what} is no generation of a store, which would have its manifest beside it",
            path=os.fsencode(argument),
            hint="name the manifest instead: mkmeta explain MANIFEST PATH",
        )
    return found.open_manifest(), found.plan()


def _path(argument: bytes, *tops: bytes) -> bytes:
    """A PATH relative to the root, also when it is given as seen in a mount or on the volume. Raises UsageError."""
    for top in (top.rstrip(b"/") for top in tops if top.strip(b"/")):
        if argument == top or argument.startswith(top + b"/"):
            argument = argument[len(top) :]
            break
    names = [name for name in argument.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise UsageError("a PATH cannot contain '..'", path=argument, hint="name it from the root down")
    return b"/".join(names)


def _page(explanation: Explanation, live: LiveMount | None, kernel: str | None) -> Iterator[str]:
    node = explanation.node
    yield f"{printable(explanation.path) or '/'}: {_describe(node) if node else 'not recorded'}"
    yield f"  {explanation.why}"
    if kernel is not None:
        yield f"  the kernel says: {kernel}"
    yield ""
    rows: list[tuple[str, str]] = []
    if explanation.subtree is not None:
        by = ", ".join(map(legible, explanation.patterns)) or "the scan of everything"
        rows.append(("selected by", f"{by} (subtree {printable(explanation.subtree)})"))
    for number, step in enumerate(explanation.way):
        name = printable(step.path) or "/"
        rows.append(("" if number else "on the way", f"{name}: {_kind(step.directory)}"))
    if explanation.redirect is not None:
        rows.append(("data", f"{printable(explanation.redirect)} below the volume"))
    if isinstance(node, RegularFile):
        rows += [("BLAKE3", node.blake3.hex())] if node.blake3 else []
        rows += [("fs-verity", node.verity.hex())] if node.verity else []
    for number, name in enumerate(map(printable, explanation.links)):
        rows.append(("" if number else f"{explanation.nlink} hard links", name))
    if len(explanation.links) < explanation.nlink > 1:
        rows.append(("", f"... and {explanation.nlink - len(explanation.links):,} more"))
    for title, text in rows:
        yield f"  {title:<14} {text}"
    yield ""
    for profile, words in explanation.costs.items():
        mark = " (mounted)" if live is not None and live.profile == profile else ""
        title = "without a layer" if profile == PLAIN else f"{profile}{mark}"
        for number, line in enumerate(_grouped(words)):
            yield f"  {'' if number else title:<20} {line}"


def _grouped(words: Costs) -> Iterator[str]:
    """The calls that cost the same, together."""
    by_text: dict[str, list[str]] = {}
    for call, text in words._asdict().items():
        if text is not None:
            by_text.setdefault(text, []).append(call)
    for text, calls in by_text.items():
        yield f"{', '.join(calls).replace('way', 'on the way')}: {text}"


def _describe(node: Node) -> str:
    text = f"{type_name(node.mode)}, {stat.filemode(node.mode)} {node.uid}:{node.gid}, {utc(node.mtime_ns)}"
    match node:
        case RegularFile():
            return f"{text}, {human_bytes(node.size)}"
        case Directory():
            return f"{text}, {node.entries:,} entries in it and below"
        case Symlink():
            return f"{text}, to {printable(node.target)}"
    return text


def _kind(directory: Directory) -> str:
    if directory.kind is DirectoryKind.MERGE:
        return "skeleton: what else the volume has shows through"
    return "complete: nothing else shows"


def _emit(reader: ManifestReader, explanation: Explanation, live: LiveMount | None, kernel: str | None) -> None:
    node = explanation.node
    left_out = explanation.left_out
    emit(
        "explanation",
        **path_fields(explanation.path),
        id=reader.id.hex(),
        served=str(explanation.served),
        why=explanation.why,
        type=type_name(node.mode) if node else None,
        subtree=path_fields(explanation.subtree) if explanation.subtree is not None else None,
        patterns=[path_fields(pattern, "pattern") for pattern in explanation.patterns],
        left_out={**path_fields(left_out[0]), "reason": left_out[1]} if left_out else None,
        directories=[{**path_fields(step.path), "kind": step.directory.kind.name.lower()} for step in explanation.way],
        redirect=path_fields(explanation.redirect) if explanation.redirect is not None else None,
        blake3=node.blake3.hex() if isinstance(node, RegularFile) and node.blake3 else None,
        verity=node.verity.hex() if isinstance(node, RegularFile) and node.verity else None,
        hard_links=[path_fields(name) for name in explanation.links],
        nlink=explanation.nlink,
        costs={profile: words._asdict() for profile, words in explanation.costs.items()},
        profile=str(live.profile) if live else None,
        kernel=kernel,
    )
