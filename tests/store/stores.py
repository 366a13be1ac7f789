"""Stores for tests, and what formats/store.md lets be in one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from mkmeta.build import BuildOptions
from mkmeta.store.adding import Added, add
from mkmeta.store.store import Store
from tests.layer.layers import open_reader
from tests.layer.manifests import manifest_from
from tests.vectors.trees import Tree, regular


def manifest(size: int) -> bytes:
    """A small manifest; the file in it has `size` bytes, so each has an ID of its own."""
    return manifest_from(Tree(children={b"file": regular(size), b"dir": Tree(children={b"below": regular(1)})}))


def id_of(data: bytes) -> str:
    """The ID of a manifest: formats/manifest.md 2.5, the footer has it at offset 32."""
    return data[-64:-32].hex()


ONE, TWO, THREE = manifest(1), manifest(2), manifest(3)
PACKAGE = Tree(children={b"%d" % number: regular(number + 1) for number in range(50)})
LARGE = manifest_from(Tree(children={b"%d" % number: PACKAGE for number in range(60)}))

STORE_NAMES: Final = {"store.json", "generations", "current", "lock", "build.lock"}  # after any build


def ignore(_text: object, _more: object = None) -> None:
    """For notes and progress."""


def new_store(path: Path) -> Store:
    """Makes a store."""
    return Store.open_or_create(os.fsencode(path))


def put(
    store: Store,
    data: bytes,
    options: BuildOptions | None = None,
    *,
    number: int | None = None,
    make_current: bool = True,
    wait: float = 0,
) -> Added:
    """Adds a generation."""
    with open_reader(data) as reader:
        return add(
            store, reader, options or BuildOptions(), number=number, make_current=make_current, wait=wait, note=ignore
        )


def names(path: Path | bytes) -> list[str]:
    """What is in a directory."""
    return sorted(os.listdir(os.fsdecode(path)))


def generations(path: Path | bytes) -> list[str]:
    """What is in the store's directory of generations."""
    return names(Path(os.fsdecode(path)) / "generations")


def check_interrupted(path: Path) -> None:
    """Asserts that a store is as formats/store.md says it may be after a kill."""
    if not (path / "store.json").exists():
        assert not path.exists() or set(names(path)) <= {".store.json", "generations"}
        return
    assert set(names(path)) <= STORE_NAMES | {".current", ".store.json", "publish.lock"}
    assert [name for name in generations(path) if not re.fullmatch(r"\.new-[0-9a-f]{8}|\d{6}-[0-9a-f]{12}", name)] == []
    check_current(Store.open(os.fsencode(path)))


def check_current(store: Store) -> None:
    """Asserts that all generations are complete, and that `current`, if any, is one of them."""
    there = store.generations()
    for generation in there:
        assert set(names(generation.path)) == {"generation.json", "layer", "manifest.mkm", "private"}
        assert os.readlink(os.path.join(generation.path, b"layer")) == b"private/layer"
        with open(generation.manifest, "rb") as file:
            assert id_of(file.read()) == generation.about().id.hex()
        assert os.getxattr(generation.layer, "trusted.overlay.mkmeta").hex() == generation.about().id.hex()
    assert store.current() in [*there, None]
