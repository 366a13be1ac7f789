"""What a scan is asked for, and what it reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mkmeta.digest import ObjectId
from mkmeta.manifest.content_walk import Totals
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Counts, DigestName, HardLinks
from mkmeta.pattern import check_pattern
from mkmeta.scanner.inlining import InlineRule
from mkmeta.scanner.looking import open_content
from mkmeta.workers import available_processors


class OnError(StrEnum):
    """What to do about a subtree that cannot be recorded."""

    LEAVE_OUT = "leave-out"
    FAIL = "fail"


class Observer(Protocol):
    """Someone who wants to know how a scan goes on."""

    def progress(self, counts: Counts) -> None:
        """Called often: what was read so far."""

    def subtree(self, path: bytes, counts: Counts) -> None:
        """Called when a subtree, or a single entry that was selected, is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanOptions:
    """What to scan, and how."""

    root: bytes
    select: tuple[bytes, ...] = ()  # empty: everything
    hide: tuple[bytes, ...] = ()
    drop_xattrs: tuple[bytes, ...] = ()
    digests: tuple[DigestName, ...] = (DigestName.BLAKE3, DigestName.VERITY)
    hard_links: HardLinks = HardLinks.SUBTREE
    inline: tuple[InlineRule, ...] = ()  # whose content is taken
    inline_all: bool = False  # also of files that not everybody may read
    workers: int = field(default_factory=available_processors)
    on_error: OnError = OnError.LEAVE_OUT
    base: ManifestReader | None = None  # an earlier manifest: what is as it says is not read again
    only: tuple[bytes, ...] = ()  # with a base: what is looked at; the rest is taken from it
    only_nothing: bool = False  # none of them needs to match: directories on the way there are looked at all the same
    trust: bool = True  # with a base: False reads everything that is looked at
    open_content: Callable[[bytes], int] = open_content  # tests put in one that fails


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What a scan found."""

    manifest_id: ObjectId
    entries: int
    counts: Counts
    left_out: tuple[tuple[bytes, str], ...]
    unmatched: tuple[bytes, ...]  # patterns that matched nothing: of the selection, or of `only` if that was given
    unmatched_hide: tuple[bytes, ...] = ()  # those of `hide`, of a scan that looked at everything
    base_is_from_the_future: bool = False  # and so nothing of it was trusted
    inside: Totals | None = None  # files whose content is in the manifest; None: none was to be taken


def check_patterns(options: ScanOptions, root: bytes) -> None:
    """Raises UsageError for a pattern that says something else than was probably meant, unless the base has it too."""
    info = options.base.info if options.base is not None else None
    known: set[bytes] = set()
    if info is not None:
        known.update(info.select, info.hide, info.drop_xattrs, (pattern for pattern, _ in info.inline))
    for pattern in (*options.select, *options.hide, *options.only, *(pattern for pattern, _ in options.inline)):
        if pattern not in known:
            check_pattern(pattern, lambda path: os.path.lexists(os.path.join(root, path)), root=root)
    for pattern in options.drop_xattrs:
        if pattern not in known:
            check_pattern(pattern, lambda _name: False)
