"""The content of a file that not everybody may read is in no manifest, whichever verbs made it, but for
`--inline-private`: random volumes with NFSv4 ACLs, and random verbs on them.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from mkmeta.codec.info import Info
from mkmeta.codec.nfs4_acl import Access
from mkmeta.manifest import closed as closed_module
from mkmeta.manifest.closed import ClosedPaths, are_known
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import RegularFile
from mkmeta.scanner import base as base_module
from mkmeta.scanner import scan as scan_module
from mkmeta.scanner.entry import EntryReader
from mkmeta.trees.merge import merge
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.scanner.test_inline import ALL, _age, inside, make, scanned, with_base

DIRECTORIES = ("a", "a/x", "a/x/y", "a/z", "b", "b/x", "b/y")
LESS = ((b"", 1 << 20), (b"a/x", 0), (b"b/y", 3))
BOTH = ("a", "b")
NARROW = ((b"b/x", 1 << 20),)


class Volume:
    """Files with few different contents, and ACLs that the kernel of this machine knows nothing of."""

    def __init__(self, root: Path, random: Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.random = random
        self.closed: set[str] = set()  # files and directories that an ACL keeps from somebody
        self._made = 0
        make(root, {f"{directory}/same": b"everywhere" for directory in DIRECTORIES})
        for _ in range(20):
            self.add(random.choice(DIRECTORIES))
        files = sorted(str(path.relative_to(root)) for path in root.rglob("f*"))
        self.closed.update(random.sample(files, 7), random.sample(DIRECTORIES, 1))

        def allows(reader: EntryReader, prefix: bytes, name: bytes, wanted: Access) -> bool:
            inlining = reader.rules.inlining
            if inlining is None or not inlining.asks:
                return True
            assert wanted is (Access.SEARCH if name == b"." else Access.READ)
            return os.fsdecode(prefix[:-1] if name == b"." else prefix + name) not in self.closed

        monkeypatch.setattr(EntryReader, "allows_everybody", allows)
        monkeypatch.setattr(scan_module, "has_acls", lambda _fd, _name: True)
        monkeypatch.setattr(closed_module, "_NFS4_ACL", "files")  # every file has one, and so is counted
        monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)

    def add(self, directory: str) -> None:
        self._made += 1
        (self.root / directory / f"f{self._made}").write_bytes(b"content %d" % self.random.randrange(11))

    def change(self, below: str) -> None:
        """Something, that the change time tells."""
        paths = sorted(path for path in (self.root / below).rglob("*") if path.name != "same")
        path = self.random.choice(paths)
        name = str(path.relative_to(self.root))
        match self.random.randrange(5):
            case 0 | 1:
                self.closed ^= {name}
                path.chmod(path.stat().st_mode)
            case 2:
                path.chmod(self.random.choice((0o700, 0o755, 0o755)))
            case 3 if path.is_file():
                path.unlink()
                self.closed.discard(name)
            case _:
                self.add(below)

    def is_open(self, name: str) -> bool:
        """Whether everybody may read a file."""
        path = self.root / name
        above = [parent for parent in Path(name).parents if str(parent) != "."]
        return (
            path.stat().st_mode & 0o044 == 0o044
            and all((self.root / parent).stat().st_mode & 0o011 == 0o011 for parent in above)
            and not self.closed.intersection((name, *map(str, above)))
        )

    def check(self, manifest: Path, *, exactly: bool = False) -> None:
        """Asserts the law; `exactly`: and that all that it allows is inside."""
        found = set(inside(manifest).values())
        with ManifestReader.open(str(manifest)) as reader:
            if reader.info.inline_all:
                return
            files = [os.fsdecode(path) for path, node in reader.walk() if isinstance(node, RegularFile)]
        allowed = {(self.root / name).read_bytes() for name in files if self.is_open(name)}
        assert found == allowed if exactly else found <= allowed, self.closed


@pytest.mark.parametrize("seed", range(10))
def test_whichever_verbs_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    random = Random(seed)
    volume = Volume(tmp_path / "volume", random, monkeypatch)
    root = volume.root
    current = scanned(root, "0.mkm", random.choice((ALL, LESS, ())), inline_all=random.random() < 0.5, select=BOTH)
    volume.check(current.path)
    for step in range(1, 8):
        output = f"{step}.mkm"
        rules = random.choice((ALL, ALL, LESS, NARROW, ()))
        private = random.random() < 0.15
        match random.randrange(5):
            case 0 | 1:
                for _ in range(random.randrange(4)):
                    volume.change(random.choice(("a", "b")))
                _age()
                current = with_base(root, current, output, rules, inline_all=private, select=BOTH)
                volume.check(current.path, exactly=rules == ALL)
            case 2:
                below = random.choice(("a", "a/x", "b"))
                for _ in range(random.randrange(3)):
                    volume.change(below)
                _age()
                current = with_base(
                    root, current, output, rules, inline_all=private, select=BOTH, only=(os.fsencode(below),)
                )
                volume.check(current.path)
            case 3:
                with ManifestReader.open(str(current.path)) as reader:
                    patterns = random.sample(sorted(path for path, _ in reader.walk() if b"/" in path), 3)
                    with (tmp_path / output).open("w+b") as stream:
                        prune(Source(reader, b"it"), patterns, stream)
                volume.check(tmp_path / output)
                current.path.write_bytes((tmp_path / output).read_bytes())
            case _:
                parts = [
                    scanned(root, f"{name}.mkm", random.choice((ALL, LESS, ())), select=(name,)).path for name in BOTH
                ]
                readers = [ManifestReader.open(str(path)) for path in parts]
                with (tmp_path / output).open("w+b") as stream:
                    merge([Source(reader, b"part") for reader in readers], stream)
                for reader in readers:
                    reader.close()
                volume.check(tmp_path / output)
                current.path.write_bytes((tmp_path / output).read_bytes())


def test_a_twin_that_stays_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of a closed file is inside for an open one; when that is pruned, it goes."""
    volume = Volume(tmp_path / "volume", Random(1), monkeypatch)
    make(volume.root, {"a/open": b"secret of two", "b/closed": b"secret of two"})
    volume.closed = {"b/closed"}
    scanned(volume.root, "1.mkm")
    assert {b"a/open", b"b/closed"} <= inside(tmp_path / "1.mkm").keys()
    with ManifestReader.open(str(tmp_path / "1.mkm")) as reader, (tmp_path / "2.mkm").open("w+b") as stream:
        assert reader.info.closed == (b"b/closed",)
        prune(Source(reader, b"it"), [b"a/open"], stream)
    assert not {b"a/open", b"b/closed"} & inside(tmp_path / "2.mkm").keys()


def test_a_directory_that_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asked for the ACLs of what was in it, and its files have not changed since."""
    volume = Volume(tmp_path / "volume", Random(1), monkeypatch)
    make(volume.root, {"a/x/closed": b"secret of two", "b/open": b"secret of two"})
    volume.closed = {"a/x/closed"}
    (volume.root / "a/x").chmod(0o700)
    _age()
    first = scanned(volume.root, "1.mkm")
    assert b"b/open" in inside(first.path)
    (volume.root / "a/x").chmod(0o755)
    (volume.root / "b/open").unlink()
    _age()
    second = with_base(volume.root, first, "2.mkm")
    assert b"a/x/closed" not in inside(second.path)
    volume.check(second.path, exactly=True)


def test_what_a_private_base_has_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has changed since, and nothing is read again, but ACLs that nobody asked for."""
    volume = Volume(tmp_path / "volume", Random(1), monkeypatch)
    make(volume.root, {"a/x/closed": b"secret", "b/open": b"open"})
    volume.closed = {"a/x/closed", "b/x"}
    _age()
    first = scanned(volume.root, "1.mkm", inline_all=True)
    assert b"a/x/closed" in inside(first.path)

    def unreadable(name: bytes) -> int:
        raise AssertionError(name)

    with ManifestReader.open(str(first.path)) as reader:
        assert reader.info.closed is None
    second = with_base(volume.root, first, "2.mkm", open_content=unreadable)
    volume.check(second.path, exactly=True)
    with ManifestReader.open(str(second.path)) as reader:
        assert reader.info.closed == (b"a/x/closed", b"b/x")
    volume.check(with_base(volume.root, second, "3.mkm", open_content=unreadable).path, exactly=True)


def test_closed_paths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left closes all that was closed; the deepest paths are given up first."""
    monkeypatch.setattr("mkmeta.manifest.closed._PATHS_MAX", 100)
    random = Random(3)
    said = [b"/".join(b"%d" % random.randrange(9) for _ in range(random.randrange(1, 7))) for _ in range(3000)]
    closed = ClosedPaths(said)
    assert len(closed) <= 100
    for path in said:
        names = path.split(b"/")
        assert any(b"/".join(names[:count]) in closed for count in range(len(names) + 1)), path
    assert b"" not in closed
    assert list(closed) == sorted(closed)


def test_what_is_known() -> None:
    info = Info(root=b"/", created=0, tool="t")
    assert are_known(info)
    assert not are_known(Info(root=b"/", created=0, tool="t", counts={"nfs4_acl": 1}))
    assert not are_known(Info(root=b"/", created=0, tool="t", drop_xattrs=(b"*",)))
    assert are_known(Info(root=b"/", created=0, tool="t", counts={"nfs4_acl": 1}, closed=()))
