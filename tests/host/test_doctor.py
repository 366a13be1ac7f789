"""`mkmeta doctor` on this machine: real kernels, filesystems and mounts, and what it must never do to them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.host import lower_checks
from mkmeta.host.lower_checks import ENTRIES, FILES, LowerChecks, take_sample
from mkmeta.linux.mountinfo import parse
from mkmeta.linux.syscalls import open_beneath
from tests.conftest import Mount
from tests.host.hosts import Host, mounts_below
from tests.layer.test_user_namespace import as_user, give_to_user

root_with_overlay = pytest.mark.needs("root", "overlay", "trusted xattrs")

Found = dict[str, dict[str, str]]


class Doctor:
    """Calls the program and checks what holds for every call."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *args: str | Path, code: int = 0) -> Found:
        """The findings by identifier, the worst one of each."""
        with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", scratch)  # nobody else's files there
            assert main(["doctor", "--json", *map(str, args)]) == code
            assert mounts_below(Path(scratch)) == []
            assert os.listdir(scratch) == []
        *checks, summary = [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]
        order = ["ok", "note", "warning", "failure"]
        found: Found = {}
        for check in checks:
            assert check.pop("message_type") == "check"
            assert (check["hint"] is None) == (check["level"] == "ok"), check
            if check["id"] not in found or order.index(check["level"]) > order.index(found[check["id"]]["level"]):
                found[check["id"]] = check
        assert (summary.pop("message_type"), summary.pop("verb")) == ("summary", "doctor")
        assert sum(summary.values()) == len(checks)
        assert bool(summary["failures"]) == (code == 23)
        return found


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def worse_than(level: str, found: Found, prefix: str = "") -> dict[str, str]:
    """Identifiers with levels, of those above one."""
    order = ["ok", "note", "warning", "failure"]
    return {
        name: check["level"]
        for name, check in found.items()
        if order.index(check["level"]) > order.index(level) and name.startswith(prefix)
    }


def fill(directory: Path) -> Path:
    """A small volume."""
    (directory / "grp" / "v1").mkdir(parents=True)
    (directory / "grp" / "v1" / "tool").write_text("x")
    return directory


# --- a healthy host ---


@root_with_overlay
def test_a_healthy_host(doctor: Doctor, mount: Mount, tmp_path: Path) -> None:
    lower, store = fill(mount("tmpfs")), mount("tmpfs")
    before = [(path, path.stat()) for path in sorted(lower.rglob("*"))]
    found = doctor("--lower", lower, "--store", store, "--run-dir", tmp_path / "run")
    assert worse_than("note", found) == {}
    assert found["profile-nested"]["level"] == found["lower-mount"]["level"] == "ok"
    assert "nested and merge" in found["lower-mount"]["message"]
    assert found["lower"]["path"] == str(lower)
    assert found["lower-verity"]["level"] == found["containers"]["level"] == "note"
    assert not (tmp_path / "run").exists()
    assert os.listdir(store) == []
    after = [(path, path.stat()) for path in sorted(lower.rglob("*"))]
    assert [(path, status.st_mtime_ns, status.st_ctime_ns) for path, status in before] == [
        (path, status.st_mtime_ns, status.st_ctime_ns) for path, status in after
    ]


@root_with_overlay
def test_the_page(mount: Mount, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lower = mount("tmpfs")  # empty: a warning
    pages = {}
    for option in ((), ("-q",), ("-v",)):
        assert main(["doctor", "--lower", str(lower), "--store", "/proc/version", *option]) == 23
        pages[option] = capsys.readouterr().out.splitlines()
    for page in pages.values():
        assert all(len(line) <= 100 or " " not in line[12:] for line in page)
        assert page[0] == "failure  store: /proc/version: is not a directory"
        assert page[1] == "         -> name a store, or a directory to be made"
        assert page[2].startswith("warning  lower:")
    plain, quiet, verbose = pages.values()
    assert plain[-1].startswith("1 failure, 1 warning, 1 note, ")
    assert any(line.startswith("ok       rights, run-dir, profile-nested") for line in plain)
    assert quiet == plain[: len(quiet)]
    assert not any(line.startswith(("note", "ok", "1 failure")) for line in quiet)
    assert any(line.startswith("ok       rights: this process may mount") for line in verbose)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "/mnt/sw"])
    assert end.value.code == 2


# --- the volume ---


def test_a_volume_that_is_not_there(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("missing", "file", "file/below"):
        found = doctor("--lower", tmp_path / name, code=23)
        assert worse_than("ok", found, "lower") == {"lower": "failure"}


@root_with_overlay
def test_an_empty_volume(doctor: Doctor, mount: Mount) -> None:
    assert worse_than("ok", doctor("--lower", mount("tmpfs")), "lower") == {"lower": "warning"}


@root_with_overlay
def test_a_volume_that_is_an_overlay(doctor: Doctor, mount: Mount, overlay: Mount, tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    fill(tmp_path / "volume")
    once = overlay(tmp_path / "layer", tmp_path / "volume")
    found = doctor("--lower", once)
    assert found["lower-mount"]["level"] == "warning"
    assert "merge works" in found["lower-mount"]["message"]
    assert "it is an overlay itself" in found["lower-mount"]["hint"]
    twice = overlay(tmp_path / "layer", once)
    found = doctor("--lower", twice, code=23)
    assert found["lower-mount"]["level"] == "failure"
    assert found["lower-mount"]["message"].startswith(f"a layer cannot be mounted over {twice}: ")


@root_with_overlay
@pytest.mark.needs("loop mounts", "mkfs.erofs")
def test_a_volume_on_erofs(doctor: Doctor, mount: Mount, tmp_path: Path) -> None:
    fill(tmp_path / "volume")
    subprocess.run(["mkfs.erofs", tmp_path / "image", tmp_path / "volume"], check=True, capture_output=True)
    found = doctor("--lower", mount("erofs", "loop,noexec,nosuid", tmp_path / "image"))
    assert worse_than("ok", found, "lower") == {"lower-flags": "note", "lower-verity": "note"}
    assert "noexec,nosuid" in found["lower-flags"]["message"]
    assert "erofs" in found["lower"]["message"]


@root_with_overlay
def test_other_filesystems_below_it(doctor: Doctor, mount: Mount) -> None:
    lower = fill(mount("tmpfs"))
    (lower / "grp" / "sub").mkdir()
    mount("tmpfs", at=lower / "grp" / "sub")
    found = doctor("--lower", lower)
    assert worse_than("note", found, "lower") == {"lower-submounts": "warning"}
    assert "grp/sub" in found["lower-submounts"]["message"]
    assert take_sample(os.fsencode(lower)).elsewhere == [b"grp/sub"]


def test_the_look_is_bounded(tmp_path: Path) -> None:
    for number in range(40):
        for name in range(40):
            (tmp_path / f"{number}" / "a" / "b").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{number}" / "a" / "b" / f"{name}").touch(0o640 if name % 2 else 0o644)
    (tmp_path / "link").symlink_to("/")
    sample = take_sample(os.fsencode(tmp_path))
    assert ENTRIES - 40 <= sample.entries <= ENTRIES
    assert len(sample.files) > 100
    assert 40 < len(sample.closed) < len(sample.files)
    opened: list[bytes] = []
    checks = LowerChecks(os.fsencode(tmp_path), False, b"/nowhere", frozenset())
    checks._open = lambda path, flags: opened.append(path) or os.open("/dev/null", os.O_RDONLY)  # type: ignore[method-assign,func-returns-value]
    assert [finding.level.value for finding in checks.readable()] == ["ok"]
    assert opened == sample.closed[:FILES]


NFS = b"36 22 0:45 / /mnt/sw ro - nfs4 server:/sw ro,vers=4.2,nocto,acregmax=900,acdirmax=60,hard,sec=sys"


@root_with_overlay
def test_root_squash(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen of an NFS server that does not let root read: monkeypatched, as root may read everything here."""
    fill(tmp_path / "volume")
    secret = tmp_path / "volume" / "grp" / "secret"
    secret.write_text("x")
    secret.chmod(0o640)
    monkeypatch.setattr(lower_checks, "mount_of", lambda _path, _among: parse(NFS)[0])
    assert worse_than("note", doctor("--lower", tmp_path / "volume"), "lower") == {}

    def squashed(path: bytes, flags: int, *, dir_fd: int) -> int:
        if path.endswith(b"secret"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_beneath(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(lower_checks, "open_beneath", squashed)
    found = doctor("--lower", tmp_path / "volume")
    assert worse_than("note", found, "lower") == {"lower-readable": "warning"}
    assert found["lower-readable"]["path"] == str(secret)
    assert "root_squash" in found["lower-readable"]["message"]
    assert found["nfs-version"]["level"] == "ok"
    assert "kernel-nfs" in found


@root_with_overlay
def test_an_error_of_the_server_is_told(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "volume")

    def broken(path: bytes, flags: int, *, dir_fd: int) -> int:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(lower_checks, "open_beneath", broken)
    found = doctor("--lower", tmp_path / "volume")
    expected = dict.fromkeys(("lower-submounts", "lower-readable", "lower-verity"), "warning")
    assert worse_than("note", found, "lower") == expected
    assert found["lower-readable"]["message"] == "could not be checked: input/output error"


# --- the store ---


@root_with_overlay
@pytest.mark.needs("loop mounts", "mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize(
    ("mkfs", "size", "expected"),
    [
        ("mkfs.ext4 -b 4096 -I 256", 32, {"store-inodes": "note"}),
        ("mkfs.ext4 -b 4096 -I 512", 32, {}),
        ("mkfs.ext4 -b 4096 -I 128", 32, {"store-inodes": "note", "store-times": "warning"}),
        ("mkfs.ext4 -b 1024 -I 256", 32, {"store-inodes": "note", "store-xattr-room": "note"}),
        ("mkfs.xfs", 320, {}),
        ("mkfs.btrfs", 128, {}),
    ],
)
def test_filesystems(
    doctor: Doctor, mount: Mount, tmp_path: Path, mkfs: str, size: int, expected: dict[str, str]
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(size << 20)
    subprocess.run([*mkfs.split(), "-q", image], check=True, capture_output=True)
    fstype = mkfs.split()[0].removeprefix("mkfs.")
    store = mount(fstype, "loop", image)
    before = sorted(os.listdir(store)), os.statvfs(store).f_ffree
    found = doctor("--store", store)
    assert worse_than("ok", found, "store") == expected
    assert found["store-filesystem"]["message"] == f"{fstype}, writable"
    if "store-times" in expected:
        assert "nanoseconds before 1970, times after 2038" in found["store-times"]["message"]
    assert (sorted(os.listdir(store)), os.statvfs(store).f_ffree) == before
    subprocess.run(["mount", "-o", "remount,ro", store], check=True)
    found = doctor("--store", store, code=23)
    assert worse_than("ok", found, "store") == {"store-filesystem": "failure"}
    assert "read-only" in found["store-filesystem"]["message"]


@root_with_overlay
def test_a_store_that_does_not_exist_yet(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor("--store", tmp_path / "store")
    assert found["store"]["level"] == "note"
    assert found["store-xattrs"]["level"] == "ok"
    assert os.listdir(tmp_path) == []
    assert doctor("--store", tmp_path / "no" / "such" / "store", code=23)["store"]["level"] == "failure"


@root_with_overlay
def test_unfit_stores(doctor: Doctor, mount: Mount, overlay: Mount, tmp_path: Path) -> None:
    full = mount("tmpfs", "size=64k")
    with pytest.raises(OSError, match="No space"):
        (full / "much").write_bytes(bytes(1 << 20))
    assert doctor("--store", full, code=23)["store-room"]["level"] == "failure"
    for name in ("layer", "lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    found = doctor("--store", mount("overlay", options))
    assert found["store-filesystem"]["level"] == "warning"
    assert os.listdir(tmp_path / "upper") == []
    found = doctor("--store", mount("ramfs"), code=23)
    assert found["store-xattrs"]["level"] == "failure"
    assert "cannot hold trusted.* xattrs" in found["store-xattrs"]["message"]
    volume = fill(tmp_path / "volume")
    found = doctor("--lower", volume, "--store", volume / "grp", code=23)
    assert found["store-overlap"]["level"] == "failure"


@root_with_overlay
def test_generations(doctor: Doctor, tmp_path: Path) -> None:
    host = Host(tmp_path / "host")
    host.release("v1", {"bin/tool": "x"})
    host.publish()
    found = doctor("--store", host.store, "--lower", host.volume)
    assert worse_than("note", found) == {}
    assert found["store-generations"]["message"] == "current is generation 1, of 1"
    assert doctor("--store", host.store, "--userxattr")["store-generations"]["level"] == "warning"
    (host.store / "generations" / ".new-01234567").mkdir()
    assert doctor("--store", host.store)["store-unfinished"]["level"] == "note"
    (host.store / "current").unlink()
    assert doctor("--store", host.store)["store-generations"]["level"] == "note"
    (host.store / "store.json").write_text("{}")
    found = doctor("--store", host.store, code=23)
    assert found["store-generations"]["level"] == "failure"


@root_with_overlay
def test_too_few_inodes_for_the_next_generation(doctor: Doctor, tmp_path: Path, mount: Mount) -> None:
    host = Host(tmp_path / "host")
    host.release("v1", {f"lib/{number}": "x" for number in range(60)})
    host.store.mkdir()
    mount("tmpfs", "nr_inodes=110", at=host.store)
    host.publish()
    found = doctor("--store", host.store)
    assert found["store-room"]["level"] == "warning"
    assert "the next generation takes some" in found["store-room"]["message"]


# --- who asks ---


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of an ordinary user, with a volume in it."""
    with tempfile.TemporaryDirectory(prefix="mkmeta-test-") as name:
        Path(name).chmod(0o755)
        fill(Path(name) / "place" / "volume")
        (Path(name) / "place" / "run").mkdir()
        give_to_user(Path(name) / "place")
        yield Path(name) / "place"


@pytest.mark.needs("root", "user namespaces", "unshare", "setpriv")
def test_an_ordinary_user(place: Path) -> None:
    script = f"cd {place}; mkmeta doctor --json --run-dir {place}/run --lower volume --store {place}"

    def call(options: str, *, namespace: bool) -> tuple[int, dict[str, str], str]:
        result = as_user(f"{script} {options}", namespace=namespace)
        messages = [json.loads(line) for line in result.stdout.splitlines()]
        found = {message["id"]: message["level"] for message in messages if message["message_type"] == "check"}
        return result.returncode, found, result.stderr

    code, found, err = call("", namespace=False)
    assert (code, found["rights"], err) == (23, "failure", "")
    assert "profile-nested" not in found
    assert found["store-xattrs"] == "failure"
    code, found, err = call("", namespace=True)
    assert (code, found["rights"], err) == (23, "failure", "")
    assert sorted(os.listdir(place)) == ["run", "volume"]


@pytest.mark.needs("root", "data-only userxattr", "unshare", "setpriv")
def test_an_ordinary_user_in_a_namespace_of_his_own(place: Path) -> None:
    (place / "volume" / "grp" / "root").write_text("x")
    (place / "volume" / "grp" / "root").chmod(0o600)  # root's: nobody reads it through what the user mounts
    (place / "store").mkdir()
    os.chown(place / "store", 4711, 4711)
    result = as_user(
        f"cd {place}; mkmeta doctor -v --userxattr --run-dir {place}/run --lower volume --store store", namespace=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split(":")[0] for line in result.stdout.splitlines()]
    for expected in ("ok       rights", "ok       profile-nested", "ok       lower-mount", "warning  lower-readable"):
        assert expected in lines, result.stdout
    assert not any("profile-merge" in line for line in lines)
    assert os.listdir(place / "store") == []
