"""What systemd is told by a service of Type=notify (sd_notify(3)): a datagram to the socket it names."""

from __future__ import annotations

import contextlib
import os
import socket


def sd_notify(text: str) -> None:
    """Sends lines such as `READY=1`; does nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
