"""Whose content a scan takes into the manifest (formats/manifest.md sections 2.6 and 7), and what becomes of it.

A content is taken when its file was read for its digests, never by reading once more. Equal contents are taken once, as
far as a table that all workers share remembers; the writer finds one that was taken twice, and what is of no file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from mkmeta.codec.container import CONTENT_SIZE_MAX
from mkmeta.errors import UsageError
from mkmeta.manifest.closed import are_known
from mkmeta.manifest.content_walk import is_public
from mkmeta.manifest.content_writer import Claims, ContentFrame, FramePacker
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName
from mkmeta.pattern import Patterns, State

_NO_RULE: Final = -1
_CLOSED_MAX: Final = 1000  # paths that wait until they are handed on

InlineRule = tuple[bytes, int]  # pattern, empty for all files; bytes that a file may have


class Inline(NamedTuple):
    """What holds at a directory to which everybody may come: the last rule that matches it, what may follow."""

    rule: int
    state: State
    known: bool = False  # the base knows which of its files here ACLs close; what it has not closed is open


class Inlining:
    """The rules of a scan. Workers inherit it."""

    def __init__(
        self, rules: Sequence[InlineRule], *, everything: bool, base: ManifestReader | None, has_nfs4_acls: bool = False
    ) -> None:
        """`everything`: also files that not everybody may read. `base`: its contents need not be taken again.
        `has_nfs4_acls`: of the volume.

        Raises UsageError for a bad pattern.
        """
        self.asks = has_nfs4_acls and not everything  # for the ACLs of what everybody may read by mode
        self.closed = frozenset(base.info.closed or ()) if base is not None and self.asks else frozenset[bytes]()
        self._is_base_known = base is not None and are_known(base.info)
        self._sizes = [size for _, size in rules] + [0]  # of no rule: the last
        self._everything = everything
        self._base = base.contents if base is not None else None
        self._patterns = Patterns([pattern or b"**" for pattern, _ in rules])
        self._claims = Claims()
        if self._base is not None:
            self._base.prepare()

    @property
    def has_base(self) -> bool:
        """Whether there are contents of a base."""
        return self._base is not None and len(self._base) > 0

    @property
    def everything(self) -> bool:
        """Whether it does not matter who may read a file."""
        return self._everything

    def start(self) -> Inline:
        """At the root."""
        return Inline(_NO_RULE, self._patterns.start(), self._is_base_known)

    def within(self, here: Inline, mode: int, acl: bytes | None) -> Inline | None:
        """What holds in a directory, given its own mode and ACL; None: nothing in it is taken."""
        xattrs = ((b"system.posix_acl_access", acl),) if acl is not None else ()
        if not self._everything and not is_public(mode, xattrs):
            return None
        return here

    def below(self, here: Inline | None, name: bytes) -> Inline | None:
        """What holds at a name in a directory; None: nothing can be taken there, from the base neither."""
        if here is None:
            return None
        rule, state = here.rule, here.state
        if state:
            state, matched = self._patterns.advance(state, name)
            if matched:
                rule = max(rule, matched[-1])
            state = tuple(position for position in state if position[0] > rule)  # a later rule overrides
        if not (state or self._sizes[rule] or self.has_base or self.asks):
            return None
        return Inline(rule, state, here.known)

    def limit(self, here: Inline | None, name: bytes) -> int:
        """How many bytes a file of this name may have to be taken; 0: none."""
        if here is None:
            return 0
        if not here.state:
            return self._sizes[here.rule]
        _, matched = self._patterns.advance(here.state, name)
        matched = self._patterns.fitting(matched, is_directory=False)
        return self._sizes[max(here.rule, matched[-1])] if matched else self._sizes[here.rule]

    def wants(self, mode: int, xattrs: Sequence[bytes]) -> bool:
        """Whether a file may be taken, given its mode and its xattrs, names and values in turn."""
        return self._everything or is_public(mode, zip(xattrs[::2], xattrs[1::2], strict=True))

    def has(self, digest: bytes, size: int) -> bool:
        """Whether the base has a content."""
        return self._base is not None and self._base.find_bytes(digest, size) >= 0

    def claim(self, digest: bytes) -> bool:
        """Whether a content is still to be taken; it is from now on taken, by who asked."""
        return self._claims.claim(digest)


class Collector:
    """What a worker's lanes have taken: put into frames, and handed on."""

    def __init__(self, inlining: Inlining, send: Callable[[ContentFrame | None, Collection[bytes]], None]) -> None:
        """`send` is called by whichever lane fills a frame; with it go paths of which none of
        the base is to be taken.
        """
        self._inlining = inlining
        self._send = send
        self._lock = threading.Lock()
        self._packer = FramePacker()
        self._closed: list[bytes] = []  # paths

    def close(self, path: bytes) -> None:
        """Not everybody may read a file, or what is below a directory, though modes say so: nothing of the base is
        taken for it.
        """
        with self._lock:
            self._closed.append(path)
            if len(self._closed) < _CLOSED_MAX:
                return
            closed, self._closed = self._closed, []
        self._send(None, closed)

    def add(self, digest: bytes, data: bytes) -> None:
        """Takes a content, unless it is there already. The last one that came is as good as any."""
        if self._inlining.has(digest, len(data)) or not self._inlining.claim(digest):
            return
        with self._lock:
            frame = self._packer.add(digest, data)
        if frame is not None:
            self._send(frame, ())

    def flush(self) -> None:
        """Hands on what there is."""
        with self._lock:
            frame, closed = self._packer.take(), self._closed
        self._send(frame, closed)


def check_rules(rules: Sequence[InlineRule], digests: Sequence[DigestName]) -> None:
    """Raises UsageError for rules that cannot be followed."""
    if any(size for _, size in rules) and DigestName.BLAKE3 not in digests:
        raise UsageError(
            "--inline needs BLAKE3 digests: a content is found by that of its file",
            hint="use --digest blake3, or verity,blake3, which is the default",
        )
    for pattern, size in rules:
        if size > CONTENT_SIZE_MAX:
            raise UsageError(
                f"--inline takes files up to {CONTENT_SIZE_MAX >> 20}M, not of {size} bytes", path=pattern or None
            )
