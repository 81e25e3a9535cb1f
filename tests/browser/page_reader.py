"""A client in a page: `pages/client.html`, opened in Chromium, and what it has seen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from tests.browser.webdriver import PACE_MS, Browser
from tests.support.installation import Installation
from tests.support.reader import Seen
from tests.support.waiting import until

# What Chromium itself writes when the network or a server refuses something; no script can keep it from that.
_OF_THE_NETWORK = re.compile(r"WebSocket connection to 'ws://\S+' failed|Failed to load resource: ")


class PageReader(Seen):
    """A client in a page.

    Attributes:
        address: of the page; opening it again reloads it.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        super().__init__()
        self.address = address
        self._browser = browser

    async def look(self) -> PageReader:
        """Takes in what happened since the last look, in the lives of this page before reloads too."""
        found = await self._browser.script("return window.remembered?.().slice(arguments[0]) ?? []", len(self.records))
        self.records += found
        return self

    async def until(self, condition: Callable[[PageReader], Any], what: str, timeout_ms: int = 15_000) -> None:
        """Waits until `condition(self)` is true."""

        async def looked() -> bool:
            return bool(condition(await self.look()))

        await until(looked, timeout_ms, lambda: f"{what}; the last it saw: {self.records[-6:]}", pace_ms=PACE_MS)

    async def live(self, timeout_ms: int = 15_000) -> None:
        """Waits until it is live."""
        await self.until(lambda seen: seen.state == "live", "it is live", timeout_ms)

    async def has(self, events: Sequence[str], timeout_ms: int = 15_000) -> None:
        """Waits until so many events as these were handled, and fails when they are not these in their order."""
        await self.until(lambda seen: len(seen.events) >= len(events), f"{len(events)} events", timeout_ms)
        assert self.events == list(events)

    async def check_page(self) -> None:
        """As `check`; fails too when the page saw an exception, or its console an error that is not the network's."""
        self.check()
        assert self.of("failure") == []
        alien = [line for line in await self._browser.console() if not _OF_THE_NETWORK.search(line)]
        assert alien == []


async def open_reader(browser: Browser, installation: Installation, **plan: Any) -> PageReader:
    """Opens the page of a client that connects over the proxy; its module comes from a node directly."""
    whole = {"url": installation.url, "module": f"{installation.nodes[0].url}/client.js", **plan}
    address = f"{installation.pages.origin}/pages/client.html#{quote(json.dumps(whole))}"
    await browser.open(address)
    return PageReader(browser, address)
