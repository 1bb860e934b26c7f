"""A page in, what a real browser makes of it out: Chromium over its DevTools protocol, through a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_PATIENCE = 60.0


class Browser:
    """One page of a headless Chromium, and everything that it asked for or complained about."""

    def __init__(self, to_it: int, from_it: int) -> None:
        self._to, self._from, self._number, self._rest = to_it, from_it, 0, b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium was silent for {_PATIENCE} s"
            got = os.read(self._from, 1 << 20)
            assert got, "Chromium ended"
            self._rest += got
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path | str, *, width: int, dark: bool = False) -> None:
        """Load a file or an address in a window of this many CSS pixels, and wait until it is laid out."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=f"({expression})", returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 15.0) -> Any:
        """Return what an expression gives once that is true."""
        until = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < until, (
                f"{expression}: {self.evaluate('document.body.innerText')[:1000]} {self.complaints()}"
            )
            time.sleep(0.05)
        return found

    def press(self, key: str, text: str | None = None) -> None:
        """Press a key, such as Enter or Tab."""
        code = {"Enter": 13, "Tab": 9, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key.replace(" ", "Space"),
                text=text or {"Enter": "\r", " ": " "}.get(key, ""),
                windowsVirtualKeyCode=code,
            )

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, name: str) -> None:
        """Write a picture of the window into the folder EDGEFACE_SCREENSHOTS, if that is set."""
        if folder := os.environ.get("EDGEFACE_SCREENSHOTS"):
            shown = self.call("Page.captureScreenshot")["data"]
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shown))

    def barriers(self) -> list[str]:
        """Return what axe-core finds serious or critical for people who see, hear or move less."""
        script = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
        if not self.evaluate("typeof window.axe === 'object'"):
            self.call("Runtime.evaluate", expression=script)
        answer = self.call("Runtime.evaluate", expression="axe.run(document)", awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in answer["result"]["value"]["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def requested(self) -> list[str]:
        """Addresses of everything that was asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[dict[str, Any]]:
        """What the console shows, and exceptions."""
        wanted = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event for event in self.events if event.get("method") in wanted]


@contextlib.contextmanager
def browser(profile: Path, camera: Path | None = None) -> Iterator[Browser]:
    """Start Chromium, and end it; its camera is a clip, .y4m or .mjpeg, that begins again and again."""
    assert CHROMIUM
    to_it, write = os.pipe()
    read, from_it = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    if camera is not None:
        options += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        options += [f"--use-file-for-fake-video-capture={camera}"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{to_it} 4>&{from_it}', "bash", CHROMIUM, *options,
         "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        pass_fds=(to_it, from_it), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_it)
    os.close(from_it)
    try:
        yield Browser(write, read)
    finally:
        process.kill()
        process.wait(timeout=30)
        os.close(write)
        os.close(read)
