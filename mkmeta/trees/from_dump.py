"""A composefs-dump(5) text as a source of trees: what `mkmeta import` makes a manifest of.

A text says all of a tree: every directory but the root, which always merges, is opaque. It says nothing of who can
enter where on a volume: its contents are taken as they are. What a manifest cannot carry is refused, with the line. Not
carried are link counts, sizes of directories, and payloads, for which the paths of files stand.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import BinaryIO, Final

from blake3 import blake3

from mkmeta import __version__
from mkmeta.codec.dump_lines import CONTENT_MAX, DumpEntry, DumpLink
from mkmeta.codec.info import Info
from mkmeta.codec.objects import encode_entry, xattr_problem
from mkmeta.digest import ContentDigest, ObjectId, VerityDigest, verity_digest
from mkmeta.errors import FormatError, printable
from mkmeta.manifest.content_writer import Claims, ContentWriter, FramePacker
from mkmeta.manifest.cursor import counts_of
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import (
    ID_MAX,
    MAJOR_LIMIT,
    NS,
    PATH_LIMIT,
    SIZE_MAX,
    XATTR_VALUE_MAX,
    Device,
    DigestName,
    DirectoryKind,
    HardLinks,
    RegularFile,
    Special,
    Symlink,
    tree_order,
)
from mkmeta.trees.dump_text import DumpText, Progress, bad_line
from mkmeta.trees.links import FINGERPRINT_BYTES, Look
from mkmeta.trees.merge import stored_counts
from mkmeta.trees.writer import ChildName, LinkedName, Opening, Own, Part, TreeWriter, make_own

_TYPE_MASK: Final = 0o170000
_DIRECTORY, _REGULAR, _SYMLINK = 0o040000, 0o100000, 0o120000
_CHARACTER, _BLOCK = 0o020000, 0o060000
_UNKNOWN_NLINK: Final = 2**32 - 1  # of an inode of which a text says that it has several names

Leaf = RegularFile | Symlink | Device | Special


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What came of it."""

    manifest_id: ObjectId
    entries: int
    payloads: int  # that are no file's own path, and are not in the manifest
    counts: dict[str, int]
    digests: tuple[DigestName, ...]


def import_dump(
    text: BinaryIO, stream: BinaryIO, *, root: bytes = b"/", progress: Progress = lambda _lines: None
) -> ImportReport:
    """Writes the manifest of a text to `stream`. `root`: the directory that it is said to have been scanned from.

    Raises FormatError for a text that mkcomposefs refuses, or that says what a manifest cannot, MkmetaError.
    """
    created = time.time_ns()
    with DumpText(tree_order) as lines:
        lines.read(text, progress)
        plan = _survey(lines)
        contents = ContentWriter(everything=True) if plan.contents else None
        with (
            ManifestWriter(stream, contents) as manifest,
            TreeWriter(manifest, HardLinks.ALL) as writer,
        ):
            _Assembler(writer, lines, plan).run()
            info = Info(
                root=root,
                created=created,
                tool=f"mkmeta {__version__}",
                inline=((b"", CONTENT_MAX),) if plan.contents else (),
                inline_all=plan.contents,
                hard_links=HardLinks.ALL,
                counts=stored_counts(writer.counts),
            )
            manifest_id = writer.finish(info, plan.digests)
    return ImportReport(
        manifest_id=manifest_id,
        entries=writer.entries,
        payloads=plan.payloads,
        counts=info.counts,
        digests=plan.digests,
    )


@dataclass(slots=True)
class _Plan:
    """What is known before the tree is put together."""

    digests: tuple[DigestName, ...]  # that every file has
    contents: bool  # whether there are some
    payloads: int
    targets: dict[bytes, DumpEntry]  # of hard links


def _survey(lines: DumpText) -> _Plan:
    """Looks at all lines. Raises FormatError."""
    modes = lines.targets()
    targets: dict[bytes, DumpEntry] = {}
    measured = whole = True
    contents = payloads = 0
    without = 0  # line of a file that has neither digest nor content
    for _, number, entry in lines.records():
        if isinstance(entry, DumpLink):
            continue
        if entry.path in modes:
            targets[entry.path] = entry
        if entry.mode & _TYPE_MASK == _REGULAR and entry.size:
            if entry.content is not None:
                contents += 1
                continue
            whole = False
            payloads += entry.payload != entry.path
            if entry.digest is None:
                measured = False
                without = without or number
    if contents and not measured:
        raise FormatError(
            f"line {without}: a file without a digest, and so the contents of others have no names",
            hint="give every file a digest or its content (mkcomposefs --compute-digest), or none its content",
        )
    digests = (DigestName.BLAKE3, DigestName.VERITY) if whole else (DigestName.VERITY,) if measured else ()
    return _Plan(digests, bool(contents), payloads, targets)


class _Assembler:
    """Gives the lines, in tree order, to the tree writer."""

    def __init__(self, writer: TreeWriter, lines: DumpText, plan: _Plan) -> None:
        self._writer = writer
        self._lines = lines
        self._plan = plan
        self._packer = FramePacker()
        self._claims = Claims()

    def run(self) -> None:
        """Puts the tree together. Raises FormatError."""
        writer = self._writer
        records = self._lines.records()
        _, line, top = next(records)
        assert isinstance(top, DumpEntry)
        stack = [(writer.open(writer.root, DirectoryKind.MERGE), _own(top, b"", line, DirectoryKind.MERGE), line)]
        for _, line, entry in records:
            parent, _, name = entry.path.rpartition(b"/")
            while stack[-1][0].path != parent and len(stack) > 1:
                opening, own, _ = stack.pop()
                writer.close(opening, own)
            above, _, above_line = stack[-1]
            if above.path != parent or above_line > line:
                raise bad_line(line, f"'{printable(entry.path)}' is in no directory of the lines before")
            if len(entry.path) > PATH_LIMIT:
                raise bad_line(line, f"a path of {len(entry.path)} bytes, a manifest takes {PATH_LIMIT}")
            if isinstance(entry, DumpEntry) and entry.mode & _TYPE_MASK == _DIRECTORY:
                child = ChildName(name, DirectoryKind.OPAQUE, 0)
                (place,) = writer.extend(above, Part((b"", b""), (child,), [0], [0], {}))
                own = _own(entry, name, line, DirectoryKind.OPAQUE)
                stack.append((writer.open(place, DirectoryKind.OPAQUE), own, line))
            else:
                self._add(above, name, entry, line)
        while stack:
            opening, own, _ = stack.pop()
            writer.close(opening, own)
        frame = self._packer.take()
        if frame is not None:
            writer.manifest.add_contents(frame)

    def _add(self, above: Opening, name: bytes, entry: DumpEntry | DumpLink, line: int) -> None:
        """Anything but a directory."""
        path = entry.path
        target = self._lines.final(path) if isinstance(entry, DumpLink) else path
        if isinstance(entry, DumpLink):
            entry = self._plan.targets[target]
        node = self._node(entry, line)
        data = encode_entry(name, node)
        if target not in self._plan.targets:
            self._writer.extend(above, Part([data], (), [0], [0], {}), counts_of(node, 1))
            return
        inode = int.from_bytes(blake3(target).digest(8), "big")
        look = Look(inode, 0, _UNKNOWN_NLINK, blake3(encode_entry(b"", node)).digest(FINGERPRINT_BYTES))
        part = Part([data], (), [inode], [0], {0: _UNKNOWN_NLINK})
        self._writer.extend(above, part, counts_of(node, _UNKNOWN_NLINK), [LinkedName(name, look)])

    def _node(self, entry: DumpEntry, line: int) -> Leaf:
        mode, mtime_ns, xattrs = _common(entry, line)
        uid, gid = entry.uid, entry.gid
        kind = mode & _TYPE_MASK
        if kind == _REGULAR:
            blake, verity = self._digests(entry)
            if entry.size > SIZE_MAX:
                raise bad_line(line, f"a size of {entry.size} bytes")
            return RegularFile(
                mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, size=entry.size, blake3=blake,
                verity=verity,
            )  # fmt: skip
        if kind == _SYMLINK:
            assert entry.payload is not None
            return Symlink(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, target=entry.payload)
        if kind in (_CHARACTER, _BLOCK):
            # new_decode_dev() of linux/kdev_t.h
            major, minor = entry.device >> 8 & 0xFFF, entry.device & 0xFF | entry.device >> 12 & 0xFFF00
            assert major < MAJOR_LIMIT
            if kind == _CHARACTER and not entry.device:
                raise bad_line(line, "a whiteout (character device 0,0), which no manifest carries")
            return Device(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs, major=major, minor=minor)
        return Special(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs)

    def _digests(self, entry: DumpEntry) -> tuple[ContentDigest | None, VerityDigest | None]:
        """Of a file, whose content is kept if it has one."""
        if not self._plan.digests:
            return None, None
        content = entry.content if entry.size else b""
        if content is None:
            assert entry.digest is not None
            return None, VerityDigest(entry.digest)
        verity = verity_digest(content)
        blake = ContentDigest(blake3(content).digest()) if DigestName.BLAKE3 in self._plan.digests else None
        if content and self._claims.claim(blake or verity):
            frame = self._packer.add(blake or verity, content)
            if frame is not None:
                self._writer.manifest.add_contents(frame)
        return blake, verity


def _own(entry: DumpEntry, name: bytes, line: int, kind: DirectoryKind) -> Own:
    """A directory's own entry."""
    mode, mtime_ns, xattrs = _common(entry, line)
    fields: list[object] = [name, mode, entry.uid, entry.gid, *divmod(mtime_ns, NS)]
    return make_own(fields, [item for pair in xattrs for item in pair], kind)


def _common(entry: DumpEntry, line: int) -> tuple[int, int, tuple[tuple[bytes, bytes], ...]]:
    """Mode, mtime and xattrs. Raises FormatError for what no manifest can say."""
    if max(entry.uid, entry.gid) > ID_MAX:
        raise bad_line(line, f"the invalid ID {ID_MAX + 1}")
    if entry.nanoseconds >= NS:
        raise bad_line(line, f"{entry.nanoseconds} nanoseconds")
    for name, value in entry.xattrs.items():
        problem = xattr_problem(name)
        if problem:
            raise bad_line(line, f"xattr {printable(name)} cannot be carried: {problem}")
        if len(value) > XATTR_VALUE_MAX:
            raise bad_line(line, f"xattr {printable(name)} has {len(value)} bytes")
    return entry.mode, entry.seconds * NS + entry.nanoseconds, tuple(sorted(entry.xattrs.items()))
