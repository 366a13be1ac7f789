"""Scanning an NFS mount: the same manifest as on the server, or a clear refusal, whatever the server does meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from mkmeta.__main__ import main
from mkmeta.errors import ScanError
from mkmeta.model import RegularFile
from mkmeta.scanner.looking import open_content
from tests.nfs.conftest import KERNEL, Connect
from tests.nfs.server import Client, Server, call, latency, silence
from tests.nfs.volumes import make_volume, names
from tests.scanner.helpers import Scanned, scan_tree

pytestmark = [pytest.mark.nfs, pytest.mark.needs("NFS sandbox")]

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("select", [(), ("grp/*/v1/lib", "grp/a/v2")], ids=["all", "part"])
def test_same_id_as_on_the_server(connect: Connect, volume: Path, select: tuple[str, ...]) -> None:
    make_volume(volume)
    on_server = scan_tree(volume, *select)
    client = connect()
    through_nfs = scan_tree(client.where, *select)
    assert through_nfs.report.left_out == () and len(through_nfs.nodes()) > 40
    assert through_nfs.id == on_server.id
    with latency():
        client.remount()
        assert scan_tree(client.where, *select, workers=3).id == on_server.id


@pytest.mark.skipif(KERNEL < (6, 6), reason="tmpfs has user xattrs since Linux 6.6")
def test_user_xattrs_are_recorded_where_nfs_has_them(connect: Connect, volume: Path, version: str) -> None:
    """NFSv4.2 shows user xattrs, NFSv3 does not: the same volume has two IDs."""
    make_volume(volume)
    os.setxattr(volume / "grp/a/v1/lib/module1.py", "user.note", b"\0binary\xff")
    client = connect()
    assert (scan_tree(client.where).id == scan_tree(volume).id) == (version == "4.2")


def test_posix_acls(connect: Connect, volume: Path, version: str) -> None:
    """NFSv3 shows them as they are; NFSv4 as NFSv4 ACLs, which are counted and left out."""
    make_volume(volume)
    call("setfacl", "-m", "u:1234:rx", volume / "grp/a/v1/lib/module1.py")
    client = connect()
    scanned = scan_tree(client.where)
    if version == "3":
        assert scanned.id == scan_tree(volume).id and scanned.report.counts.nfs4_acl == 0
    else:
        everything = [client.where, *names(client.where)]
        having = [path for path in everything if "system.nfs4_acl" in os.listxattr(path, follow_symlinks=False)]
        assert scanned.report.counts.nfs4_acl == len(having) > 80


def test_root_squash(connect: Connect, volume: Path, tmp_path: Path, capsys: Capture, version: str) -> None:
    """What the server does not let this user read is named, with its subtree, and the rest is recorded."""
    make_volume(volume)
    (volume / "grp/a/v1/lib/module5.py").chmod(0o640)
    (volume / "grp/b/v1/lib/deep").chmod(0o700)
    for name in ("fifo", "module2.py"):
        (volume / "grp/a/v1/lib" / name).chmod(0o644)
    client = connect(export="root_squash")
    command = ["scan", str(client.where), "--select", "grp/*/*/lib", "-o", str(tmp_path / "sw.mkm"), "-q"]
    assert main(command) == 3
    assert capsys.readouterr().err.splitlines() == [
        "left out: grp/a/v1/lib: grp/a/v1/lib/module5.py: cannot be read: permission denied",
        "left out: grp/b/v1/lib: grp/b/v1/lib/deep: cannot be read: permission denied",
    ]
    assert main([*command, "--digest", "none"]) == 3
    # NFSv4.2 lists xattrs only to who may read; tmpfs has user xattrs, and so NFS of it, since Linux 6.6
    needs_reading = version == "4.2" and KERNEL >= (6, 6)
    assert ("module5" in capsys.readouterr().err) == needs_reading


def test_asks_no_more_than_find(connect: Connect, wide_volume: Path, version: str) -> None:
    """A cold scan without digests sends what find sends.

    On NFSv4.2 also: for each name, what xattrs it has; for each directory, whether it changed meanwhile, which NFSv3
    says with the listing.
    """
    client = connect()
    with client.rpcs() as by_find:
        subprocess.run(["find", client.where, "-printf", "%s"], check=True, capture_output=True)
    client.remount()
    with client.rpcs() as by_scan:
        entries = scan_tree(client.where, digests=()).report.entries
    xattrs, again = (entries + 1, by_scan["READDIR"]) if version == "4.2" else (0, 0)
    assert by_scan.pop("LISTXATTRS", 0) <= xattrs
    assert by_scan.total() <= by_find.total() + again


@contextlib.contextmanager
def scanning(client: Client, work: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A scan that has come some way, and where its manifest will be, alone in a directory; killed at the end."""
    output = work / "out" / "sw.mkm"
    output.parent.mkdir()
    command = [sys.executable, "-m", "mkmeta", "scan", str(client.where), "-o", str(output), "-q"]
    scan = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_listings(client, 40)
        yield scan, output
    finally:
        scan.kill()
        scan.communicate()


def wait_for_listings(client: Client, count: int) -> None:
    """Returns when that many directories, more or less, were read."""
    for _ in range(600):
        sent = client.sent()
        if sent["READDIR"] + sent["READDIRPLUS"] >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the scan does not get on")


@pytest.fixture
def wide_volume(volume: Path) -> Path:
    for number in range(200):
        (volume / f"grp{number % 10}" / f"v{number}").mkdir(parents=True)
        (volume / f"grp{number % 10}" / f"v{number}" / "file").write_text(str(number))
    return volume


def check_ended_cleanly(scan: subprocess.Popen[str], client: Client, output: Path, seconds: float) -> None:
    """A scan whose server is gone: one line and a hint, nothing written, within these seconds."""
    printed, complaint = scan.communicate(timeout=seconds)
    assert (scan.returncode, printed) == (1, ""), complaint
    assert complaint.count("\n") == 2, complaint
    first, second = complaint.splitlines()
    assert first.startswith(f"mkmeta: {client.where}: does not answer any more: ")
    assert second == "mkmeta: nothing was written; see whether the file server is up"
    assert os.listdir(output.parent) == []


def test_server_stops(connect: Connect, wide_volume: Path, server: Server, tmp_path: Path) -> None:
    """On a soft mount, a scan ends when the server refuses connections."""
    client = connect("soft,timeo=5,retrans=1")
    with latency(0.01), scanning(client, tmp_path) as (scan, output):
        server.stop()
        try:
            check_ended_cleanly(scan, client, output, seconds=85)
        finally:
            server.resume()


@pytest.mark.slow
def test_server_falls_silent(connect: Connect, wide_volume: Path, tmp_path: Path) -> None:
    """The same when nothing comes back. NFSv4 does not ask again on a living connection: TCP has to give up, 90 s."""
    client = connect("soft,timeo=5,retrans=1")
    with latency(0.01), scanning(client, tmp_path) as (scan, output), silence():
        check_ended_cleanly(scan, client, output, seconds=30 if client.version == "3" else 200)


@pytest.mark.parametrize("how", ["silent", "restarted"])
def test_server_comes_back(connect: Connect, wide_volume: Path, server: Server, tmp_path: Path, how: str) -> None:
    """On a hard mount, which is the default, a scan waits for the server and goes on."""
    client = connect("timeo=5")
    with latency(0.01), scanning(client, tmp_path) as (scan, _):
        if how == "silent":
            with silence():
                time.sleep(2)
        else:
            server.stop()
            try:
                time.sleep(1)
            finally:
                server.resume()
        printed, complaint = scan.communicate(timeout=120)
    assert (scan.returncode, complaint) == (0, "")
    assert printed.strip() == scan_tree(wide_volume).id


class Meddler:
    """Does something on the server when a file is about to be hashed, once; in whichever worker and lane that is."""

    def __init__(self, path: bytes, act: Callable[[], object], flag: Path) -> None:
        self._directory, _, self._name = path.rpartition(b"/")
        self._act, self._flag = act, flag

    def __call__(self, name: bytes) -> int:
        if name == self._name and os.readlink(b"/proc/thread-self/cwd").endswith(self._directory):
            try:
                self._flag.touch(exist_ok=False)
            except FileExistsError:
                return open_content(name)
            self._act()
        return open_content(name)

    @property
    def acted(self) -> bool:
        return self._flag.exists()


@pytest.fixture
def scan_with(tmp_path: Path) -> Iterator[Callable[..., Scanned]]:
    """`scan_with(root, act)` scans; `act` is called when one file of a directory is listed and not yet hashed.

    Other lanes may be done with other directories by then, but none with this one.
    """

    def do_scan(root: Path, act: Callable[[], object], *select: str) -> Scanned:
        meddler = Meddler(b"grp/a/v1/lib/module7.py", act, tmp_path / "acted")
        try:
            return scan_tree(root, *select, open_content=meddler)
        finally:
            assert meddler.acted

    yield do_scan


def check_truthful(scanned: Scanned, volume: Path) -> None:
    """What was recorded of files is true on the server now: their digests, and their attributes at the same time."""
    for path, node in scanned.nodes().items():
        if isinstance(node, RegularFile):
            real = volume / os.fsdecode(path)
            status = real.stat()
            assert (node.size, node.mtime_ns, node.mode) == (status.st_size, status.st_mtime_ns, status.st_mode), path
            assert node.blake3 == blake3(real.read_bytes()).digest(), path


def replace_tree(directory: Path) -> None:
    """Puts another directory in the place of one, which is then removed: what was opened in it is stale."""
    new = directory.with_name("new")
    shutil.copytree(directory, new, symlinks=True, ignore=shutil.ignore_patterns("fifo", "null"))
    (new / "module7.py").write_text("another release")
    old = directory.with_name("old")
    directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old)


@pytest.mark.parametrize("select", ["grp/*/*/lib", "grp/*/*", "grp"])
def test_directory_replaced_while_walked(
    connect: Connect, volume: Path, scan_with: Callable[..., Scanned], select: str
) -> None:
    make_volume(volume)
    client = connect()
    scanned = scan_with(client.where, lambda: replace_tree(volume / "grp/a/v1/lib"), select)
    check_truthful(scanned, volume)
    assert scanned.nodes() or select == "grp"
    assert all("grp/a/v1/lib".startswith(path.decode()) for path in scanned.left_out())


def test_directory_removed_while_walked(connect: Connect, volume: Path, scan_with: Callable[..., Scanned]) -> None:
    make_volume(volume)
    client = connect()
    scanned = scan_with(client.where, lambda: shutil.rmtree(volume / "grp/a/v1/lib"), "grp/*/*")
    assert set(scanned.left_out()) <= {b"grp/a/v1"}
    check_truthful(scanned, volume)
    assert b"grp/a/v2/lib/module7.py" in scanned.nodes()


def test_filesystem_swapped_under_the_export(
    connect: Connect, volume: Path, server: Server, scan_with: Callable[..., Scanned]
) -> None:
    make_volume(volume)
    client = connect()

    def swap() -> None:
        call("mount", "-t", "tmpfs", "tmpfs", volume)
        call("exportfs", "-f")

    try:
        with pytest.raises(ScanError, match="changed while it was read, twice; and so nothing"):
            scan_with(client.where, swap)
    finally:
        call("umount", "--lazy", volume)  # the server may still hold files of it
        call("exportfs", "-f")


def rename_over(file: Path) -> None:
    """Another file of the same size and times in the place of one."""
    status = file.stat()
    new = file.with_name("new")
    new.write_bytes(file.read_bytes()[::-1])
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(file)


def write_in_place(file: Path) -> None:
    """Other content of the same size in the same file, its times set back."""
    status = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"X" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize("change", [rename_over, write_in_place, append])
@pytest.mark.parametrize("options", ["", "nocto", "actimeo=3600", "noac", "lookupcache=none"])
def test_file_changed_between_listing_and_hashing(
    connect: Connect,
    volume: Path,
    scan_with: Callable[..., Scanned],
    options: str,
    change: Callable[[Path], None],
) -> None:
    """It is recorded as it is afterwards, or its subtree is left out."""
    make_volume(volume)
    client = connect(options)
    for path in (client.where / "grp/a/v1/lib").iterdir():
        path.lstat()  # something to be cached
    scanned = scan_with(client.where, lambda: change(volume / "grp/a/v1/lib/module7.py"), "grp/a/v1/lib", "grp/a/v2")
    check_truthful(scanned, volume)
    assert set(scanned.left_out()) <= {b"grp/a/v1/lib"}
    assert b"grp/a/v2/lib/module7.py" in scanned.nodes()
