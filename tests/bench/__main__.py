"""Scan and build against the neighbours, on a generated tree; prints one JSON object.

    python -m tests.bench --files 350000 --bytes 5000000000 --dir /var/tmp

The tree is generated once below --dir and kept for the next run; it has to fit the page cache. Every figure is the
median of --rounds runs; every ratio is the median of ratios of runs next to each other, first command over second.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from mkmeta.manifest.reader import ManifestReader
from tests.bench.measure import Comparison, Run, compare, run
from tests.bench.tree import make_tree

MKMETA = (sys.executable, "-m", "mkmeta")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=350_000)
    parser.add_argument("--bytes", type=int, default=5_000_000_000)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--layers", type=Path, help="where layers and copies are written (default: --dir)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = args.dir / "mkmeta-bench"
    tree = prepare_tree(work, args.files, args.bytes)
    small = prepare_tree(work, args.files // 4, args.bytes // 4)
    layers = (args.layers or args.dir) / "mkmeta-bench"
    layers.mkdir(exist_ok=True)
    manifest = work / "both.mkm"
    result: dict[str, object] = {
        "files": args.files,
        "bytes": args.bytes,
        "machine": _machine(args.dir, layers),
        "scan": _scan(tree, manifest, args.rounds),
        "build": _build(tree, manifest, layers, args.rounds),
        "memory": _memory(tree, small, layers),
        "manifest": _manifest(manifest),
    }
    print(json.dumps(result, indent=1))


def _scan(tree: Path, manifest: Path, rounds: int) -> dict[str, object]:
    plain = ("find", str(tree), "-printf", r"%p %s %m %T@\n")
    names = [*MKMETA, "scan", str(tree), "-q", "-o", str(manifest), "--digest", "none"]
    both = names[:-2]
    _warm(tree)
    found: dict[str, object] = {"none_to_find": figures(compare(names, plain, rounds=rounds))}
    if shutil.which("mkcomposefs"):
        image = str(manifest.with_suffix(".composefs"))
        found["both_to_mkcomposefs"] = figures(compare(both, ["mkcomposefs", str(tree), image], rounds=rounds))
    for name in ("openssl dgst -sha256 -r", "sha256sum"):
        if shutil.which(name.split()[0]):
            command = f"find {shlex.quote(str(tree))} -type f -print0 | xargs -0 -P {_processors()} -n 1000 {name}"
            label = f"both_to_{name.split()[0]}_on_all_processors"
            found[label] = figures(compare(both, ["sh", "-c", command], rounds=rounds))
    return found


def _build(tree: Path, manifest: Path, work: Path, rounds: int) -> dict[str, object]:
    layer, copy = work / "layer", work / "copy"
    copying = f"cp -a --attributes-only {shlex.quote(str(tree))} {shlex.quote(str(copy))}"

    def clear() -> None:
        for target in (layer, copy):
            subprocess.run(["rm", "-rf", target], check=True)
        os.sync()

    building = [*MKMETA, "build", str(manifest), str(layer), "-q"]
    found: dict[str, object] = {
        "to_cp": figures(compare(building, ["sh", "-c", copying], rounds=rounds, before=clear)),
        "to_cp_and_sync": figures(
            compare(building, ["sh", "-c", f"{copying}; sync -f {shlex.quote(str(copy))}"], rounds=rounds, before=clear)
        ),
    }
    clear()
    return found


def _memory(tree: Path, small: Path, work: Path) -> dict[str, object]:
    peaks: dict[str, object] = {}
    for name, root in (("quarter", small), ("full", tree)):
        manifest, layer = work / f"{name}.mkm", work / f"{name}.layer"
        subprocess.run(["rm", "-rf", layer], check=True)
        peaks[name] = {
            "scan": run([*MKMETA, "scan", str(root), "-q", "-o", str(manifest)]).peak,
            "build": run([*MKMETA, "build", str(manifest), str(layer), "-q"]).peak,
        }
        subprocess.run(["rm", "-rf", layer], check=True)
    return peaks


def _manifest(manifest: Path) -> dict[str, object]:
    with ManifestReader.open(str(manifest)) as reader:
        entries = reader.root.directory.entries
    return {"entries": entries, "bytes": manifest.stat().st_size, "per_entry": manifest.stat().st_size / entries}


def figures(comparison: Comparison) -> dict[str, object]:
    """A comparison for JSON."""
    return {"ratio": round(comparison.ratio, 3), "first": _run(comparison.ours), "second": _run(comparison.theirs)}


def _run(figure: Run) -> dict[str, object]:
    return {
        "seconds": round(figure.seconds, 2),
        "processor_seconds": round(figure.processor_seconds, 2),
        "peak_mib": figure.peak >> 20,
    }


def prepare_tree(work: Path, files: int, size: int) -> Path:
    """The tree of benchmarks, made when it is not there."""
    tree = work / f"tree-{files}-{size}"
    if not tree.exists():
        part = tree.with_suffix(".part")
        subprocess.run(["rm", "-rf", part], check=True)
        part.mkdir(parents=True)
        make_tree(part, files, size)
        part.rename(tree)
    return tree


def _warm(tree: Path) -> None:
    """Brings names, attributes and contents into memory."""
    run(["sh", "-c", f"find {shlex.quote(str(tree))} -type f -print0 | xargs -0 cat"])


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _machine(directory: Path, layers: Path) -> dict[str, object]:
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    filesystem = ["stat", "-f", "-c", "%T", str(directory), str(layers)]
    return {
        "processors": _processors(),
        "model": model[0] if model else "unknown",
        "memory": memory,
        "kernel": os.uname().release,
        "filesystems": subprocess.run(filesystem, check=True, capture_output=True, text=True).stdout.split(),
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
