"""Why a path is served the way it is: what the manifest says of it, and of everything on the way to it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from mkmeta.errors import legible, printable, reason
from mkmeta.host.costs import PROFILES, Costs, Served, costs
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import Directory, DirectoryKind, Entry, LinkRow, Node, RegularFile, Symlink, type_name
from mkmeta.mounts.live import LiveMount
from mkmeta.mounts.profile import Profile
from mkmeta.pattern import Patterns
from mkmeta.plan import Plan
from mkmeta.sinks.directory.inspection import inode_differences

_LINKS_SHOWN: Final = 10  # names of one inode


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A recorded directory on the way to a path."""

    path: bytes  # empty: the root
    directory: Directory


class Blocked(NamedTuple):
    """Something recorded on the way that is no directory."""

    why: str
    link: bytes | None  # its path, when it is a symlink


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything there is to say about a path."""

    path: bytes
    served: Served
    why: str
    way: tuple[Ancestor, ...]
    node: Node | None = None  # what is recorded there
    subtree: bytes | None = None  # the selected subtree it is in
    patterns: tuple[bytes, ...] = ()  # that selected the subtree
    left_out: tuple[bytes, str] | None = None  # path and reason of a scan that had to leave it out
    redirect: bytes | None = None  # where the data is, below the lower layer
    links: tuple[bytes, ...] = ()  # all names of the inode, the primary first; at most `_LINKS_SHOWN`
    nlink: int = 1
    link: bytes | None = None  # a symlink on the way: everything else is said of the path up to there
    costs: dict[str, Costs] = field(default_factory=dict)  # by profile; `plain` too


def explain(reader: ManifestReader, path: bytes, plan: Plan) -> Explanation:
    """Explains a path, relative to the root, without outer slashes. Raises FormatError."""
    way, node, rest = _follow(reader, path)
    subtree = _subtree(way, path, node)
    is_leaf = node is not None and not isinstance(node, Directory)  # what is not recorded may have been a directory
    above = path if subtree is None else subtree
    selected, patterns = _selected(reader, above, is_directory=above != path or not is_leaf)
    left_out = _left_out(reader, selected) if node is None and selected is not None else None
    redirect: bytes | None = None
    link: bytes | None = None
    links: tuple[bytes, ...] = ()
    nlink = 1
    if node is not None:
        served, why = _recorded(reader, node, plan)
        if not isinstance(node, Directory):
            links, nlink = _links(reader, path)
        if served is Served.FILE:
            redirect = _redirect(plan, links[0] if links else path, node)
    elif isinstance(rest, Blocked):
        served, why, link = Served.ABSENT, rest.why, rest.link
    else:
        served, why = _not_recorded(reader, path, way[-1], selected, left_out)
    depth = (redirect or path).count(b"/") + (redirect is None)
    return Explanation(
        path=path,
        served=served,
        why=why,
        way=tuple(way),
        node=node,
        subtree=subtree,
        patterns=patterns,
        left_out=left_out,
        redirect=redirect,
        links=links,
        nlink=nlink,
        link=link,
        costs={} if link is not None else _costs(path, served, way, depth),
    )


def seen(live: LiveMount, explanation: Explanation) -> str:
    """What the kernel says of the path in a mount at this moment, and whether that is what is recorded."""
    path = os.path.join(live.point, explanation.path) if explanation.path else live.point
    node = explanation.node
    try:
        status = os.lstat(path)
        what = f"a {type_name(status.st_mode)}"
        if explanation.link is not None:
            return f"{what}, through the symlink"
        if node is None:
            return what + (": not what the layer says" if explanation.served is Served.ABSENT else ", from the volume")
        if type_name(status.st_mode) != type_name(node.mode):
            return f"{what}: recorded is a {type_name(node.mode)}"
        different = [message for _, message in inode_differences(path, node, status)]
    except OSError as error:
        what = reason(error)
        if node is not None:
            return f"{what}: recorded is a {type_name(node.mode)}"
        if explanation.link is not None:
            return f"{what}, through the symlink"
        if explanation.served is Served.ABSENT:
            return f"{what}, as the layer says"
        if live.profile is Profile.DATA_ONLY:
            return f"{what}: not shown by a data-only mount, which is closed"
        return f"{what}: not on the volume, or remembered from before it was (`mkmeta refresh` forgets)"
    return f"{what}, {'; '.join(different) if different else 'as recorded'}"


def _follow(reader: ManifestReader, path: bytes) -> tuple[list[Ancestor], Node | None, Blocked | None]:
    """The directories on the way, what is recorded at the end, and why nothing can be there when that is certain."""
    way = [Ancestor(b"", reader.root.directory)]
    if not path:
        return way, reader.root.directory, None
    names = path.split(b"/")
    for depth in range(1, len(names)):
        above = b"/".join(names[:depth])
        node = reader.find(above)
        if node is None:
            return way, None, None
        if isinstance(node, Symlink):
            why = f"{printable(above)} is a symlink to {printable(node.target)}: explain what that leads to"
            return way, None, Blocked(why, above)
        if not isinstance(node, Directory):
            return way, None, Blocked(f"{printable(above)} is a {type_name(node.mode)}: nothing can be below it", None)
        way.append(Ancestor(above, node))
    return way, reader.find(path), None


def _recorded(reader: ManifestReader, node: Node, plan: Plan) -> tuple[Served, str]:
    if isinstance(node, Directory):
        if node.kind is DirectoryKind.MERGE:
            return (
                Served.SKELETON,
                "a part of it was selected: shows what is recorded, and what else the volume has",
            )
        return Served.COMPLETE, "recorded completely: the layer answers for everything in it"
    if isinstance(node, RegularFile) and node.size:
        if plan.inline and reader.contents is not None and reader.contents.find(node) >= 0:
            return Served.WHOLE, "recorded with its content: whole in the layer, opened and read locally"
        return Served.FILE, "recorded: the layer has its name and attributes, the volume its data"
    return Served.LEAF, "recorded: the layer has all there is of it"


def _not_recorded(
    reader: ManifestReader, path: bytes, last: Ancestor, selected: bytes | None, left_out: tuple[bytes, str] | None
) -> tuple[Served, str]:
    where = f"{printable(last.path)}/" if last.path else "the root"
    if last.directory.kind is DirectoryKind.MERGE:
        if left_out is not None and selected is not None:
            below = f"{printable(left_out[0])}: " if left_out[0] != selected else ""
            cause = legible(left_out[1])
            why = f"the scan had to leave {printable(selected)} out, so the volume answers: {below}{cause}"
            return Served.THROUGH, why
        if selected is not None:
            return (
                Served.THROUGH,
                f"selected, but not there when it was scanned: below {where} the volume answers",
            )
        return Served.THROUGH, f"not selected: below {where} the volume answers for what is not recorded"
    hidden = _hidden_by(reader, path)
    told = f"the scan was told to hide {legible(hidden)}" if hidden is not None else "it was not there"
    return Served.ABSENT, f"{where} was recorded completely, and {told}: no such file, without asking the volume"


def _subtree(way: list[Ancestor], path: bytes, node: Node | None) -> bytes | None:
    for step in way:
        if step.directory.kind is DirectoryKind.OPAQUE:
            return step.path
    if node is None or (isinstance(node, Directory) and node.kind is DirectoryKind.MERGE):
        return None
    return path


def _selected(reader: ManifestReader, path: bytes, *, is_directory: bool) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Where the selected subtree that a path is in begins, or would, and the patterns that match there."""
    if not reader.info.select:
        return (path.split(b"/")[0] or None), ()
    return Patterns(reader.info.select).first_match(path, is_directory=is_directory) or (None, ())


def _hidden_by(reader: ManifestReader, path: bytes) -> bytes | None:
    """The pattern that hides a path, or something above it."""
    found = Patterns(reader.info.hide).first_match(path, is_directory=True)
    return found.sources[0] if found else None


def _left_out(reader: ManifestReader, subtree: bytes) -> tuple[bytes, str] | None:
    """Why a scan left a subtree out: one entry that could not be recorded takes all of it with it."""
    for path, why in reader.info.left_out:
        if path == subtree or path.startswith(subtree + b"/"):
            return path, why
    return None


def _costs(path: bytes, served: Served, way: list[Ancestor], depth: int) -> dict[str, Costs]:
    skeleton = sum(step.directory.kind is DirectoryKind.MERGE for step in way) - 1  # the root is there already
    above = path.count(b"/")
    return {profile: costs(profile, served, depth=depth, above=above, skeleton=skeleton) for profile in PROFILES}


def _links(reader: ManifestReader, path: bytes) -> tuple[tuple[bytes, ...], int]:
    """The names of the inode at `path`, the primary first; none when there is but one."""
    primary = next(
        (row.target if isinstance(row, LinkRow) else row.path for row in reader.links() if row.path == path), None
    )
    if primary is None:
        return (), 1
    others = (row.path for row in reader.links() if isinstance(row, LinkRow) and row.target == primary)
    nlink = next(row.nlink for row in reader.links() if row.path == primary and not isinstance(row, LinkRow))
    return (primary, *islice(others, _LINKS_SHOWN - 1)), nlink


def _redirect(plan: Plan, primary: bytes, node: Node) -> bytes:
    above, _, name = primary.rpartition(b"/")
    (planned,) = plan.children(above, [Entry(name, node)])
    return dict(planned.xattrs)[plan.names.redirect]
