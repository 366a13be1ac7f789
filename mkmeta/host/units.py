"""The systemd units of a layer: templates that are the same for all, and what its file has to tell systemd itself.

systemd orders units by paths that it must know, and reads no layer file. So the paths of one stand in a drop-in, made
from the file: it is to be written anew when they change.
"""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from mkmeta.config import LayerConfig
from mkmeta.errors import UsageError, printable

DIRECTORY: Final = b"/etc/systemd/system"
CONFIGS: Final = b"/etc/mkmeta"  # where the templates look for the file of an instance
_PROGRAM: Final = "/opt/mkmeta/bin/mkmeta"  # in the templates
_NAME: Final = re.compile(rb"[A-Za-z0-9_.:-]{1,100}")  # systemd.unit(5): what an instance name need not escape
_USING: Final = ("activate", "refresh", "gc", "metrics", "watch")  # the services of a layer

_PATHS: Final = """\
# Made by `mkmeta units` from {config}, for systemd to know its paths: the layer is mounted after the mounts
# that these are on, not at all without them, and unmounted before they are.
[Unit]
RequiresMountsFor={paths}
"""
_WATCHED: Final = """\
# Made by `mkmeta units` from {config}, for systemd to know its paths: nobody watches a volume that is not mounted.
[Unit]
RequiresMountsFor={paths}
"""
_ELSEWHERE: Final = """\
# Made by `mkmeta units`: the layer file is not in /etc/mkmeta.
[Unit]
AssertPathExists=
AssertPathExists={config}

[Service]
Environment={variable}
"""


class Unit(NamedTuple):
    """A file for systemd."""

    name: str  # relative to where units are
    text: bytes


def instance_of(config: LayerConfig) -> str:
    """The name by which units know a layer: that of its file. Raises UsageError."""
    name = config.path.rpartition(b"/")[2].removesuffix(b".toml")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{printable(name)!r} cannot be the name of a unit",
            path=config.path,
            hint="name the file by letters, digits and _.:- only, such as /etc/mkmeta/sw.toml",
        )
    return name.decode()


def mounts(config: LayerConfig) -> bool:
    """Whether a layer file says enough to mount the layer."""
    return config.store is not None and config.mount_point is not None


def publishes(config: LayerConfig) -> bool:
    """Whether a layer file says enough to publish from."""
    return config.manifest is not None and config.pointer is not None


def units_of(config: LayerConfig, program: Sequence[str]) -> list[Unit]:
    """All files, by name. `program` is the command that starts mkmeta, word by word.

    Raises UsageError, and ConfigError for a file that says neither how to mount the layer nor how to publish it.
    """
    config.need("volume")
    if not publishes(config):
        config.need("store", "mount-point")
    name = instance_of(config)
    found = templates(program)
    if mounts(config):
        found.append(_drop_in("activate", name, _PATHS, config, config.volume, config.store))
    if publishes(config):
        assert config.manifest is not None
        found.append(_drop_in("watch", name, _WATCHED, config, config.volume, os.path.dirname(config.manifest)))
    if config.path != CONFIGS + b"/%b.toml" % name.encode():
        text = _ELSEWHERE.format(config=_escaped(config.path), variable=_quoted(b"CONFIG=" + config.path))
        data = text.encode("utf-8", "surrogateescape")
        found += [Unit(f"mkmeta-{verb}@{name}.service.d/file.conf", data) for verb in _USING]
    return sorted(found)


def _drop_in(verb: str, name: str, text: str, config: LayerConfig, *paths: bytes | None) -> Unit:
    """What systemd must know of a service's paths."""
    words = " ".join(_quoted(path) for path in paths if path is not None)
    data = text.format(config=printable(config.path), paths=words).encode("utf-8", "surrogateescape")
    return Unit(f"mkmeta-{verb}@{name}.service.d/paths.conf", data)


def templates(program: Sequence[str] = (_PROGRAM,)) -> list[Unit]:
    """The units that are the same for all layers."""
    command = " ".join(_quoted(os.fsencode(word)) for word in program)
    folder = importlib.resources.files("mkmeta.units")
    files = [file for file in folder.iterdir() if file.name.endswith((".service", ".timer"))]
    return [
        Unit(file.name, file.read_text(encoding="utf-8").replace(_PROGRAM, command).encode("utf-8", "surrogateescape"))
        for file in files
    ]


def _escaped(raw: bytes) -> str:
    """A path where a setting takes one to the end of the line; `%` would begin a specifier (systemd.unit(5))."""
    if b"\n" in raw:
        raise UsageError("a path in a unit cannot have a line break", path=raw)
    return raw.decode("utf-8", "surrogateescape").replace("%", "%%")


def _quoted(raw: bytes) -> str:
    """A word where a setting takes several (systemd.syntax(7), quoting)."""
    text = _escaped(raw)
    if re.fullmatch(r"[A-Za-z0-9/_.,:=+@%-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
