"""Hypothesis strategies for everything a manifest can hold, each over the whole range the format allows."""

from __future__ import annotations

import stat
from typing import Any

from hypothesis import strategies as st

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts
from mkmeta.codec.info import Info
from mkmeta.codec.objects import PageRow
from mkmeta.digest import ContentDigest, ObjectId, VerityDigest
from mkmeta.model import (
    ACL_XATTRS,
    ENTRIES_MAX,
    ID_MAX,
    MAJOR_LIMIT,
    MINOR_LIMIT,
    NAME_MAX,
    NS,
    OVERLAY_XATTRS,
    SIZE_MAX,
    STORED_COUNTS,
    SYMLINK_TARGET_MAX,
    XATTR_NAME_MAX,
    XATTR_NAMESPACES,
    XATTR_VALUE_MAX,
    Counts,
    Device,
    DigestName,
    Directory,
    DirectoryKind,
    Entry,
    HardLinks,
    Node,
    RegularFile,
    Root,
    Special,
    Symlink,
    Xattrs,
)
from tests.vectors.trees import Leaf, Tree

_WITHOUT_NUL = list(range(1, 256))
_NAME_BYTES = [byte for byte in _WITHOUT_NUL if byte != ord("/")]


def _bytes_of(alphabet: list[int], low: int, high: int) -> st.SearchStrategy[bytes]:
    """Byte strings of an alphabet: mostly short, now and then of the greatest length."""
    short = st.lists(st.sampled_from(alphabet), min_size=low, max_size=min(high, 12)).map(bytes)
    long = st.builds(lambda byte, size: bytes([byte]) * size, st.sampled_from(alphabet), st.integers(high - 2, high))
    return st.one_of(short, short, short, long)


names = _bytes_of(_NAME_BYTES, 1, NAME_MAX).filter(lambda name: name not in (b".", b".."))
targets = _bytes_of(_WITHOUT_NUL, 1, SYMLINK_TARGET_MAX)
digests = st.binary(min_size=32, max_size=32)
ids = st.integers(0, ID_MAX)
times = st.one_of(st.integers(-(2**63) * NS, (2**63 - 1) * NS + NS - 1), st.integers(-3 * NS, 3 * NS))
permissions = st.integers(0, 0o7777)
paths = st.lists(names.filter(lambda name: len(name) < 20), min_size=1, max_size=6).map(b"/".join)


def _xattr_names() -> st.SearchStrategy[bytes]:
    rest = _bytes_of(_WITHOUT_NUL, 1, XATTR_NAME_MAX - len(b"security."))
    made = st.builds(bytes.__add__, st.sampled_from(XATTR_NAMESPACES), rest)
    return st.one_of(made, st.sampled_from(sorted(ACL_XATTRS))).filter(lambda name: not name.startswith(OVERLAY_XATTRS))


def _xattrs() -> st.SearchStrategy[Xattrs]:
    values = st.one_of(st.binary(max_size=40), st.just(XATTR_VALUE_MAX).map(bytes))
    pairs = st.dictionaries(_xattr_names(), values, max_size=4)
    return st.one_of(st.just(()), pairs.map(lambda found: tuple(sorted(found.items()))))


xattrs = _xattrs()


def _common(file_type: int) -> dict[str, Any]:
    mode = permissions.map(lambda bits: file_type | bits)
    return {"mode": mode, "uid": ids, "gid": ids, "mtime_ns": times, "xattrs": xattrs}


def regular_files(recorded: tuple[DigestName, ...] | None = None) -> st.SearchStrategy[RegularFile]:
    """Files with the digests a manifest records; None: with any."""

    def digest(name: DigestName) -> st.SearchStrategy[bytes | None]:
        if recorded is None:
            return st.none() | digests
        return digests if name in recorded else st.none()

    return st.builds(
        RegularFile,
        **_common(stat.S_IFREG),
        size=st.integers(0, SIZE_MAX),
        blake3=digest(DigestName.BLAKE3).map(lambda raw: ContentDigest(raw) if raw else None),
        verity=digest(DigestName.VERITY).map(lambda raw: VerityDigest(raw) if raw else None),
    )


symlinks = st.builds(Symlink, **_common(stat.S_IFLNK), target=targets)
_numbers = {"major": st.integers(0, MAJOR_LIMIT - 1), "minor": st.integers(0, MINOR_LIMIT - 1)}
devices = st.one_of(
    st.builds(Device, **_common(stat.S_IFBLK), **_numbers),
    st.builds(Device, **_common(stat.S_IFCHR), **_numbers).filter(lambda node: bool(node.major or node.minor)),
)
specials = st.builds(Special, **_common(stat.S_IFIFO)) | st.builds(Special, **_common(stat.S_IFSOCK))


def directories(kinds: tuple[DirectoryKind, ...] = tuple(DirectoryKind)) -> st.SearchStrategy[Directory]:
    """Directories of IDs that name nothing."""
    return st.builds(
        Directory,
        **_common(stat.S_IFDIR),
        children=digests.map(ObjectId),
        entries=st.integers(0, ENTRIES_MAX),
        kind=st.sampled_from(kinds),
    ).filter(lambda node: node.kind is DirectoryKind.OPAQUE or node.entries > 0)


def leaves(recorded: tuple[DigestName, ...] | None = None) -> st.SearchStrategy[Leaf]:
    """Nodes that are not directories."""
    return st.one_of(regular_files(recorded), symlinks, devices, specials)


def entry_lists(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[list[Entry]]:
    """The entries of a directory, ascending."""
    return st.dictionaries(names, nodes, max_size=6).map(
        lambda found: [Entry(name, node) for name, node in sorted(found.items())]
    )


digest_sets = st.sampled_from([(), (DigestName.BLAKE3,), (DigestName.VERITY,), tuple(DigestName)])
roots = st.builds(
    Root,
    directory=directories((DirectoryKind.MERGE,)),
    links=st.none() | digests.map(ObjectId),
    digests=digest_sets,
)
infos = st.builds(
    Info,
    root=_bytes_of(_WITHOUT_NUL, 0, 4094).map(b"/".__add__),
    created=st.integers(-(2**63), 2**64 - 1),
    tool=st.text(max_size=20),
    select=st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    hide=st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    drop_xattrs=st.lists(st.binary(max_size=20), max_size=4).map(tuple),
    hard_links=st.sampled_from(HardLinks),
    left_out=st.lists(st.tuples(st.binary(max_size=20), st.text(max_size=20)), max_size=4).map(tuple),
    counts=st.dictionaries(st.text(max_size=10), st.integers(0, 2**64 - 1), max_size=4),
)
locations = st.builds(Location, *[st.integers(0, 2**32 - 1)] * 3)
counts = st.tuples(*[st.integers(0, 2**64 - 1)] * STORED_COUNTS).map(lambda numbers: Counts(*numbers))
page_rows = st.dictionaries(
    names, st.tuples(digests.map(ObjectId), st.integers(1, ENTRIES_MAX)), min_size=2, max_size=6
).map(lambda found: [PageRow(name, *rest) for name, rest in sorted(found.items())])


@st.composite
def page_facts(draw: st.DrawFn, entries: int | None = None) -> PageFacts:
    """Facts of a page of so many entries, or of any number; those that are no directories may have several names."""
    kinds = draw(st.lists(st.sampled_from("dlf"), min_size=entries or 0, max_size=20 if entries is None else entries))
    nlink = st.integers(2, 2**32 - 1)
    inode, time = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
    return PageFacts(
        [draw(inode) for _ in kinds],
        [draw(time) for _ in kinds],
        [draw(st.none() | locations) for kind in kinds if kind == "d"],
        {number: draw(nlink) for number, kind in enumerate(kinds) if kind == "l"},
    )


def trees(recorded: tuple[DigestName, ...]) -> st.SearchStrategy[Tree]:
    """Whole trees: a skeleton, subtrees below it, opaque all the way down."""

    def directory(kind: DirectoryKind, nodes: st.SearchStrategy[Any], least: int) -> st.SearchStrategy[Tree]:
        short_names = names.filter(lambda name: len(name) < 20)
        return st.builds(
            Tree,
            **_common(stat.S_IFDIR),
            kind=st.just(kind),
            children=st.dictionaries(short_names, nodes, min_size=least, max_size=4),
        )

    opaque = st.recursive(leaves(recorded), lambda nodes: directory(DirectoryKind.OPAQUE, nodes, 0), max_leaves=8)
    merge = directory(DirectoryKind.MERGE, opaque, 1)
    return directory(DirectoryKind.MERGE, opaque | merge, 0)
