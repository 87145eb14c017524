"""Drives a headless Chromium over its DevTools pipe, which needs nothing but the browser."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


@dataclass
class Visit:
    """What a page did while it loaded: messages of its console, and addresses that it asked for."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One page of a browser. As a context manager it ends the browser."""

    def __init__(self, profile: Path) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        self._process = os.posix_spawn(
            str(CHROMIUM),
            [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            os.environ,
            # It listens on descriptor 3 and answers on 4.
            file_actions=[*silent, (os.POSIX_SPAWN_DUP2, to_child, 3), (os.POSIX_SPAWN_DUP2, from_child, 4)],
        )
        os.close(to_child)
        os.close(from_child)
        self._numbers = itertools.count(1)
        self._pending = b""
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        (target,) = [each for each in self.send("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.send("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one DevTools command."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended.")
            self._pending += part
        first, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found

    def visit(self, url: str, *, width: int, dark: bool) -> Visit:
        """Load a page at a width, in light or dark mode, and wait until it has loaded."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())
        self.evaluate("document.title")  # events before its answer have come
        found = Visit()
        for event in self._events:
            parameters = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                found.requests.append(parameters["request"]["url"])
            elif event["method"] == "Log.entryAdded":
                found.console.append(parameters["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                found.console.append(json.dumps(parameters["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                found.console.append(json.dumps(parameters["exceptionDetails"]))
        return found

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG file."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])
