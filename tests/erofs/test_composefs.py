"""Images of composefs-dump texts: byte for byte those of mkcomposefs, which refuses what is refused here."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mkmeta.__main__ import main
from mkmeta.composefs import build_dump
from mkmeta.errors import FormatError
from mkmeta.model import DigestName
from tests import strategies as some
from tests.erofs.dumps import ROOT, mkcomposefs, texts
from tests.property.test_manifests import links_of
from tests.vectors.trees import Tree, write_tree

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of what fails
drawing = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def image_of(text: bytes, version: int | None = None) -> bytes | None:
    """The image that mkmeta makes of a text; None: it refuses it."""
    with tempfile.TemporaryDirectory() as name:
        dest = Path(name) / "image"
        try:
            build_dump(io.BytesIO(text), os.fsencode(dest), version=version)
        except FormatError:
            assert os.listdir(name) == []
            return None
        return dest.read_bytes()


@pytest.mark.needs("mkcomposefs")
@pytest.mark.timeout(3600)  # deep, on a busy machine
@drawing
@given(texts(), st.sampled_from([None, 0, 1]))
def test_random_texts(text: bytes, version: int | None) -> None:
    options = () if version is None else (f"--min-version={version}", f"--max-version={version}")
    with tempfile.TemporaryDirectory() as name:
        expected = mkcomposefs(text, Path(name) / "image", *options)
    assert image_of(text, version) == expected


def lines(*entries: bytes) -> bytes:
    """A text of a root and these entries."""
    return b"".join(line + b"\n" for line in (ROOT, *entries))


PLAIN = b"0 0 0 0.0"
FILE = b"/f 3 100644 1 %s x - -" % PLAIN
NAMES = (b"/d/n%03d 0 100644 1 %s - - -" % (number, PLAIN) for number in range(200))
OVERLAY = b"trusted.overlay.redirect=/q user.overlay.redirect=/q"
# Size, version and fs-verity digest of the images of mkcomposefs 1.0.8, as fsverity-utils tell them
GOLDEN = {
    lines(): (16384, 0, "8f589e8f57ecb88823736b0d857ddca1e1068a23e264fad164b28f7038eb3682"),
    lines(b"/f 3 100644 1 %s - abc -" % PLAIN): (
        16384, 0, "806abff7dc17ec41f8434e520e50da798ee3fa4931edddc0cd491f8af9c3f43a"),
    lines(b"/f 100 100644 1 %s 5a/%s - %s" % (PLAIN, b"5a" * 31, b"5a" * 32)): (
        16384, 0, "ed6a34d3271dee262b265f46dcc89f4ab89df900968f04c25fa58680c88e75df"),
    lines(b"/f 0 100644 1 0 0 0 1.2 - - -"): (
        16384, 0, "a109c4b47b0ae5030dd9d2b4d49ae442a89bafa7fd8d9e4edc460a9c63c27600"),
    lines(b"/d 0 40755 2 %s - - -" % PLAIN, b"/d/w 0 20644 1 %s - - -" % PLAIN): (
        16384, 1, "b48278c1d18c734e27769a6660f90910b63cec2d3d8826447bde5193ea1e2144"),
    lines(b"/a 0 100644 2 %s - - -" % PLAIN, b"/b 0 @100644 1 %s /a - -" % PLAIN): (
        16384, 0, "0bd2b42cea0acab281a44ef46aae4e5f2e520b5de1585bba458c9eb1a84ad9e5"),
    lines(b"/l 4095 120777 1 %s %s - -" % (PLAIN, b"t" * 4095)): (
        24576, 0, "bd97b6d61988b5dc65137b6596f63af2511660835bf147393683695460ffb17a"),
    lines(b"/d 0 40755 2 %s - - -" % PLAIN, *NAMES): (
        24576, 0, "f2bd1b05643fe50d3ad40cc761b68a7c603732fde04cb24b7fdedfa530de1ea7"),
    lines(b"/b 9895604649984 100644 1 %s - - -" % PLAIN): (
        16384, 0, "1d4067d5300fd15dfe860771393256ec47c79c3716123aaf86fd509d24e0f09a"),
    lines(b"/f 5000 100644 1 %s - %s -" % (PLAIN, b"c" * 5000)): (
        20480, 0, "a26b5f98e9ac0a6a37cda7d23a6e5a72de5c4c3c1099928534d01fc263b03d71"),
    lines(b"/f 0 100644 1 %s - - - %s" % (PLAIN, OVERLAY)): (
        16384, 0, "3869087c006d543f0969255cc18464338c9ef0c6be4ee5d08306079b75794567"),
    ROOT + b" security.selinux=ctx system.posix_acl_access=x\n": (
        24576, 0, "9d88f8f7575b7e5111089c97ed029cba16f44429a6a74640a7bc0a8631139803"),
}  # fmt: skip


@pytest.mark.parametrize("text", GOLDEN, ids=range(len(GOLDEN)))
def test_known_digests(text: bytes, tmp_path: Path) -> None:
    image = build_dump(io.BytesIO(text), os.fsencode(tmp_path / "image"))
    assert (image.image_bytes, image.version, image.verity.hex()) == GOLDEN[text]
    assert (tmp_path / "image").stat().st_size == image.image_bytes


REFUSED = {
    b"": "the text is empty",
    b"\n": "line 1: ",
    b"/f 0 100644 1 0 0 0 0.0 - - -\n": "line 1: the first entry is not the root, a directory",
    b"/ 0 100644 1 0 0 0 0.0 - - -\n": "line 1: the first entry is not the root, a directory",
    b"/ 0 @100644 1 0 0 0 0.0 /f - -\n": "line 1: the first entry is not the root, a directory",
    lines(ROOT): "line 2: the root once more",
    lines() + b"\n": "line 2: ",
    lines(b"/. 0 40755 2 %s - - -" % PLAIN): "line 2: a path that ends with a dot or two",
    lines(b"// 0 40755 2 %s - - -" % PLAIN): "line 2: an empty path, or one that ends with a slash",
    lines(b"/d/ 0 40755 2 %s - - -" % PLAIN): "line 2: an empty path, or one that ends with a slash",
    lines(b"/%s 0 100644 1 %s - - -" % (b"n" * 256, PLAIN)): "line 2: a name of 256 bytes, more than 255",
    lines(b"/d/f 0 100644 1 %s - - -" % PLAIN): "line 2: 'd/f' is in no directory of the lines before",
    lines(b"/d/f 0 100644 1 %s - - -" % PLAIN, b"/d 0 40755 2 %s - - -" % PLAIN): "line 2: 'd/f' is in no directory",
    lines(FILE, b"/f/g 0 100644 1 %s - - -" % PLAIN): "line 3: 'f/g' is in no directory of the lines before",
    lines(b"/a 0 @100644 1 %s /b - -" % PLAIN, b"/b 0 @100644 1 %s /a - -" % PLAIN): "is a hard link to itself",
    lines(b"/a 0 @100644 1 %s /b - -" % PLAIN): "'a' links to '/b', which is not there",
    lines(b"/a 0 @100644 1 %s - - -" % PLAIN): "line 2: a hard link without a target",
    lines(b"/a 0 @40755 1 %s / - -" % PLAIN): "line 2: a hard link cannot be a directory",
    lines(FILE, FILE): "line 3: 'f' is there already",
    lines(b"/f 3 644 1 %s x - -" % PLAIN): "line 2: mode '644' has no file type",
    lines(b"/f 3 100648 1 %s x - -" % PLAIN): "line 2: mode '100648' is not a number",
    lines(b"/f 3x 100644 1 %s x - -" % PLAIN): "line 2: size '3x' is not a number",
    lines(b"/f 3 100644 1 0 0 0 0 x - -"): "line 2: mtime '0' has no dot",
    lines(b"/f  3 100644 1 %s x - -" % PLAIN): "line 2: ",
    lines(b"/f 3 100644 1 %s x\\q - -" % PLAIN): "line 2: '\\q' is not an escape",
    lines(b"/f 3 100644 1 %s x\\x0 - -" % PLAIN): "line 2: '\\x' is not an escape",
    lines(b"/f\0 3 100644 1 %s x - -" % PLAIN): "line 2: a NUL byte",
    lines(b"/f 4 100644 1 %s - abc -" % PLAIN): "line 2: content of 3 bytes; it must be as long as the size",
    lines(b"/f 5001 100644 1 %s - %s -" % (PLAIN, b"c" * 5001)): "and at most 5000",
    lines(b"/l 0 120777 1 %s - - -" % PLAIN): "line 2: a symlink's target has 1 to 4095 bytes",
    lines(b"/l 0 120777 1 %s %s - -" % (PLAIN, b"t" * 4096)): "line 2: a symlink's target has 1 to 4095 bytes",
    lines(b"/f 3 100644 1 %s %s - -" % (PLAIN, b"t" * 4096)): "line 2: a payload of 4096 bytes, more than 4095",
    lines(b"/f %d 100644 1 %s x - -" % (2**53 + 1, PLAIN)): "line 2: a size of 9007199254740993 bytes, more than 2^53",
    lines(FILE + b" =v"): "line 2: xattr '=v' is not KEY=VALUE",
    lines(FILE + b" user.x"): "line 2: xattr 'user.x' is not KEY=VALUE",
    lines(FILE + b" user.x=1  user.y=1"): "line 2: xattr '' is not KEY=VALUE",
    lines(FILE + b" %s=1" % (b"k" * 256)): "line 2: the name of an xattr has 256 bytes, more than 255",
    lines(FILE + b" user.x=%s" % (b"v" * (32767 - 12 - 7 - 6 + 1))): "line 2: xattrs of 32768 bytes, more than 32767",
    lines(FILE + b" user.x=%s" % (b"\\x00" * 16384)): "bytes of text, more than 65535",
    lines(b"/w 0 20644 1 %s - - - user.overlay.whiteout=%s" % (PLAIN, b"v" * 40)): "line 2: mkcomposefs cannot replace",
}  # fmt: skip
WRONGLY_ACCEPTED = {  # by mkcomposefs, which makes something arbitrary, or broken, of them
    lines(b"/f 3 100644 1 %s x - 5a" % PLAIN): "line 2: digest '5a' is not 64 hexadecimal digits",
    lines(b"/f 3 100644 1 %s x -" % PLAIN): "line 2: digest '' is not 64 hexadecimal digits",
    lines(b"/f 3 100644 1 %s x - -\r" % PLAIN): "line 2: digest '-\\x0d' is not 64 hexadecimal digits",
    lines(b"/f -1 100644 1 %s x - -" % PLAIN): "line 2: a size of 18446744073709551615 bytes, more than 2^53",
    lines(b"/f 3 100644 1 %s /x - -" % PLAIN): "line 2: a payload that begins with a slash",
    lines(b"/f 3 100644 1 7 x 0 0.0 x - -"): "line 2: gid 'x' is not a number",
    lines(b"/f 3 100644 1 7 0 x 0.0 x - -"): "line 2: rdev 'x' is not a number",
    lines(b"/f 0 @100644 1 %s / - -" % PLAIN): "line 1: directory '/' has a hard link",
    lines(b"/f 0 @100644"): "line 1: directory '/' has a hard link",
    lines(b"/d 0 40755 1 %s" % PLAIN, b"/d/f 0 @100644 1 0 0 0 0.0 /d - -"): "line 2: directory '/d' has a hard link",
}  # fmt: skip


@pytest.mark.parametrize("text", [*REFUSED, *WRONGLY_ACCEPTED], ids=[*REFUSED.values(), *WRONGLY_ACCEPTED.values()])
def test_what_is_refused(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        build_dump(io.BytesIO(text), os.fsencode(tmp_path / "image"))
    assert (REFUSED | WRONGLY_ACCEPTED)[text] in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.needs("mkcomposefs")
@pytest.mark.parametrize("text", [*REFUSED, *WRONGLY_ACCEPTED], ids=[*REFUSED.values(), *WRONGLY_ACCEPTED.values()])
def test_what_mkcomposefs_says_of_it(text: bytes, tmp_path: Path) -> None:
    assert (mkcomposefs(text, tmp_path / "image") is None) == (text in REFUSED)


HUGE = (b"/f%d %d 100644 1 %s x - -" % (number, 2**53 - 2**43 * (number % 9), PLAIN) for number in range(40))
TAKEN = [
    lines(FILE)[:-1],
    lines(FILE + b" "),
    lines(b"a//b 0 40755 1 %s - - -" % PLAIN, b"a 0 40755 1 %s" % PLAIN),
    lines(b"d 0 40755 1 %s" % PLAIN, b"d///f 3 100644 1 %s" % PLAIN + b" x - -"),
    lines(b"/f +3 0100644 -1 4294967296 18446744073709551616 0 -1.-1 - - -"),
    lines(b"/f\\x00gone 3 100644 1 %s x\\x00gone - -" % PLAIN),
    lines(b"/p 5000000000 10644 1 %s x - nonsense" % PLAIN),
    lines(b"/f 3 100644 1 %s x - - user.a=1 user.a=2 user.b=- user.c=a=b" % PLAIN),
    lines(b"/- 3 100644 1 %s \\x2d - -" % PLAIN),
    lines(b"/a 0 @20644 0 0 0 0 0 b - -", b"/b 0 @100644 0 0 0 0 0 //f/ - -", FILE),
    lines(b"/f %d 100644 1 %s x - -" % (2**53, PLAIN), *HUGE),
    lines(b"/w 0 20644 1 %s - - - user.overlay.whiteout=%s" % (PLAIN, b"v" * 39), b"/h 0 @20644 0 0 0 0 0.0 w - -"),
]  # fmt: skip


@pytest.mark.needs("mkcomposefs")
@pytest.mark.parametrize("text", TAKEN, ids=range(len(TAKEN)))
def test_odd_texts(text: bytes, tmp_path: Path) -> None:
    assert image_of(text) == mkcomposefs(text, tmp_path / "image")


_PIECES = [
    b" ", b"-", b"/", b"\\x00", b"\\", b"0", b"1", b"@", b".", b"\n", b"+", b"\t", b"\r", b"=", b"9" * 21, b"\\x2f",
    b"\\n", b"  ", b"x", b"", b"\0", b"\xff", b"-1", b"40755", b"\\x20", b"/d", b"100644", b"0.0",
]  # fmt: skip
BASE = lines(
    b"/d 4096 40755 2 0 0 0 1.5 - - - user.a=b",
    b"/d/e 4096 40755 2 7 8 0 1.5 - - - trusted.overlay.redirect=/foo\\n",
    b"/d/f 100 100644 1 1 2 0 9.9 ab/cd - " + b"5a" * 32,
    b"/d/w 0 20644 1 0 0 0 0.0 - - -",
    b"/d/h 0 @100644 0 0 0 0 0.0 /d/f - -",
    b"/d/s 3 120777 1 0 0 0 0.0 abc - -",
    b"/d/i 3 100644 1 0 0 0 0.0 - abc -",
    b"/h 0 @100644 0 0 0 0 0.0 /d/h - -",
    b"/b 0 60777 1 0 0 107690 1633950376.0 - - -",
)
_ARBITRARY = re.compile(r"(digest|gid|rdev) '.*' is not|more than 2\^53|begins with a slash|has a hard", re.S)


@pytest.mark.needs("mkcomposefs")
@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 3), st.sampled_from(_PIECES)), max_size=3))
def test_mutated_texts(changes: list[tuple[int, int, bytes]]) -> None:
    """Both take it and make the same of it, or both refuse it, or it is one of those that mkcomposefs should refuse."""
    text = BASE
    for at, size, piece in changes:
        text = text[:at] + piece + text[at + size :]
    with tempfile.TemporaryDirectory() as name:
        expected = mkcomposefs(text, Path(name) / "theirs")
        dest = Path(name) / "ours"
        try:
            build_dump(io.BytesIO(text), os.fsencode(dest))
        except FormatError as error:
            assert expected is None or _ARBITRARY.search(str(error)), error
        else:
            assert dest.read_bytes() == expected


CASES = some.digest_sets.flatmap(lambda digests: st.tuples(st.just(digests), some.trees(digests)))


@pytest.mark.needs("mkcomposefs")
@pytest.mark.timeout(3600)
@drawing
@given(CASES, st.booleans())
def test_of_manifests(case: tuple[tuple[DigestName, ...], Tree], linked: bool) -> None:
    """`build --format composefs` of a manifest is what mkcomposefs makes of its dump."""
    digests, tree = case
    stream = io.BytesIO()
    write_tree(stream, tree, links=links_of(tree) if linked else None, digests=digests)
    with tempfile.TemporaryDirectory() as name:
        manifest, dest = Path(name) / "manifest.mkm", Path(name) / "ours"
        manifest.write_bytes(stream.getvalue())
        with contextlib.redirect_stdout(io.StringIO()) as text:
            assert main(["dump", str(manifest)]) == 0
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(["build", "-q", "--format", "composefs", str(manifest), str(dest)])
        expected = mkcomposefs(text.getvalue().encode(), Path(name) / "theirs")
        assert (dest.read_bytes() if code == 0 else None) == expected


def test_a_bad_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "bad.dump"
    text.write_bytes(lines(b"/f"))
    assert main(["build", "--format", "composefs", str(text), str(tmp_path / "image")]) == 10
    assert capsys.readouterr() == ("", f"mkmeta: {text}: line 2: mode '' is not a number\n")
    assert os.listdir(tmp_path) == ["bad.dump"]
