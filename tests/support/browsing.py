"""A browser for a test, driven through chromedriver."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.browser.webdriver import Browser
from tests.support.needs import program
from tests.support.ports import free_port
from tests.support.processes import Processes

_COMMAND_TIMEOUT_S = 60
_WIDTH, _HEIGHT = 1360, 1020


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A Chromium for all tests of a run, without a window on the screen: to start one takes seconds.

    Skips when it or chromedriver is missing. Gives where its driver is, and the name of its session.
    """
    binary, chromedriver = program("chromium"), program("chromedriver")
    directory = tmp_path_factory.mktemp("browser")
    processes = Processes(directory)

    async def start() -> tuple[str, str]:
        port = free_port()  # of IPv4 and IPv6; with 0 it takes one that is free in IPv6, and may be taken in IPv4
        driver = processes.start(chromedriver, f"--port={port}", name="chromedriver")
        await driver.line(rf"started successfully on port {port}")
        url = f"http://127.0.0.1:{port}"
        async with _client(url) as client:
            opened = await Browser.start(client, binary, directory / "profile", f"--window-size={_WIDTH},{_HEIGHT}")
        return url, opened.session

    try:
        yield asyncio.run(start())
    finally:
        processes.reap()


@pytest.fixture
async def browser(chromium: tuple[str, str]) -> AsyncIterator[Browser]:
    """The browser with one new window, and with nothing of the tests before."""
    url, session = chromium
    async with _client(url) as client:
        opened = Browser(client, session)
        await opened.renew(_WIDTH, _HEIGHT)
        try:
            yield opened
        finally:
            # Whatever the test left, its page lets go of the nodes before they end.
            with contextlib.suppress(AssertionError, httpx.TransportError):
                await opened.renew(_WIDTH, _HEIGHT)


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=_COMMAND_TIMEOUT_S, trust_env=False)
