"""What an image cannot hold is refused before anything is written; what it can hold to the last byte, it holds."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.errors import BuildError
from mkmeta.model import Special, Symlink, Xattrs
from mkmeta.sinks.erofs import image, placing
from tests.conftest import Mount
from tests.erofs.images import build_image, check_image
from tests.layer.manifests import chain, manifest_from
from tests.vectors.make_vectors import VECTORS
from tests.vectors.trees import MTIME, Leaf, Tree, regular

SMALL = manifest_from(Tree(children={b"d": Tree(children={b"%d" % number: regular(1) for number in range(9)})}))
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20
NOBODY = 2**32 - 1
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A value of system.posix_acl_*: tag, permissions, ID of each entry."""
    packed = (
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, bits, who in entries
    )
    return b"\2\0\0\0" + b"".join(packed)


GOOD = acl((USER_OBJ, 6, NOBODY), (USER, 7, 1000), (GROUP_OBJ, 7, NOBODY), (MASK, 4, NOBODY), (OTHER, 4, NOBODY))
BASE = [(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 4, NOBODY)]
BAD = {
    "short": GOOD[:-1],
    "empty": b"\2\0\0\0",
    "of another version": b"\3" + GOOD[1:],
    "without mask": acl(BASE[0], (USER, 7, 1), *BASE[1:]),
    "without owner": acl(*BASE[1:]),
    "out of order": acl(*BASE[::-1]),
    "twice": acl(BASE[0], *BASE),
    "for nobody": acl(BASE[0], (USER, 4, NOBODY), BASE[1], (MASK, 4, NOBODY), BASE[2]),
    "owner with a number": acl((USER_OBJ, 6, 0), *BASE[1:]),
    "permissions": acl((USER_OBJ, 8, NOBODY), *BASE[1:]),
    "unknown tag": acl(*BASE, (0x40, 4, NOBODY)),
    "another mode": acl((USER_OBJ, 7, NOBODY), *BASE[1:]),
}


def refused(leaf: Tree | Leaf, tmp_path: Path, message: str) -> None:
    """Asserts that no image with this leaf is made, whose path the error names, and that nothing is left."""
    with pytest.raises(BuildError, match=message) as caught:
        build_image(manifest_from(Tree(children={b"d": Tree(children={b"x": leaf})})), tmp_path / "image")
    assert caught.value.path == b"d/x"
    assert os.listdir(tmp_path) == []


def with_xattrs(*pairs: tuple[bytes, bytes], mode: int = 0o100644) -> Leaf:
    return dataclasses.replace(regular(1, mode), xattrs=tuple(sorted(pairs)))


def test_a_size(tmp_path: Path) -> None:
    refused(regular(2**53 + 1), tmp_path, r"its size is 9007199254740993 bytes, an image takes 2\^53")


def test_the_value_of_an_xattr(tmp_path: Path) -> None:
    refused(with_xattrs((b"user.x", bytes(65536))), tmp_path, "xattr user.x has 65536 bytes, an image takes 65535")


def long_xattrs(last: int) -> Xattrs:
    """Entries of 4 * 65,516 bytes and one more, beside a header of 12 and those of overlayfs."""
    return (*((b"user.%d" % number, bytes(65510)) for number in range(4)), (b"user.z", bytes(last)))


def test_all_xattrs(tmp_path: Path) -> None:
    """Metacopy takes 20 bytes of them, the redirect 24; each entry has 4 beside name and value."""
    room = 262_148 - 12 - 20 - 24 - 4 * 65516
    leaf = with_xattrs(*long_xattrs(room - 5))
    build_image(manifest_from(Tree(children={b"d": Tree(children={b"x": leaf})})), tmp_path / "image")
    check_image(tmp_path / "image")
    (tmp_path / "image").unlink()
    refused(with_xattrs(*long_xattrs(room - 4)), tmp_path, "its xattrs take 262152 bytes, an image takes 262148")


def test_more_inodes_than_there_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "INODES_OFFSET", 2**37 - 32 * 20)  # where the last ones are
    with pytest.raises(BuildError, match=r"the image would be too large: it has room for 2\^32 inodes of 32 bytes"):
        build_image(SMALL, tmp_path / "image")
    assert os.listdir(tmp_path) == []


def test_more_blocks_than_there_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_BLOCKS_MAX", 1)
    with pytest.raises(BuildError, match=r"the image would be too large: it has room for 2\^32 blocks of 4,096 bytes"):
        build_image(SMALL, tmp_path / "image")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o010644, 0o140644])
def test_user_xattrs_on_what_cannot_have_them(tmp_path: Path, mode: int) -> None:
    special = Special(mode=mode, uid=0, gid=0, mtime_ns=MTIME, xattrs=((b"user.x", b"1"),))
    refused(special, tmp_path, "xattr user.x goes on files and directories only")


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_acls_that_are_none(tmp_path: Path, value: bytes) -> None:
    refused(
        with_xattrs((ACCESS, value)), tmp_path, "xattr system.posix_acl_access (cannot be set: |makes the mode 744)"
    )


@pytest.mark.needs("root", "trusted xattrs")
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_no_directory_takes_these_acls(tmp_path: Path, value: bytes) -> None:
    (tmp_path / "file").touch(0o644)
    (tmp_path / "file").chmod(0o644)
    try:
        os.setxattr(tmp_path / "file", ACCESS, value)
        kept = os.getxattr(tmp_path / "file", ACCESS)
    except OSError:
        return
    assert kept != value or (tmp_path / "file").stat().st_mode != 0o100644


def test_acls_where_none_can_be(tmp_path: Path) -> None:
    refused(with_xattrs((DEFAULT, GOOD)), tmp_path, "does not go on a file of this type")
    link = Symlink(mode=0o120777, uid=0, gid=0, mtime_ns=MTIME, target=b"t", xattrs=((ACCESS, GOOD),))
    refused(link, tmp_path, "does not go on a file of this type")


@pytest.mark.needs("root", "EROFS mounts", "getfattr")
def test_acls_that_are_some(tmp_path: Path, mount: Mount) -> None:
    inner = Tree(mode=0o040644, xattrs=((ACCESS, GOOD), (DEFAULT, GOOD)), children={b"f": with_xattrs((ACCESS, GOOD))})
    build_image(manifest_from(Tree(children={b"d": inner})), tmp_path / "image")
    top = mount("erofs", "ro,loop", tmp_path / "image")
    assert [os.getxattr(top / path, ACCESS) for path in ("d", "d/f")] == [GOOD, GOOD]
    assert os.getxattr(top / "d", DEFAULT) == GOOD


@pytest.mark.needs("root", "EROFS mounts", "fsck.erofs")
def test_as_deep_as_paths_can_be(tmp_path: Path, mount: Mount) -> None:
    build_image(chain(2044), tmp_path / "image")
    top = mount("erofs", "ro,loop", tmp_path / "image")
    found = subprocess.run(["find", top, "-type", "d", "-printf", "d"], capture_output=True, check=True)
    assert len(found.stdout) == 2045


@pytest.mark.parametrize("swap", [False, True])
def test_what_lies_at_dest(tmp_path: Path, capsys: pytest.CaptureFixture[str], swap: bool) -> None:
    """Only an image is replaced, and only with --swap."""
    manifest = tmp_path / "sw.mkm"
    manifest.write_bytes(manifest_from(Tree(children={b"f": regular(1)})))
    build = ["build", "-q", "--format", "erofs", *(["--swap"] if swap else []), str(manifest)]
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "file").write_bytes(b"precious" * 1000)
    for name in ("directory", "link", "file", "sw.mkm", "missing/image", "directory/"):
        before = sorted(os.listdir(tmp_path))
        assert main([*build, str(tmp_path / name) if name != "directory/" else f"{tmp_path}/directory/"]) == 1
        assert sorted(os.listdir(tmp_path)) == before
        assert capsys.readouterr().err.startswith(f"mkmeta: {tmp_path}/")
    assert main([*build, str(tmp_path / "image")]) == 0
    first = (tmp_path / "image").read_bytes()
    assert main([*build, str(tmp_path / "image")]) == (0 if swap else 1)
    assert (tmp_path / "image").read_bytes() == first


@pytest.mark.needs("fsverity")
def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest of the image, then the ID of the manifest; of a text, the digest."""
    data = manifest_from(Tree(children={b"f": regular(1)}))
    (tmp_path / "sw.mkm").write_bytes(data)
    (tmp_path / "sw.dump").write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n")
    for kind, source, more in (
        ("erofs", "sw.mkm", [data[-64:-32].hex()]),
        ("composefs", "sw.mkm", [data[-64:-32].hex()]),
        ("composefs", "sw.dump", []),
    ):
        image = tmp_path / f"{source}.{kind}"
        assert main(["build", "--format", kind, str(tmp_path / source), str(image)]) == 0
        said = subprocess.run(["fsverity", "digest", "--compact", image], capture_output=True, text=True, check=True)
        output = capsys.readouterr()
        assert output.out.splitlines() == [said.stdout.strip(), *more]
        assert f"built {image}: " in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "s", "--format", "composefs"],
        ["--format", "erofs", "--discard", "--swap"],
        ["--format", "erofs", "--base", "b"],
        ["--format", "erofs", "--composefs-version", "1"],
        ["--format", "erofs", "--objects"],
        ["--format", "composefs", "--objects"],
        ["--format", "composefs", "--no-inline"],
        ["--format", "composefs", "--userxattr"],
        ["--format", "composefs", "--no-verity"],
        ["--format", "composefs", "--redirect-prefix", "p"],
        ["--format", "composefs", "--expect-id", "00" * 32],
    ],
)
def test_arguments_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sw.dump").write_text("/ 4096 40755 2 0 0 0 0.0 - - -\n")
    assert main(["build", *arguments, "sw.dump", *([] if "--store" in arguments else ["i"])]) == 2
    assert os.listdir(tmp_path) == ["sw.dump"]


DIGESTS = [line.split() for line in (Path(__file__).parent / "digests.txt").read_text().splitlines()]


@pytest.mark.parametrize(("digest", "name"), DIGESTS, ids=[name for _, name in DIGESTS])
def test_the_images_of_the_vectors(tmp_path: Path, digest: str, name: str) -> None:
    """A digest that changes is another format: hosts that compare it with a published one would refuse the image."""
    result = build_image((VECTORS / name / "manifest.mkm").read_bytes(), tmp_path / "image", jobs=2)
    assert result.published.verity is not None and result.published.verity.hex() == digest
