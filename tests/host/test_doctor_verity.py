"""fs-verity: asking one file, and asking the data below a layer before it is mounted with verity=on."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mkmeta.linux.verity import measure_verity
from mkmeta.mounts import verity_check
from mkmeta.mounts.verity_check import unverified_file
from tests.conftest import Mount
from tests.host.hosts import Host


def test_files_without_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert measure_verity(file.fileno()) is None
    with pytest.raises(OSError, match="Bad file") as caught:
        measure_verity(999)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("size", [32, 64])
def test_the_answer_of_the_kernel(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """struct fsverity_digest, as linux/fsverity.h has it."""
    digest = bytes(range(size))

    def ioctl(_fd: int, request: int, buffer: bytearray) -> int:
        assert request == 0xC0046686
        assert int.from_bytes(buffer[2:4], "little") == 64 == len(buffer) - 4
        buffer[: 4 + size] = bytes([size // 32, 0, size, 0]) + digest
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert measure_verity(3) == digest


@pytest.mark.parametrize(
    ("number", "is_none"), [("ENODATA", True), ("ENOTTY", True), ("EOPNOTSUPP", True), ("EIO", False)]
)
def test_errors_of_the_kernel(number: str, is_none: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(_fd: int, _request: int, _buffer: bytearray) -> int:
        raise OSError(getattr(errno, number), "")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    if is_none:
        assert measure_verity(3) is None
    else:
        with pytest.raises(OSError):
            measure_verity(3)


@pytest.mark.needs("fs-verity")
def test_a_file_with_it(mount: Mount, tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "verity", tmp_path / "image"], check=True)
    path = mount("ext4", "loop", tmp_path / "image") / "file"
    path.write_bytes(bytes(10000))
    subprocess.run(["fsverity", "enable", path], check=True)
    told = subprocess.run(["fsverity", "measure", path], check=True, capture_output=True, text=True).stdout
    with path.open("rb") as file:
        digest = measure_verity(file.fileno())
    assert digest is not None
    assert digest.hex() in told


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@pytest.fixture
def layer(host: Host) -> Callable[..., Path]:
    def build(*options: str) -> Path:
        """A layer of a release with an empty file and sixty others."""
        host.release("v1", {"empty": "", **{f"lib/{number}": "x" for number in range(60)}})
        host.call("scan", host.volume, "--select", "grp/*/v*", "-o", host.top / "m")
        host.call("build", host.top / "m", host.top / "layer", "--userxattr", *options)
        return host.top / "layer"

    return build


user_xattrs = pytest.mark.needs("user xattrs")


def check(layer: Path, lower: Path) -> bytes | None:
    return unverified_file(os.fsencode(layer), os.fsencode(lower), userxattr=True)


@user_xattrs
def test_data_without_it_is_found(host: Host, layer: Callable[..., Path]) -> None:
    found = check(layer(), host.volume)
    assert found is not None
    assert os.path.dirname(found) == os.fsencode(host.volume / "grp" / "paint" / "v1" / "lib")
    assert unverified_file(os.fsencode(host.top / "layer"), os.fsencode(host.volume), userxattr=False) is None


@user_xattrs
def test_what_has_nothing_to_compare(host: Host, layer: Callable[..., Path]) -> None:
    assert check(layer("--no-verity"), host.volume) is None


@user_xattrs
def test_data_that_is_gone_says_nothing(host: Host, layer: Callable[..., Path]) -> None:
    built = layer()
    shutil.rmtree(host.volume / "grp")
    assert check(built, host.volume) is None
    (host.volume / "grp").symlink_to("/")
    assert check(built, host.volume) is None


@user_xattrs
def test_the_look_is_bounded(host: Host, layer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    built = layer()
    measured: list[int] = []

    def measure(fd: int) -> bytes:
        measured.append(fd)
        return b"digest"

    monkeypatch.setattr(verity_check, "measure_verity", measure)
    assert check(built, host.volume) is None
    assert len(measured) == 16
    monkeypatch.setattr(verity_check, "_ENTRIES", 3)
    monkeypatch.setattr(verity_check, "measure_verity", lambda _fd: None)
    assert check(built, host.volume) is None  # directories only among the first three


@user_xattrs
def test_other_errors_are_raised(host: Host, layer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    built = layer()

    def broken(_path: bytes, _flags: int, *, dir_fd: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(verity_check, "open_beneath", broken)
    with pytest.raises(OSError, match="Input/output"):
        check(built, host.volume)
