"""Drives Chromium through chromedriver, by the few commands of WebDriver that the tests need.

Source: W3C, WebDriver (w3.org/TR/webdriver2).
"""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import Any

import httpx

from tests.support.waiting import until

PACE_MS = 20
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One browser window. Every command returns when the browser has done it.

    Attributes:
        session: its name; with it another `Browser` speaks to the same window.
    """

    def __init__(self, client: httpx.AsyncClient, session: str) -> None:
        self.session = session
        self._client = client
        self._path = f"/session/{session}"

    @classmethod
    async def start(cls, client: httpx.AsyncClient, chromium: Path, profile: Path, *arguments: str) -> Browser:
        """Opens a window.

        Args:
            client: speaks to chromedriver.
            chromium: the program.
            profile: a directory for its data.
            arguments: further ones of its command line.
        """
        options = {
            "binary": str(chromium),
            # Without a sandbox, which a container seldom allows: it loads our own page alone.
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                f"--user-data-dir={profile}",
                *arguments,
            ],
            # A hidden page is to be treated as a user's browser treats it.
            "excludeSwitches": ["disable-background-timer-throttling"],
        }
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        response = await client.post("/session", json={"capabilities": {"alwaysMatch": capabilities}})
        return cls(client, str(_value(response)["sessionId"]))

    async def renew(self, width: int, height: int) -> None:
        """Opens a new window and closes all others: no page, no emulation and no cookie is left. What else pages have
        stored stays with their origins.
        """
        before = _value(await self._client.get(f"{self._path}/window/handles"))
        opened = await self._post("window/new", type="window")
        for tab in before:
            with contextlib.suppress(AssertionError, httpx.TransportError):  # a tab that crashed does not answer
                await self.switch(str(tab))
                await self.script("try { localStorage.clear() } catch {}")
            with contextlib.suppress(AssertionError, httpx.TransportError):
                _value(await self._client.delete(f"{self._path}/window"))
        await self.switch(str(opened["handle"]))
        await self._post("window/rect", width=width, height=height)
        # A window that a program opens is behind the one that a user looks at: nothing in it has the focus.
        await self.cdp("Page.bringToFront")
        await self.cdp("Network.clearBrowserCookies")
        await self.console()

    async def open(self, url: str) -> None:
        """Loads a page; returns when it is loaded."""
        await self._post("url", url=url)

    async def script(self, body: str, *arguments: object) -> Any:
        """Runs the body of a function in the page and returns what it returns."""
        return await self._post("execute/sync", script=body, args=list(arguments))

    async def text(self, selector: str) -> str:
        """The text of the first element that fits, as it is in the document; empty when there is none."""
        found = await self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return " ".join(str(found).split())

    async def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit."""
        script = "return Array.from(document.querySelectorAll(arguments[0]), (found) => found.textContent)"
        return [" ".join(str(text).split()) for text in await self.script(script, selector)]

    async def click(self, selector: str) -> None:
        """Clicks an element as a user does: it must be visible and not covered."""
        await self._to(selector, "click")

    async def write(self, selector: str, text: str) -> None:
        """Replaces what stands in a field; gives a file input the path of a file."""
        if not await self.script("return document.querySelector(arguments[0]).type === 'file'", selector):
            await self._to(selector, "clear")
        await self._to(selector, "value", text=text)

    async def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a list by its value."""
        await self.click(f"{selector} option[value='{value}']")

    async def wait_for(self, condition: str, timeout_ms: int = 20_000) -> Any:
        """Waits until an expression in the page is true, and returns its value, `true` for an element. It looks at a
        pace that leaves the machine to the page.

        Raises:
            AssertionError: it was not in time; the message has what the page shows.
        """
        # An element is not handed out: it may have left the page on the way.
        look = f"const found = {condition}; return found instanceof Element || found"
        try:
            return await until(lambda: self.script(look), timeout_ms, condition, pace_ms=PACE_MS)
        except AssertionError as error:
            shown = await self.script("return document.body.innerText")
            raise AssertionError(f"{error}\nThe page shows:\n{shown}") from None

    async def console(self) -> list[str]:
        """What was written to the console since the last call, as `LEVEL text`."""
        entries = await self._post("se/log", type="browser")
        return [f"{entry['level']} {entry['message']}" for entry in entries]

    async def cdp(self, command: str, **parameters: object) -> Any:
        """Sends a command of the Chrome DevTools Protocol to the page, such as `Network.emulateNetworkConditions`."""
        return await self._post("goog/cdp/execute", cmd=command, params=parameters)

    async def minimize(self) -> None:
        """Minimizes the window, which hides its page."""
        await self._post("window/minimize")

    async def restore(self) -> None:
        """Shows the window again after `minimize`."""
        await self._post("window/rect", x=0, y=0)

    async def tab(self) -> str:
        """The tab that the commands go to."""
        return str(_value(await self._client.get(f"{self._path}/window")))

    async def open_tab(self, url: str) -> str:
        """Loads a page in a new tab, which the commands go to from here on; returns the tab."""
        opened = await self._post("window/new", type="tab")
        await self.switch(str(opened["handle"]))
        await self.open(url)
        return str(opened["handle"])

    async def switch(self, tab: str) -> None:
        """Sends the commands to another tab."""
        await self._post("window", handle=tab)

    async def close_tab(self, tab: str) -> None:
        """Closes a tab as a user does. The commands go on to where they went, which must be another one."""
        now = await self.tab()
        await self.switch(tab)
        _value(await self._client.delete(f"{self._path}/window"))
        await self.switch(now)

    async def crash_tab(self, tab: str) -> None:
        """Kills the process of a tab. The commands go on to where they went, which must be another one."""
        now = await self.tab()
        await self.switch(tab)
        with contextlib.suppress(AssertionError, httpx.TransportError):  # nobody is left to answer
            await self.cdp("Page.crash")
        await self.switch(now)

    async def screenshot(self, path: Path) -> None:
        """Writes what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(_value(await self._client.get(f"{self._path}/screenshot"))))

    async def _to(self, selector: str, command: str, **body: object) -> None:
        """Does something to the first element that fits: to the next one, when the page has just replaced it."""
        while True:
            found = await self._post("element", using="css selector", value=selector)
            try:
                await self._post(f"element/{found[_ELEMENT]}/{command}", **body)
            except AssertionError as error:
                if not str(error).startswith("stale element reference"):
                    raise
            else:
                return

    async def _post(self, command: str, **body: object) -> Any:
        return _value(await self._client.post(f"{self._path}/{command}", json=body))


def _value(response: httpx.Response) -> Any:
    value = response.json()["value"]
    assert response.is_success, f"{value['error']}: {value['message']}"
    return value
