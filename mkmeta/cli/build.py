"""`mkmeta build`."""

from __future__ import annotations

import argparse

from mkmeta.cli.verb import Verbs


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Adds the verb."""
