# SPDX-License-Identifier: Apache-2.0
"""A browser that a test drives: Chromium, by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "build" / "browser"
# One process, since the package is made for machines that allow no sandbox; and no network.
OPTIONS = (
    "--headless=shell",
    "--single-process",
    "--no-zygote",
    "--no-sandbox",
    "--disable-gpu",
    "--in-process-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """One page, with what it asked for, `requests`, and what it complained of, `complaints`."""

    def __init__(self, scratch: Path, patience: float = 60.0) -> None:
        self._patience = patience
        self._numbers = itertools.count(1)
        self._read, self._write, self._rest = -1, -1, b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3</proc/self/fd/{asked} 4>/proc/self/fd/{answered}'
        program = [str(FOLDER / "chromium"), *OPTIONS, f"--user-data-dir={scratch / 'profile'}"]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(FOLDER / "lib"),
            "HOME": str(scratch),
        }
        self._process = subprocess.Popen(
            ["sh", "-c", command, "sh", *program, "about:blank"],
            pass_fds=(asked, answered),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        os.close(asked)
        os.close(answered)
        self._read, self._write = answer, ask
        self._session: str | None = None
        try:
            pages: list[dict[str, Any]] = []
            while not pages:
                targets = self.call("Target.getTargets")["targetInfos"]
                pages = [target for target in targets if target["type"] == "page"]
            target = pages[0]["targetId"]
            found = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = found["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a command of the protocol returns."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == number:
                assert "error" not in reply, reply
                return reply["result"]

    def run(self, script: str) -> Any:
        """What a script on the page comes to, once its promise is kept."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def open(self, address: str) -> None:
        """Open a page of the demo, and wait until it is drawn."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.documentElement?.dataset.ready === 'yes'")

    def wait_for(self, condition: str) -> None:
        end = time.monotonic() + self._patience
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition}: not in {self._patience:.0f} s"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """One key, such as ArrowRight."""
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9}[key]
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                nativeVirtualKeyCode=code,
            )

    def window(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, path: Path) -> None:
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def _next(self) -> dict[str, Any]:
        """The next message; events are noted."""
        end = time.monotonic() + self._patience
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready, f"the browser said nothing for {self._patience:.0f} s"
            read = os.read(self._read, 1 << 16)
            assert read, f"the browser has ended, with {self._process.poll()}"
            self._rest += read
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        method, said = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(json.dumps(said["entry"]))
        return message
