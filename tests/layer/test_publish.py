"""All or nothing: what is beside DEST and at DEST before, during and after builds, killed ones included."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.build import BuildOptions, build, sink_for
from mkmeta.digest import ObjectId
from mkmeta.errors import BuildError, IdMismatchError, MkmetaError
from mkmeta.linux import syscalls
from mkmeta.linux.syscalls import RENAME_EXCHANGE, open_beneath, renameat2
from mkmeta.sinks.directory import node_writer, sink, staging
from mkmeta.store.adding import add
from mkmeta.store.store import Store
from tests.layer.layers import attributes, build_layer, open_reader, snapshot, xattrs
from tests.layer.manifests import manifest_from
from tests.vectors.trees import Tree, regular

pytestmark = pytest.mark.needs("trusted xattrs", "getfattr")

SMALL = manifest_from(Tree(children={b"file": regular(3)}))
OTHER = manifest_from(Tree(children={b"other": regular(4), b"dir": Tree()}))
PACKAGE = Tree(children={b"%d" % number: regular(number + 1) for number in range(50)})
LARGE = manifest_from(Tree(children={b"%d" % number: PACKAGE for number in range(100)}))


def names(place: Path) -> list[str]:
    return sorted(os.listdir(place))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for DEST, with a bystander in it."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "bystander").write_text("x")
    (place / ".layer.mkmeta-notes").write_text("a user's own file")
    (place / ".layer.mkmeta-0123456").mkdir()
    return place


BYSTANDERS = [".layer.mkmeta-0123456", ".layer.mkmeta-notes", "bystander"]


def test_swap_keeps_the_old_layer_under_its_id(place: Path) -> None:
    first = build_layer(SMALL, place / "layer", swap=True)  # nothing there yet: a plain build
    assert first.published.old is None
    before = attributes(place / "layer")
    second = build_layer(OTHER, place / "layer", swap=True)
    old = f"layer.old-{first.manifest_id.hex()[:12]}"
    assert second.published.old == old.encode()
    assert names(place) == [*BYSTANDERS, "layer", old]
    assert attributes(place / old) == before
    assert xattrs(place / "layer", "overlay") == {"trusted.overlay.mkmeta": second.manifest_id}
    assert xattrs(place / old, "overlay") == {"trusted.overlay.mkmeta": first.manifest_id}


def test_swap_never_reuses_a_name(place: Path) -> None:
    olds = [build_layer(SMALL, place / "layer", swap=True).published.old for _ in range(4)]
    base = b"layer.old-" + bytes(xattrs(place / "layer")["trusted.overlay.mkmeta"].hex()[:12], "ascii")
    assert olds == [None, base, base + b"-1", base + b"-2"]


def test_swap_with_an_empty_directory(place: Path) -> None:
    (place / "layer").mkdir()
    assert build_layer(SMALL, place / "layer", swap=True).published.old == b"layer.old-unknown"


def make_foreign(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("x")


def make_store(path: Path) -> None:
    Store.open_or_create(os.fsencode(path))


def make_generations(path: Path) -> None:
    path.rmdir()
    Store.open_or_create(os.fsencode(path.parent))


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (make_foreign, "layer", "is not a layer that mkmeta built"),
        (make_store, "layer", "is a store, which keeps several layers"),
        (make_generations, "layer/generations", "is part of a store, in which nothing is replaced"),
    ],
)
def test_swap_replaces_nothing_but_layers(
    place: Path, make: Callable[[Path], None], name: str, message: str, discard: bool
) -> None:
    (place / name).parent.mkdir(exist_ok=True)
    if "/" in name:
        (place / name).mkdir()
    make(place / name)
    before = snapshot(place)
    with pytest.raises(BuildError, match=message):
        build_layer(SMALL, place / name, swap=True, discard=discard)
    assert snapshot(place) == before


@pytest.mark.parametrize("part", ["", "/layer", "/private", "/private/layer"])
def test_swap_replaces_no_part_of_a_generation(place: Path, part: str) -> None:
    store = Store.open_or_create(os.fsencode(place / "store"))
    with open_reader(SMALL) as reader:
        added = add(store, reader, BuildOptions(), number=None, make_current=True, wait=0, note=lambda _: None)
    before = snapshot(place)
    with pytest.raises(BuildError, match=r"not a layer that mkmeta built|is part of a store|is a symbolic link"):
        build_layer(SMALL, Path(os.fsdecode(added.generation.path) + part), swap=True)
    assert snapshot(place) == before


@pytest.mark.needs("root")
@pytest.mark.parametrize("instead", ["link", "directory", "nothing"])
def test_what_others_put_in_the_place_of_the_staging_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    """Whoever may write to the directory that DEST goes into can do so between mkdir and open; here each time."""
    place.chmod(0o777)
    precious = place.parent / "precious"
    precious.write_text("x")
    precious.chmod(0o600)
    swapped: list[Path] = []
    times = 0

    def swap_then_open(name: bytes, flags: int, *, dir_fd: int) -> int:
        here = place / os.fsdecode(name)
        if b".mkmeta-" in name and len(swapped) < times:
            swapped.append(here)
            here.rmdir()
            if instead == "link":
                here.symlink_to(precious.parent)
            if instead == "directory":
                here.mkdir(0o700)
                (here / "file").symlink_to(precious)
                os.chown(here, 65534, 65534)
        return open_beneath(name, flags, dir_fd=dir_fd)

    monkeypatch.setattr(staging, "open_beneath", swap_then_open)
    for times in (1, 1000):
        swapped.clear()
        if times == 1:
            build_layer(SMALL, place / "layer")
            (place / "layer").rename(place / "first")
        else:
            with pytest.raises(BuildError, match="somebody else takes away what is made there"):
                build_layer(SMALL, place / "layer")
        assert precious.stat().st_mode == 0o100600
        assert precious.read_text() == "x"
        for foreign in swapped if instead == "directory" else []:
            assert names(foreign) == ["file"]
            assert (foreign.stat().st_uid, foreign.stat().st_mode) == (65534, 0o040700)


@pytest.mark.needs("root")
def test_what_others_can_name_like_a_leftover_is_not_removed(place: Path) -> None:
    """Where anybody may rename anything, a directory of root's gets the name of one: it stays, and that is said."""
    theirs = place / ".layer.mkmeta-00000000"
    theirs.mkdir(0o700)
    (theirs / "precious").write_text("x")
    place.chmod(0o777)
    assert build_layer(SMALL, place / "layer").published.leftovers == (b".layer.mkmeta-00000000",)
    assert (theirs / "precious").read_text() == "x"
    place.chmod(0o755)
    build_layer(OTHER, place / "layer", swap=True)
    assert not theirs.exists()


@pytest.mark.needs("root")
def test_a_layer_that_others_exchanged_is_not_said_to_be_in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(source: bytes, target: bytes, flags: int, *, source_dir_fd: int, target_dir_fd: int) -> None:
        renameat2(source, target, flags, source_dir_fd=source_dir_fd, target_dir_fd=target_dir_fd)
        if target == b"layer":
            (place / "layer").rename(place / "away")
            (place / "layer").mkdir()

    monkeypatch.setattr(staging, "renameat2", rename)
    with pytest.raises(BuildError, match="somebody else put something in the place of the layer"):
        build_layer(SMALL, place / "layer")


def test_discard_removes_the_old_layer(place: Path) -> None:
    build_layer(LARGE, place / "layer")
    result = build_layer(SMALL, place / "layer", swap=True, discard=True)
    assert result.published.old is None
    assert names(place) == [*BYSTANDERS, "layer"]
    assert names(place / "layer") == ["file"]


def test_discard_spares_what_mkmeta_did_not_build(place: Path) -> None:
    (place / "layer").mkdir()
    (place / "layer" / "precious").write_text("x")
    before = snapshot(place)
    with pytest.raises(BuildError, match="not a layer that mkmeta built"):
        build_layer(SMALL, place / "layer", swap=True, discard=True)
    assert snapshot(place) == before


def test_discard_spares_what_took_the_place_of_the_layer_meanwhile(place: Path) -> None:
    """Whether DEST may be lost is asked again just before it would be."""
    build_layer(SMALL, place / "layer")

    def somebody(_done: int, _total: int) -> None:
        if (place / "layer/file").exists():
            (place / "layer").rename(place / "elsewhere")
            (place / "layer").mkdir()
            (place / "layer/precious").write_text("not a layer")

    dest = os.fsencode(place / "layer")
    sink = sink_for(dest, BuildOptions(), swap=True, discard=True)
    with open_reader(OTHER) as reader, pytest.raises(BuildError, match="is not a layer that mkmeta built"):
        build(reader, sink, BuildOptions(), somebody)
    assert (place / "layer/precious").read_text() == "not a layer"
    assert names(place) == sorted([*BYSTANDERS, "elsewhere", "layer"])


def make_symlink(path: Path) -> None:
    path.symlink_to("bystander")


@pytest.mark.parametrize(
    ("make", "swap", "message"),
    [
        (Path.mkdir, False, "exists"),
        (Path.touch, False, "exists and is not a directory"),
        (Path.touch, True, "exists and is not a directory"),
        (make_symlink, False, "is a symbolic link"),
        (make_symlink, True, "is a symbolic link"),
    ],
)
def test_an_existing_dest_is_left_alone(place: Path, make: Callable[[Path], None], swap: bool, message: str) -> None:
    make(place / "layer")
    before = snapshot(place)
    with pytest.raises(BuildError, match=message):
        build_layer(SMALL, place / "layer", swap=swap)
    assert snapshot(place) == before


@pytest.mark.parametrize("dest", ["", "/", ".", "..", "place/..", "place/."])
def test_a_dest_without_a_name_is_refused(place: Path, dest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    with open_reader(SMALL) as reader, pytest.raises(BuildError, match="not the name of a directory"):
        build(reader, sink_for(os.fsencode(dest), BuildOptions()), BuildOptions())


def test_a_missing_parent_is_named(place: Path) -> None:
    with pytest.raises(BuildError, match="no such file") as caught:
        build_layer(SMALL, place / "absent" / "layer")
    assert caught.value.path == os.fsencode(place / "absent")
    assert caught.value.hint


def test_another_manifest_is_refused_before_anything_is_written(place: Path) -> None:
    before = snapshot(place)
    with pytest.raises(IdMismatchError):
        build_layer(SMALL, place / "layer", BuildOptions(expect_id=ObjectId(bytes(32))))
    assert snapshot(place) == before
    with pytest.raises(IdMismatchError):
        build_layer(SMALL, place / "missing" / "layer", BuildOptions(expect_id=ObjectId(bytes(32))))


@pytest.mark.parametrize("moment", ["before the last look", "after the last look"])
def test_dest_appearing_meanwhile_is_not_replaced(place: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    module, name = (sink, "make_links") if moment.startswith("before") else (staging, "syncfs")
    monkeypatch.setattr(module, name, lambda *_: (place / "layer").mkdir())
    with pytest.raises(BuildError, match=r"exists|appeared while"):
        build_layer(SMALL, place / "layer")
    assert names(place) == [*BYSTANDERS, "layer"]
    assert names(place / "layer") == []


def test_an_interrupt_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        assert any(name.startswith(".layer.mkmeta-") for name in set(names(place)) - set(BYSTANDERS))
        raise KeyboardInterrupt

    monkeypatch.setattr(sink, "make_links", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_layer(LARGE, place / "layer")
    assert names(place) == BYSTANDERS


def test_a_worker_that_is_killed_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(node_writer.NodeWriter, "directory", die)
    with pytest.raises(MkmetaError, match="worker process was killed by SIGKILL"):
        build_layer(LARGE, place / "layer", BuildOptions(jobs=2))
    assert names(place) == BYSTANDERS


def start_build(place: Path, manifest: bytes, *options: str) -> subprocess.Popen[bytes]:
    (place.parent / "manifest").write_bytes(manifest)
    command = [sys.executable, "-m", "mkmeta", "build", *options, f"{place.parent}/manifest", f"{place}/layer"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("options", [(), ("--swap",), ("--swap", "--discard")])
def test_killed_at_any_moment(place: Path, options: tuple[str, ...]) -> None:
    """DEST is the old tree or the new one; the next build clears what is left; no old layer is lost."""
    chance = random.Random(len(options))
    build_layer(SMALL, place.parent / "old")
    build_layer(LARGE, place.parent / "new")
    old, new = attributes(place.parent / "old"), attributes(place.parent / "new")
    killed_at_work = 0
    for number in range(12):
        for name in set(names(place)) - set(BYSTANDERS):
            if name == "layer" or ".old-" in name:  # leftovers stay, for the next build
                shutil.rmtree(place / name)
        if options:
            build_layer(SMALL, place / "layer")
        process = start_build(place, LARGE, *options)
        wait_for_staging(place, process)
        time.sleep(chance.random() * 0.03 * number)
        process.kill()
        process.communicate()
        there = attributes(place / "layer") if (place / "layer").exists() else None
        assert there in ([old, new] if options else [None, new])
        if there != new:
            killed_at_work += 1
        elif options == ("--swap",):
            assert [attributes(place / name) for name in names(place) if ".old-" in name] == [old]
    assert killed_at_work > 1
    final = start_build(place, OTHER, "--swap", *options[1:])
    _, errors = final.communicate()
    assert final.returncode == 0, errors
    assert [name for name in names(place) if name not in BYSTANDERS and ".old-" not in name] == ["layer"]
    assert names(place / "layer") == ["dir", "other"]
    assert not any(os.listxattr(place / name) == ["trusted.overlay.mkmeta-pending"] for name in names(place))


def wait_for_staging(place: Path, process: subprocess.Popen[bytes]) -> None:
    before = set(names(place))
    while set(names(place)) <= before and process.poll() is None:
        time.sleep(0.001)


def test_the_leftover_of_a_living_build_stays(place: Path) -> None:
    alive, dead = place / ".layer.mkmeta-00000001", place / ".layer.mkmeta-00000002"
    other = place / ".layer2.mkmeta-00000003"
    for path in (alive, dead, other):
        (path / "sub" / "sub").mkdir(parents=True)
        (path / "sub" / "file").write_text("x")
    fd = os.open(alive, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    build_layer(SMALL, place / "layer")
    os.close(fd)
    assert names(place) == sorted([*BYSTANDERS, alive.name, other.name, "layer"])


def test_leftovers_are_removed_without_following_links(place: Path) -> None:
    leftover = place / ".layer.mkmeta-00000001"
    leftover.mkdir()
    (leftover / "to-directory").symlink_to(place)
    (leftover / "to-file").symlink_to(place / "bystander")
    (place / ".layer.mkmeta-00000002").symlink_to(place.parent)
    (place / "layer.old-abc").symlink_to(place.parent)
    result = build_layer(SMALL, place / "layer")
    assert not leftover.exists()
    assert (place / "bystander").read_text() == "x"
    assert result.published.leftovers == (b".layer.mkmeta-00000002",)


def test_an_unfinished_swap_is_a_leftover_and_old_layers_are_not(place: Path) -> None:
    for name in ("layer.old-aaaaaaaaaaaa", "layer.old-bbbbbbbbbbbb"):
        (place / name).mkdir()
        (place / name / "file").touch()
    os.setxattr(place / "layer.old-aaaaaaaaaaaa", "trusted.overlay.mkmeta-pending", b"")
    build_layer(SMALL, place / "layer")
    assert names(place) == [*BYSTANDERS, "layer", "layer.old-bbbbbbbbbbbb"]


def test_a_stale_pending_mark_does_not_cost_an_old_layer(place: Path) -> None:
    """A swap killed after the exchange leaves the mark on DEST. That tree must survive later swaps."""
    build_layer(SMALL, place / "layer")
    os.setxattr(place / "layer", "trusted.overlay.mkmeta-pending", b"")
    old = build_layer(OTHER, place / "layer", swap=True).published.old
    build_layer(OTHER, place / "layer", swap=True)
    assert old is not None
    assert (place / os.fsdecode(old) / "file").exists()


def test_a_failed_exchange_leaves_both_trees(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: bytes, target: bytes, flags: int, **fds: int) -> None:
        if flags == RENAME_EXCHANGE:
            raise OSError(5, "Input/output error")
        renameat2(source, target, flags, **fds)

    build_layer(SMALL, place / "layer")
    before = attributes(place / "layer")
    monkeypatch.setattr(staging, "renameat2", refuse)
    with pytest.raises(BuildError, match="cannot be put in place"):
        build_layer(OTHER, place / "layer", swap=True)
    assert names(place) == [*BYSTANDERS, "layer"]
    assert attributes(place / "layer") == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up(place: Path, number: signal.Signals) -> None:
    process = start_build(place, LARGE, "-j", "2")
    wait_for_staging(place, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number), errors
    assert names(place) == BYSTANDERS
    assert b"Traceback" not in errors


def test_a_staging_directory_that_another_build_took_for_a_leftover(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed between being made and being locked, its name used again: the lock is on nothing, so once more."""
    fds: list[int] = []
    parent = os.open(place, os.O_RDONLY)

    def open_beneath(name: bytes, flags: int, *, dir_fd: int) -> int:
        fd = syscalls.open_beneath(name, flags, dir_fd=dir_fd)
        if not fds:
            os.rmdir(name, dir_fd=dir_fd)
            os.mkdir(name, dir_fd=dir_fd)
        fds.append(fd)
        return fd

    monkeypatch.setattr(staging, "open_beneath", open_beneath)
    try:
        name, fd = staging.make_locked(b".layer.mkmeta-", dir_fd=parent)
        assert os.path.samestat(os.stat(name, dir_fd=parent), os.fstat(fd))
        assert len(fds) == 2
        os.close(fd)
    finally:
        os.close(parent)


def test_what_a_living_build_has_is_no_leftover(tmp_path: Path) -> None:
    """It is neither removed nor named as something that cannot be."""
    destination = staging.Destination.open(os.fsencode(tmp_path / "layer"))
    name, fd = staging.make_locked(b".layer.mkmeta-", dir_fd=destination.parent_fd)
    assert destination.remove_leftovers() == []
    assert os.listdir(destination.parent_fd) == [os.fsdecode(name)]
    os.close(fd)
    assert destination.remove_leftovers() == []
    assert not os.listdir(destination.parent_fd)
    destination.close()
