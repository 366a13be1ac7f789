"""`mkmeta verify`: is the layer what its manifest says, and the volume still what was recorded?"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections import Counter
from typing import Final

from mkmeta.cli.arguments import filled
from mkmeta.cli.config_option import add_config
from mkmeta.cli.host_arguments import seconds as time_span
from mkmeta.cli.layer_argument import FoundLayer
from mkmeta.cli.manifest_argument import open_manifest
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.errors import ExitCode, UsageError, human_bytes, printable, reason
from mkmeta.host.metrics import verify_metrics
from mkmeta.host.prometheus import write_metrics
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import WORKERS_MAX
from mkmeta.mounts.image import opened
from mkmeta.overlay_xattrs import TRUSTED, USER
from mkmeta.plan import Plan
from mkmeta.publisher.recent import released_since
from mkmeta.publisher.second_look import compare_parts
from mkmeta.sinks.erofs.inspection import image_digest
from mkmeta.verifier.data import Sample
from mkmeta.verifier.findings import Finding, Findings, Side
from mkmeta.verifier.verify import Verified, VerifyOptions, verify

_SHOWN: Final = 10  # findings of one subtree, without --all: enough to see what sort they are
_VOLUME_JOBS: Final = 8  # processes that wait for a file server most of the time

_DESCRIPTION = """\
Compares a layer on disk with the manifest it was built from: every name, every attribute, every xattr, overlayfs's own
included, every hard link; nothing may be missing and nothing may be more. Nothing is changed.

With --lower, compares the volume with the manifest as well, without reading data: releases are assumed never to change
once they are published, and this says which did, and how. New names count in directories that were recorded completely,
where mounts of the layer hide them. A file that was replaced by its like is known by its inode number, unless the
volume is a copy of what was scanned, or its filesystem makes such numbers up: then a word says so. With --data, also
compares the data of files with the recorded digests: with what the filesystem itself keeps where it has fs-verity, by
reading everywhere else.

With --recent, compares nothing but what was released lately, volume with manifest: what is not finished when it is
taken, or is rewritten, is so in the first days. That needs no layer; the manifest is the one that is published.
"""

_EPILOG = """\
LAYER is a directory that mkmeta build made, a generation of a store, or a store, whose current generation is meant. A
generation has its manifest beside it and says how it was built; for other layers, name the manifest, and give the
options that build was given.

--sample takes files by their path: every host takes the same ones, and those of 1% are among those of 5%. Another
--seed takes others.

examples:
  mkmeta verify /var/lib/mkmeta/sw
  mkmeta verify /var/lib/mkmeta/sw --lower /mnt/sw
  mkmeta verify /var/lib/mkmeta/sw --lower /mnt/sw --data --sample 2% --seed "$(date +%V)"    each week others
  mkmeta verify layer --manifest sw.mkm --userxattr
  mkmeta verify --config /etc/mkmeta/sw.toml --recent 7d
  mkmeta verify --manifest sw.mkm --lower /mnt/sw --recent 7d --data

exit codes:
  0    all is as recorded
  1    it cannot be told
  2    the command line is wrong
  4    something is not as recorded: a line for each on stdout, the first ten of a subtree unless --all is given
  10   the manifest is not a valid one
  11   the manifest in the store is not the one its generation was built from
  15   the store has no generation
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "verify",
        summary="compare a layer, and the volume, with the manifest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("layer", metavar="LAYER", type=filled, nargs="?", help="layer, generation, or store")
    parser.add_argument(
        "--manifest", metavar="MANIFEST", help="what the layer was built from (default: the one of the generation)"
    )
    parser.add_argument(
        "--lower", metavar="ROOT", type=filled, help="compare this volume, that the layer is mounted over, too"
    )
    parser.add_argument(
        "--recent",
        metavar="TIME",
        type=time_span,
        help="compare only what was released less than this ago, with the volume alone; the manifest is MANIFEST, the "
        "'manifest' of the layer file, or the one of LAYER",
    )
    parser.add_argument("--data", action="store_true", help="with --lower: compare the data of files")
    parser.add_argument(
        "--sample", metavar="N%", type=_share, help="with --data: of so many files only, for example 5%% (default: all)"
    )
    parser.add_argument(
        "--seed", metavar="TEXT", type=os.fsencode, help="with --sample: which ones (default: always the same)"
    )
    parser.add_argument(
        "--metrics",
        metavar="FILE",
        type=filled,
        help="also write FILE for node_exporter's textfile collector: how many findings, and when",
    )
    parser.add_argument("--all", action="store_true", help="print every finding, however many a subtree has")
    parser.add_argument(
        "--redirect-prefix", metavar="PATH", type=filled, help="as given to build, if LAYER is no generation"
    )
    parser.add_argument("--userxattr", action="store_true", help="likewise (default: as the layer's root has it)")
    parser.add_argument("--no-verity", action="store_true", help="likewise")
    parser.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=_jobs,
        help=f"worker processes (default: one per processor for the layer, {_VOLUME_JOBS} for the volume)",
    )
    add_config(parser, {"layer": "store", "lower": "volume"})
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compares and reports."""
    _check(args)
    started = time.monotonic()
    if args.recent is not None:
        return _verify_recent(args, started)
    found = FoundLayer.at(args.layer)
    with contextlib.ExitStack() as stack:
        damage = _damage_of_image(found)
        tree = stack.enter_context(opened(found.layer)) if damage is None else b""
        plan = _plan(args, found, tree)
        reader = stack.enter_context(_manifest(args, found))
        findings = stack.enter_context(Findings())
        options = VerifyOptions(
            layer=tree,
            plan=plan,
            lower=args.lower,
            data=_sample(args),
            layer_jobs=args.jobs or min(WORKERS_MAX, len(os.sched_getaffinity(0))),
            volume_jobs=args.jobs or _VOLUME_JOBS,
        )
        total = reader.root.directory.entries * (2 if args.lower is not None else 1)
        with ProgressLine(args, "verify", total=total) as line:

            def progress(done: int, _total: int) -> None:
                line.update(done, f"{findings.count} findings" if findings.count else "")

            if damage is None:
                verified = verify(reader, options, findings, progress)
            else:  # the kernel has no business with such bytes
                verified = Verified(Counter())
                findings.add(Finding(Side.LAYER, b"", "digest", damage, b""))
        if found.generation is not None and found.generation.written and not (args.json or args.quiet):
            note(f"note: generation {found.generation.number} was mounted writable: it may differ since")
        return _tell(reader, verified, findings, started, args.layer, args)


def _verify_recent(args: argparse.Namespace, started: float) -> int:
    """Compares what was released lately with the volume, and reports."""
    named = args.manifest or (args.config.manifest if args.config else None)
    with contextlib.ExitStack() as stack:
        manifest = open_manifest(named) if named is not None else FoundLayer.at(args.layer).open_manifest()
        reader = stack.enter_context(manifest)
        findings = stack.enter_context(Findings())
        paths = tuple(released_since(reader, time.time_ns(), args.recent))
        counts = compare_parts(reader, args.lower, paths, findings, data=_sample(args), jobs=args.jobs or _VOLUME_JOBS)
        if not (args.json or args.quiet):
            note(f"note: {len(paths):,} of what is recorded changed less than that ago, and is looked at")
        return _tell(reader, Verified(counts), findings, started, named or args.layer, args)


def _sample(args: argparse.Namespace) -> Sample | None:
    """The files whose data is compared."""
    return Sample(args.sample if args.sample is not None else 1.0, args.seed or b"") if args.data else None


def _tell(
    reader: ManifestReader,
    verified: Verified,
    findings: Findings,
    started: float,
    path: bytes,
    args: argparse.Namespace,
) -> int:
    """Reports what was found by looking at what is at `path`. Returns the exit code."""
    seconds = time.monotonic() - started
    if args.metrics is not None:
        entries = verified.counts["layer"]
        families = verify_metrics(findings.sides, path=path, entries=entries, seconds=seconds, now=time.time())
        write_metrics(args.metrics, families)
    subtrees = _emit(findings) if args.json else _print(findings, shown=None if args.all else _SHOWN)
    if args.json:
        _emit_summary(reader, verified, findings.count, subtrees, seconds)
    elif not args.quiet:
        _note_doubts(verified, args)
        note(_summary(verified.counts, findings.count, subtrees, seconds, args))
    return int(ExitCode.DIFFERENT if findings.count else ExitCode.DONE)


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments that do not go together."""
    if args.recent is None and args.layer is None:
        raise UsageError("the following arguments are required: LAYER")
    if args.recent is not None and args.lower is None:
        raise UsageError("--recent compares the volume", hint="name it with --lower, or --config FILE")
    if args.recent is not None and not (args.manifest or args.layer or (args.config and args.config.manifest)):
        raise UsageError("--recent needs a manifest", hint="--manifest, or --config FILE with 'manifest' in it")
    if args.data and args.lower is None:
        raise UsageError("--data goes with --lower", hint="the data is on the volume: name it with --lower")
    if args.sample is not None and not args.data:
        raise UsageError("--sample goes with --data")
    if args.seed is not None and args.sample is None:
        raise UsageError("--seed goes with --sample")


def _plan(args: argparse.Namespace, found: FoundLayer, tree: bytes) -> Plan:
    """How the layer was built: as its generation says, else as the options do. Raises UsageError."""
    if found.generation is not None:
        if args.redirect_prefix is not None or args.userxattr or args.no_verity:
            raise UsageError("a generation says itself how it was built: leave --redirect-prefix, --userxattr and "
                             "--no-verity out")  # fmt: skip
        return found.plan()
    if args.manifest is None:
        if not os.path.lexists(args.layer):
            raise UsageError("there is no such layer", path=args.layer, hint="name a store, or a layer that was built")
        hint = "name its manifest with --manifest, or a store"
        raise UsageError(
            "is no generation of a store, which would have its manifest beside it", path=args.layer, hint=hint
        )
    prefix = (args.redirect_prefix or b"").strip(b"/")
    return Plan(prefix=prefix, userxattr=args.userxattr or _has_user_id(tree), verity=not args.no_verity)


def _damage_of_image(found: FoundLayer) -> str | None:
    """What is wrong with an image of a store as a whole; None for what is as it was built, or a directory."""
    built = found.generation.about().image if found.generation is not None else None
    if built is None:
        return None
    try:
        digest, _by_kernel = image_digest(found.layer)
    except OSError as error:
        return f"cannot be read: {reason(error)}"
    if digest == built:
        return None
    return f"the image is damaged, or another: its digest is {digest.hex()}, and {built.hex()} was built"


def _has_user_id(layer: bytes) -> bool:
    """Whether the root of a layer carries its ID in the `user.` namespace only."""
    try:
        names = [os.fsencode(name) for name in os.listxattr(layer)]
    except OSError:
        return False
    return USER.manifest_id in names and TRUSTED.manifest_id not in names


def _manifest(args: argparse.Namespace, found: FoundLayer) -> ManifestReader:
    return open_manifest(args.manifest) if args.manifest is not None else found.open_manifest()


def _print(findings: Findings, *, shown: int | None) -> int:
    """Prints a line for each finding, but only the first of each subtree. Returns how many subtrees there are."""
    subtrees, current, count = 0, b"", 0
    for finding in findings:
        if not subtrees or finding.subtree != current:
            _print_rest(current, count, shown)
            subtrees, current, count = subtrees + 1, finding.subtree, 0
        count += 1
        if shown is None or count <= shown:
            print(f"{finding.side}: {printable(finding.path) or '/'}: {finding.message}")
    _print_rest(current, count, shown)
    return subtrees


def _print_rest(subtree: bytes, count: int, shown: int | None) -> None:
    if shown is not None and count > shown:
        print(f"{printable(subtree) or '/'}: {count - shown:,} findings more; --all prints them")


def _emit(findings: Findings) -> int:
    subtrees: int = 0
    last: Finding | None = None
    for finding in findings:
        subtrees += last is None or finding.subtree != last.subtree
        last = finding
        emit(
            "finding",
            side=str(finding.side),
            **path_fields(finding.path),
            what=finding.what,
            message=finding.message,
            **path_fields(finding.subtree, "subtree"),
        )
    return subtrees


def _emit_summary(reader: ManifestReader, verified: Verified, findings: int, subtrees: int, seconds: float) -> None:
    counts = verified.counts
    emit(
        "summary",
        id=reader.id.hex(),
        findings=findings,
        subtrees=subtrees,
        layer=counts["layer"],
        volume=counts["volume"],
        touched=counts["touched"],
        unproven=verified.unproven,
        read=counts["read"],
        measured=counts["measured"],
        bytes=counts["bytes"],
        seconds=round(seconds, 3),
    )


def _note_doubts(verified: Verified, args: argparse.Namespace) -> None:
    """Says what of the volume could not be told, or is no finding and worth a word."""
    if verified.unproven is not None:
        note(f"note: a file that was replaced by another with the same attributes is not noticed: {verified.unproven}")
    touched = verified.counts["touched"]
    if touched:
        cure = "their data was compared" if args.data else "mkmeta verify --data compares their data"
        note(
            f"note: {touched:,} entries of the volume have another change time and are else as recorded: linked, "
            f"restored, or written to with their mtime put back; {cure}"
        )


def _summary(counts: Counter[str], findings: int, subtrees: int, seconds: float, args: argparse.Namespace) -> str:
    compared = [] if args.recent is not None else [f"{counts['layer']:,} entries of the layer"]
    if args.lower is not None:
        compared.append(f"{counts['volume']:,} {'of' if compared else 'entries of'} the {Side.VOLUME}")
    if args.data:
        compared.append(f"data of {counts['read']:,} files by reading {human_bytes(counts['bytes'])}")
        compared.append(f"of {counts['measured']:,} by fs-verity")
    result = f"{findings:,} findings in {subtrees:,} subtrees" if findings else "all as recorded"
    return f"compared {', '.join(compared)}: {result}, {seconds:.1f} s"


def _share(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%?", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 5% (more than 0, at most 100)")
    return float(match[1]) / 100


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {WORKERS_MAX}")
    return int(text)
