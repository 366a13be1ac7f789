"""Contents in the manifest: which a scan takes, what becomes of them, and that the ID knows nothing of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mkmeta.codec.nfs4_acl import Access
from mkmeta.errors import FormatError, UsageError
from mkmeta.manifest.check import check_all
from mkmeta.manifest.reader import ManifestReader
from mkmeta.model import DigestName, RegularFile
from mkmeta.scanner import base as base_module
from mkmeta.scanner.entry import EntryReader
from mkmeta.scanner.looking import open_content
from mkmeta.trees.merge import merge
from mkmeta.trees.prune import prune
from mkmeta.trees.recorded import Source
from tests.scanner.helpers import Scanned, scan_tree


@pytest.fixture(autouse=True)
def _everything_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the margin is for has tests of its own."""
    monkeypatch.setattr(base_module, "TRUST_MARGIN", 0)


ALL = ((b"", 1 << 20),)


def make(root: Path, files: dict[str, bytes], mode: int = 0o644) -> None:
    """Makes files, and the directories they are in, which everybody may enter."""
    for path, data in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)
    for directory in (root, *root.rglob("*/")):
        directory.chmod(0o755)


def inside(manifest: Path) -> dict[bytes, bytes]:
    """What is inside, by path; fails unless everything in the manifest is valid."""
    with ManifestReader.open(str(manifest)) as reader:
        check_all(reader)
        contents = reader.contents
        if contents is None:
            return {}
        found = {
            path: contents.read(contents.find(node), path)
            for path, node in reader.walk()
            if isinstance(node, RegularFile) and contents.find(node) >= 0
        }
        names = {node.blake3 for path, node in reader.walk() if path in found and isinstance(node, RegularFile)}
        assert len(names) == len(contents)
        assert reader.info.counts["inline_files"] == len(found)
        assert reader.info.counts["inline_bytes"] == sum(map(len, found.values()))
        return found


def names(manifest: Path) -> set[str]:
    return {os.fsdecode(path) for path in inside(manifest)}


def scanned(root: Path, output: str, inline: Iterable[tuple[bytes, int]] = ALL, **options: Any) -> Scanned:
    select = options.pop("select", ())
    return scan_tree(root, *select, inline=tuple(inline), output=root.parent / output, **options)


def with_base(root: Path, base: Scanned, output: str, *args: Any, **options: Any) -> Scanned:
    with ManifestReader.open(str(base.path)) as reader:
        return scanned(root, output, *args, base=reader, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "volume"
    random = Random(1)
    files = {
        f"a/v{n}/f{m}": random.randbytes(random.choice((100, 4095, 4096, 4097, 9000))) for n in (1, 2) for m in "abc"
    }
    make(
        root, files | {"a/v1/same": b"same", "b/same": b"same", "b/empty": b"", "b/large": bytes(600_000), "top": b"t"}
    )
    return root


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_taken_is_what_is_there(root: Path, workers: int) -> None:
    with_contents, without = scanned(root, "1.mkm", workers=workers), scan_tree(root, output=root.parent / "2.mkm")
    assert with_contents.id == without.id
    files = {os.fsencode(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    del files[b"b/empty"]
    assert inside(with_contents.path) == files
    assert inside(without.path) == {}


def test_once_however_many_files_have_it(root: Path) -> None:
    make(root, {f"c/{number}": b"all the same" * 1000 for number in range(100)})
    found = scanned(root, "1.mkm")
    with ManifestReader.open(str(found.path)) as reader:
        assert reader.contents is not None
        assert len(reader.contents) == len({*inside(found.path).values()})


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (((b"", 4),), "a/v1/same b/same top"),
        (((b"", 3),), "top"),
        (((b"", 0),), ""),
        (((b"b", 10),), "a/v1/same b/same"),  # a content belongs to all who have it
        (((b"", 1 << 20), (b"a", 0), (b"b", 0)), "top"),
        (((b"a/v1", 1 << 20), (b"a", 0)), ""),  # the last counts
        (((b"a", 0), (b"a/v1/f?", 1 << 20)), "a/v1/fa a/v1/fb a/v1/fc"),
        (((b"**/large", 1 << 20),), "b/large"),
        (((b"top", 1),), "top"),
        (((b"**/v1/*", 4),), "a/v1/same b/same"),
    ],
)
def test_rules(root: Path, rules: tuple[tuple[bytes, int], ...], expected: str) -> None:
    (root / "a/v1/fa").write_bytes(b"12345678")
    assert names(scanned(root, "1.mkm", rules).path) == {*expected.split()}


def test_what_not_everybody_may_read_is_left_where_it_is(root: Path) -> None:
    (root / "top").chmod(0o640)
    (root / "a/v1/fa").chmod(0o604)  # not its group
    (root / "a/v1/fb").chmod(0o044)  # its owner may change that
    (root / "a/v2").chmod(0o754)
    left = {"top", "a/v1/fa", "a/v2/fa", "a/v2/fb", "a/v2/fc"}
    found = scanned(root, "1.mkm")
    everything = scanned(root, "2.mkm", inline_all=True)
    assert names(everything.path) - names(found.path) == left
    (root / "b/same2").write_bytes((root / "a/v2/fa").read_bytes())
    assert names(scanned(root, "1.mkm").path) >= {"b/same2", "a/v2/fa"}  # everybody may read it there


def test_acls_count(root: Path) -> None:
    for arguments, path in (
        ("u:1234:-", "top"),
        ("u:1234:r", "b/same"),
        ("g:1234:-", "a/v1"),
        ("m::x,g:1234:rwx", "a/v2/fa"),
    ):
        subprocess.run(["setfacl", "-m", arguments, root / path], check=True)
    expected = {"b/same", "b/large", "a/v2/fb", "a/v2/fc", "a/v1/same"}
    assert names(scanned(root, "1.mkm").path) == expected
    assert names(scanned(root, "2.mkm", drop_xattrs=(b"*",)).path) == expected


def test_an_nfs4_acl_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a volume that has them; whether one allows everybody something, tests/codec says."""
    first = scanned(root, "1.mkm")

    def allows(_reader: EntryReader, prefix: bytes, name: bytes, wanted: Access) -> bool:
        assert wanted is (Access.SEARCH if name == b"." else Access.READ)
        return prefix + name not in (b"a/v1/fa", b"b/.")

    monkeypatch.setattr(EntryReader, "allows_everybody", allows)
    expected = names(first.path) - {"a/v1/fa", "b/large"}
    assert names(scanned(root, "2.mkm").path) == expected
    (root / "a/v1/fa").touch()  # its ACL was changed, which the mode does not tell
    _age()
    assert "a/v1/fa" not in names(with_base(root, first, "3.mkm").path)


@pytest.mark.parametrize("only", [(), (b"a", b"b")], ids=["all", "only"])
@pytest.mark.parametrize("rules", [ALL, ((b"", 1 << 20), (b"a/v2", 0), (b"a/v1/f?", 0))], ids=["as before", "less"])
def test_an_nfs4_acl_that_came_closes_what_the_base_has(
    root: Path, monkeypatch: pytest.MonkeyPatch, only: tuple[bytes, ...], rules: tuple[tuple[bytes, int], ...]
) -> None:
    """For a file, and for all below a directory; also where no rule takes anything now. What others have stays."""
    make(root, {"a/v2/deep/x": b"below", "a/v2/deep/same": b"same", "b/v2/y": b"also", "b/twice": b"twice"})
    make(root, {"a/v1/twice": b"twice"})
    _age()
    first = scanned(root, "1.mkm")
    closed = (b"a/v1/fa", b"a/v2/.", b"b/v2/.", b"a/v1/twice")
    monkeypatch.setattr(
        EntryReader, "allows_everybody", lambda _reader, prefix, name, _wanted: prefix + name not in closed
    )
    (root / "a/v1/fa").touch()
    (root / "a/v1/twice").touch()
    _age()
    gone = {"a/v1/fa", "a/v2/fa", "a/v2/fb", "a/v2/fc", "a/v2/deep/x", "b/v2/y"}
    second = with_base(root, first, "2.mkm", rules, only=only)
    assert names(second.path) == names(first.path) - gone
    assert names(with_base(root, second, "3.mkm", rules, only=only).path) == names(second.path)


def test_a_file_is_read_once(root: Path) -> None:
    scanned(root, "1.mkm", open_content=_recording(root.parent / "opened"))
    opened = (root.parent / "opened").read_bytes().split()
    files = sorted(os.fsencode(path.name) for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    assert sorted(opened) == files


def _recording(log: Path) -> Any:
    def opening(name: bytes) -> int:
        with log.open("ab") as file:
            file.write(name + b"\n")
        return open_content(name)

    return opening


@pytest.mark.parametrize("digests", [(), (DigestName.VERITY,)])
def test_without_its_name_no_content(root: Path, digests: tuple[DigestName, ...]) -> None:
    with pytest.raises(UsageError, match="needs BLAKE3"):
        scanned(root, "1.mkm", digests=digests)
    with pytest.raises(UsageError, match="up to 4M"):
        scanned(root, "1.mkm", ((b"x", (4 << 20) + 1),))


def test_what_changes_while_it_is_read_is_of_no_file(root: Path) -> None:
    """Its subtree is left out, and what was taken in it is found no more."""

    def opening(name: bytes) -> int:
        if name == b"fc":
            (root / "a/v2/fc").write_bytes(os.urandom(5))
        return open_content(name)

    found = scanned(root, "1.mkm", open_content=opening)
    assert set(found.left_out()) == {b"a"}
    assert names(found.path) == {"b/same", "b/large", "top"}


class TestBase:
    """On an earlier manifest."""

    def test_frames_come_along(self, root: Path) -> None:
        _age()
        first = scanned(root, "1.mkm")
        make(root, {"new/file": b"new"})
        second = with_base(root, first, "2.mkm", open_content=_recording(root.parent / "opened"))
        assert (root.parent / "opened").read_bytes() == b"file\n"
        assert names(second.path) == names(first.path) | {"new/file"}
        assert second.id == scanned(root, "3.mkm").id
        old, new = first.path.read_bytes(), second.path.read_bytes()
        with ManifestReader.open(str(first.path)) as reader:
            assert reader.contents is not None
            data, _ = reader.contents.frame(reader.file.object_frames)
        assert data in old and data in new

    def test_what_nothing_has_any_more_goes(self, root: Path) -> None:
        _age()
        first = scanned(root, "1.mkm")
        gone = (root / "a/v1/fa").read_bytes()
        (root / "a/v1/fa").unlink()
        second = with_base(root, first, "2.mkm")
        assert names(second.path) == names(first.path) - {"a/v1/fa"}
        assert gone not in _all_bytes(second.path)

    def test_what_is_closed_now_goes(self, root: Path) -> None:
        _age()
        first = scanned(root, "1.mkm")
        (root / "a/v1/fa").chmod(0o600)
        (root / "a/v2").chmod(0o700)
        second = with_base(root, first, "2.mkm")
        assert names(second.path) == names(first.path) - {"a/v1/fa", "a/v2/fa", "a/v2/fb", "a/v2/fc"}
        (root / "a/v2").chmod(0o755)  # none of its files has changed since
        _age()
        assert names(with_base(root, second, "3.mkm").path) == names(first.path) - {"a/v1/fa"}

    def test_what_the_base_has_not_is_read(self, root: Path) -> None:
        _age()
        first = scan_tree(root, output=root.parent / "1.mkm")
        log = root.parent / "opened"
        second = with_base(root, first, "2.mkm", ((b"a/v1", 1 << 20),), open_content=_recording(log))
        assert sorted(log.read_bytes().split()) == [b"fa", b"fb", b"fc", b"same"]
        assert names(second.path) == {"a/v1/fa", "a/v1/fb", "a/v1/fc", "a/v1/same", "b/same"}
        assert names(with_base(root, second, "3.mkm", ((b"", 0),)).path) == set()

    @pytest.mark.parametrize("rules", [ALL, ((b"", 0),)])
    def test_a_part(self, root: Path, rules: tuple[tuple[bytes, int], ...]) -> None:
        _age()
        first = scanned(root, "1.mkm")
        (root / "a/v1/fa").unlink()
        make(root, {"a/v1/fz": b"news", "b/unseen": b"unseen"})
        second = with_base(root, first, "2.mkm", rules, only=(b"a/v1",))
        expected = names(first.path) - {"a/v1/fa"} | {"a/v1/fz"}
        assert names(second.path) == (expected if rules == ALL else set())

    def test_again_and_again(self, root: Path) -> None:
        """Nothing adds up: neither objects nor contents, nor frames of them."""
        _age()
        manifest = scanned(root, "0.mkm")
        sizes = []
        for number in range(1, 12):
            (root / "a/v1/fa").write_bytes(b"%d" % number * 4000)
            manifest = with_base(root, manifest, f"{number}.mkm")
            sizes.append(manifest.path.stat().st_size)
        assert names(manifest.path) == {
            os.fsdecode(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.stat().st_size
        }
        assert max(sizes) - min(sizes) < 66_000

    def test_a_damaged_content_is_not_carried_on(self, root: Path) -> None:
        _age()
        first = scanned(root, "1.mkm")
        with ManifestReader.open(str(first.path)) as reader:
            assert reader.contents is not None
            data, _ = reader.contents.frame(reader.file.object_frames)
        raw = first.path.read_bytes()
        at = raw.index(data) + len(data) // 2
        first.path.write_bytes(raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :])
        (root / "a/v1/fa").unlink()
        with pytest.raises(FormatError, match="damaged"):
            with_base(root, first, "2.mkm")


def test_merged_and_pruned(root: Path) -> None:
    parts = [scanned(root, f"{name}.mkm", select=(name,)) for name in ("a", "b", "top")]
    whole = scanned(root, "whole.mkm", select=("a", "b", "top"))
    readers = [ManifestReader.open(str(part.path)) for part in parts]
    merged = root.parent / "merged.mkm"
    with merged.open("w+b") as stream:
        report = merge([Source(reader, b"part") for reader in readers], stream)
    assert report.manifest_id.hex() == whole.id
    assert names(merged) == names(whole.path)
    pruned = root.parent / "pruned.mkm"
    with ManifestReader.open(str(merged)) as reader, pruned.open("w+b") as stream:
        prune(Source(reader, b"merged"), [b"a/v1", b"top"], stream)
    assert names(pruned) == names(whole.path) - {"top", "a/v1/fa", "a/v1/fb", "a/v1/fc", "a/v1/same"}
    gone = (root / "a/v1/fa").read_bytes()
    assert gone in _all_bytes(merged) and gone not in _all_bytes(pruned)
    for reader in readers:
        reader.close()


def _all_bytes(manifest: Path) -> bytes:
    """Everything in all frames."""
    with ManifestReader.open(str(manifest)) as reader:
        return b"".join(reader.file._read_frame(number, "frame") for number in range(reader.file.footer.frames))


def _age() -> None:
    """Lets the clock of change times tick."""
    time.sleep(0.05)
