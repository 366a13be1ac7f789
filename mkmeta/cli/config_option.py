"""The option --config of verbs that a layer file can tell what to work on; what the command line says as well, wins.

A verb names, for each of its arguments that the file can give, the key (`add_config`). They are then no longer required
when the file says them, and the file's value stands in for the default. What a file may say is checked in
`mkmeta.config`; here is only how it gets into the namespace that `run` sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mkmeta.cli.arguments import filled
from mkmeta.cli.kind_parser import KindParser
from mkmeta.config import LayerConfig, read_config
from mkmeta.config_keys import KEYS
from mkmeta.errors import UsageError

_KEYS = {key.name: key for key in KEYS}
_NOTHING = {field.name: field.default for field in dataclasses.fields(LayerConfig)}  # what a silent file gives


class VerbParser(KindParser):
    """The parser of a verb, with or without --config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config_keys: dict[str, str] = {}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse has it, after the file that --config names was read. Raises ConfigError."""
        self.check_options(args or [])
        config = self._config(args or []) if self.config_keys else None
        values = self._values(config) if config else {}
        for action in self._actions:
            if action.dest in values:
                action.default = values[action.dest]
                action.required = False
                if not action.option_strings:
                    action.nargs = "?"
        found, rest = super().parse_known_args(args, namespace)
        if self.config_keys:
            found.config = config
        found.from_config = {dest for dest, value in values.items() if getattr(found, dest) is value}
        return found, rest

    def _config(self, args: Sequence[str]) -> LayerConfig | None:
        """What the file says, if there is one. This reads it before argparse reads anything else."""
        before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        before.add_argument("--config", type=filled)
        before.add_argument("-h", "--help", action="store_true")
        try:
            known = before.parse_known_args(list(args))[0]
        except argparse.ArgumentError:
            return None  # argparse will say so
        return None if known.config is None or known.help else read_config(known.config)

    def _values(self, config: LayerConfig) -> dict[str, Any]:
        """By argument."""
        found = {}
        for action in self._actions:
            name = self.config_keys.get(action.dest)
            if name is None:
                continue
            value = getattr(config, _KEYS[name].field)
            if value is not _NOTHING[_KEYS[name].field]:
                found[action.dest] = list(value) if isinstance(action, Listed) else value
        return found


class Listed(argparse.Action):
    """An option that may be given many times; the first one replaces what the layer file says."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Adds a value."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])


class Flag(argparse.Action):
    """`--flag`; where a layer file may set it, `--no-flag` takes that back."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        self.names = [name for name in option_strings if name.startswith("--")]
        super().__init__(
            [*option_strings, *("--no-" + name[2:] for name in self.names)], dest, 0, None, False, help=help
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Sets or takes back."""
        setattr(namespace, self.dest, option_string in self.names)


def add_config(parser: argparse.ArgumentParser, keys: Mapping[str, str]) -> None:
    """Adds --config; `keys` says for each argument, by its `dest`, which key of the file gives it."""
    assert isinstance(parser, VerbParser)
    assert set(keys.values()) <= set(_KEYS)
    names = ", ".join(dict.fromkeys(keys.values()))
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=filled,
        help=f"the layer file (formats/layer.toml.md), for what is not given here: {names}",
    )
    parser.config_keys = dict(keys)


def check_both(args: argparse.Namespace, first: str, second: str, names: str) -> None:
    """For two arguments in a row that a file gives: one alone would be taken for the first. Raises UsageError."""
    if second in args.from_config and first not in args.from_config:
        value = os.fsdecode(getattr(args, first))
        raise UsageError(f"with --config, {names} are given both or not at all: {value!r} may be either")
