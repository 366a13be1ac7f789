"""`build --base`: what is just the same is one inode in both layers; everything else is as without it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mkmeta.__main__ import main
from mkmeta.build import BuildOptions, BuildResult, build, sink_for
from mkmeta.errors import BuildError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.plan import Plan
from mkmeta.sinks.directory.sharing import is_shared
from tests.conftest import Mount
from tests.host.hosts import Host, host_in
from tests.layer.layers import attributes, snapshot
from tests.scanner.helpers import make_sample, scan_tree
from tests.verifier.checking import brief, found

pytestmark = pytest.mark.needs("root", "trusted xattrs")

V1, V2 = "grp/a/v1/lib", "grp/a/v2/lib"
SHARED = "trusted.overlay.mkmeta-shared"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    make_sample(tmp_path / "volume", privileged=True)
    return tmp_path / "volume"


def compiled(volume: Path, layer: Path, base: Path | None = None, **options: object) -> tuple[Path, BuildResult]:
    """Scans and builds; returns the manifest and the result."""
    manifest = scan_tree(volume, "grp/*/v*").path
    kept = layer.with_suffix(".mkm")
    shutil.copy(manifest, kept)
    chosen = BuildOptions(base=os.fsencode(base) if base else None, **options)  # type: ignore[arg-type]
    with ManifestReader.open(str(kept)) as reader:
        return kept, build(reader, sink_for(os.fsencode(layer), chosen), chosen)


def inode(path: Path) -> int:
    return path.lstat().st_ino


def test_only_what_changed_is_written(volume: Path, tmp_path: Path) -> None:
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old_manifest, first = compiled(volume, old)
    assert first.counts["shared"] == 0 and "shared" not in " ".join(first.published.notes) and not os.listxattr(old)[1:]
    (volume / V2 / "block").write_bytes(b"patched")
    (volume / V1 / "-new").write_bytes(b"new")
    (volume / "grp/b/v1/lib/deep/er/odd2").write_bytes(b"new")
    manifest, result = compiled(volume, new, old, jobs=2)
    compiled(volume, plain)
    assert attributes(new) == attributes(plain)
    shared = [f"{V1}/one.py", f"{V1}/huge", f"{V2}/more", "grp/b/v1/lib/deep/er/odd\udcff\n name", "grp/b/v1/lib/-"]
    shared.append("grp/b/v1/lib/same")
    written = [f"{V2}/block", f"{V1}/-new", f"{V1}/nothing", f"{V1}/fifo", f"{V1}/link", V1, V2]
    assert [path for path in shared if inode(old / path) != inode(new / path)] == []
    assert [path for path in written if (old / path).exists() and inode(old / path) == inode(new / path)] == []
    assert result.counts["shared"] == len(shared)
    assert found(manifest, new) == [] and found(old_manifest, old) == []
    assert os.path.samefile(new / V1 / "one.py", new / V1 / "same"), "its own hard links are made as ever"


@pytest.mark.needs("overlay")
@pytest.mark.parametrize("profile", ["merge", "data-only", "nested"])
def test_both_layers_mount(volume: Path, tmp_path: Path, overlay: Mount, profile: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    compiled(volume, old)
    shown = overlay(old, volume, profile)
    before = (shown / V2 / "more").stat()
    compiled(volume, new, old)
    for merged in (shown, overlay(new, volume, profile)):
        assert (merged / V2 / "more").read_bytes() == b"y" * 300_000
        status = (merged / V2 / "more").stat()
        assert (status.st_mtime_ns, status.st_size, status.st_mode) == (before.st_mtime_ns, 300_000, before.st_mode)
        assert (before.st_nlink, status.st_nlink) == (1, 2), "the price: the link count shows"
        command = ["rsync", "-aHAXn", "--itemize-changes", "--modify-window=-1", f"{volume}/grp/a/", f"{merged}/grp/a/"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert [line for line in result.stdout.splitlines() if not line.startswith(".d........x")] == []


def test_removing_a_layer_leaves_the_other(volume: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    compiled(volume, old)
    manifest, _ = compiled(volume, new, old)
    shutil.rmtree(old)
    assert found(manifest, new) == []
    with pytest.raises(BuildError, match="exists"):
        compiled(volume, new, new)


def test_the_base_is_trusted_for_nothing(volume: Path, tmp_path: Path) -> None:
    """What is in it is shared only when it is exactly as planned, whatever its manifest said."""
    old, new = tmp_path / "old", tmp_path / "new"
    compiled(volume, old)
    os.setxattr(old / V2 / "more", "trusted.overlay.redirect", b"/etc/shadow")
    (old / V2 / "block").chmod(0o4777)
    os.setxattr(old / V1 / "huge", "user.more", b"")
    (old / "grp/b/v1/lib/-").unlink()
    os.mkfifo(old / "grp/b/v1/lib/-")
    shutil.rmtree(old / "grp/b/v1/lib/deep")
    (old / "grp/b/v1/lib/deep").symlink_to(old / V1)
    before = {path: (old / path).lstat().st_nlink for path in (f"{V2}/more", f"{V2}/block", "grp/b/v1/lib/-")}
    manifest, result = compiled(volume, new, old)
    assert result.counts["shared"] == 2 and inode(old / V1 / "one.py") == inode(new / V1 / "one.py")
    assert found(manifest, new) == []
    assert {path: (old / path).lstat().st_nlink for path in before} == before


def test_another_plan_shares_nothing(volume: Path, tmp_path: Path) -> None:
    compiled(volume, tmp_path / "old")
    plan = Plan(prefix=b"elsewhere")
    manifest, result = compiled(volume, tmp_path / "new", tmp_path / "old", plan=plan)
    assert result.counts["shared"] == 0 and found(manifest, tmp_path / "new", plan) == []


def test_another_namespace_is_refused(volume: Path, tmp_path: Path) -> None:
    compiled(volume, tmp_path / "old")
    with pytest.raises(BuildError, match="built without --userxattr"):
        compiled(volume, tmp_path / "new", tmp_path / "old", plan=Plan(userxattr=True))


def test_another_filesystem_shares_nothing(volume: Path, tmp_path: Path, mount: Mount) -> None:
    compiled(volume, tmp_path / "old")
    new = mount("tmpfs") / "new"
    manifest, result = compiled(volume, new, tmp_path / "old")
    assert result.counts["shared"] == 0 and "another filesystem" in result.published.notes[-1]
    assert found(manifest, new) == []
    assert SHARED not in os.listxattr(tmp_path / "old") and SHARED not in os.listxattr(new)


def test_the_limit_of_links(volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has as many names as the filesystem allows is written once more (ext4: 65,000)."""
    old, new = tmp_path / "old", tmp_path / "new"
    compiled(volume, old)
    link = os.link

    def limited(source: bytes, target: bytes, **options: object) -> None:
        if source == b"more":
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", limited)
    manifest, _ = compiled(volume, new, old)
    assert inode(old / V2 / "more") != inode(new / V2 / "more")
    assert inode(old / V2 / "block") == inode(new / V2 / "block")
    assert found(manifest, new) == []


def test_what_is_no_base(volume: Path, tmp_path: Path) -> None:
    compiled(volume, tmp_path / "old")
    (tmp_path / "empty").mkdir()
    before = snapshot(volume)
    for base, message in ((tmp_path / "none", "cannot be opened"), (tmp_path / "empty", "not a layer")):
        with pytest.raises(BuildError, match=message):
            compiled(volume, tmp_path / "new", base)
    os.setxattr(tmp_path / "old", "trusted.overlay.impure", b"y")  # as the kernel does to an upper
    with pytest.raises(BuildError, match="writable upper"):
        compiled(volume, tmp_path / "new", tmp_path / "old")
    assert not (tmp_path / "new").exists() and snapshot(volume) == before


@pytest.mark.needs("overlay")
def test_what_the_kernel_was_given_to_write_to_is_no_base(volume: Path, tmp_path: Path, mount: Mount) -> None:
    old, work = tmp_path / "old", tmp_path / "work"
    compiled(volume, old)
    work.mkdir()
    mounted = mount("overlay", f"metacopy=on,lowerdir={volume},upperdir={old},workdir={work}")
    (mounted / "grp/a/v2/lib/more").chmod(0o600)
    with pytest.raises(BuildError, match="writable upper"):
        compiled(volume, tmp_path / "new", old)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return next(host_in(tmp_path / "host"))


def test_generations_that_share(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Path(os.path.realpath(host.store / "current"))
    host.release("v2", {"lib/new": "x"})
    manifest = host.top / "sw.mkm"
    host.call("scan", host.volume, "--select", "grp/*/v*", "-o", manifest)
    result = host.call("build", manifest, "--store", host.store, "--base", host.store, "--json")
    assert result.messages[-1]["shared"] == 2
    second = Path(os.path.realpath(host.store / "current"))
    one = "layer/grp/paint/v1/lib/one"
    assert first != second and inode(first / one) == inode(second / one)
    for generation in (first, second):
        assert main(["verify", str(generation)]) == 0
        fd = os.open(generation / "layer", os.O_RDONLY)
        assert is_shared(fd)
        os.close(fd)
    (second / one).chmod(0o600)
    assert [main(["verify", str(generation)]) for generation in (first, second)] == [4, 4], "one inode, one mode"
    host.call("gc", host.store, "--keep", "1", "--min-age", "0")
    assert not first.exists() and main(["verify", str(second)]) == 4


def test_a_generation_that_was_written_is_no_base(host: Host) -> None:
    (Path(os.path.realpath(host.store / "current")) / "written").touch()
    host.release("v2", {"lib/new": "x"})
    manifest = host.top / "sw.mkm"
    host.call("scan", host.volume, "--select", "grp/*/v*", "-o", manifest)
    result = host.call("build", manifest, "--store", host.store, "--base", host.store, check=1)
    assert "writable upper" in result.err
    assert len(list((host.store / "generations").iterdir())) == 1


def test_verify_still_counts_links_of_layers_that_share(volume: Path, tmp_path: Path) -> None:
    compiled(volume, tmp_path / "old")
    manifest, _ = compiled(volume, tmp_path / "new", tmp_path / "old")
    (tmp_path / "new" / V1 / "same").unlink()
    assert ("layer", f"{V1}/same", "missing") in brief(found(manifest, tmp_path / "new"))
