"""A host whose volume is on a file server: what tests/host/hosts.py has, over NFS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.host.hosts import Host
from tests.nfs.server import Client


@dataclass(kw_only=True)
class NfsHost(Host):
    """Store, run directory and mount point are on this machine, the volume is a mount of the server's."""

    client: Client

    @property
    def volume(self) -> Path:
        return self.client.where

    @property
    def served(self) -> Path:
        return self.client.root

    def __post_init__(self) -> None:
        for directory in (self.point, self.run):
            directory.mkdir(parents=True)
