"""One connection among the tabs of a browser: in Chromium, against real nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import pytest

from eventbus.ids import UserId
from eventbus.store.keys import Keys
from tests.browser.webdriver import PACE_MS, Browser
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.reader import Seen
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LIVE = Keys("eb", 1024).user(UserId(USER)).live


class Tab(Seen):
    """A tab and what it has seen, in all lives of its page.

    Attributes:
        handle: the browser's name for it.
        address: of its page.
    """

    def __init__(self, browser: Browser, name: str, address: str) -> None:
        super().__init__()
        self.name = name
        self.handle = ""
        self.address = address
        self._browser = browser

    async def look(self) -> Tab:
        """Takes in what it has seen; any tab that is open can tell."""
        self.records = await self._browser.script("return window.remembered?.(arguments[0]) ?? []", self.name)
        return self

    async def until(self, condition: Callable[[Tab], Any], what: str, timeout_ms: int = 15_000) -> None:
        """Waits until `condition(self)` is true."""

        async def looked() -> bool:
            return bool(condition(await self.look()))

        await until(
            looked, timeout_ms, lambda: f"{self.name}: {what}; the last it saw: {self.records[-6:]}", pace_ms=PACE_MS
        )

    async def live(self) -> None:
        """Waits until it is live."""
        await self.until(lambda seen: seen.state == "live", "it is live")

    async def has(self, events: Sequence[str]) -> None:
        """Waits until so many events as these were handled, and fails when they are not these in their order."""
        await self.until(lambda seen: len(seen.events) >= len(events), f"{len(events)} events")
        assert self.events == list(events)

    def well(self) -> None:
        """Fails when it saw an error or a gap, or its handlers overlapped."""
        self.check()
        assert (self.of("gap"), self.of("error"), self.of("failure")) == ([], [], [])


class Tabs:
    """The tabs of one browser, all with the same page."""

    def __init__(self, browser: Browser, bus: Installation) -> None:
        self._browser = browser
        self._bus = bus
        self._first = True

    async def open(self, name: str, **plan: Any) -> Tab:
        """Opens one more; it is the one in front."""
        whole = {
            "name": name,
            "url": self._bus.url,
            "module": f"{self._bus.nodes[0].url}/client/eventbus-tabs.js",
            **plan,
        }
        tab = Tab(self._browser, name, f"{self._bus.pages.origin}/pages/tabs.html#{quote(json.dumps(whole))}")
        if self._first:
            await self._browser.open(tab.address)
            tab.handle = await self._browser.tab()
            self._first = False
        else:
            tab.handle = await self._browser.open_tab(tab.address)
        await tab.live()
        assert tab.of("client")[-1]["shared"]
        return tab

    async def open_two(self, events: int) -> tuple[Tab, Tab, list[str]]:
        """Opens two, the second in front, and publishes so many events, which both have; with the ids of those."""
        first, second = await self.open("first"), await self.open("second")
        early = await self._bus.publish(events)
        await first.has(early)
        await second.has(early)
        return first, second, early


async def live_sessions(bus: Installation) -> int:
    """How many sessions of the user have a connection, as the store has it."""
    return int(await bus.redis.hlen(LIVE))


@pytest.mark.requirement("R8")
async def test_two_tabs_share_one_connection_and_each_gets_each_event_once_and_in_order(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    first, second = await tabs.open("first"), await tabs.open("second")
    events = await bus.publish(100, pace_s=0.002)
    await first.has(events)
    await second.has(events)
    await bus.all_acked()
    assert len(await bus.sessions()) == await live_sessions(bus) == 1
    assert (len(first.of("socket")), len(second.of("socket"))) == (1, 0)
    first.well()
    second.well()


@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
async def test_when_the_leaders_tab_is_closed_in_the_midst_of_a_stream_the_other_goes_on(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    leader, other = await tabs.open("leader"), await tabs.open("other")
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(200, pace_s=0.005))
        await other.until(lambda seen: len(seen.events) >= 60, "some events")
        await browser.close_tab(leader.handle)
    await other.has(bus.published)
    await bus.all_acked()
    assert len(await bus.sessions()) == await live_sessions(bus) == 1
    assert len(other.of("socket")) == 1
    await leader.look()
    assert leader.events == bus.published[: len(leader.events)]
    assert len(leader.events) >= 50
    other.well()


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R8")
async def test_when_the_leaders_tab_crashes_the_other_goes_on(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    leader, other = await tabs.open("leader"), await tabs.open("other")
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(200, pace_s=0.005))
        await other.until(lambda seen: len(seen.events) >= 60, "some events")
        await browser.crash_tab(leader.handle)
    await other.has(bus.published)
    assert len((await leader.look()).events) < 200
    await bus.all_acked()
    assert len(await bus.sessions()) == await live_sessions(bus) == 1
    other.well()


@pytest.mark.requirement("R8")
@pytest.mark.requirement("R9")
async def test_a_frozen_tab_holds_nobody_up_and_has_everything_when_it_thaws(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    frozen, other = await tabs.open("frozen"), await tabs.open("other")
    early = await bus.publish(10)
    await frozen.has(early)
    await browser.switch(frozen.handle)
    await browser.cdp("Page.setWebLifecycleState", state="frozen")
    await browser.switch(other.handle)
    await bus.publish(50)
    await other.has(bus.published)
    await bus.all_acked()
    assert (await frozen.look()).events == early
    await browser.switch(frozen.handle)
    await browser.cdp("Page.setWebLifecycleState", state="active")
    await bus.publish(10)
    await frozen.has(bus.published)
    await other.has(bus.published)
    assert await live_sessions(bus) == 1
    frozen.well()
    other.well()


@pytest.mark.requirement("R7")
async def test_a_third_tab_that_joins_late_has_everything_from_its_cursor(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    first, second, early = await tabs.open_two(50)
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(200, pace_s=0.005))
        await first.until(lambda seen: len(seen.events) >= 100, "some events")
        late = await tabs.open("late", options={"cursor": bus.entries[early[19]]})
        now = await tabs.open("now")
    for tab in (first, second):
        await tab.has(bus.published)
    await late.has(bus.published[20:])
    await bus.all_acked()
    await now.until(lambda seen: seen.events[-1:] == bus.published[-1:], "the last event")
    assert now.events == bus.published[-len(now.events) :]
    assert await live_sessions(bus) == 1
    for tab in (first, second, late, now):
        tab.well()


@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
async def test_a_reload_of_the_leader_loses_nothing_in_any_tab(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    leader, other = await tabs.open("leader"), await tabs.open("other")
    await browser.switch(leader.handle)
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(200, pace_s=0.005))
        for count in (50, 120):
            await leader.until(lambda seen, count=count: len(seen.events) >= count, "some events")  # type: ignore[misc]
            await browser.script("location.reload()")
            await leader.until(lambda seen, count=count: seen.state == "live", "it is live again")  # type: ignore[misc]
    await leader.has(bus.published)
    await other.has(bus.published)
    await bus.all_acked()
    assert len(leader.of("page")) == 3
    assert len(await bus.sessions()) == await live_sessions(bus) == 1
    leader.well()
    other.well()


@pytest.mark.requirement("R7")
async def test_both_tabs_closed_and_one_opened_again_goes_on_with_the_session(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    first, second, _ = await tabs.open_two(20)
    await bus.all_acked()
    bus.pages.routes["/blank"] = lambda: "<p>"
    blank = await browser.open_tab(f"{bus.pages.origin}/blank")
    await browser.close_tab(first.handle)
    await browser.close_tab(second.handle)
    late = await bus.publish(20)
    third = await tabs.open("third")
    await third.has(late)
    await bus.all_acked()
    assert len(await bus.sessions()) == await live_sessions(bus) == 1
    third.well()
    await browser.close_tab(blank)


@pytest.mark.fault
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R8")
async def test_tabs_lose_nothing_when_their_node_is_killed_and_their_leader_closed(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2)
    tabs = Tabs(browser, bus)
    leader, other, third = [await tabs.open(name) for name in ("leader", "other", "third")]
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(300, pace_s=0.005))
        await other.until(lambda seen: len(seen.events) >= 60, "some events")
        old, _ = bus.switch()
        old.child.kill()
        await other.until(lambda seen: len(seen.events) >= 120, "the other node has them")
        await browser.close_tab(leader.handle)
    await other.has(bus.published)
    await third.has(bus.published)
    await bus.all_acked()
    assert len(await bus.sessions()) == 1
    other.well()
    third.well()


async def test_confirmations_and_commands_of_any_tab_are_the_sessions(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    tabs = Tabs(browser, bus)
    first, second = await tabs.open("first"), await tabs.open("second")
    receipt = await bus.bus.publish(user=USER, type="step.done", data={"number": 1}, id="asked")
    await second.has(["asked"])
    await browser.script("window.client.confirm({ id: 'asked' }, 'seen in the second')")
    [confirmation] = await receipt.wait("confirmed", timeout_ms=10_000)
    assert (confirmation.note, [confirmation.session]) == ("seen in the second", await bus.sessions())
    await first.look()
    first.well()
    second.well()


async def test_a_page_without_locks_has_a_connection_of_its_own(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    bus.pages.routes["/blank"] = lambda: "<p>"
    await browser.open(f"{bus.pages.origin}/blank")
    await browser.script(
        """
        Object.defineProperty(navigator, "locks", { value: undefined });
        const [module, url, token] = arguments;
        document.body.replaceChildren();
        import(module).then(({ SharedEventBusClient }) => {
          const onEvent = ({ id }) => document.body.append(`${id} `);
          window.client = new SharedEventBusClient(url, { user: "ada", token, onEvent });
        });
        """,
        f"{bus.nodes[0].url}/client/eventbus-tabs.js",
        bus.url,
        bus.token(),
    )
    await browser.wait_for("window.client?.state === 'live'")
    assert await browser.script("return window.client.shared") is False
    await bus.publish(2)
    await browser.wait_for("document.body.textContent === 'e1 e2 '")
    await bus.all_acked()
