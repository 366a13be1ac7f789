"""The two values that make a file metadata only, against the kernel's layout and what it follows."""

from __future__ import annotations

import pytest

from mkmeta.codec.metacopy import REDIRECT_MAX, encode_metacopy, encode_redirect
from mkmeta.digest import VerityDigest


def test_metacopy_is_struct_ovl_metacopy() -> None:
    digest = VerityDigest(bytes(range(32)))
    assert encode_metacopy(digest) == b"\0\x24\0\x01" + digest
    assert encode_metacopy(None) == b""


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_metacopy_refuses_what_is_no_sha256(size: int) -> None:
    with pytest.raises(ValueError, match=f"of {size} bytes"):
        encode_metacopy(VerityDigest(bytes(size)))


def test_redirect_is_absolute() -> None:
    assert encode_redirect(b"a/b \n\xff/...") == b"/a/b \n\xff/..."
    longest = b"/".join([b"x" * 200] * 20) + b"/" + b"y" * 74
    assert len(encode_redirect(longest)) == REDIRECT_MAX == 4095


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/a",
        b"a/",
        b"a//b",
        b".",
        b"..",
        b"a/./b",
        b"a/../b",
        b"../a",
        b"a\0",
        b"x" * 256,
        b"a/" * 2047 + b"a",
    ],
)
def test_redirect_refuses_what_the_kernel_would_not_follow(path: bytes) -> None:
    with pytest.raises(ValueError, match="redirect"):
        encode_redirect(path)
