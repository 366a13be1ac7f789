"""A volume, and a layer file for it, to publish from."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mkmeta.manifest.reader import ManifestReader
from mkmeta.store.pointer import Pointer, read_pointer
from tests.calling import Result, call


@dataclass
class Site:
    """Everything below one directory. Releases are `grp/PACKAGE/VERSION`, and their `lib` is selected."""

    top: Path
    store: bool = False

    def __post_init__(self) -> None:
        (self.volume / ".mkmeta").mkdir(parents=True)
        self.configure()
        self.make("paint/v1")

    def configure(self, more: str = "", select: str = "grp/*/v*/lib") -> None:
        """Writes the layer file."""
        store = f'store = "{self.top}/store"\n' if self.store else ""
        self.config.write_text(
            f'volume = "{self.volume}"\nmanifest = "{self.manifest}"\npointer = "{self.pointer_path}"\n'
            f'select = ["{select}"]\n{store}{more}'
        )

    @property
    def volume(self) -> Path:
        return self.top / "volume"

    @property
    def config(self) -> Path:
        return self.top / "sw.toml"

    @property
    def manifest(self) -> Path:
        return self.top / "sw.mkm"

    @property
    def pointer_path(self) -> Path:
        return self.volume / ".mkmeta/sw.json"

    def make(self, name: str, files: int = 2) -> Path:
        """A release, copied to where it belongs."""
        lib = self.volume / "grp" / name / "lib"
        lib.mkdir(parents=True, exist_ok=True)
        for number in range(files):
            (lib / f"m{number}.py").write_bytes(os.fsencode(f"{name} {number}\n"))
        (self.volume / "grp" / name / "doc").mkdir(exist_ok=True)
        return self.volume / "grp" / name

    def remove(self, name: str) -> None:
        """Deletes a release."""
        shutil.rmtree(self.volume / "grp" / name)

    def call(self, verb: str, *args: str, check: int | None = 0) -> Result:
        """Calls a verb with the layer file; `check` is the exit code it must have."""
        return call([verb, *args, "--config", str(self.config)], check=check)

    @property
    def pointer(self) -> Pointer:
        return read_pointer(os.fsencode(self.pointer_path))

    @property
    def state(self) -> tuple[bytes, bytes]:
        """Pointer and manifest, as they are."""
        return self.pointer_path.read_bytes(), self.manifest.read_bytes()

    def names(self) -> set[str]:
        """The releases that are published."""
        manifest = self.pointer_path.parent / os.fsdecode(self.pointer.manifest)
        with ManifestReader.open(str(manifest)) as reader:
            assert reader.id == self.pointer.id
            paths = [os.fsdecode(path) for path, _ in reader.walk()]
        return {path.removeprefix("grp/").removesuffix("/lib") for path in paths if path.endswith("/lib")}

    def full_scan(self) -> str:
        """The ID that a scan of everything gives."""
        return call(["scan", "--config", str(self.config), "-q", "-o", str(self.top / "full.mkm")]).out.strip()
