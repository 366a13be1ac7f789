"""Real programs that ask long search paths in vain: interpreters, the loader, a shell; on a volume made for them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from abc import ABC, abstractmethod
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

from tests.demand.profiles import age

SEARCHED: Final = 200  # directories in a search path
DISTRIBUTIONS: Final = 30


class Application(ABC):
    """A program, and the volume it uses."""

    name: str

    @abstractmethod
    def make(self, volume: Path) -> None:
        """Fills the volume with releases `grp/NAME/VERSION`, changed long ago."""

    @abstractmethod
    def command(self, top: Path) -> list[str]:
        """What is run, with the volume at `top`; the same names are asked for each time."""


class PythonApplication(Application):
    """Python, importing from distributions that each have a directory of their own on PYTHONPATH."""

    name = "python"

    def __init__(self) -> None:
        self._modules: list[str] = []
        self._path: list[str] = []

    def make(self, volume: Path) -> None:
        for distribution, files, module in _small_distributions():
            name = distribution.metadata["Name"].lower().replace("-", "_")
            release = f"grp/{name}/v{distribution.version.split('+')[0].rstrip('.')}/lib"
            for file in files:
                target = volume / release / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(distribution.locate_file(file)), target)
            self._path.append(release)
            self._modules.append(module)
        age(volume)

    def command(self, top: Path) -> list[str]:
        path = ":".join(f"{top}/{one}" for one in self._path)
        names = ("no_such_module", *reversed(self._modules))
        program = (
            f"import contextlib, importlib\nfor name in {names}:\n"
            "    with contextlib.suppress(ImportError): importlib.import_module(name)"
        )
        return ["env", "-i", f"PYTHONPATH={path}", sys.executable, "-S", "-s", "-B", "-c", program]


def _small_distributions() -> list[tuple[Distribution, list[str], str]]:
    """The smallest so many that are installed here, each with its modules, and one of them that can be asked for."""
    found = []
    for distribution in distributions():
        files = [
            str(file)
            for file in distribution.files or ()
            if file.suffix == ".py" and ".." not in file.parts and os.path.isfile(str(distribution.locate_file(file)))
        ]
        tops = sorted(file.partition("/")[0].removesuffix(".py") for file in files)
        tops = [name for name in tops if name.isidentifier() and not name.startswith(("test", "_"))]
        if tops:
            found.append((distribution, files, tops[0]))
    found.sort(key=lambda one: (len(one[1]), one[0].metadata["Name"]))
    assert len(found) >= DISTRIBUTIONS, "the tests' own environment has as many"
    return found[:DISTRIBUTIONS]


class LoaderApplication(Application):
    """The loader, with one of a program's libraries in one of so many directories of LD_LIBRARY_PATH."""

    name = "loader"
    _PROGRAM: Final = "mount"
    _HERE: Final = "libselinux.so.1"  # a small one: what is mapped is read in pieces

    def make(self, volume: Path) -> None:
        for number in range(SEARCHED):
            (volume / f"grp/lib{number:03}/v1/lib").mkdir(parents=True)
        listed = subprocess.run(["ldd", shutil.which(self._PROGRAM) or ""], check=True, capture_output=True, text=True)
        places = {line.split()[0]: line.split()[2] for line in listed.stdout.splitlines() if "=>" in line}
        shutil.copyfile(places[self._HERE], volume / f"grp/lib{SEARCHED // 2:03}/v1/lib" / self._HERE)
        age(volume)

    def command(self, top: Path) -> list[str]:
        path = ":".join(f"{top}/grp/lib{number:03}/v1/lib" for number in range(SEARCHED))
        return ["env", f"LD_LIBRARY_PATH={path}", self._PROGRAM, "--version"]


class ShellApplication(Application):
    """A shell that runs programs of the system and of the volume, with so many directories in PATH before it."""

    name = "shell"

    def make(self, volume: Path) -> None:
        for number in range(SEARCHED):
            directory = volume / f"grp/tool{number:03}/v1/bin"
            directory.mkdir(parents=True)
            if number % 20 == 0:
                (directory / f"tool{number:03}").write_text("#!/bin/sh\nexit 0\n")
                (directory / f"tool{number:03}").chmod(stat.S_IRWXU | 0o055)
        age(volume)

    def command(self, top: Path) -> list[str]:
        path = ":".join(f"{top}/grp/tool{number:03}/v1/bin" for number in range(SEARCHED))
        tools = " ".join(f"tool{number:03};" for number in range(0, SEARCHED, 20))
        return ["env", "-i", f"PATH={path}:/usr/bin:/bin", "/bin/sh", "-c", f"{tools} true; uname; no-such-program; :"]


APPLICATIONS: Final = (PythonApplication, LoaderApplication, ShellApplication)
