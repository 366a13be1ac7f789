"""A real application over NFS: thousands of Python modules from popular distributions, each in a directory of its own.

    python -m tests.bench.app                    NFS 4.2 and 3, in a kernel of its own: requests and seconds
    python -m tests.bench.app --distance         the FUSE stand-in of tests.bench.distance, on this one (root, gcc)
    python -m tests.bench.app --rounds 3         all of it three times in turn: least and median seconds
    python -m tests.bench.app --sizes            bytes of files, manifests and images
    python -m tests.bench.app --json FILE        the figures, once more

Any user; the distributions come with pip, once, into .cache/app (some 100 MB). They are unpacked and compiled, as an
installation leaves them, and every module that can be imported is, in one process, up to `MODULES`: what that takes is
measured, with cold caches, a millisecond away. Without a layer, and with the layers of `MOUNTS`; and on a local disk,
which is what Python takes by itself. The kernel of its own is a program: there Python is some ten times slower, so that
of seconds only the stand-in's say much, and of requests those on NFS. The stand-in's clients believe names and
attributes for a minute, as those of NFS do.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mkmeta.linux.mount import leave_mount_namespace
from tests.bench.distance import compiled, requests, served
from tests.bench.measure import Figure
from tests.host.hosts import Host
from tests.nfs.hosts import NfsHost
from tests.nfs.server import BACKGROUND, VERSIONS, Client, Server, latency, round_trip
from tests.uml.__main__ import TOP, boot

DISTRIBUTIONS: Final = (
    "aiohttp attrs babel black botocore celery click cryptography dask django docutils fastapi flask fsspec ipython "
    "jedi jinja2 jsonschema lxml marshmallow networkx numpy openpyxl pillow pydantic pygments pytest requests rich "
    "scrapy setuptools sphinx sqlalchemy sympy tornado twisted"
)
MODULES: Final = 3000
CACHE: Final = TOP / ".cache" / "app"
MEMORY: Final = 4096  # MiB of the guest: the volume, and each layer with content, are in memory
SIZES: Final = {"": 0, "16K": 16 << 10, "64K": 64 << 10, "1M": 1 << 20}  # bytes: content up to that in the manifest
KINDS: Final = {  # of requests, on NFS 3 and 4.2, and numbers in linux/fuse.h
    "opens": ("OPEN", "OPEN_NOATTR", "CLOSE", "14", "18"),
    "reads": ("READ", "15"),
}
DISTANCE: Final = 1000  # microseconds of the stand-in
BELIEVED: Final = 60  # seconds, as NFS believes directories


@dataclass(frozen=True)
class Mounting:
    """How the volume is used."""

    profile: str  # empty: as it is
    kind: str = "directory"
    inline: str = ""
    on_volume: bool = False  # the image: no store, no disk

    def __str__(self) -> str:
        if not self.profile:
            return "local disk" if self.kind == "local" else "plain"
        image = "image, " if self.kind == "erofs" else ""
        return (
            f"{image}`{self.profile}`"
            + (f", files up to {self.inline} inside" if self.inline else "")
            + (", on the volume" if self.on_volume else "")
        )


MOUNTS: Final = (
    Mounting("", "local"),
    Mounting(""),
    Mounting("merge"),
    Mounting("nested"),
    Mounting("nested", "erofs"),
    Mounting("nested", "erofs", "16K"),
    Mounting("merge", "erofs", "64K"),
    Mounting("nested", "directory", "64K"),
    Mounting("nested", "erofs", "64K"),
    Mounting("nested", "erofs", "1M"),
    Mounting("nested", "erofs", "64K", on_volume=True),
)

# Imports all modules that a file names, and says how many there are then. A few cannot be, whatever they are on.
_IMPORT = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
print("modules", len(sys.modules))
"""
# Tries to import everything below the search path, and prints the names of what could be.
_TRY = """
import contextlib, importlib, io, os, sys, warnings
warnings.simplefilter("ignore")
limit, good = int(sys.argv[1]), []
for top in os.environ["PYTHONPATH"].split(":"):
    for directory, below, files in os.walk(top):
        below[:] = sorted(name for name in below if name.isidentifier() and name not in ("tests", "test", "testing"))
        package = os.path.relpath(directory, top).replace("/", ".").lstrip(".")
        for name in sorted(files):
            stem = name[:-3]
            if not name.endswith(".py") or stem in ("__main__", "setup", "conftest") or not stem.isidentifier():
                continue
            module = ".".join(filter(None, (package, "" if stem == "__init__" else stem)))
            if module and len(sys.modules) < limit:
                try:
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                        importlib.import_module(module)
                    good.append(module)
                except BaseException:
                    pass
print("\\n".join(good))
"""


@dataclass(frozen=True, kw_only=True)
class AppFigure(Figure):
    """The application once, over one mount."""

    processor: float  # seconds, of its own
    queued: float  # of its seconds, those in which it waited for a processor that others had

    def of_kind(self, kind: str) -> int:
        """Requests of a kind: `opens`, `reads`, or `others`, which are for misses, attributes and listings."""
        if kind != "others":
            return sum(self.rpcs.get(operation, 0) for operation in KINDS[kind])
        return self.total - sum(self.of_kind(one) for one in KINDS)


def main() -> int:
    """Runs the benchmark, or what of it is inside the guest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", metavar="VERSION", help="one of .cache/uml (default: the newest)")
    parser.add_argument("--distance", action="store_true", help="the FUSE stand-in, on this machine")
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=list(reversed(VERSIONS)))
    parser.add_argument("--sizes", action="store_true", help="what manifests and images take, and nothing else")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="how often everything is measured (1)")
    parser.add_argument("--only", metavar="TEXT", default="", help="mounts that have this in their description")
    parser.add_argument("--json", metavar="FILE", type=Path, help="where the figures go as well")
    parser.add_argument("--inside", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return _inside(args.inside, args.versions, _chosen(args.only) * args.rounds)
    volume = prepared()
    if args.sizes:
        _sizes(volume)
        return 0
    with tempfile.TemporaryDirectory(prefix="mkmeta-app-", dir="/var/tmp") as work:  # which the guest does not cover
        if args.distance:
            figures = _distance(volume, Path(work), _chosen(args.only) * args.rounds)
            _report(figures, "FUSE, a millisecond away")
            _write(figures, args.json)
            return 0
        answer = Path(work) / "app.json"
        command = [sys.executable, "-m", "tests.bench.app", "--inside", str(answer), "--versions", *args.versions]
        command += ["--only", args.only, "--rounds", str(args.rounds)]
        code = boot(command, kernel=args.kernel, memory=MEMORY, time_limit=3600)
        if code == 0 and args.json:
            shutil.copyfile(answer, args.json)
    return code


def _chosen(text: str) -> list[Mounting]:
    """Those that are to be measured; `plain` is, whatever is asked for: the others are compared with it."""
    return [one for one in MOUNTS if text in str(one) or str(one) == "plain"]


def prepared() -> Path:
    """The directory of unpacked distributions, beside which are the list of modules and a manifest for each size."""
    volume, done = CACHE / "volume", CACHE / "done"
    if not done.exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        wheels = CACHE / "wheels"
        wheels.mkdir(parents=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", str(wheels)]
        subprocess.run([*pip, *DISTRIBUTIONS.split()], check=True)
        for wheel in sorted(wheels.iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(volume / "-".join(wheel.name.split("-")[:2]))
        compileall.compile_dir(str(volume), quiet=2, workers=2)
        names = _python(volume, _TRY, str(MODULES))[0]
        (CACHE / "modules").write_text(names)
        done.write_text(_python(volume, _IMPORT, str(CACHE / "modules"))[0])
    for size in (size for size in SIZES if not _manifest(size).exists()):
        inline = ["--inline", size] if size else []
        scan = [sys.executable, "-m", "mkmeta", "scan", "-q", str(volume), *inline, "-o", str(_manifest(size))]
        subprocess.run(scan, check=True)
    return volume


def _manifest(size: str) -> Path:
    return CACHE / f"app{size}.mkm"


def _python(root: Path, script: str, *args: str) -> tuple[str, float]:
    """Runs a script with every distribution below `root` in its search path: its output, and seconds it was queued."""
    search = ":".join(str(path) for path in sorted(root.iterdir()))
    environment = {
        "PYTHONPATH": search,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "HOME": "/",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-S", "-s", "-c", script, *args]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it is waited for, its figures are there
        queued = _queued(process.pid)
        if process.wait():
            err.seek(0)
            raise OSError(f"the application ended with {process.returncode}: {err.read()[-2000:].decode()}")
        out.seek(0)
        return out.read().decode(), queued


def _queued(process: int) -> float:
    """Seconds that a process waited in run queues; 0 where the kernel does not count them."""
    with contextlib.suppress(FileNotFoundError):
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def application(root: Path) -> tuple[float, float, float]:
    """All of it, as it was when it was unpacked: seconds, of a processor, queued for one. Raises OSError."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed, queued = _python(root, _IMPORT, str(CACHE / "modules"))
    if printed != (CACHE / "done").read_text():
        raise OSError("not every module could be imported")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, queued


def _figure(version: str, mount: Mounting, root: Path, asked: Callable[[], Counter[str]]) -> AppFigure:
    """The application once; `asked`: the requests so far."""
    before = asked()
    seconds, processor, queued = application(root)
    rpcs = {kind: count for kind, count in (asked() - before).items() if kind not in BACKGROUND}
    seconds, processor, queued = (round(one, 2) for one in (seconds, processor, queued))
    return AppFigure(version=version, mount=str(mount), rpcs=rpcs, seconds=seconds, processor=processor, queued=queued)


def _inside(answer: Path, versions: list[str], mountings: list[Mounting]) -> int:
    """In the guest: measures over NFS."""
    leave_mount_namespace()
    server = Server()
    server.start()
    top = Path(tempfile.mkdtemp())
    volume = top / "volume"
    shutil.copytree(CACHE / "volume", volume, symlinks=True)
    figures = []
    with server.exporting(volume):
        for version in versions:
            where = top / f"nfs{version}"
            where.mkdir()
            client = Client(version, volume, where, "")
            client.mount()
            host = NfsHost(top / f"host{version}", client=client)
            with latency():
                trip = round_trip(client)
                for mount in mountings:
                    figures.append(_over_nfs(host, client, mount, volume))
                    print(f"{version} {figures[-1].mount}: {figures[-1].total} {figures[-1].seconds}", flush=True)
            client.unmount()
            _report([one for one in figures if one.version == version], f"NFS {version}, {trip * 1000:.1f} ms")
    _write(figures, answer)
    return 0


def _over_nfs(host: NfsHost, client: Client, mount: Mounting, local: Path) -> AppFigure:
    with _mounted(host, mount, local, client.remount) as root:
        return _figure(client.version, mount, root, client.sent)


def _distance(volume: Path, work: Path, mountings: list[Mounting]) -> list[AppFigure]:
    """Over the FUSE stand-in: the volume is in its memory, store and local disk are below `work`."""
    leave_mount_namespace()
    program = compiled(work)
    host = Host(work / "host")
    figures = []
    with tempfile.TemporaryDirectory(prefix="mkmeta-app-", dir="/dev/shm") as memory:
        far = Path(memory) / "volume"
        shutil.copytree(volume, far, symlinks=True)

        def forget() -> None:
            """The volume is mounted anew."""
            serving.close()
            _drop_caches()
            serving.enter_context(served(program, far, host.volume, DISTANCE, BELIEVED))

        with contextlib.ExitStack() as serving:
            for mount in mountings:
                with _mounted(host, mount, far, forget, disk=volume) as root:
                    figures.append(_figure("FUSE", mount, root, lambda: requests(host.volume)))
                print(f"{mount}: {figures[-1].total} {figures[-1].seconds} {figures[-1].queued}", flush=True)
    return figures


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextlib.contextmanager
def _mounted(
    host: Host, mount: Mounting, local: Path, forget: Callable[[], None], disk: Path | None = None
) -> Iterator[Path]:
    """Where the application is to be found, all caches cold; `local`: the volume itself, `disk`: it on a disk."""
    forget()
    if not mount.profile:
        yield (disk or local) if mount.kind == "local" else host.volume
        return
    options = ("--lower", host.volume, "--profile", mount.profile, "--other-root")
    if mount.on_volume:
        layer = local / "app.erofs"
        host.call("build", "-q", _manifest(mount.inline), layer, "--format", mount.kind)
        host.call("activate", host.volume / layer.name, host.point, *options)
    else:
        layer = host.top / "store"
        host.call("build", "-q", _manifest(mount.inline), "--store", layer, "--format", mount.kind)
        host.call("activate", layer, host.point, *options)
    _drop_caches()
    yield host.point
    host.call("deactivate", host.point)
    if mount.on_volume:
        layer.unlink()
    else:
        shutil.rmtree(layer)


def _report(figures: list[AppFigure], what: str) -> None:
    """The table for people: requests of the first round, least and median seconds, ratios of medians.

    Seconds are those not queued: what others do on this machine is in the columns behind.
    """
    rounds = {one.mount: [each for each in figures if each.mount == one.mount] for one in figures}
    median = {mount: statistics.median(one.seconds - one.queued for one in found) for mount, found in rounds.items()}
    plain, local = rounds["plain"][0], median.get("local disk")
    print(
        f"| {what} | requests | misses, attributes | opens | reads | seconds | processor | queued | of plain | local |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for mount, (one, *others) in rounds.items():
        kinds = " | ".join(f"{one.of_kind(kind):,}" for kind in ("others", "opens", "reads"))
        least = min(each.seconds - each.queued for each in (one, *others))
        processor = statistics.median(each.processor for each in (one, *others))
        queued = statistics.median(each.queued for each in (one, *others))
        share = f"{one.total / max(1, plain.total):.2f}x, {median[mount] / median['plain']:.2f}x"
        beside = f"{median[mount] / local:.2f}x" if local else "-"
        print(
            f"| {mount} | {one.total:,} | {kinds} | {least:.1f}, {median[mount]:.1f} | {processor:.1f} | {queued:.1f} |"
            f" {share} | {beside} |",
            flush=True,
        )


def _write(figures: list[AppFigure], answer: Path | None) -> None:
    if answer is not None:
        answer.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n")


def _sizes(volume: Path) -> None:
    """What the layers take: bytes of the volume's files, those inside, and of manifest and image."""
    files = [path.stat().st_size for path in volume.rglob("*") if path.is_file()]
    print(f"volume: {len(files):,} files, {sum(files) / 1e6:.1f} MB")
    with tempfile.TemporaryDirectory(prefix="mkmeta-app-", dir="/var/tmp") as work:
        for size in SIZES:
            image = Path(work) / f"app{size}.erofs"
            build = [sys.executable, "-m", "mkmeta", "build", "-q", str(_manifest(size)), str(image)]
            subprocess.run([*build, "--format", "erofs"], check=True, stdout=subprocess.DEVNULL)
            inside = [one for one in files if one <= SIZES[size]]
            print(
                f"files up to {size or '0'} inside: {len(inside):,} of {sum(inside) / 1e6:.1f} MB; "
                f"manifest {_manifest(size).stat().st_size / 1e6:.1f} MB, image {image.stat().st_size / 1e6:.1f} MB",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
