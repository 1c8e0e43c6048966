"""Headless Chromium, driven through its DevTools protocol by keys, clicks and touches."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--remote-debugging-port=0",
)  # fmt: skip
_CODES = {
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""), "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""), "Tab": ("Tab", 9, ""), "Backspace": ("Backspace", 8, ""),
}  # fmt: skip
CONTROL, SHIFT = 2, 8


class PageError(Exception):
    """A script failed, or its page was closed."""


class Tab:
    """One browser tab; `console` collects its errors."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        return self._loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json(
            {"id": self._number, "method": method, "params": parameters}
        )  # fmt: skip
        while True:
            message = json.loads((await self._socket.receive(timeout=20)).data)
            if message.get("id") == self._number:
                if "error" in message:
                    raise PageError(message)
                return dict(message["result"])
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(message["params"]))

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise PageError(result)
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 10.0) -> None:
        """Wait until an expression holds."""
        until = time.monotonic() + seconds
        while True:
            with suppress(PageError):  # while a page loads, there is little to ask
                if self.evaluate(f"Boolean({expression})"):
                    return
            if time.monotonic() > until:
                raise AssertionError(
                    f"{expression}: not in {seconds} s", self.evaluate("document.body.innerText")
                )
            time.sleep(0.03)

    def press(self, name: str, modifiers: int = 0) -> None:
        """Press a key, given by its name or character."""
        code, number, text = _CODES.get(name, ("", ord(name[0].upper()), name))
        event = {
            "key": name,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": modifiers,
            "text": "" if modifiers & CONTROL else text,
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def middle(self, selector: str) -> tuple[float, float]:
        return tuple(
            self.evaluate(
                f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
                "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
            )
        )

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
        )

    def click(self, selector: str) -> None:
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, to: str, by: float = 0) -> None:
        """Drag from the middle of one element to that of another, in small steps."""
        x, y = self.middle(selector)
        _, goal = self.middle(to)
        self.mouse("mousePressed", x, y)
        for step in range(1, 13):
            self.mouse("mouseMoved", x, y + (goal + by - y) * step / 12)
        self.mouse("mouseReleased", x, goal + by)

    def size(self, width: int, height: int, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def dark(self, dark: bool) -> None:
        value = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": value}],
        )

    def shoot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Browser:
    """A running browser."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession, port: int
    ) -> None:
        self._loop, self._session, self._port = loop, session, port

    def first(self) -> Tab:
        """Return the tab that the browser started with."""
        return Tab(self._loop, self._loop.run_until_complete(_connect(self._session, self._port)))

    def window(self, beside: Tab) -> Tab:
        """Open a window next to a tab; both are visible, so that both draw."""
        made = beside.call("Target.createTarget", url="about:blank", newWindow=True)
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{made['targetId']}"
        connecting = self._session.ws_connect(address, max_msg_size=0)
        return Tab(self._loop, self._loop.run_until_complete(connecting))


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start a fresh browser with one tab."""
    with running_browser(folder) as running:
        yield running.first()


@contextmanager
def running_browser(folder: Path) -> Iterator[Browser]:
    """Start a fresh browser."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    loop = asyncio.new_event_loop()
    try:
        port = _port(folder / "DevToolsActivePort", process)
        session = loop.run_until_complete(_session())
        try:
            yield Browser(loop, session, port)
        finally:
            loop.run_until_complete(session.close())
    finally:
        loop.close()
        process.terminate()
        process.wait()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _connect(session: aiohttp.ClientSession, port: int) -> Any:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        pages = [one for one in await response.json() if one["type"] == "page"]
    return await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    until = time.monotonic() + 30
    while not (path.exists() and path.read_text().strip()):
        assert process.poll() is None, "Chromium ended by itself"
        assert time.monotonic() < until, "Chromium doesn't listen"
        time.sleep(0.05)
    return int(path.read_text().splitlines()[0])
