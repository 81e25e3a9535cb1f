"""The JavaScript client in Chromium, against real nodes, over a network that fails."""

from __future__ import annotations

import pytest

from tests.browser.page_reader import open_reader
from tests.browser.webdriver import Browser
from tests.support.installation import NewInstallation, Storm

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.fault]

SEED = 20_261_121


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
async def test_a_page_gets_every_event_once_and_in_order_whatever_happens_to_its_connections(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2)
    reader = await open_reader(browser, bus, speed=5)
    await reader.live()

    async def arrived() -> int:
        return len((await reader.look()).events)

    storm = Storm(bus, SEED, 1_000, arrived)
    await storm.run(*["cut"] * 5, *["torn"] * 4, *["lossy"] * 3, "half_open", "frozen", "killed")

    await reader.has(bus.published)
    await bus.all_acked()
    assert len(bus.published) >= 1_000
    assert storm.struck >= 10
    assert (reader.of("gap"), reader.errors) == ([], [])
    await reader.check_page()
