"""Metrics in the text form that Prometheus reads, for node_exporter's textfile collector.

The form: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based, 0.0.4). A file appears complete or
not at all: the collector reads whenever it likes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from mkmeta.errors import printable
from mkmeta.manifest.output import atomic_output

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_MODE = 0o644  # node_exporter is another user


@dataclass
class Family:
    """Samples of one name; `kind` is gauge or counter."""

    name: str
    kind: str
    help: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: str | bytes) -> None:
        """One sample. Names and paths are shown as `printable` does, as the form takes text only."""
        self.samples.append(
            ({key: printable(raw) if isinstance(raw, bytes) else raw for key, raw in labels.items()}, value)
        )

    def lines(self) -> Iterable[str]:
        """As the form has it; nothing when there is no sample."""
        if self.samples:
            yield f"# HELP {self.name} {self.help}"
            yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            inside = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
            number = str(int(value)) if float(value).is_integer() else repr(float(value))
            yield f"{self.name}{{{inside}}} {number}" if inside else f"{self.name} {number}"


def write_metrics(path: bytes, families: Iterable[Family]) -> None:
    """Makes or replaces the file. Raises MkmetaError."""
    text = "".join(line + "\n" for family in families for line in family.lines())
    with atomic_output(path, follow=False) as stream:
        os.fchmod(stream.fileno(), _MODE)
        stream.write(text.encode())
