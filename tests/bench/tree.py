"""Software volumes made up for benchmarks: the same tree for the same numbers, on any machine."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

FILES_PER_DIRECTORY: Final = 12  # a Python installation has 20, a Debian /usr 10
DIRECTORIES_PER_RELEASE: Final = 30
RELEASES_PER_GROUP: Final = 20
_LARGEST: Final = 4 << 20  # bytes of one file
_SPREAD: Final = 1.65  # sigma of the log-normal sizes: most files are small, most bytes are in large ones


def make_tree(root: Path, files: int, size: int) -> None:
    """Makes `files` files of about `size` bytes altogether, as `grp<n>/rel<n>/{lib,bin,python}/<package>/<file>`."""
    numbers = random.Random(20261121)
    content = random.Random(7).randbytes(2 * _LARGEST)
    mean = size / files
    made = directory = 0
    while made < files:
        release, package = divmod(directory, DIRECTORIES_PER_RELEASE)
        group, version = divmod(release, RELEASES_PER_GROUP)
        kind = ("lib", "bin", "python")[package % 3]
        path = root / f"grp{group:03d}" / f"rel-{version}.{group % 7}" / kind / f"package{package}"
        path.mkdir(parents=True)
        for number in range(min(FILES_PER_DIRECTORY, files - made)):
            length = min(int(numbers.lognormvariate(0, _SPREAD) * mean / _MEAN_OF_SPREAD), _LARGEST)
            start = numbers.randrange(_LARGEST)
            (path / f"{_STEMS[numbers.randrange(len(_STEMS))]}_{number}.py").write_bytes(
                content[start : start + length]
            )
            made += 1
        directory += 1


_MEAN_OF_SPREAD = 2.718281828 ** (_SPREAD**2 / 2)  # mean of the log-normal distribution with mu 0
_STEMS = ("module", "libcore", "test_case", "constants", "__init__", "plugin", "shader", "icon", "schema", "driver")
