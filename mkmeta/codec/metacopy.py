"""Values of the overlayfs attributes that make a file metadata only: metacopy and redirect.

From the kernel's fs/overlayfs/overlayfs.h and namei.c; formats/upper.md says where they are used.
"""

from __future__ import annotations

import struct
from typing import Final

from mkmeta.digest import VerityDigest

REDIRECT_MAX: Final = 4095  # bytes with the leading slash; data-only layers are walked with PATH_MAX, NUL included
_HEADER = struct.Struct("<BBBB")  # version, len, flags, digest_algo
_SHA256 = 1  # FS_VERITY_HASH_ALG_SHA256
_DIGEST_SIZE = 32  # bytes of a SHA-256


def encode_metacopy(digest: VerityDigest | None) -> bytes:
    """Value of `trusted.overlay.metacopy` (struct ovl_metacopy).

        offset  size  field        value
        0       1     version      0
        1       1     len          36, the size of the whole value
        2       1     flags        0
        3       1     digest_algo  1 = SHA-256
        4       32    digest       fs-verity digest of the data file, raw

    None gives an empty value: still a metadata-only file, but `verity=require` will refuse to open it.
    Raises ValueError when the digest is not 32 bytes.
    """
    if digest is None:
        return b""
    if len(digest) != _DIGEST_SIZE:
        raise ValueError(f"an fs-verity digest of {len(digest)} bytes")
    return _HEADER.pack(0, _HEADER.size + _DIGEST_SIZE, 0, _SHA256) + digest


def encode_redirect(path: bytes) -> bytes:
    """Value of `trusted.overlay.redirect` for a data file at `path` below the root of the lower layer.

    A slash and the path, no NUL behind. Raises ValueError for a path the kernel does not follow: an empty one, one with
    an empty, `.` or `..` component, a component over 255 bytes, a NUL, or more than REDIRECT_MAX bytes with the slash
    (measured: merged lowers have no such limit, data-only ones answer a longer redirect with ENAMETOOLONG).
    """
    if len(path) + 1 > REDIRECT_MAX:
        raise ValueError(f"a redirect of {len(path) + 1} bytes: the kernel follows {REDIRECT_MAX}")
    if b"\0" in path:
        raise ValueError("a NUL in a redirect")
    for name in path.split(b"/"):
        if name in (b"", b".", b"..") or len(name) > 255:
            raise ValueError("a redirect with an empty, '.', '..' or too long component")
    return b"/" + path
