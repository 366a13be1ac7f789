"""The tree writer: the one place where trees are put together, whatever they come from.

Sources (a scan of a volume, recorded manifests) look at something and say what they found; only here is known what
makes a valid manifest: how directories become objects, which are opaque, what counts and facts they have. The laws,
whatever a source asks for:

- A directory is opaque only if its source says that one look recorded all of it, nothing in it was dropped, and every
  directory in it is opaque. Otherwise it merges; a merge directory without entries is not recorded, but the root.
- What cannot be recorded takes the subtree it is in with it, up to the topmost opaque directory, and is named once.
- Counts and facts are those of what is recorded: what was taken out again leaves no trace.
- Hard links are what `mkmeta.trees.links` says of looks; a directory that turned out to merge divides them.

Directories may be given in any order and in parts, as workers deliver them. Memory: of what is open at most a page for
each directory that waits for nothing, and what follows the first child that is still missing for each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mkmeta.codec.container import Location
from mkmeta.codec.facts import PageFacts, encode_facts, encode_page_facts
from mkmeta.codec.info import Info
from mkmeta.codec.objects import (
    OBJECT_SIZE_MAX,
    PAGE_BYTES,
    PageRow,
    encode_page,
    encode_page_rows,
)
from mkmeta.codec.packing import array_header, element_ends, pack, unpack
from mkmeta.digest import DIGEST_SIZE, ObjectId, ObjectKind
from mkmeta.errors import MkmetaError, printable
from mkmeta.manifest.writer import ManifestWriter
from mkmeta.model import ENTRIES_MAX, NO_COUNTS, NS, Counts, DigestName, Directory, DirectoryKind, HardLinks, Root
from mkmeta.trees.links import LinkCollector, Look

_BIN_32: Final = b"\xc4\x20"  # msgpack header of 32 bytes
_TOO_WIDE: Final = "holds too many names, or names too long, to be recorded"


class Own(NamedTuple):
    """A directory's own entry but for what is known only when all in it is: pieces of msgpack."""

    head: bytes  # array header, name, mode, uid, gid, mtime, mtime_nsec
    tail: bytes  # kind, in one byte, and the xattrs, if there are any


class ChildName(NamedTuple):
    """An entry that is given later: a directory, or a file that is read apart."""

    name: bytes
    kind: DirectoryKind | None  # None: no directory
    position: int  # among the entries of the part
    expected: Location | None = None  # facts it had in the base, if they are there in the new manifest as well


class Part(NamedTuple):
    """Entries of a directory that follow each other, with a gap for each child."""

    pieces: Sequence[bytes]  # packed entries before each child, and those after the last
    children: Sequence[ChildName]
    inodes: list[int]  # of all, children included, as facts have them
    change_times: list[int]  # ns since the epoch
    linked: dict[int, int]  # position: names of the inode, where it has several


class LinkedName(NamedTuple):
    """A name in a directory whose inode has several."""

    name: bytes
    look: Look


class Subtree:
    """What is recorded whole or not at all: an opaque directory in a merge directory, or an entry selected alone."""

    __slots__ = ("failed", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.failed = False


class Place:
    """Where an entry goes that is given later."""

    __slots__ = (
        "above", "change_time", "counts", "done", "entry", "expected", "facts", "inode", "is_directory", "is_merge",
        "name", "nlink", "subtree", "total",
    )  # fmt: skip

    def __init__(self, above: Opening | None, child: ChildName, inode: int, change_time: int) -> None:
        self.above = above  # None: it is the root
        self.name = child.name
        self.is_directory = child.kind is not None
        self.expected = child.expected
        self.inode = inode
        self.change_time = change_time
        self.subtree: Subtree | None = above.place.subtree if above is not None else None
        if self.subtree is None and above is not None and child.kind is not DirectoryKind.MERGE:
            self.subtree = Subtree(self)
        self.done = False
        self.entry: bytes | None = None  # packed; None, when done: there is none
        self.total = 0  # it, and all below it
        self.facts: Location | None = None
        self.counts: Counts | None = None
        self.nlink = 1
        self.is_merge = False

    @property
    def path(self) -> bytes:
        """Relative to the root."""
        names = []
        place = self
        while place.above is not None:
            names.append(place.name)
            place = place.above.place
        return b"/".join(reversed(names))

    @property
    def is_lost(self) -> bool:
        """Whether it is in a subtree that cannot be recorded: what becomes of it is of no interest."""
        return self.subtree is not None and self.subtree.failed


@dataclass(slots=True, eq=False)
class Opening:
    """A directory that is being put together."""

    place: Place
    kind: DirectoryKind  # what it is to become
    path: bytes
    items: deque[Place | tuple[bytes, list[int], list[int], dict[int, int]]] = field(default_factory=deque)
    data: bytearray = field(default_factory=bytearray)  # packed entries of the page that is being filled
    inodes: list[int] = field(default_factory=list)  # and their facts
    change_times: list[int] = field(default_factory=list)
    below: list[tuple[int, Location | None, int]] = field(default_factory=list)  # position, facts, entries
    linked: dict[int, int] = field(default_factory=dict)
    rows: list[PageRow] = field(default_factory=list)  # pages that are full
    places: list[Location] = field(default_factory=list)  # of their facts
    counts: Counts = field(default_factory=Counts)
    own: Own | None = None  # None: more is to come
    base: ObjectId | None = None  # what it was in the base, if nothing but directories in it can have changed
    unlike: bool = False  # something in it is not where the base has it
    looked_at: bool = False  # it is recorded, as opaque, even if it merges and nothing is in it


class TreeWriter:
    """Puts one tree together and writes it. A context manager; `manifest` is its to use until `finish`."""

    def __init__(
        self,
        manifest: ManifestWriter,
        hard_links: HardLinks = HardLinks.SUBTREE,
        subtree_done: Callable[[bytes, Counts], None] | None = None,
        *,
        jobs: int = 1,
    ) -> None:
        """`jobs`: processes to check the result with. `subtree_done` is told of each subtree, or entry that was
        selected alone, when it is complete.
        """
        self.manifest = manifest
        self.root = Place(None, ChildName(b"", DirectoryKind.MERGE, 0), 0, 0)
        self.links = LinkCollector(hard_links)
        self.left_out: dict[bytes, str] = {}  # subtree: reason
        self.empty: set[bytes] = set()  # directories that are recorded because they were looked at
        self._failed: set[bytes] = set()
        self._demoted: set[bytes] = set()
        self._subtree_done = subtree_done
        self._jobs = jobs

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *args: object) -> None:
        self.links.__exit__(*args)

    # --- what sources say ---

    def open(self, place: Place, kind: DirectoryKind) -> Opening:
        """Begins a directory; `extend` and `close` follow."""
        return Opening(place, kind, place.path)

    def extend(
        self, opening: Opening, part: Part, counts: Counts = NO_COUNTS, links: Sequence[LinkedName] = ()
    ) -> list[Place]:
        """Adds entries. `counts` and `links` are of those in the pieces. Returns the places of the children."""
        opening.counts = opening.counts.plus(counts)
        self._add_links(opening, links)
        places: list[Place] = []
        start = 0
        for child, piece in zip(part.children, part.pieces, strict=False):
            if child.position > start:
                self._queue(opening, part, piece, start, child.position)
            inode, change_time = part.inodes[child.position], part.change_times[child.position]
            place = Place(opening, child, inode, change_time)
            opening.items.append(place)
            places.append(place)
            start = child.position + 1
        if len(part.inodes) > start:
            self._queue(opening, part, part.pieces[-1], start, len(part.inodes))
        return places

    def close(self, opening: Opening, own: Own, counts: Counts = NO_COUNTS, base: ObjectId | None = None) -> None:
        """Nothing more comes. `base`: see Opening."""
        opening.own = own
        opening.counts = opening.counts.plus(counts)
        opening.base = base
        self._complete_upwards(opening)

    def leaf_directory(
        self, place: Place, own: Own, object_id: ObjectId, data: bytes, facts: bytes, entries: int, counts: Counts
    ) -> None:
        """An opaque directory of one page without directories, whose object and facts are ready."""
        self.manifest.add_named(object_id, data)
        self.as_before(place, own, object_id, entries, self.manifest.add_facts(facts), counts)

    def as_before(
        self, place: Place, own: Own, object_id: ObjectId, entries: int, facts: Location, counts: Counts
    ) -> None:
        """An opaque directory whose object and facts are in the manifest already, with those of all below it."""
        self.fill(place, _entry(own, DirectoryKind.OPAQUE, object_id, entries), entries + 1, facts, counts)

    def fill(
        self,
        place: Place,
        entry: bytes,
        total: int,
        facts: Location | None,
        counts: Counts,
        *,
        nlink: int = 1,
        merges: bool = False,
    ) -> None:
        """The packed entry of something complete: a file, or a directory whose objects and facts are in the manifest.

        `total` counts it and everything below it; `merges` says that it is a merge directory.
        """
        if not place.is_lost:
            place.entry, place.total, place.facts, place.counts, place.nlink = entry, total, facts, counts, nlink
            place.is_merge = merges
            self._done(place)

    def absent(self, place: Place) -> None:
        """There is nothing at a place any more."""
        if not place.is_lost:
            self._done(place)

    def drop(self, opening: Opening) -> None:
        """Something in a directory is not recorded although it is there: the directory has to merge."""
        self._demote(opening)

    def leave_out(self, place: Place, path: bytes, why: str) -> None:
        """What is at `path`, at or below `place`, cannot be recorded: the subtree it is in falls through."""
        if place.is_lost:
            return
        if place.subtree is not None:
            place.subtree.failed = True
            place = place.subtree.place
        self.note_left_out(place.path, path, why)
        self._failed.add(place.path)
        place.entry, place.total = None, 0
        self._done(place)

    def note_left_out(self, subtree: bytes, path: bytes, why: str) -> None:
        """A subtree, or entry selected alone, without a place: what it is in tells that it cannot be recorded."""
        self.left_out.setdefault(subtree, why if path == subtree else f"{printable(path)}: {why}")

    def add_links(self, directory: bytes, subtree: bytes | None, links: Sequence[LinkedName]) -> None:
        """Names in a directory that is taken as it is; `subtree` is what it is in, None if it merges."""
        prefix = directory + b"/" if directory else b""
        for name, look in links:
            path = prefix + name
            self.links.add(look, path, path if subtree is None else subtree)

    # --- putting together ---

    @property
    def is_complete(self) -> bool:
        """Whether the root is."""
        return self.root.done

    @property
    def entries(self) -> int:
        """How many entries there are, once it is complete."""
        return self.root.total - 1

    @property
    def counts(self) -> Counts:
        """What there is, once it is complete."""
        assert self.root.counts is not None
        return self.root.counts

    def finish(self, info: Info, digests: tuple[DigestName, ...]) -> ObjectId:
        """Writes links, root and tables, and checks what was written by its reader's rules. Raises MkmetaError."""
        assert self.root.entry is not None
        links = self.manifest.add_links(self.links.rows(self._failed, demoted=self._demoted))
        root = Root(directory=_directory(self.root.entry), links=links, digests=digests)
        manifest_id = self.manifest.finish(root, info, self.root.facts)
        self.manifest.check(jobs=self._jobs)
        return manifest_id

    def _add_links(self, opening: Opening, links: Sequence[LinkedName]) -> None:
        if links and not opening.place.is_lost:
            subtree = opening.place.subtree
            merges = opening.kind is DirectoryKind.MERGE or subtree is None
            self.add_links(opening.path, None if merges or subtree is None else subtree.place.path, links)

    def _queue(self, opening: Opening, part: Part, piece: bytes, start: int, stop: int) -> None:
        linked = {at - start: nlink for at, nlink in part.linked.items() if start <= at < stop} if part.linked else {}
        inodes, change_times = part.inodes[start:stop], part.change_times[start:stop]
        if opening.items:
            opening.items.append((piece, inodes, change_times, linked))
        else:
            self._append(opening, piece, inodes, change_times, linked)

    def _append(
        self, opening: Opening, piece: bytes, inodes: list[int], change_times: list[int], linked: dict[int, int]
    ) -> None:
        """Adds packed entries to the page that is being filled."""
        if linked:
            start = len(opening.inodes)
            opening.linked.update({start + at: nlink for at, nlink in linked.items()})
        opening.data += piece
        opening.inodes += inodes
        opening.change_times += change_times
        if len(opening.data) > PAGE_BYTES:
            self._cut(opening)

    def _take(self, opening: Opening, place: Place) -> None:
        """Adds what came to a place."""
        if place.entry is None:
            opening.unlike = True
            return
        if place.is_directory:
            opening.below.append((len(opening.inodes), place.facts, place.total - 1))
            if place.facts != place.expected:
                opening.unlike = True
            if place.is_merge:
                self._demote(opening)
        elif place.nlink > 1:
            opening.linked[len(opening.inodes)] = place.nlink
        assert place.counts is not None
        opening.counts = opening.counts.plus(place.counts)
        opening.data += place.entry
        opening.inodes.append(place.inode)
        opening.change_times.append(place.change_time)
        if len(opening.data) > PAGE_BYTES:
            self._cut(opening)

    def _done(self, place: Place) -> None:
        place.done = True
        if self._subtree_done:
            self._tell(place)
        above = place.above
        if above is not None and above.items and above.items[0] is place:
            self._complete_upwards(above)

    def _tell(self, place: Place) -> None:
        subtree = place.subtree
        if self._subtree_done and subtree is not None and subtree.place is place and place.counts is not None:
            self._subtree_done(place.path, place.counts)

    def _complete_upwards(self, opening: Opening) -> None:
        """Moves on what has become complete: a directory, the one it is in, and so on."""
        while not opening.place.is_lost:
            items = opening.items
            while items:
                item = items[0]
                if not isinstance(item, Place):
                    self._append(opening, *item)
                elif item.done:
                    self._take(opening, item)
                else:
                    return
                items.popleft()
            if opening.own is None:
                return
            self._complete(opening, opening.own)
            place = opening.place
            if place.is_lost or place.done:
                return  # it was left out after all
            place.done = True
            if place.above is None:
                return
            if self._subtree_done:
                self._tell(place)
            opening = place.above

    def _complete(self, opening: Opening, own: Own) -> None:
        """A directory of which everything is there: its object and facts, and the entry at its place."""
        place, kind = opening.place, opening.kind
        if kind is DirectoryKind.MERGE and not opening.inodes and not opening.rows and place.above is not None:
            if not opening.looked_at:
                if place.above.kind is DirectoryKind.OPAQUE:
                    self._demote(place.above)
                return
            self.empty.add(opening.path)
            kind = DirectoryKind.OPAQUE
        is_opaque = kind is DirectoryKind.OPAQUE
        counts = opening.counts.plus(Counts(dirs=is_opaque, skeleton=not is_opaque))
        if opening.rows:
            self._end_page(opening, len(opening.inodes), len(opening.data))
            total = sum(row.entries for row in opening.rows)
            data = encode_page_rows(opening.rows)
            facts: bytes | list[Location] = opening.places
        else:
            total = len(opening.inodes) + sum(entries for _, _, entries in opening.below)
            data = encode_page(len(opening.inodes), opening.data)
            children = [below for _, below, _ in opening.below]
            facts = encode_page_facts(PageFacts(opening.inodes, opening.change_times, children, opening.linked))
        if len(data) > OBJECT_SIZE_MAX:
            if place.above is None:
                raise MkmetaError(_TOO_WIDE, path=b"/")
            self.leave_out(place, opening.path, _TOO_WIDE)
            return
        if total > ENTRIES_MAX:
            raise MkmetaError(f"{total} entries, more than the limit of {ENTRIES_MAX}", path=opening.path or b"/")
        object_id = ObjectKind.DIRECTORY.id_of(data)
        place.entry = _entry(own, kind, object_id, total)
        place.total, place.counts, place.is_merge = total + 1, counts, not is_opaque
        if opening.base == object_id and not opening.unlike and place.expected is not None:
            place.facts = place.expected
            return
        self.manifest.add_named(object_id, data)
        place.facts = self.manifest.add_facts(encode_facts(counts, facts))

    def _demote(self, opening: Opening) -> None:
        """Makes a directory merge. Those above follow when it comes to its place."""
        if opening.kind is DirectoryKind.OPAQUE:
            opening.kind = DirectoryKind.MERGE
            self._demoted.add(opening.path)

    def _cut(self, opening: Opening) -> None:
        """Ends the pages that are full: those after which an entry follows that does not fit."""
        ends = list(element_ends(opening.data))
        start = number = 0
        cuts = []
        while True:
            stop = max(bisect_right(ends, start + PAGE_BYTES), number + 1)
            if stop >= len(ends):
                break
            cuts.append((stop - number, ends[stop - 1] - start))
            number, start = stop, ends[stop - 1]
        for entries, size in cuts:
            self._end_page(opening, entries, size)

    def _end_page(self, opening: Opening, entries: int, size: int) -> None:
        """Writes the first entries, so many bytes, of what is being filled as a page."""
        data = encode_page(entries, opening.data[:size])
        if len(data) > OBJECT_SIZE_MAX:
            raise MkmetaError(f"an entry of {size} bytes, more than the limit", path=opening.path or b"/")
        below = [item for item in opening.below if item[0] < entries]
        linked = {at: nlink for at, nlink in opening.linked.items() if at < entries}
        facts = PageFacts(
            opening.inodes[:entries], opening.change_times[:entries], [facts for _, facts, _ in below], linked
        )
        page = self.manifest.add(ObjectKind.DIRECTORY_PAGE, data)
        opening.rows.append(PageRow(_first_name(data), page, entries + sum(total for _, _, total in below)))
        opening.places.append(self.manifest.add_facts(encode_page_facts(facts)))
        del opening.data[:size]
        del opening.inodes[:entries]
        del opening.change_times[:entries]
        opening.below = [(at - entries, facts, total) for at, facts, total in opening.below[len(below) :]]
        opening.linked = {at - entries: nlink for at, nlink in opening.linked.items() if at >= entries}


def own_entry(name: bytes, node: Directory) -> Own:
    """What `Own` is for a recorded directory."""
    fields: list[object] = [name, node.mode, node.uid, node.gid, *divmod(node.mtime_ns, NS)]
    flat = [item for pair in node.xattrs for item in pair]
    return make_own(fields, flat, node.kind)


def make_own(fields: list[object], xattrs: Sequence[bytes], kind: DirectoryKind) -> Own:
    """From the six common fields of an entry, its xattrs (names and values in turn), and the kind."""
    # an array of so few elements has a header of one byte; three more fields follow, and the xattrs
    head = array_header(10 if xattrs else 9) + pack(fields)[1:]
    return Own(head, pack(int(kind)) + (pack(list(xattrs)) if xattrs else b""))


def _entry(own: Own, kind: DirectoryKind, object_id: ObjectId, entries: int) -> bytes:
    """The packed entry of a directory (formats/manifest.md section 3.1)."""
    return own.head + _BIN_32 + object_id + pack(entries) + bytes((kind,)) + own.tail[1:]


def _directory(entry: bytes) -> Directory:
    """The root directory from its packed entry, which has an empty name."""
    fields: Any = unpack(entry)
    _, mode, uid, gid, sec, nsec, children, entries, _, *xattrs = fields
    flat = xattrs[0] if xattrs else []
    assert len(children) == DIGEST_SIZE
    return Directory(
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=sec * NS + nsec,
        xattrs=tuple(zip(flat[::2], flat[1::2], strict=True)),
        children=children,
        entries=entries,
        kind=DirectoryKind.MERGE,
    )


def _first_name(page: bytes) -> bytes:
    entries: Any = unpack(page)
    name: bytes = entries[0][0]
    return name
