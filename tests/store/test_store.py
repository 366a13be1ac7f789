"""The store's own files: their form is that of formats/store.md, and what is no store is one clear error."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.build import BuildOptions
from mkmeta.errors import ExitCode, NoGenerationError, StoreError
from mkmeta.model import Device
from mkmeta.plan import Plan
from mkmeta.sinks.protocol import LayerKind
from mkmeta.store.generation import generation_of
from mkmeta.store.removal import remove_gone, retire
from mkmeta.store.store import Generation, Store
from tests.layer.manifests import manifest_from
from tests.store.processes import fork, wait
from tests.store.stores import ONE, THREE, TWO, generations, id_of, ignore, names, new_store, put
from tests.vectors.trees import Tree

pytestmark = pytest.mark.needs("trusted xattrs")

PAGE = Path(__file__).parents[2] / "formats" / "store.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Store:
    return new_store(path)


def test_the_layout_is_that_of_the_page(path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = new_store(path)
        put(store, ONE)
        put(store, TWO)
    finally:
        os.umask(before)
    first, second = f"000001-{id_of(ONE)[:12]}", f"000002-{id_of(TWO)[:12]}"
    assert names(path) == ["build.lock", "current", "generations", "lock", "store.json"]
    assert generations(path) == [first, second]
    assert os.readlink(path / "current") == f"generations/{second}"
    assert (path / "store.json").read_bytes() == b'{"format": "mkmeta-store", "version": 1}\n'
    generation = path / "generations" / second
    assert names(generation) == ["generation.json", "layer", "manifest.mkm", "private"]
    assert os.readlink(generation / "layer") == "private/layer"
    assert (generation / "manifest.mkm").read_bytes() == TWO
    assert names(generation / "layer") == ["dir", "file"]
    for place in (path, path / "generations", generation):
        assert place.stat().st_mode == 0o040755
    assert (generation / "private").stat().st_mode == 0o040700
    for file in (path / "store.json", generation / "generation.json"):
        assert file.stat().st_mode == 0o100644
    for file in (path / "lock", path / "build.lock", generation / "manifest.mkm"):
        assert file.stat().st_mode == 0o100600


def test_every_name_is_on_the_page(store: Store, path: Path) -> None:
    generation = put(store, ONE).generation
    generation.mark_written()
    with store.publish_lock("publish", wait=0, note=print):
        pass
    page = PAGE.read_text()
    for name in {*names(path), *names(generation.path)}:
        assert name in page, name


def test_generation_json_has_the_keys_of_the_page(store: Store) -> None:
    options = BuildOptions(plan=Plan(prefix=b"x/\xff", verity=False))
    generation = put(store, ONE, options).generation
    found = json.loads(Path(os.fsdecode(generation.path), "generation.json").read_bytes())
    table = PAGE.read_text().partition("`generation.json` is one JSON object")[2].partition("## 2")[0]
    keys = {key for row in table.splitlines() if row.startswith("| `") for key in row.split("|")[1].split("`")[1::2]}
    assert set(found) | {"root_b64", "image", "contents"} == keys
    built = found.pop("built")
    assert found == {
        "format": "mkmeta-generation",
        "version": 1,
        "number": 1,
        "id": id_of(ONE),
        "kind": "directory",
        "root": "/mnt/sw",
        "redirect_prefix": "x/\\xff",
        "redirect_prefix_b64": "eC//",
        "userxattr": False,
        "verity": False,
        "entries": 3,
        "vouched": False,
    }
    about = generation.about()
    assert (about.id.hex(), about.root, about.redirect_prefix) == (id_of(ONE), b"/mnt/sw", b"x/\xff")
    assert abs(about.built_ns / 1e9 - time.time()) < 60
    assert built == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(about.built_ns // 10**9))


def test_paths_do_not_depend_on_how_the_store_was_named(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path.parent / "link").symlink_to("store")
    monkeypatch.chdir(path.parent)
    generation = put(store, ONE).generation
    for name in (b"store", b"./link/", os.fsencode(path)):
        found = Store.open(name)
        assert found.path == os.fsencode(os.path.realpath(path))
        assert found.current() == generation == found.generation(1)
    assert generation.layer == os.path.join(generation.path, b"private/layer")
    assert generation.manifest == os.path.join(generation.path, b"manifest.mkm")
    assert generation.work == os.path.join(generation.path, b"work")


def test_generations_are_listed_by_number_and_foreign_names_ignored(store: Store, path: Path) -> None:
    put(store, ONE, number=1_000_000)
    put(store, TWO, number=7)
    put(store, THREE, number=999_999)
    for name in ("notes", "12-0123456789ab", "0000012-0123456789ab", "000000-0123456789ab", "000003-0123456789AB"):
        (path / "generations" / name).mkdir()
    (path / "generations" / "99999999999999999-0123456789ab").mkdir()
    (path / "generations" / "9999999999999999-0123456789ab").mkdir()  # above 2^53 - 1
    (path / "generations" / "000004-0123456789ab").touch()
    (path / "generations" / "000005-0123456789ab").symlink_to("notes")
    assert [generation.number for generation in store.generations()] == [7, 999_999, 1_000_000]
    assert names(path / "generations").count("notes") == 1


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "has no generation 9; it has none yet"),
        (2, "has no generation 9; it has 11, 12"),
        (14, "has no generation 9; it has 15, 16, 17, 18, 19, 20, 21, 22, 23, 24 and 4 older ones"),
    ],
)
def test_a_missing_generation_names_those_there_are(store: Store, path: Path, count: int, message: str) -> None:
    for number in range(count):
        (path / f"generations/{11 + number:06}-0123456789ab").mkdir()
    with pytest.raises(NoGenerationError, match=rf"{message}$") as caught:
        store.generation(9)
    assert caught.value.exit_code is ExitCode.NO_GENERATION


def test_two_with_one_number(store: Store, path: Path) -> None:
    for digit in "ab":
        (path / f"generations/000009-{digit * 12}").mkdir()
    with pytest.raises(StoreError, match="has two generations 9"):
        store.generation(9)


# --- current ---


def test_current(store: Store, path: Path) -> None:
    assert store.current() is None
    first, second = put(store, ONE).generation, put(store, TWO).generation
    assert store.current() == second
    (path / ".current").symlink_to("left by a killed call")
    store.set_current(first)
    assert store.current() == first
    assert ".current" not in names(path)
    (path / ".current").symlink_to("left by a killed call")
    store.set_current(first)
    assert ".current" not in names(path)


@pytest.mark.parametrize(
    "target",
    ["generations/000009-0123456789ab", "../elsewhere", "/etc", "generations", "generations/../x", "", "elsewhere/x"],
)
def test_a_current_that_names_nothing(store: Store, path: Path, target: str) -> None:
    first = put(store, ONE).generation
    (path / "current").unlink()
    if target:
        (path / "current").symlink_to(target)
    else:
        (path / "current").write_text("not a link")
    with pytest.raises(StoreError, match="is not the link to a generation") as caught:
        store.current()
    assert caught.value.hint
    store.set_current(first)
    assert store.current() == first


def test_a_current_that_cannot_be_replaced(store: Store, path: Path) -> None:
    first = put(store, ONE, make_current=False).generation
    (path / "current").mkdir()
    with pytest.raises(StoreError, match="cannot be set: is a directory"):
        store.set_current(first)


def test_written(store: Store) -> None:
    generation = put(store, ONE).generation
    assert not generation.written
    for _ in range(2):
        generation.mark_written()
        assert generation.written
        assert os.stat(generation.work).st_mode == 0o040700


# --- what is no store ---


def nothing(_path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.mkdir()


def file(path: Path) -> None:
    path.write_text("x")


def with_record(text: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "store.json").write_text(text)

    return make


def with_directory(path: Path) -> None:
    (path / "store.json").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (nothing, "there is no such directory", "mkmeta build MANIFEST --store STORE makes one"),
        (empty, "is no store: it has no store.json", "mkmeta build MANIFEST --store STORE makes one"),
        (file, "is no store, which is a directory", "mkmeta build MANIFEST --store STORE makes one"),
        (with_directory, "damaged: not a regular file", "name another store"),
        (with_record(""), "damaged: not the JSON it should be", "name another store"),
        (with_record("[1]"), "damaged: not a JSON object", "name another store"),
        (with_record('{"format": "mkmeta-pointer", "version": 1}'), "is no mkmeta-store file", "name another"),
        (with_record('{"format": "mkmeta-store"}'), "'version' is missing", "name another store"),
        (with_record('{"format": "mkmeta-store", "version": true}'), "'version' is not an integer", "name another"),
        (with_record('{"format": "mkmeta-store", "version": 2}'), "has version 2 of its format", "use a newer mkmeta"),
    ],
)
def test_what_is_no_store(path: Path, make: Callable[[Path], None], message: str, hint: str | None) -> None:
    make(path)
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(os.fsencode(path))
    assert caught.value.exit_code is ExitCode.FAILED
    assert (caught.value.path or b"").startswith(os.fsencode(path))
    assert "\n" not in str(caught.value)
    if hint:
        assert hint in (caught.value.hint or "")


def test_keys_that_are_not_known_are_ignored(path: Path) -> None:
    with_record('{"format": "mkmeta-store", "version": 1, "later": [{}]}')(path)
    assert Store.open(os.fsencode(path)).generations() == []


def test_a_store_is_made_only_of_nothing(path: Path) -> None:
    path.mkdir()
    (path / "precious").touch()
    with pytest.raises(StoreError, match="is no store and not empty") as caught:
        new_store(path)
    assert caught.value.hint
    assert names(path) == ["precious"]
    with pytest.raises(StoreError, match="cannot be made: no such file or directory") as caught:
        new_store(path.parent / "absent" / "absent" / "store")
    assert "directories above" in (caught.value.hint or "")
    assert not (path.parent / "absent").exists()
    (path.parent / "file").touch()
    with pytest.raises(StoreError, match="not a directory"):
        new_store(path.parent / "file")


def test_the_directory_that_a_store_goes_into_is_made(path: Path) -> None:
    """As /var/lib/mkmeta is on a host that has just got its first layer."""
    new_store(path.parent / "above" / "store")
    assert names(path.parent / "above") == ["store"]
    assert (path.parent / "above").stat().st_mode == 0o040755


@pytest.mark.parametrize("there", [(), ("lost+found",), ("generations",), (".store.json",)])
def test_a_directory_that_is_as_good_as_empty_becomes_a_store(path: Path, there: tuple[str, ...]) -> None:
    path.mkdir(mode=0o700)
    for name in there:
        (path / name).touch() if name.startswith(".") else (path / name).mkdir()
    store = new_store(path)
    assert names(path) == sorted({"store.json", "generations", *there} - {".store.json"})
    assert path.stat().st_mode == 0o040700  # it was somebody's choice
    put(store, ONE)


def test_a_directory_that_somebody_has_locked_becomes_a_store_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mkmeta.store.store._MAKING_TAKES", 0.2)
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    new_store(path)
    os.close(fd)


@pytest.mark.needs("root")
def test_nobody_sees_more_through_a_store_than_the_volume_would_show(path: Path) -> None:
    """A device node, past the volume's nodev; a directory open to all; what is in a closed directory's manifest."""
    store = new_store(path)
    null = Device(mode=stat.S_IFCHR | 0o666, uid=0, gid=0, mtime_ns=0, major=1, minor=3)
    tree = Tree(children={b"null": null, b"tmp": Tree(mode=0o041777)})
    generation = put(store, manifest_from(tree)).generation
    assert os.stat(generation.layer + b"/null").st_rdev == os.makedev(1, 3)
    assert os.stat(generation.layer + b"/tmp").st_mode == 0o041777
    here = os.open(path, os.O_RDONLY)  # what is above is closed in tests

    def run() -> int:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.fchdir(here)
        os.chdir(b"generations/" + generation.name)
        assert os.path.getsize("generation.json")  # status, as an ordinary user
        for name, flags in (("layer/null", os.O_RDWR), ("layer/tmp/mine", os.O_CREAT | os.O_WRONLY), ("layer", 0)):
            with pytest.raises(PermissionError):
                os.open(name, flags)
        for name in ("manifest.mkm", "private"):
            with pytest.raises(PermissionError):
                os.open(name, os.O_RDONLY)
        return 0

    assert wait(fork(run)) == 0
    os.close(here)


def test_a_generation_of_the_first_mkmeta(path: Path) -> None:
    """Its layer is where a link is now."""
    store = new_store(path)
    generation = put(store, ONE).generation
    os.unlink(generation.path + b"/layer")
    os.rename(generation.path + b"/private/layer", generation.path + b"/layer")
    os.rmdir(generation.path + b"/private")
    assert generation.layer == generation.path + b"/layer"
    assert generation_of(generation.layer) == generation
    put(store, TWO)
    retire(store, generation)
    remove_gone(store, pace=1, progress=ignore)
    assert len(generations(path)) == 1


@pytest.mark.parametrize(
    "layer",
    ["", "/", "layer", "/a/layer", "/s/generations/000001-0123456789ab", "/s/generations/1-0/layer", "/s/x/y/layer"],
)
def test_what_is_no_layer_of_a_generation(layer: str) -> None:
    assert generation_of(layer.encode()) is None


def test_many_make_a_store_at_once(path: Path) -> None:
    def make() -> int:
        for number in range(30):
            put(new_store(path / str(number)), ONE, wait=60)
        return 0

    path.mkdir()
    assert [wait(pid) for pid in [fork(make) for _ in range(4)]] == [0] * 4
    for number in range(30):
        assert len(generations(path / str(number))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 2}, "is about another generation"),
        ({"id": "0" * 64}, "is about another generation"),
        ({"id": "0" * 63}, "'id' is not an ID"),
        ({"id": 5}, "'id' is not an ID"),
        ({"kind": 5}, "'kind' is not a word"),
        ({"kind": "a\nb"}, "'kind' is not a word"),
        ({"kind": "squashfs"}, "its layer is of the kind 'squashfs', this mkmeta knows: directory, erofs"),
        ({"kind": "erofs"}, "damaged: 'image' is missing"),
        ({"kind": "erofs", "image": "12"}, "damaged: 'image' is not a digest of 64 hexadecimal digits"),
        ({"root": 5}, "'root' is not a path"),
        ({"root": "a\0b"}, "'root' is not a path"),
        ({"root_b64": "*"}, "'root' is not a path"),
        ({"root": "/" + "a" * 4095}, "'root' is not a path"),
        ({"root": "mnt/sw"}, "'root' is not an absolute path"),
        ({"redirect_prefix": "/sw"}, "'redirect_prefix': a redirect with an empty"),
        ({"redirect_prefix": "a/../b"}, "'redirect_prefix': a redirect with an empty"),
        ({"userxattr": 1}, "'userxattr' is neither true nor false"),
        ({"entries": -1}, "'entries' is not an integer from 0"),
        ({"entries": 1.0}, "'entries' is not an integer from 0"),
        ({"built": "yesterday"}, "'built' is not a time like"),
        ({"built": "2026-13-01T00:00:00Z"}, "'built' is not a time like"),
        ({"version": 9}, "has version 9"),
    ],
)
def test_a_damaged_generation_json(store: Store, change: dict[str, object], message: str) -> None:
    generation = put(store, ONE).generation
    file = Path(os.fsdecode(generation.path), "generation.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(StoreError, match=message) as caught:
        generation.about()
    assert caught.value.path == os.fsencode(file)
    assert caught.value.hint
    assert put(store, ONE).generation.number == 2  # and life goes on


def test_a_layer_without_a_kind_is_a_directory(store: Store) -> None:
    generation = put(store, ONE).generation
    file = Path(os.fsdecode(generation.path), "generation.json")
    fields = json.loads(file.read_text())
    del fields["kind"]
    file.write_text(json.dumps(fields))
    assert generation.about().kind is LayerKind.DIRECTORY
    assert put(store, ONE).result is None, "it is as built"


@pytest.mark.parametrize("root", [b"", b"relative", b"/a\0b", b"/" + b"a" * 100_000])
def test_what_would_be_refused_is_not_written(store: Store, root: bytes) -> None:
    """A generation that says what its readers refuse could neither be mounted nor counted."""
    generation = put(store, ONE).generation
    about = generation.about()
    generation.check(about.encode(1))
    with pytest.raises(StoreError, match=r"cannot take this manifest: its generation\.json would be damaged") as caught:
        generation.check(dataclasses.replace(about, root=root).encode(1))
    assert caught.value.path == store.path


def test_a_missing_generation_json(store: Store) -> None:
    generation = put(store, ONE).generation
    os.unlink(os.path.join(generation.path, b"generation.json"))
    with pytest.raises(StoreError, match="is missing"):
        generation.about()


def test_names_of_generations() -> None:
    for name in (b"000001-0123456789ab", b"1234567-ffffffffffff", b"9007199254740991-000000000000"):
        generation = Generation.named(b"/store", name)
        assert generation is not None
        assert generation.name == name
        assert generation.path == b"/store/generations/" + name


def test_a_store_that_lost_its_generations(store: Store, path: Path) -> None:
    shutil.rmtree(path / "generations")
    assert store.generations() == []
    with pytest.raises(StoreError, match="cannot be added to: no such file"):
        put(store, ONE)
