"""What a layer must save before it is built: the gate of `mkmeta predict`, within a release (docs/release.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from mkmeta.demand.prediction import Predictor
from mkmeta.demand.reading import Demand, read_profiles
from mkmeta.errors import ExitCode, MkmetaError
from mkmeta.manifest.reader import ManifestReader
from mkmeta.mounts.profile import Profile

ALL: Final = "requests"  # of all kinds


class TooLittleGainError(MkmetaError):
    """The layer would save less than was asked for. Nothing was published."""

    exit_code = ExitCode.DIFFERENT


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What profiles of hosts ask for, and the shares of it that are to be saved."""

    demands: tuple[Demand, ...]  # each of a client with empty caches
    least: tuple[tuple[str | None, float], ...]  # kind of requests, None: all; the share, 0 to 1
    mount: Profile = Profile.NESTED  # how hosts mount the layer

    @classmethod
    def of(
        cls,
        profiles: Sequence[bytes],
        root: bytes,
        least: Sequence[tuple[str | None, float]],
        mount: Profile,
        stdin: BinaryIO,
    ) -> Gate:
        """Reads profiles, for a volume whose root is here at `root`. Raises ProfileError."""
        demands = tuple(read_profiles([profile], root, stdin) for profile in profiles)
        return cls(demands=demands, least=tuple(least), mount=mount)

    def check(self, reader: ManifestReader) -> str:
        """Says what the layer of a manifest saves. Raises TooLittleGainError, FormatError."""
        predictor = Predictor(reader)
        for demand in self.demands:
            predictor.add(demand)
        prediction = predictor.prediction
        short = [
            f"{kind or ALL}: {gain:.1%} is saved, {least:.1%} was asked for"
            for kind, least in self.least
            if (gain := prediction.gain(self.mount, kind)) < least
        ]
        if short:
            raise TooLittleGainError(
                "; ".join(short), hint="nothing was published; mkmeta predict shows which misses stay"
            )
        lost = sum(demand.lost.total() for demand in self.demands)
        kinds = dict.fromkeys((None, *(kind for kind, _ in self.least)))
        text = ", ".join(f"{prediction.gain(self.mount, kind):.1%} of {kind or ALL}" for kind in kinds)
        return f"saves {text}" + (f"; the profiles miss {lost} calls" if lost else "")
