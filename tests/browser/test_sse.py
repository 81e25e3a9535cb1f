"""Server-Sent Events in Chromium: the module of docs/javascript.md, and the browser's own way of coming back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventbus.ids import SessionId, UserId
from eventbus.store.redis_store import RedisStore
from tests.browser.webdriver import Browser
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.processes import ROOT
from tests.support.sse_client import sse
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = (ROOT / "docs" / "javascript.md").read_text()
[MODULE] = re.findall(r"^```js\n/\* listen\.js \*/\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
HTML = """<!doctype html><title>A page</title>
<script type="module">
import { listen } from "/listen.js";
const token = () => fetch("/my/token", { method: "POST" }).then((answer) => answer.text());
window.seen = [];
window.gaps = [];
window.listening = listen("%s", {
  session: "page", token, onEvent: (event) => window.seen.push(event.id), onGap: (gap) => window.gaps.push(gap),
});
</script>"""
PLAIN = """<!doctype html><title>A page</title>
<script>
window.seen = [];
window.codes = [];
window.opened = 0;
window.source = new EventSource("%s/v1/sse?session=page&start=earliest");
source.onopen = () => window.opened++;
source.addEventListener("events", ({ data, lastEventId }) => {
  const [{ id, delivery, event }] = JSON.parse(data).events;
  window.seen.push([event.id, id === lastEventId, delivery]);
});
source.addEventListener("close", ({ data }) => window.codes.push(JSON.parse(data).code));
</script>"""


async def seen(browser: Browser) -> list[Any]:
    found: list[Any] = await browser.script("return window.seen ?? []")
    return found


async def shows(browser: Browser, count: int) -> None:
    async def enough() -> bool:
        return len(await seen(browser)) >= count

    await until(enough, 20_000, f"{count} events in the page")


@pytest.mark.fault
@pytest.mark.requirement("R2", "R7", "R8")
async def test_the_module_of_the_docs_gives_each_event_once_though_its_node_is_killed(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2)
    bus.pages.routes["/"] = lambda: HTML % bus.url
    bus.pages.routes["/listen.js"] = lambda: f"/* listen.js */\n{MODULE}"
    await bus.publish(5)
    await browser.open(f"{bus.pages.origin}/")
    await shows(browser, 5)
    publishing = asyncio.create_task(bus.publish(300, pace_s=0.005))
    await shows(browser, 60)
    old, _ = bus.switch()
    old.child.kill()
    await publishing
    await shows(browser, 305)
    assert await seen(browser) == bus.published
    await bus.all_acked()
    assert await browser.script("return window.gaps") == []


async def test_the_module_gives_up_when_another_connection_takes_its_session(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    bus.pages.routes["/"] = lambda: HTML % bus.url
    bus.pages.routes["/listen.js"] = lambda: f"/* listen.js */\n{MODULE}"
    await browser.open(f"{bus.pages.origin}/")
    await bus.publish(1)
    await shows(browser, 1)
    async with sse(bus.nodes[0].port, bus.token(), query="?session=page") as other:
        await other.until_event("caught_up")
        await bus.publish(1)
        await other.until_event("events")
        # It neither comes back nor gets what is the other's.
        await asyncio.sleep(2)  # real time: longer than a page waits before it comes back
        await bus.publish(1)
        await other.until_event("events")
    assert len(await seen(browser)) == 1


@asynccontextmanager
async def backend(bus: Installation) -> AsyncIterator[str]:
    """An application's own server, which knows who asks by a cookie and adds the token: its base URL."""

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request, _, rest = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            from_node, to_node = await asyncio.open_connection("127.0.0.1", bus.proxy.port)
            try:
                to_node.write(request + b"\r\nAuthorization: Bearer " + bus.token().encode() + b"\r\n" + rest)
                while piece := await from_node.read(65_536):
                    writer.write(piece)
                    await writer.drain()
            finally:
                to_node.transport.abort()
        writer.close()

    async with await asyncio.start_server(passed_on, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.fault
@pytest.mark.requirement("R2", "R7")
async def test_a_browser_comes_back_by_itself_with_its_last_event_id_when_a_node_is_killed(
    browser: Browser, new_installation: NewInstallation
) -> None:
    """The session is ended meanwhile, so nothing but the Last-Event-ID tells where to go on."""
    bus = await new_installation(nodes=2)
    async with backend(bus) as base:
        bus.pages.routes["/"] = lambda: PLAIN % base
        await bus.publish(3)
        await browser.open(f"{bus.pages.origin}/")
        await shows(browser, 3)
        old, _ = bus.switch()
        bus.proxy.refuse()
        old.child.kill()
        store = RedisStore(bus.server.url)
        await store.end_session(UserId(USER), SessionId("page"))
        await store.aclose()
        await bus.publish(3)
        bus.proxy.heal()
        await shows(browser, 6)
        assert await seen(browser) == [[event, True, 1] for event in bus.published]
        assert await browser.script("return window.opened") == 2


@pytest.mark.requirement("R25")
async def test_a_browser_whose_session_is_taken_over_stops_for_good(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    async with backend(bus) as base:
        bus.pages.routes["/"] = lambda: PLAIN % base
        await bus.publish(1)
        await browser.open(f"{bus.pages.origin}/")
        await shows(browser, 1)
        async with sse(bus.nodes[0].port, bus.token(), query="?session=page") as other:
            await other.until_event("caught_up")
            await browser.wait_for("window.source.readyState === EventSource.CLOSED")
            assert await browser.script("return [window.codes, window.opened]") == [[4504], 1]
            await bus.publish(1)
            await other.until_event("events")
