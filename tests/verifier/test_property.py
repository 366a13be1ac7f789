"""Any tree, scanned and built, verifies clean; after any one mutation of the layer or of the volume it does not."""

from __future__ import annotations

import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mkmeta.verifier.data import Sample
from tests.scanner.helpers import scan_tree
from tests.verifier.checking import found, make_layer

pytestmark = pytest.mark.needs("root", "trusted xattrs")

NAMES = [b"a", b"b", b"lib", b"\xff\xfe", b"new\nline", b".hidden", b"-", b"y" * 200]


def grow(top: bytes, dice: random.Random, depth: int = 0) -> None:
    """A random directory."""
    made: list[bytes] = []
    for name in dice.sample(NAMES, dice.randint(1, 5)):
        path = top + b"/" + name
        match dice.randrange(7 if depth < 3 else 5):
            case 0:
                os.symlink(dice.choice((b"a", b"/nowhere/\xff", b"..")), path)
            case 1:
                os.mkfifo(path)
            case 2 if made:
                os.link(dice.choice(made), path, follow_symlinks=False)
            case 5 | 6:
                os.mkdir(path)
                grow(path, dice, depth + 1)
            case _:
                with open(path, "wb") as file:
                    file.write(dice.randbytes(dice.choice((0, 1, 4096, 5000))))
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            made.append(path)
        if dice.random() < 0.3:
            os.setxattr(path, b"trusted.x", dice.randbytes(5), follow_symlinks=False)
        if dice.random() < 0.3:
            os.chown(path, dice.randrange(2**32 - 2), 5, follow_symlinks=False)
        if dice.random() < 0.3 and not os.path.islink(path):
            os.chmod(path, dice.randrange(0o10000))
        os.utime(path, ns=(0, dice.randrange(-(10**18), 2 * 10**18)), follow_symlinks=False)


def add_name(path: bytes, dice: random.Random) -> None:
    if not os.path.isdir(path) or os.path.islink(path):
        path = os.path.dirname(path)
    os.mkfifo(path + b"/extra")


def chmod(path: bytes, dice: random.Random) -> None:
    if os.path.islink(path):
        chown(path, dice)
    else:
        os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode) ^ (1 << dice.randrange(12)))


def chown(path: bytes, dice: random.Random) -> None:
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    os.chown(path, status.st_uid ^ 1, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(path, mode)


def touch(path: bytes, dice: random.Random) -> None:
    times = (0, os.lstat(path).st_mtime_ns + dice.choice((1, -1, 10**9)))
    os.utime(path, ns=times, follow_symlinks=False)


def add_xattr(path: bytes, dice: random.Random) -> None:
    os.setxattr(path, b"trusted.new", b"", follow_symlinks=False)


def take_xattr(path: bytes, dice: random.Random) -> None:
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        os.removexattr(path, dice.choice(names), follow_symlinks=False)
    else:
        add_xattr(path, dice)


def change_xattr(path: bytes, dice: random.Random) -> None:
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        name = dice.choice(names)
        value = os.getxattr(path, name, follow_symlinks=False)
        os.setxattr(path, name, value[:-1] + b"?" if value[-1:] != b"?" else value + b"?", follow_symlinks=False)
    else:
        add_xattr(path, dice)


def remove(path: bytes, dice: random.Random) -> None:
    above, before = os.path.dirname(path), os.lstat(os.path.dirname(path))
    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    os.utime(above, ns=(0, before.st_mtime_ns))


def copy_over(path: bytes, dice: random.Random) -> None:
    """Another inode, alike in everything but its type, or in nothing at all."""
    remove(path, dice)
    os.mkfifo(path) if dice.random() < 0.5 else os.symlink(b"elsewhere", path)
    os.chown(path, 12345, 12345, follow_symlinks=False)


MUTATIONS: list[Callable[[bytes, random.Random], None]] = [
    *(add_name, chmod, chown, touch, add_xattr, take_xattr, change_xattr, remove, copy_over)
]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_random_trees_and_mutations(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="mkmeta-verify-") as name:
        top = Path(name)
        (top / "volume/grp/v1").mkdir(parents=True)
        grow(os.fsencode(top / "volume/grp/v1"), dice)
        scanned = scan_tree(top / "volume", "grp/v*")
        assert not scanned.report.left_out
        layer = make_layer(scanned.path, top / "layer")
        options = {"lower": top / "volume", "data": Sample()}
        assert found(scanned.path, layer, **options) == []  # type: ignore[arg-type]
        side = dice.choice(("layer", "volume"))
        where = os.fsencode(top / side / "grp/v1")
        paths = [where, *(path + b"/" + name for path, ds, fs in os.walk(where) for name in ds + fs)]
        dirs = {path for path in paths if os.path.isdir(path) and not os.path.islink(path)}
        mutate, victim = dice.choice(MUTATIONS), dice.choice(paths)
        inode = os.lstat(victim)
        names = {path for path in paths if os.path.samestat(os.lstat(path), inode)}
        mutate(victim, dice)
        seen = found(scanned.path, layer, **options)  # type: ignore[arg-type]
        assert {str(one.side) for one in seen} == {side}, (mutate, victim)
        if mutate is add_name:
            names = {(victim if victim in dirs else os.path.dirname(victim)) + b"/extra"}
        expected = {path.removeprefix(os.fsencode(top / side) + b"/") for path in names}
        assert {one.path for one in seen} & expected, (mutate, victim, seen)
