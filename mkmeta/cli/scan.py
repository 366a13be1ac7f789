"""`mkmeta scan`: record selected subtrees of a volume in a manifest."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from typing import Any, BinaryIO

from mkmeta.cli.arguments import filled, input_file, output_file
from mkmeta.cli.config_option import Listed, add_config
from mkmeta.cli.inside import inside_words
from mkmeta.cli.manifest_output import check_stdout
from mkmeta.cli.output import emit, note, path_fields
from mkmeta.cli.pattern_file import read_pattern_file
from mkmeta.cli.preview import add_preview_arguments, run_preview, show_preview
from mkmeta.cli.progress import ProgressLine
from mkmeta.cli.verb import Verbs, add_verb
from mkmeta.config_keys import inline_rule
from mkmeta.errors import ExitCode, NothingSelectedError, UsageError, human_bytes, legible, printable
from mkmeta.linux.parents import make_directory
from mkmeta.manifest.output import atomic_output, spooled_output
from mkmeta.manifest.reader import ManifestReader
from mkmeta.manifest.walk import WORKERS_MAX
from mkmeta.model import Counts, DigestName, HardLinks
from mkmeta.pattern import remark
from mkmeta.scanner.options import OnError, ScanOptions, ScanReport
from mkmeta.scanner.preview import Preview
from mkmeta.scanner.scan import scan
from mkmeta.workers import available_processors

_JOBS_PER_PROCESSOR = 4  # more only wait, and take memory

_SIZE = re.compile(r"([0-9]{1,12})([KMG]?)", re.ASCII)

_CONFIG = {
    "root": "volume",
    "output": "manifest",
    "select": "select",
    "hide": "hide",
    "drop_xattr": "drop-xattr",
    "digest": "digests",
    "inline": "inline",
    "hard_links": "hard-links",
}

_DESCRIPTION = """\
Walks the selected subtrees of ROOT, a directory of released software, and records every name, attribute and digest
in a manifest. Its ID, printed as the last line, depends on the tree alone: the same tree gives the same ID anywhere.

A subtree that cannot be recorded exactly as it is (something unreadable, a mount point, a change while it is read)
is left out as a whole and named with the reason. Through the mounted layer it still shows, straight from the volume.

patterns:
  relative to ROOT; * ? [...] match within one name, ** any number of directories, \\ takes the meaning from the next
  character; with a slash at the end, only directories match. Names starting with a dot are nothing special; symbolic
  links are not followed. A directory that matches is a subtree with everything below it; anything else that matches
  is recorded alone. Directories that cannot lead to a match are never listed. formats/patterns.md has all the rules.

always left out of a subtree:
  .nfsXXXX files (deleted, but still open somewhere) and .snapshot directories (older states of the same tree).
  They are counted in the summary.
"""

_EPILOG = """\
examples:
  mkmeta scan /mnt/sw -o sw.mkm
  mkmeta scan /mnt/sw --select 'grp/*/v*/lib' --select 'tools/**/python' -o sw.mkm
  mkmeta scan /mnt/sw --select 'grp/*/v*/lib' --dry-run --estimate            what that would be
  find-releases | mkmeta scan /mnt/sw --select-from - --digest none -o sw.mkm
  mkmeta scan --config /etc/mkmeta/sw.toml
  mkmeta scan /mnt/sw --inline 64K -o sw.mkm                                 small files travel in the manifest
  mkmeta scan /mnt/sw --inline '**/*.py=256K' --inline 'grp/*/doc=0' -o sw.mkm
  mkmeta scan /mnt/sw --base sw.mkm -o sw.mkm                                again: reads what has changed
  mkmeta scan /mnt/sw --base sw.mkm --only grp/paint/v1.2 -o sw.mkm          looks at one release only

exit codes:
  0 done; 3 done, but subtrees were left out; 10 the base is damaged; 12 no pattern matched, or with --strict not all;
  13 stopped by --on-error fail; 1 failed, nothing written; 2 bad usage, or a base that does not fit; 130 interrupted
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
    parser = add_verb(
        verbs,
        "scan",
        summary="record selected subtrees of a volume in a manifest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("root", metavar="ROOT", type=filled, help="the directory that will be the lower layer")
    parser.add_argument(
        "-o",
        "--output",
        metavar="MANIFEST",
        type=output_file,
        required=True,
        help="the manifest to write; it appears when it is complete. - is stdout (the ID goes to stderr then)",
    )
    what = parser.add_argument_group("what to record")
    what.add_argument(
        "--select",
        metavar="PATTERN",
        type=filled,
        action=Listed,
        default=[],
        help="record what matches; may be given many times. Without any, everything below ROOT is recorded",
    )
    what.add_argument(
        "--select-from",
        metavar="FILE",
        type=input_file,
        action="append",
        default=[],
        help="read patterns from FILE, one a line; - is stdin. Empty lines and lines starting with # are skipped, "
        "and so are blanks at the end of a line without a \\ before them",
    )
    what.add_argument(
        "--hide",
        metavar="PATTERN",
        type=filled,
        action=Listed,
        default=[],
        help="leave out what matches, with all below it: '**/*.pyc' at any depth. Careful: inside a recorded directory "
        "it becomes invisible through the mount, although the volume still has it",
    )
    what.add_argument(
        "--strict", action="store_true", help="fail, and write nothing, when one of the patterns matches nothing"
    )
    what.add_argument(
        "--drop-xattr",
        metavar="PATTERN",
        type=filled,
        action=Listed,
        default=[],
        help="do not record the extended attributes whose names match, such as 'security.selinux' or 'lustre.*'; "
        "with '*' none is asked for, which on NFS saves a request for every name (ACLs are extended attributes too)",
    )
    what.add_argument(
        "--digest",
        metavar="LIST",
        type=_digests,
        default=None,
        help="what to compute of file contents: verity,blake3 (the default), verity, blake3 or none. "
        "Each file is read once; none reads no content at all",
    )
    what.add_argument(
        "--inline",
        metavar="[PATTERN=]SIZE",
        type=_inline_text,
        action=Listed,
        default=[],
        help="take the content of files of at most SIZE bytes (64K, 1M; up to 4M) into the manifest: layers hold them "
        "whole, so that opening and reading them asks the volume nothing. With a PATTERN, of what it matches and of "
        "all below; the last rule that matches counts, 0 takes nothing. May be given many times; default: none. With "
        "--base, what that has in it stays, as long as some rule takes something",
    )
    what.add_argument(
        "--inline-private",
        action="store_true",
        help="with --inline: also of files that not everybody may read. Without, they are left out, for whoever can "
        "read a manifest, or an image made of it, can read all contents in it, whatever modes say",
    )
    add_preview_arguments(parser)
    again = parser.add_argument_group("scanning again")
    again.add_argument(
        "--base",
        metavar="MANIFEST",
        type=filled,
        help="an earlier manifest of ROOT: what has not changed since, by inode number, change time, mtime and size, "
        "is not read again. Patterns, digests and rules for contents that are not given are those of the base",
    )
    again.add_argument(
        "--only",
        metavar="PATTERN",
        type=filled,
        action="append",
        default=[],
        help="with --base: look at what matches and nothing else; the rest is taken from the base unseen. For whoever "
        "knows what was published or deleted",
    )
    again.add_argument(
        "--no-trust", action="store_true", help="with --base: read everything that is looked at, changed or not"
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "-j",
        "--jobs",
        metavar="N",
        type=_jobs,
        default=available_processors(),
        help="worker processes (default: %(default)s, one per processor)",
    )
    how.add_argument(
        "--on-error",
        choices=[str(choice) for choice in OnError],
        default=str(OnError.LEAVE_OUT),
        help="what to do about something that cannot be recorded: leave out its subtree and finish the rest "
        "(the default), or stop there and write nothing",
    )
    how.add_argument(
        "--hard-links",
        choices=[str(choice) for choice in HardLinks],
        default=None,
        help="which names of one inode stay one in the layer: those within one recorded subtree (the default), so that "
        "a release can be deleted without another's files; or all, also across subtrees",
    )
    add_config(parser, _CONFIG)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Runs the verb."""
    to_stdout = args.output == b"-"
    check_stdout(args)
    if (args.only or args.no_trust) and args.base is None:
        raise UsageError(f"{'--only' if args.only else '--no-trust'} goes with --base")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(ManifestReader.open(args.base)) if args.base is not None else None
        options = _options(args, base)
        total = base.root.directory.entries if base is not None and not args.only else None
        if args.dry_run or args.estimate:
            if args.only:
                raise UsageError(f"--{'dry-run' if args.dry_run else 'estimate'} does not go with --only")
            found = run_preview(args, options)
            if args.dry_run:
                return _end_of_preview(args, found)
            total = found.content.entries if found.content is not None else total
        report = _run(args, options, to_stdout=to_stdout, total=total)
    _show(args, report, time.monotonic() - started, to_stdout)
    return ExitCode.INCOMPLETE if report.left_out else ExitCode.DONE


def _end_of_preview(args: argparse.Namespace, found: Preview) -> ExitCode:
    _show_unmatched(args, {"select": found.unmatched, "hide": found.unmatched_hide})
    _check_strict(args, found.unmatched)
    show_preview(args, found)
    return ExitCode.INCOMPLETE if found.left_out else ExitCode.DONE


def _options(args: argparse.Namespace, base: ManifestReader | None) -> ScanOptions:
    """What is asked for; with a base, what is not given is as there."""
    select = (*args.select, *(pattern for file in args.select_from for pattern in read_pattern_file(file)))
    if (args.select or args.select_from) and not select:
        raise UsageError("the pattern files hold no pattern", hint="leave out --select-from to record everything")
    given: dict[str, Any] = {"select": select, "hide": tuple(args.hide), "drop_xattrs": tuple(args.drop_xattr)}
    digests = args.digest
    hard_links = HardLinks(args.hard_links) if args.hard_links else HardLinks.SUBTREE
    if base is not None and args.hard_links is None:
        hard_links = base.info.hard_links
    inline = tuple(map(inline_rule, args.inline))
    inline_all = args.inline_private
    if not inline and base is not None:
        inline, inline_all = base.info.inline, inline_all or base.info.inline_all
    if args.inline_private and not inline:
        raise UsageError("--inline-private goes with --inline")
    if base is not None:
        given = {name: value or getattr(base.info, name) for name, value in given.items()}
        digests = tuple(base.root.digests) if digests is None else digests
    return ScanOptions(
        root=args.root,
        **given,
        digests=tuple(DigestName) if digests is None else digests,
        hard_links=hard_links,
        inline=inline,
        inline_all=inline_all,
        workers=args.jobs,
        on_error=OnError(args.on_error),
        base=base,
        only=tuple(args.only),
        trust=not args.no_trust,
    )


def _run(args: argparse.Namespace, options: ScanOptions, *, to_stdout: bool, total: int | None) -> ScanReport:
    """`total`: about how many entries there are, if that is known."""
    if to_stdout:
        with spooled_output(sys.stdout.buffer) as stream:
            return _scan(args, options, stream, total)
    _check_outside(args.output, args.root)
    if "output" in args.from_config:  # the place that `mkmeta init` chose, on a host that has nothing yet
        make_directory(os.path.dirname(args.output))
    with atomic_output(args.output) as stream:
        return _scan(args, options, stream, total)


def _scan(args: argparse.Namespace, options: ScanOptions, stream: BinaryIO, total: int | None) -> ScanReport:
    with ProgressLine(args, "scan", total=total) as line:
        report = scan(options, stream, _Observer(line, args.verbose) if line.visible or args.verbose else None)
    _check_strict(args, report.unmatched)
    return report


def _check_strict(args: argparse.Namespace, unmatched: tuple[bytes, ...]) -> None:
    if args.strict and unmatched:
        raise NothingSelectedError(
            f"{_unmatched_text(unmatched[0])}; with --strict, every pattern has to match something",
            path=args.root,
            hint="nothing was written; correct the pattern, or leave out --strict",
        )


class _Observer:
    """Shows a scan to a person."""

    def __init__(self, line: ProgressLine, verbose: bool) -> None:
        self._line = line
        self._verbose = verbose

    def progress(self, counts: Counts) -> None:
        details = f"{counts.dirs} directories, {counts.files} files, {human_bytes(counts.bytes)}"
        self._line.update(_entries(counts), details)

    def subtree(self, path: bytes, counts: Counts) -> None:
        if self._verbose:
            note(f"recorded: {printable(path)}: {_entries(counts)} entries")


def _entries(counts: Counts) -> int:
    return counts.dirs + counts.files + counts.symlinks + counts.others


def _show(args: argparse.Namespace, report: ScanReport, seconds: float, to_stdout: bool) -> None:
    counts = report.counts
    manifest_id = report.manifest_id.hex()
    unmatched = {"only" if args.only else "select": report.unmatched, "hide": report.unmatched_hide}
    if args.json:
        for path, why in report.left_out:
            emit("left_out", **path_fields(path), reason=why)
        _show_unmatched(args, unmatched)
        emit(
            "summary",
            id=manifest_id,
            entries=report.entries,
            seconds=round(seconds, 3),
            left_out=len(report.left_out),
            base_trusted=not report.base_is_from_the_future,
            inline=report.inside.files if report.inside is not None else 0,
            inline_bytes=report.inside.size if report.inside is not None else 0,
            **counts._asdict(),
        )
        return
    for path, why in report.left_out:
        note(f"left out: {printable(path)}: {why}")
    _show_unmatched(args, unmatched)
    if report.base_is_from_the_future:
        note("not trusted: the base, which a clock that was ahead made later than now; everything was read again")
    if not args.quiet:
        for line in _summary(report, seconds):
            note(line)
    print(manifest_id, file=sys.stderr if to_stdout else sys.stdout)


def _show_unmatched(args: argparse.Namespace, unmatched: dict[str, tuple[bytes, ...]]) -> None:
    for option, patterns in unmatched.items():
        for pattern in patterns:
            if args.json:
                emit("unmatched", option=option, **path_fields(pattern, "pattern"), hint=remark(pattern))
            else:
                note(_unmatched_text(pattern, option))


def _unmatched_text(pattern: bytes, option: str = "select") -> str:
    why = remark(pattern)
    shown = f"{'--hide ' if option == 'hide' else ''}{legible(pattern)}"
    return f"matched nothing: {shown}" + (f" ({why})" if why else "")


def _summary(report: ScanReport, seconds: float) -> list[str]:
    """The page a person reads after a scan. What is zero and unusual is not mentioned."""
    counts = report.counts
    lines = [
        f"recorded   {report.entries} entries in {seconds:.1f} s ({report.entries / max(seconds, 1e-3):.0f}/s)",
        f"           {counts.dirs} directories, {counts.files} files ({human_bytes(counts.bytes)}), "
        f"{counts.symlinks} symlinks, {counts.others} devices, fifos and sockets",
        f"skeleton   {counts.skeleton} directories above them, the root included, that show the volume as well",
    ]
    if report.inside is not None:
        lines.append(f"contents   {inside_words(report.inside, counts._asdict())}")
    met = counts.nfs4_acl or counts.dropped_xattrs
    uncounted = ": ACLs and attributes of such files are not counted where their directory has changed" if met else ""
    remarks = (
        (counts.hidden, "names hidden by --hide: invisible through the mount where their directory is recorded"),
        (counts.silly_renamed, ".nfsXXXX files not recorded: they were deleted already"),
        (counts.snapshots, ".snapshot directories not recorded: reach them on the volume itself"),
        (counts.nfs4_acl, "entries with an NFSv4 ACL, which a layer cannot carry: their mode bits stand for it"),
        (counts.dropped_xattrs, "extended attributes left out by --drop-xattr"),
        (counts.unchanged, "entries as in the base, and so not read" + uncounted),
        (len(report.left_out), "subtrees left out, named above: they show through from the volume"),
    )
    return lines + [f"note       {count} {text}" for count, text in remarks if count]


def _digests(text: str) -> tuple[DigestName, ...]:
    names = set(text.split(","))
    if names == {"none"}:
        return ()
    if not names <= set(DigestName):
        raise argparse.ArgumentTypeError(f"{text!r}: use verity,blake3, verity, blake3 or none")
    return tuple(name for name in DigestName if name in names)


def _inline_text(text: str) -> str:
    pattern, _, size = text.rpartition("=")
    if not _SIZE.fullmatch(size) or (text != size and not pattern):
        raise argparse.ArgumentTypeError(f"{text!r} is neither SIZE nor PATTERN=SIZE, where SIZE is as 16K or 1M")
    return text


def _jobs(text: str) -> int:
    most = max(WORKERS_MAX, _JOBS_PER_PROCESSOR * available_processors())
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(most)) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of workers, from 1 to {most} on this machine")
    return int(text)


def _check_outside(output: bytes, root: bytes) -> None:
    """A manifest inside the tree it records would be a file that changes while it is read."""
    parent, top = os.path.realpath(os.path.dirname(output) or b"."), os.path.realpath(root)
    if os.path.commonpath([parent, top]) == top:
        raise UsageError("the manifest would lie inside ROOT", path=output, hint="write it somewhere else")
