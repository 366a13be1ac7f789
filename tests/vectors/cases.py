"""The trees of formats/vectors: each a function of nothing, with the sentence that says what it shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from mkmeta.codec.info import Info
from mkmeta.codec.objects import encode_entry
from mkmeta.digest import ContentDigest, verity_digest
from mkmeta.model import NS, Device, DigestName, DirectoryKind, HardLinks, RegularFile, Special, Symlink
from tests.vectors.trees import INFO, MTIME, Leaf, Tree, regular

BOTH = (DigestName.BLAKE3, DigestName.VERITY)
MERGE = DirectoryKind.MERGE


@dataclass(frozen=True, kw_only=True)
class Case:
    """A vector: what goes into its manifest, and why it is there."""

    why: str
    tree: Tree
    links: Mapping[bytes, bytes] = field(default_factory=dict)
    digests: tuple[DigestName, ...] = ()
    facts: bool = False
    info: Info = INFO
    contents: tuple[bytes, ...] = ()


def _content(content: bytes, digests: tuple[DigestName, ...] = BOTH, mode: int = 0o100644) -> RegularFile:
    return RegularFile(
        mode=mode,
        uid=0,
        gid=0,
        mtime_ns=MTIME,
        size=len(content),
        blake3=ContentDigest(blake3(content).digest()) if DigestName.BLAKE3 in digests else None,
        verity=verity_digest(content) if DigestName.VERITY in digests else None,
    )


def _root(**children: Tree | Leaf) -> Tree:
    return Tree(kind=MERGE, children={name.encode(): child for name, child in children.items()})


def _hello() -> Case:
    greeting = _content(b"Hello, world.\n")
    bin_ = Tree(children={b"empty": _content(b""), b"hello": greeting, b"hi": greeting})
    return Case(
        why="The smallest interesting manifest: one opaque directory with two files, one of them under two names.\n"
        "explained.txt goes through all of its bytes.",
        tree=_root(bin=bin_),
        links={b"bin/hi": b"bin/hello"},
        digests=BOTH,
    )


def _every_type() -> dict[bytes, Tree | Leaf]:
    acl = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")
    xattrs = (
        (b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
        (b"system.posix_acl_access", acl),
        (b"trusted.a=b", b""),
        (b"user.big", b"0123456789abcdef" * 4096),
        (b"user.overlay", b"allowed: only what begins with user.overlay. is not"),
        (b"user.\xff \n", b"\0\1\2 =\n\xff"),
    )
    other: dict[str, Any] = {"uid": 0, "gid": 0, "mtime_ns": MTIME}
    return {
        b"block": Device(mode=0o060660, major=4095, minor=1048575, **other),
        b"char": Device(mode=0o020666, major=0, minor=1, **other),
        b"char0": Device(mode=0o020600, major=1, minor=0, **other),
        b"fifo": Special(mode=0o010644, **other),
        b"socket": Special(mode=0o140755, **other),
        b"link": Symlink(mode=0o120777, target=b"../\xfe with space\n", **other),
        b"longest": Symlink(mode=0o120777, target=b"x" * 4095, **other),
        b"set-id": dataclasses.replace(_content(b"#!\n"), mode=0o106755, uid=2**32 - 2, gid=1000),
        b"sticky": Tree(mode=0o041777, uid=65534, gid=65534, xattrs=((b"system.posix_acl_default", acl),)),
        b"no-permissions": _content(b"secret", mode=0o100000),
        b"xattrs": dataclasses.replace(_content(b"x"), xattrs=xattrs),
        b"before-1970": dataclasses.replace(_content(b""), mtime_ns=-1),
        b"earliest": dataclasses.replace(_content(b""), mtime_ns=-(2**63) * NS),
        b"latest": dataclasses.replace(_content(b""), mtime_ns=(2**63 - 1) * NS + NS - 1),
        b"after-2446": dataclasses.replace(_content(b""), mtime_ns=20_000_000_000 * NS + 1),
        b"huge": dataclasses.replace(_content(b""), size=2**63 - 1),
        b"sparse": dataclasses.replace(_content(b""), size=5 << 40),
        b"-": _content(b"dash"),
        b" ": _content(b"space"),
        b"\x01\n\t\\\x7f": _content(b"control"),
        b"caf\xc3\xa9": _content(b"UTF-8"),
        b"\x80\xff": _content(b"not UTF-8"),
        b"=": _content(b"equals"),
        b"n" * 255: _content(b"longest name"),
    }


def _digests(digests: tuple[DigestName, ...]) -> Case:
    files: dict[bytes, Tree | Leaf] = {
        b"%d" % size: _content(bytes(size), digests) for size in (0, 1, 4096, 4097, 128 * 4096, 128 * 4096 + 1)
    }
    said = " and ".join(digests) or "no digest"
    return Case(
        why=f"Files of zeros, named by their size around the block and level borders of fs-verity, with {said}.",
        tree=_root(files=Tree(children=files)),
        digests=digests,
    )


def _skeleton() -> Case:
    lib = Tree(children={b"libx.so": Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=MTIME, target=b"libx.so.1")})
    empty = Tree()
    group = Tree(
        kind=MERGE,
        mode=0o042775,
        gid=500,
        children={b"v1": Tree(kind=MERGE, children={b"lib": lib}), b"v2": Tree(children={b"lib": lib, b"tmp": empty})},
    )
    return Case(
        why="Subtrees at several depths below a skeleton of merge directories; a file in the skeleton itself;\n"
        "tree order where '/' sorts before every byte of a name: a, a/b, a-, a.b.",
        tree=Tree(
            kind=MERGE,
            mode=0o041755,
            xattrs=((b"user.root", b"yes"),),
            children={
                b"grp": group,
                b"README": regular(7),
                b"a": Tree(children={b"b": regular(1)}),
                b"a-": regular(1),
                b"a.b": Tree(children={b"c": regular(1)}),
            },
        ),
        links={b"a-": b"a/b", b"a.b/c": b"a/b"},
        info=dataclasses.replace(
            INFO,
            select=(b"grp/*/lib", b"a*"),
            hide=(b".nfs*",),
            left_out=((b"grp/v3/\xff", "permission denied"),),
            drop_xattrs=(b"user.nfs*",),
            hard_links=HardLinks.ALL,
            counts={"dirs": 5, "skeleton": 2, "files": 4, "bytes": 10},
        ),
    )


def _equal_subtrees() -> Case:
    release = Tree(children={b"a": _content(b"a"), b"deep": Tree(children={b"b": _content(b"b")})})
    other = dataclasses.replace(release, mtime_ns=0)
    return Case(
        why="Equal directories are one object: v1, v2 and v3 differ in their own attributes only, so there are three\n"
        "directory objects for seven directories (with the root). A link into v2 leaves its ID alone.",
        tree=_root(v1=release, v2=release, v3=other, z=_content(b"a")),
        links={b"z": b"v2/a"},
        digests=BOTH,
    )


def _many_links() -> Case:
    names = [b"%02d" % number for number in range(40)]
    tree, path = Tree(children={name: regular() for name in names}), b""
    for letter in b"nmlkjihgfedcba":
        directory = bytes([letter]) * 255
        tree, path = Tree(children={directory: tree}), directory + b"/" + path
    return Case(
        why="40 link rows of long paths, more than 256 KiB: two pages, with a group that spans both.",
        tree=dataclasses.replace(tree, kind=MERGE),
        links={path + name: path + b"00" for name in names[1:]},
    )


def _many_frames() -> Case:
    def release(number: int) -> Tree:
        file = dataclasses.replace(regular(number), xattrs=((b"user.fill", b"%04d" % number * 16384),))
        return Tree(children={b"file": file})

    return Case(
        why="More than 256 KiB of objects: a writer spreads them over several frames. Facts have frames of their own.",
        tree=_root(**{f"r{number:02}": release(number) for number in range(12)}),
        facts=True,
    )


def _pages() -> Case:
    def fat(number: int) -> RegularFile:
        return dataclasses.replace(regular(number), xattrs=((b"user.fat", bytes(60_000)),))

    children: dict[bytes, Tree | Leaf] = {b"%02d-file" % number: fat(number) for number in range(10)}
    children |= {b"%02d-same" % number: fat(number) for number in (1, 8)}
    children |= {b"%02d-sub" % number: Tree(children={b"f": regular(number)}) for number in (0, 4, 5, 9)}
    longest = tuple((b"user.%d" % number, bytes(65_536)) for number in range(5))
    children[b"06-longest"] = dataclasses.replace(regular(6), xattrs=longest)
    return Case(
        why="A directory of several pages: full to the last entry that fits, one of a single entry longer than that,\n"
        "subdirectories in several. Facts with a record for each page, and with names of linked inodes.",
        tree=_root(d=Tree(children=children)),
        links={b"d/01-same": b"d/01-file", b"d/08-same": b"d/08-file"},
        facts=True,
    )


def _page_border() -> Case:
    """Entries of 65,536 and 65,537 bytes: four of the first fill a page, of the second three."""

    def children(size: int) -> dict[bytes, Tree | Leaf]:
        node = dataclasses.replace(regular(), xattrs=((b"user.fill", bytes(60_000)), (b"user.more", bytes(5_000))))
        missing = size - len(encode_entry(b"0", node))
        node = dataclasses.replace(node, xattrs=(node.xattrs[0], (b"user.more", bytes(5_000 + missing))))
        return {b"%d" % number: node for number in range(4)}

    return Case(
        why="Two directories of four entries: 262,144 bytes of them are one page, four bytes more are two.",
        tree=_root(one=Tree(children=children(65_536)), two=Tree(children=children(65_537))),
        facts=True,
    )


def _facts() -> Case:
    tree = _root(a=Tree(children={b"\x01": regular(2), b"\xff\xff": Tree()}), b=regular(2), c=Tree())
    return Case(
        why="Facts: differences of either sign, modulo 2^64; counts; an inode with a name outside; equal directories\n"
        "with facts of their own. The ID is that of no-facts.",
        tree=tree,
        links={b"b": b"a/\x01"},
        facts=True,
    )


def _sums() -> Case:
    return Case(
        why="Sizes of sparse files that add up to more than 2^64 - 1, which the counts then say.",
        tree=_root(a=Tree(children={b"%d" % number: regular(2**63 - 1) for number in range(3)}), b=regular(5)),
        facts=True,
    )


def _contents() -> Case:
    """`info.counts` are what the writer finds."""
    small, same, edge = b"small\n", b"the same\n", bytes(5000)
    tree = _root(
        a=Tree(children={b"1": _content(small), b"2": _content(same), b"empty": _content(b"")}),
        b=Tree(mode=0o040700, children={b"same": _content(same, mode=0o100600), b"edge": _content(edge)}),
        large=_content(bytes(6000)),
    )
    counts = {"inline_files": 4, "inline_bytes": len(small) + 2 * len(same) + len(edge)}
    return Case(
        why="Contents of files, one of them of two files. The ID is that of the same tree without contents.",
        tree=tree,
        digests=BOTH,
        info=dataclasses.replace(INFO, inline=((b"", 5000), (b"b", 9999)), inline_all=True, counts=counts),
        contents=(edge, same, small),
    )


CASES: dict[str, Case] = {
    "contents": _contents(),
    "contents-by-verity": Case(
        why="Contents that are named by fs-verity digests, for there are no others.",
        tree=_root(a=_content(b"a", (DigestName.VERITY,)), b=_content(bytes(9000), (DigestName.VERITY,))),
        digests=(DigestName.VERITY,),
        info=dataclasses.replace(
            INFO, inline=((b"", 9999),), inline_all=True, counts={"inline_files": 2, "inline_bytes": 9001}
        ),
        contents=(b"a", bytes(9000)),
    ),
    "no-contents": dataclasses.replace(_contents(), why="The tree of contents, without.", info=INFO, contents=()),
    "hello": _hello(),
    "empty-directory": Case(why="One empty opaque directory.", tree=_root(empty=Tree())),
    "empty-root": Case(why="Nothing was recorded: only the root may be an empty merge directory.", tree=_root()),
    "every-type": Case(
        why="Every file type with every attribute at its limits, and names of odd bytes.",
        tree=Tree(kind=MERGE, mtime_ns=-1, children={b"all": Tree(children=_every_type())}),
        digests=BOTH,
    ),
    "digests-both": _digests(BOTH),
    "digests-blake3": _digests((DigestName.BLAKE3,)),
    "digests-verity": _digests((DigestName.VERITY,)),
    "digests-none": _digests(()),
    "skeleton": _skeleton(),
    "equal-subtrees": _equal_subtrees(),
    "many-links": _many_links(),
    "many-frames": _many_frames(),
    "pages": _pages(),
    "page-border": _page_border(),
    "huge-sums": _sums(),
    "facts": _facts(),
    "no-facts": dataclasses.replace(_facts(), why="The tree of facts, without.", facts=False),
}
