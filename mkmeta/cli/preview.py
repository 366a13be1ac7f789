"""`mkmeta scan --dry-run` and `--estimate`: what would be recorded, and what that takes."""

from __future__ import annotations

import argparse
from typing import Any, Final

from mkmeta.cli.output import emit, note, path_fields
from mkmeta.errors import human_bytes, printable
from mkmeta.scanner.options import ScanOptions
from mkmeta.scanner.preview import Content, Preview, preview

_SECONDS: Final = 10.0  # for an estimate
# Bytes per entry (docs/figures.md). A layer on a filesystem with inodes of 512 bytes, and on one where the attributes
# of a file take a block of their own; an image without and with digests; a manifest likewise.
_LAYER: Final = (512, 512 + 4096)
_IMAGE: Final = (151, 210)
_MANIFEST: Final = (21, 85)


class DryRun(argparse.Action):
    """`--dry-run`: then there is nothing to write, and no output to name."""

    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Nothing else is needed."""
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            if action.dest == "output":
                action.required = False


def add_preview_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    group = parser.add_argument_group("see before you do")
    group.add_argument(
        "-n",
        "--dry-run",
        action=DryRun,
        help="print the subtrees that would be recorded, and write nothing; only the directories above them are read",
    )
    group.add_argument(
        "--estimate",
        action="store_true",
        help="look at what is selected for some ten seconds first, and say about how much it is and how long it will "
        "take; with --dry-run nothing more is done",
    )


def run_preview(args: argparse.Namespace, options: ScanOptions) -> Preview:
    """Looks, prints what is selected if nothing else is to be done, and the estimate."""

    def tell(path: bytes) -> None:
        if not args.dry_run:
            return
        if args.json:
            emit("selected", **path_fields(path))
        else:
            print(printable(path))

    found = preview(options, tell, seconds=_SECONDS if args.estimate else None)
    if found.content is not None:
        _show_content(args, options, found.content)
    return found


def show_preview(args: argparse.Namespace, found: Preview) -> None:
    """The end of a dry run."""
    if args.json:
        for path, why in found.left_out:
            emit("left_out", **path_fields(path), reason=why)
        counts = {"subtrees": found.subtrees, "others": found.others, "skeleton": found.skeleton}
        emit("summary", dry_run=True, **counts, left_out=len(found.left_out))
        return
    for path, why in found.left_out:
        note(f"would be left out: {printable(path)}: {why}")
    if not args.quiet:
        note(
            f"selected   {found.subtrees:,} subtrees and {found.others:,} other entries by themselves, "
            f"below {found.skeleton:,} directories that show the volume as well; nothing was written"
        )


def _show_content(args: argparse.Namespace, options: ScanOptions, content: Content) -> None:
    digests = bool(options.digests)
    entries = content.entries
    layer = [entries * size for size in _LAYER]
    image, manifest = (entries * sizes[digests] for sizes in (_IMAGE, _MANIFEST))
    # One process, of which there will be several, each with several questions on the way to a server
    seconds = content.seconds / max(content.looked, 1) * entries / options.workers
    if args.json:
        emit(
            "estimate",
            entries=entries,
            dirs=content.dirs,
            files=content.files,
            bytes=content.bytes,
            error=round(content.error, 4),
            layer_bytes=layer,
            image_bytes=image,
            manifest_bytes=manifest,
            looking_seconds=round(seconds, 1),
            read_bytes=content.bytes if digests else 0,
        )
    elif not args.quiet:
        about = f"about, give or take {max(content.error, 0.01):.0%}," if content.error else "counted,"
        note(
            f"estimate   {about} {entries:,} entries: {content.dirs:,} directories, {content.files:,} files "
            f"({human_bytes(content.bytes)})"
        )
        note(
            f"           a layer of {entries:,} inodes and {human_bytes(layer[0])}, on ext4 with inodes of 256 bytes "
            f"{human_bytes(layer[1])}; an image of {human_bytes(image)}; a manifest of {human_bytes(manifest)}"
        )
        reading = f", and the time it takes to read {human_bytes(content.bytes)}" if digests else ""
        note(f"           a scan of {seconds:.0f} s at most{reading}")
