"""How much of a tree is whole in layers, because its manifest has the contents: numbers, and words for them."""

from __future__ import annotations

from collections.abc import Mapping

from mkmeta.errors import human_bytes
from mkmeta.manifest.content_walk import Totals


def inside_words(totals: Totals, counts: Mapping[str, int]) -> str:
    """What need not be asked for, and what share that is of all `files` and `bytes` among the counts."""
    of_files, of_bytes = (
        f"{100 * part // whole} %" if whole else "none"
        for part, whole in ((totals.files, counts.get("files", 0)), (totals.size, counts.get("bytes", 0)))
    )
    return (
        f"{files_words(totals, 'whole in layers')}: {of_files} of all files, as far as these are "
        f"opened, {of_bytes} of their bytes"
    )


def files_words(totals: Totals, what: str) -> str:
    """`3 files are <what> (1.5 MiB)`, with the right verb."""
    files = "1 file is" if totals.files == 1 else f"{totals.files:,} files are"
    return f"{files} {what} ({human_bytes(totals.size)})"
