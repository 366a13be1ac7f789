"""Scanning again, beside a full scan and find; prints one JSON object.

    python -m tests.bench.rescan --files 350000 --bytes 5000000000 --dir /var/tmp

The tree is that of tests.bench. One file in a hundred is given other content, and one release is added; rescans are
compared with neighbours in time. Changes are waited for until they are older than what a base does not trust.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.__main__ import figures, prepare_tree
from tests.bench.measure import compare, run
from tests.bench.tree import make_tree

MKMETA = (sys.executable, "-m", "mkmeta", "scan", "-q")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=350_000)
    parser.add_argument("--bytes", type=int, default=5_000_000_000)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--manifests", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    tree = prepare_tree(args.dir / "mkmeta-bench", args.files, args.bytes)
    base, again = str(args.manifests / "mkmeta-bench-base.mkm"), str(args.manifests / "mkmeta-bench-again.mkm")
    root = str(tree)
    find = ("find", root, "-printf", r"%p %s %m %T@\n")
    full = [*MKMETA, root, "-o", base]
    subprocess.run(["sh", "-c", f"find '{root}' -type f -print0 | xargs -0 cat >/dev/null"], check=True)
    run(full)
    unchanged = [*MKMETA, root, "--base", base, "-o", again]
    result: dict[str, object] = {"unchanged_to_find": figures(compare(unchanged, find, rounds=args.rounds))}
    changed = _change(tree)
    try:
        result["one_percent_to_full"] = figures(
            compare(unchanged, [*MKMETA, root, "-o", again], rounds=args.rounds)
        ) | {"files_changed": changed}
        result["one_percent_to_find"] = figures(compare(unchanged, find, rounds=args.rounds))
        release = tree / "grp000" / "bench"
        make_tree(release, 360, 360 * 14_000)
        only = [*MKMETA, root, "--base", base, "--only", "grp000/bench", "-o", again]
        alone = [*MKMETA, str(release), "-o", str(args.manifests / "mkmeta-bench-alone.mkm")]
        result["only_one_release_to_that_release_alone"] = figures(compare(only, alone, rounds=args.rounds))
        shutil.rmtree(release)
    finally:
        for name in (base, again, str(args.manifests / "mkmeta-bench-alone.mkm")):
            Path(name).unlink(missing_ok=True)
    print(json.dumps(result, indent=1))


def _change(tree: Path) -> int:
    """Gives one file in a hundred another content of the same size; their number."""
    changed = 0
    for number, path in enumerate(sorted(tree.glob("grp*/*/*/*/*.py"))):
        if number % 100 == 0:
            path.write_bytes(path.read_bytes()[::-1])
            changed += 1
    return changed


if __name__ == "__main__":
    main()
