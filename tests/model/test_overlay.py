"""The model of overlayfs against the kernel's overlayfs, on random layers and volumes."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.mounts import mounted
from tests.model.overlay import METACOPY, OPAQUE, PREFIX, PROFILES, REDIRECT, Disk, join, shown

pytestmark = pytest.mark.needs("root", "overlay", "trusted xattrs")

NAMES = [b"a", b"b", b"c\xff"]
WHITEOUT = "whiteout"
PATHS = [b"/a", b"/b", b"/a/a", b"/a/b", b"/b/a", b"/a/b/c\xff"]

# A node is a dict of children with flags, the text of a file, a symlink or metacopy as a pair, or a whiteout
_leaves = st.one_of(
    st.sampled_from([b"", b"data", b"other data"]),
    st.tuples(st.just("symlink"), st.sampled_from(PATHS)),
    st.just(WHITEOUT),
)
_metacopies = st.tuples(st.just("metacopy"), st.sampled_from([*PATHS, None]))


def _trees(leaves: st.SearchStrategy[Any], flags: list[str]) -> st.SearchStrategy[dict[Any, Any]]:
    def directory(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
        return st.tuples(st.dictionaries(st.sampled_from(NAMES), nodes, max_size=3), st.sampled_from(flags)).map(
            lambda drawn: {**drawn[0], "flag": drawn[1]}
        )

    return directory(st.recursive(leaves, directory, max_leaves=8))


layers = _trees(_leaves | _metacopies | _metacopies, ["merge", "opaque", "both"])
volumes = _trees(_leaves, ["merge", "merge", "opaque"])


def make(top: bytes, tree: dict[Any, Any], path: bytes = b"") -> None:
    """Writes a drawn tree into an existing directory."""
    for name, node in tree.items():
        if name == "flag":
            continue
        at = join(path, name)
        real = os.path.join(top, at)
        match node:
            case dict():
                os.mkdir(real, 0o750)
                make(top, node, at)
                os.utime(real, ns=(len(at), len(at)))
            case ("symlink", target):
                os.symlink(target, real)
            case ("metacopy", target):
                with open(real, "wb") as file:
                    file.truncate(5)
                os.setxattr(real, METACOPY, b"")
                if target is not None:
                    os.setxattr(real, REDIRECT, target)
            case bytes():
                with open(real, "wb") as file:
                    file.write(node)
                os.setxattr(real, b"user.note", at)
            case _:
                os.mknod(real, stat.S_IFCHR | 0o600, os.makedev(0, 0))
    if path and tree["flag"] != "merge":
        os.setxattr(os.path.join(top, path), OPAQUE, b"y")
        if tree["flag"] == "both":
            os.setxattr(os.path.join(top, path), PREFIX + b"overlay.opaque", b"y")


@pytest.mark.parametrize("profile", list(PROFILES))
@given(layer=layers, volume=volumes)
def test_shows_what_the_kernel_shows(profile: str, layer: dict[Any, Any], volume: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        for name, tree in (("layer", layer), ("volume", volume)):
            (top / name).mkdir()
            make(os.fsencode(top / name), tree)
        model = PROFILES[profile](Disk(top / "layer"), Disk(top / "volume"))
        with mounted(top / "layer", top / "volume", profile) as where:
            assert shown(model) == shown(Disk(where))
