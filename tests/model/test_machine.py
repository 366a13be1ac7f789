"""Random histories of a volume and its manifest, against the invariants of trees: nothing hidden, same tree same ID,
hard links that depend on no other release.

Each step edits the volume or makes the next manifest (scan, `--base`, `--only`, prune, merge). Whatever was made is
then checked, built, and seen through the model of overlayfs, in a sample through the kernel's mounts too.

`known` is what the manifest answers for: every name the volume had when the part it is in was last looked at. `dirty`
is what was edited since. A name that is known and still there must show, always; where nothing is dirty, everything
must show exactly, and the ID must be that of a first scan.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mkmeta.errors import ExitCode
from mkmeta.manifest.reader import ManifestReader
from tests.calling import call
from tests.model.mounts import mounted
from tests.model.overlay import (
    OPAQUE,
    PROFILES,
    REDIRECT,
    Disk,
    Node,
    Seen,
    Tree,
    Without,
    is_within,
    join,
    parent,
    parents,
    seen_of,
    shown,
    walk,
)

DEEP = os.environ.get("MKMETA_HYPOTHESIS") == "deep"
MOUNTED_SHARE = 5  # one manifest in so many is mounted as well
BEFORE = 1_500_000_000 * 10**9  # ns: when everything the machine did not touch was written

FILES = (
    "g/p/v1/a", "g/p/v1/d/b", "g/p/v1/d/c", "g/p/v2/a", "g/p/v2/d/b", "g/q/v1/a", "g/q/v2/d/c", "g/q/note",
    "s/old/a", "s/old/d/b", "s/new/a", "s/note", "top",
)  # fmt: skip
SELECTIONS: tuple[tuple[str, ...], ...] = (
    ("s",),
    ("s", "g/p"),
    ("g/*/*",),
    ("g/*", "s/*"),
    ("g/p/v1", "g/q"),
    ("g/*/v*", "s", "top"),
    ("**/v1",),
    ("*",),
)
PLACES = ("g/*/v2", "g/p/v1", "g/p", "g/*", "s", "s/*", "s/new", "s/old", "top", "*", "**/v1", "*/*/d", "g/p/v*/a")
NOTHING_LEFT = re.compile("nothing (selected could be recorded|would be left)")
CHANGES = ("write", "grow", "chmod", "replace")
NAMES = ("a", "b", "c", "d", "v1", "v2", "v3", "new")

picks = st.integers(0, 2**16)
places = st.lists(st.sampled_from(PLACES), min_size=1, max_size=2, unique=True)


def matches(patterns: Iterable[str], path: bytes) -> bool:
    """Whether a pattern matches at a path or above it; the patterns above have `*`, `**` and `v*` only."""
    return any(_matches(pattern.encode().split(b"/"), path.split(b"/")) for pattern in patterns)


def _matches(pattern: list[bytes], names: list[bytes]) -> bool:
    if not pattern:
        return True
    if pattern[0] == b"**":
        return _matches(pattern[1:], names) or (bool(names) and _matches(pattern, names[1:]))
    if not names:
        return False
    prefix, star, _ = pattern[0].partition(b"*")
    fits = names[0].startswith(prefix) if star else names[0] == prefix
    return fits and _matches(pattern[1:], names[1:])


class Volume:
    """A directory that is edited."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self._count = 0
        for name in FILES:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            self.write(name.encode())
        for path in [*self.paths(), b""]:
            os.utime(self.real(path), ns=(BEFORE, BEFORE), follow_symlinks=False)

    def real(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.top), path)

    def paths(self) -> list[bytes]:
        return [path for path, _ in walk(Disk(self.top))]

    def nodes(self) -> dict[bytes, Node]:
        return {path: node for path, node in walk(Disk(self.top)) if isinstance(node, Node)}

    def directories(self) -> list[bytes]:
        return [b"", *(path for path, node in self.nodes().items() if node.is_directory)]

    def files(self) -> list[bytes]:
        return [path for path, node in self.nodes().items() if stat.S_ISREG(node.mode)]

    def write(self, path: bytes, size: int = 20) -> None:
        """Writes what no file had before, of the same size as most."""
        self._count += 1
        with open(self.real(path), "wb") as file:
            file.write(b"%0*d" % (size, self._count))
        os.utime(self.real(path), ns=(BEFORE, BEFORE))  # as reproducible builds do

    def names_of(self, path: bytes) -> list[bytes]:
        """All names of the inode at a path."""
        number = os.lstat(self.real(path)).st_ino
        return [other for other in self.paths() if os.lstat(self.real(other)).st_ino == number]

    def remove(self, path: bytes) -> None:
        real = self.real(path)
        if stat.S_ISDIR(os.lstat(real).st_mode):
            shutil.rmtree(real)
        else:
            os.unlink(real)


class History(RuleBasedStateMachine):
    """See above. What a subclass switches off is not done."""

    across = True  # hard links from one release to another

    def __init__(self, place: Path | None = None) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="mkmeta-history-", dir=place))
        (self.scratch / "volume").mkdir()
        self.volume = Volume(self.scratch / "volume")
        self.select: tuple[str, ...] = ()
        self.digest = "none"
        self.current = self.scratch / "none"  # the manifest
        self.known: set[bytes] = set()
        self.dirty: set[bytes] = set()
        self.whole = True  # the manifest is of `select`: nothing is pruned, nothing added
        self._made = 0
        self._random = random.Random(0)

    def teardown(self) -> None:
        shutil.rmtree(self.scratch)

    # What is done to the volume

    def pick(self, paths: list[bytes], number: int) -> bytes:
        return paths[number % len(paths)]

    def touched(self, *paths: bytes) -> None:
        """Notes an edit, under all names that the inodes have now."""
        for path in paths:
            self.dirty.add(path)
            if os.path.lexists(self.volume.real(path)) and not os.path.isdir(self.volume.real(path)):
                self.dirty.update(self.volume.names_of(path))

    def below(self, path: bytes) -> list[bytes]:
        return [other for other in self.volume.paths() if is_within(other, path)]

    def free(self, where: int, name: str) -> bytes | None:
        """A path that nothing is at."""
        path = join(self.pick(self.volume.directories(), where), name.encode())
        return None if os.path.lexists(self.volume.real(path)) else path

    @rule(
        how=st.sampled_from(["file", "directory", "release", "symlink", *4 * ["delete", "rename"], *CHANGES]),
        what=picks,
        where=picks,
        name=st.sampled_from(NAMES),
    )
    def edit(self, how: str, what: int, where: int, name: str) -> None:
        """One rule for all that is ordinary, so that about every second step makes a manifest."""
        if how == "delete":
            self.delete(what)
        elif how == "rename":
            self.rename(what, where, name)
        elif how in CHANGES:
            self.change(what, how)
        else:
            self.create(where, name, how)

    def create(self, where: int, name: str, kind: str) -> None:
        path = self.free(where, name)
        if path is None:
            return
        real = self.volume.real(path)
        if kind == "file":
            self.volume.write(path)
        elif kind == "symlink":
            os.symlink(b"a", real)
        else:
            os.mkdir(real)
            if kind == "release":
                self.volume.write(path + b"/a")
                self.volume.write(path + b"/b")
        self.touched(path)

    def delete(self, what: int) -> None:
        if not self.volume.paths():
            return
        path = self.pick(self.volume.paths(), what)
        self.volume.remove(path)
        self.dirty.add(path)

    def change(self, what: int, how: str) -> None:
        if not self.volume.files():
            return
        path = self.pick(self.volume.files(), what)
        real = self.volume.real(path)
        if how == "write":
            self.volume.write(path)
        elif how == "grow":
            self.volume.write(path, 30)
        elif how == "chmod":
            os.chmod(real, os.lstat(real).st_mode ^ 0o044)
        else:  # by a new inode with the same name, size and mtime
            before = os.lstat(real)
            self.volume.write(path + b".tmp", before.st_size)
            os.chmod(real + b".tmp", before.st_mode)
            os.utime(real + b".tmp", ns=(before.st_mtime_ns, before.st_mtime_ns))
            at = os.lstat(os.path.dirname(real))
            os.rename(real + b".tmp", real)
            os.utime(os.path.dirname(real), ns=(at.st_mtime_ns, at.st_mtime_ns))
        self.touched(path)

    def rename(self, what: int, where: int, name: str) -> None:
        if not self.volume.paths():
            return
        path, to = self.pick(self.volume.paths(), what), self.free(where, name)
        if to is None or is_within(to, path):
            return
        os.rename(self.volume.real(path), self.volume.real(to))
        self.touched(path, *self.below(to))

    @precondition(lambda self: self.volume.files())
    @rule(what=picks, where=picks, name=st.sampled_from(NAMES))
    def link(self, what: int, where: int, name: str) -> None:
        path, to = self.pick(self.volume.files(), what), self.free(where, name)
        if to is None or (not self.across and self.subtree(path) != self.subtree(to)):
            return
        os.link(self.volume.real(path), self.volume.real(to))
        self.touched(to)

    @precondition(lambda self: self.across)
    @rule(
        release=st.sampled_from(["g/p/v1", "g/p/v2", "g/q/v1", "s/old", "s/new"]),
        name=st.sampled_from(["v1", "v3", "v4"]),
    )
    def copy_by_links(self, release: str, name: str) -> None:
        """cp -al: how sites save space."""
        path = release.encode()
        to = join(parent(path), name.encode())
        if not os.path.isdir(self.volume.real(path)) or os.path.lexists(self.volume.real(to)):
            return
        subprocess.run(["cp", "-al", self.volume.real(path), self.volume.real(to)], check=True)
        self.touched(*self.below(to))

    @rule(where=picks, how=st.sampled_from(["whiteout", "xattr"]))
    def forbid(self, where: int, how: str) -> None:
        """Puts something where it is that no manifest can carry; or takes it away, where there is one."""
        path = self.pick(self.volume.directories(), where)
        real = self.volume.real(path)
        if how == "whiteout":
            path = join(path, b"whiteout")
            real = self.volume.real(path)
            if os.path.lexists(real):
                os.unlink(real)
            else:
                os.mknod(real, stat.S_IFCHR | 0o600, os.makedev(0, 0))
        elif path and "user.overlay.x" in os.listxattr(real):
            os.removexattr(real, "user.overlay.x")
        elif path:
            os.setxattr(real, "user.overlay.x", b"y")
        self.dirty.add(path)

    # How manifests are made

    @initialize(select=st.sampled_from(SELECTIONS), digest=st.sampled_from(["none", "blake3"]))
    def first_scan(self, select: tuple[str, ...], digest: str = "none") -> None:
        self.select, self.digest = select, digest
        self.scan()

    def scan(self) -> None:
        """A first scan, without a base."""
        made = self.make(["scan", *self.first(*self.select), str(self.volume.top)])
        if made is not None:
            self.looked_at_everything(made)

    @precondition(lambda self: self.known)
    @rule()
    def scan_again(self) -> None:
        made = self.make(["scan", "-j1", "--base", str(self.current), str(self.volume.top)])
        if made is not None:
            self.looked_at_everything(made)

    @precondition(lambda self: self.known)
    @rule(patterns=places)
    def scan_only(self, patterns: list[str]) -> None:
        only = [f"--only={pattern}" for pattern in patterns]
        made = self.make(["scan", "-j1", "--base", str(self.current), *only, str(self.volume.top)])
        if made is not None:
            self.looked_at(patterns, made)

    @precondition(lambda self: self.known)
    @rule(patterns=places)
    def prune(self, patterns: list[str]) -> None:
        drop = [f"--drop={pattern}" for pattern in patterns]
        made = self.make(["prune", str(self.current), *drop])
        if made is not None:
            self.whole = False
            self.current = made
            self.check()

    @precondition(lambda self: self.known)
    @rule(old=st.sampled_from(["s/old", "s/note", "g/p/v1", "g/*/v1"]), new=st.sampled_from(["s/new", "g/*/v2", "*/q"]))
    def retire_and_publish(self, old: str, new: str) -> None:
        """What a release pipeline does; the volume keeps the old one for a while."""
        self.prune([old])
        self.scan_only([new])

    @precondition(lambda self: self.known and len(self.select) > 1)
    @rule()
    def merge_shards(self) -> None:
        """A scan of each pattern by itself, merged: what one scan of them all would be."""
        shards = []
        for pattern in self.select:
            shard = self.make(["scan", *self.first(pattern), str(self.volume.top)])
            if shard is None:
                return
            shards.append(shard)
        made = self.make(["merge", *map(str, shards)])
        assert made is not None
        # Of two patterns that overlap, one may leave out what the other records; the merged manifest has it then
        self.looked_at_everything(made, whole=not any(left_out(shard) for shard in shards))

    @precondition(lambda self: self.known)
    @rule(pattern=st.sampled_from(PLACES))
    def merge_news(self, pattern: str) -> None:
        """What is there now in one place, merged over the older manifest; what is gone or left out stays as it was."""
        news = self.make(["scan", *self.first(pattern), str(self.volume.top)])
        if news is None:
            return
        made = self.make(["merge", "--on-conflict=later", str(self.current), str(news)])
        assert made is not None
        self.whole = False
        self.select = tuple(dict.fromkeys((*self.select, pattern)))
        with ManifestReader.open(str(news)) as reader:
            recorded = {path for path, _ in reader.walk()}
        self.known = self.known.intersection(self.volume.paths()) | recorded
        self.current = made
        self.check()

    def first(self, *select: str) -> list[str]:
        return ["-j1", f"--digest={self.digest}", *(f"--select={pattern}" for pattern in select)]

    def make(self, argv: list[str]) -> Path | None:
        """Runs a verb that writes a manifest. None: nothing was there to be recorded, or to stay."""
        self._made += 1
        made = self.scratch / f"{self._made}.mkm"
        done = call([argv[0], "-q", *argv[1:], "-o", str(made)], check=None)
        if done.code == ExitCode.FAILED:
            assert NOTHING_LEFT.search(done.err), (done, argv)
        else:
            assert done.code in (ExitCode.DONE, ExitCode.INCOMPLETE, ExitCode.NOTHING_SELECTED), (done, argv)
        assert made.exists() == (done.code in (ExitCode.DONE, ExitCode.INCOMPLETE))
        return made if made.exists() else None

    def looked_at_everything(self, made: Path, *, whole: bool = True) -> None:
        self.known, self.dirty, self.whole, self.current = set(self.volume.paths()), set(), whole, made
        self.check()

    def looked_at(self, patterns: list[str], made: Path) -> None:
        self.known = {path for path in self.known if not matches(patterns, path)}
        self.known |= {path for path in self.volume.paths() if matches(patterns, path)}
        self.dirty = {path for path in self.dirty if not matches(patterns, path)}
        self.current = made
        self.check()

    # What must hold

    def subtree(self, path: bytes) -> bytes:
        """The selected subtree a path is in; itself when it is in none."""
        return next((above for above in parents(path) if matches(self.select, above)), path)

    def check(self) -> None:
        call(["show", "-q", "--check", str(self.current)])
        layer = self.scratch / "layer"
        shutil.rmtree(layer, ignore_errors=True)
        call(["build", "-q", "-j1", str(self.current), str(layer)])
        disk = Disk(self.volume.top)
        for profile, over in PROFILES.items():
            view = over(Disk(layer), disk)
            self.check_nothing_is_hidden(view, Disk(layer))
            if not self.dirty:
                self.check_everything_shows(view)
                self.check_releases_stand_alone(layer, over)
            if self._random.randrange(MOUNTED_SHARE) == 0:
                with mounted(layer, self.volume.top, profile) as where:
                    assert shown(Disk(where)) == shown(view)
        if not self.dirty and self.whole:
            first = self.make(["scan", *self.first(*self.select), str(self.volume.top)])
            assert first is None or id_of(first) == id_of(self.current), "the ID of a first scan"

    def check_nothing_is_hidden(self, view: Tree, layer: Tree) -> None:
        visible = dict(walk(view))
        for path, node in self.volume.nodes().items():
            if path in self.known and not node.is_whiteout:
                assert path in visible, f"{path!r} is hidden"
                seen = visible[path]
                record = layer.node(path)
                data = path if record is None else record.xattrs.get(REDIRECT, b"/" + path)[1:]
                assert self.subtree(data) == self.subtree(path), f"{path!r} is read from {data!r}"
                if any(is_within(one, edited) for one in (path, data) for edited in self.dirty):
                    continue  # it may be read from a name that is gone, or be no file any more
                assert isinstance(seen, Node), f"{path!r}: {seen}"
                if not node.is_directory:
                    one, other = ({path: seen_of(thing)} for thing in (seen, node))
                    assert _comparable(one, set()) == _comparable(other, set())

    def check_everything_shows(self, view: Tree) -> None:
        # The kernel hides whiteouts, or lists them and says ENOENT. Link counts are those of a subtree's own names;
        # root sees a mark for mounts above (formats/upper.md section 6)
        kernel_hides = {path for path, node in self.volume.nodes().items() if node.is_whiteout}
        assert _comparable(shown(view), kernel_hides) == _comparable(shown(Disk(self.volume.top)), kernel_hides)

    def check_releases_stand_alone(self, layer: Path, over: Callable[[Tree, Tree], Tree]) -> None:
        """Law 8: what is deleted with one release leaves the others readable."""
        disk = Disk(self.volume.top)
        for release in subtrees(Disk(layer)):
            view = over(Disk(layer), Without(disk, release))
            for path, node in walk(Disk(layer)):
                if isinstance(node, Node) and stat.S_ISREG(node.mode) and not is_within(path, release):
                    seen, there = view.node(path), disk.node(path)
                    assert seen is not None and there is not None
                    assert seen.read() == there.read(), f"{path!r} without {release!r}"


def subtrees(layer: Tree, path: bytes = b"") -> Iterator[bytes]:
    """The topmost opaque directories of a layer, and what is recorded alone."""
    for name in layer.names(path):
        at = join(path, name)
        node = layer.node(at)
        assert node is not None
        if node.is_directory and OPAQUE not in node.xattrs:
            yield from subtrees(layer, at)
        else:
            yield at


def _comparable(found: dict[bytes, Seen], hidden: set[bytes]) -> dict[bytes, Seen]:
    mark = (OPAQUE, b"y")
    return {
        path: (*seen[:7], [xattr for xattr in seen[8] if xattr != mark], *seen[9:]) if len(seen) > 1 else seen
        for path, seen in found.items()
        if path not in hidden
    }


def id_of(manifest: Path) -> bytes:
    with ManifestReader.open(str(manifest)) as reader:
        return reader.id


def left_out(manifest: Path) -> bool:
    """Whether something could not be recorded."""
    with ManifestReader.open(str(manifest)) as reader:
        return bool(reader.info.left_out)


def run(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Runs a machine. A failure names all its steps; only a deep run looks for a shorter way, which takes long."""
    by_default = settings(max_examples=examples, stateful_step_count=steps, derandomize=True, phases=[Phase.generate])
    deep = settings(max_examples=1000, stateful_step_count=40, derandomize=False, database=None)
    run_state_machine_as_test(machine, settings=settings(deep if DEEP else by_default, deadline=None))


class WithinReleases(History):
    across = False


@pytest.mark.needs("root", "overlay", "trusted xattrs", "user xattrs")
@pytest.mark.parametrize("machine", [WithinReleases, History])
def test_histories(machine: type[History]) -> None:
    run(machine, examples=12, steps=14)
