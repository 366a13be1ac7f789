"""Fixtures for tests on NFS: a volume, an export of it, mounts of that. All is undone, also when a test fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nfs.server import VERSIONS, Client, Server, call

KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
# How a layer is mounted, by the kernel that can (README.md): what a kernel cannot is no test, rather than a skipped one
PROFILES = [name for name, since in (("merge", (4, 19)), ("data-only", (6, 5)), ("nested", (6, 7))) if since <= KERNEL]

Connect = Callable[..., Client]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    for name, values in (("version", VERSIONS), ("profile", PROFILES)):
        if name in metafunc.fixturenames and name not in chosen:
            metafunc.parametrize(name, values)


@pytest.fixture(scope="session")
def server() -> Server:
    """The NFS server, running until the machine ends."""
    server = Server()
    server.start()
    return server


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The directory to be exported, empty, on tmpfs."""
    root = tmp_path / "volume"
    root.mkdir()
    assert call("stat", "-f", "-c", "%T", root).strip() == "tmpfs"
    return root


@pytest.fixture
def connect(server: Server, volume: Path, tmp_path: Path, version: str) -> Iterator[Connect]:
    """`connect(options="", export="no_root_squash")` exports the volume and mounts it; unmounted after the test."""
    with contextlib.ExitStack() as stack:

        def do_connect(options: str = "", export: str = "no_root_squash") -> Client:
            stack.enter_context(server.exporting(volume, export))
            where = tmp_path / "nfs"
            where.mkdir()
            client = Client(version, volume, where, options)
            client.mount()
            stack.callback(client.unmount)
            return client

        yield do_connect
