"""Chromium, driven by the W3C WebDriver protocol: just what it takes to load a page and ask it things."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

# A browser of its own that asks nobody anything, and runs where nothing is left to be locked in
_ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_PATIENCE: Final = 120.0  # seconds, of a machine with much else to do


class Browser:
    """A session."""

    def __init__(self, port: int, profile: Path, size: tuple[int, int]) -> None:
        self._top = f"http://127.0.0.1:{port}/session"
        arguments = [*_ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        wanted = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        self._top += "/" + self._ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def load(self, page: Path) -> None:
        """Loads a page; returns when it is complete."""
        self._ask("/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        """Runs a function's body in the page; what it returns."""
        return self._ask("/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """Presses a key, with whatever has the focus."""
        presses = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": presses}]})

    def complaints(self) -> list[str]:
        """What the console has been told since."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]

    def close(self) -> None:
        """Ends the browser."""
        self._ask("", None)

    def _ask(self, path: str, body: object | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._top + path, data, method="DELETE" if data is None else "POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_PATIENCE) as answer:
            return json.load(answer)["value"]


@contextlib.contextmanager
def browser(profile: Path, size: tuple[int, int] = (1280, 800)) -> Iterator[Browser]:
    """A browser with an empty profile; it ends with the block."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            started = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            port = next(int(match[1]) for match in started if match)
            opened = Browser(port, profile, size)
            try:
                yield opened
            finally:
                opened.close()
        finally:
            driver.terminate()
