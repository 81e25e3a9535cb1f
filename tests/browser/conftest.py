"""A browser for a test, driven through chromedriver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.browser.webdriver import Browser
from tests.support.needs import program
from tests.support.processes import Processes

_COMMAND_TIMEOUT_S = 60


@pytest.fixture
async def browser(processes: Processes, tmp_path: Path) -> AsyncIterator[Browser]:
    """A Chromium without a window on the screen; skips when it or chromedriver is missing."""
    chromium, chromedriver = program("chromium"), program("chromedriver")
    driver = processes.start(chromedriver, "--port=0", name="chromedriver")
    line = await driver.line(r"started successfully on port \d+")
    url = f"http://127.0.0.1:{line.rstrip('.').rpartition(' ')[2]}"
    async with httpx.AsyncClient(base_url=url, timeout=_COMMAND_TIMEOUT_S, trust_env=False) as client:
        opened = await Browser.start(client, chromium, tmp_path / "chromium", "--window-size=1360,1020")
        try:
            yield opened
        finally:
            await opened.quit()
