"""JSON messages of the verbs that mount: those that formats/cli.md has, with their keys."""

from __future__ import annotations

import os

import pytest

from mkmeta.linux import mount as calls
from tests.cli.test_contract import documented
from tests.host.hosts import Host

pytestmark = pytest.mark.needs("root", "overlay")


def test_messages_are_those_of_the_page(host: Host) -> None:
    pointer = host.volume / "sw.json"
    host.call("publish", host.store, "--pointer", pointer)
    lower, point, store = host.volume, host.point, host.store
    seen: set[tuple[str, str]] = set()

    def call(verb: str, *args: object) -> None:
        for message in host.call(verb, *map(str, args), "--json", check=None).messages:
            kind = str(message.pop("message_type"))
            keys = {key.removesuffix("_b64") for key in message}
            assert keys == documented()[kind, verb] & keys, (kind, verb)
            assert message.get("verb", verb) == verb
            holders = message.get("holders", [])
            assert isinstance(holders, list)
            assert all(set(one) <= documented()[kind, verb] for one in holders)
            seen.add((kind, verb))

    call("activate", store, point, "--lower", lower, "--follow", pointer)
    call("activate", store, point, "--lower", lower, "--follow", pointer)
    call("activate", store, point)
    host.release("v2", {"lib/two": "second\n"})
    host.publish()
    with (host.point / "grp/paint/v1/lib/one").open():
        call("activate", store, point)
        call("status", point)
    assert (inner := host.live().inner_path) is not None
    calls.umount2(os.fsencode(point), calls.MNT_DETACH)
    call("status", point)
    assert os.path.isdir(inner)
    call("activate", store, point, "--lower", lower)
    call("rollback", point)
    call("refresh", point)
    call("activate", store, point, "--generation", 2)
    call("gc", store, "--keep", 1, "--min-age", 0)
    call("deactivate", point)
    call("deactivate", point)
    verbs = ("activate", "status", "rollback", "refresh", "gc", "deactivate")
    kinds = {pair for pair in documented() if pair[0] not in ("exit_error", "progress") and pair[1] in verbs}
    rare = {("unseen", "gc")}  # of hosts on which something cannot be looked at: test_users.py makes some
    assert seen | rare == kinds | {("exit_error", "deactivate"), ("exit_error", "status")}
