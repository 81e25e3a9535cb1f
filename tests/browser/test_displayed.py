"""The confirmation `displayed` by element, in Chromium: what a user had in sight for a second, nothing else. R11."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import pytest

from tests.browser.page_reader import PageReader, open_reader
from tests.browser.webdriver import Browser
from tests.support.installation import Installation, NewInstallation
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.requirement("R11")]

BLOCK = "width: 300px; height: 100px; background: silver;"
# `show(id, style, parent)` makes an element for an event and has it watched; `sent` is what left the page as displayed.
SHOW = """
    window.sent = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (data) {
      const { op, level, ids } = JSON.parse(data);
      const atMs = performance.now();
      if (op === "ack" && level === "displayed") window.sent.push(...ids.map((entry) => ({ entry, atMs })));
      send.call(this, data);
    };
    window.make = (id, style, parent = document.body) => {
      const element = document.createElement("div");
      element.id = id;
      element.textContent = id;
      element.style.cssText = style;
      parent.append(element);
      return element;
    };
    window.show = (id, style, parent) => window.client.displayed({ id }, window.make(id, style, parent));
    document.querySelectorAll("p").forEach((line) => (line.style.display = "none"));
    document.body.style.margin = "0";
"""
WITHOUT_VOUCHING = "Object.defineProperty(IntersectionObserverEntry.prototype, 'isVisible', { get: () => undefined });"


class Shown:
    """A page that has been handed events, and what the installation has of them as displayed."""

    def __init__(self, browser: Browser, bus: Installation, reader: PageReader) -> None:
        self.browser = browser
        self.bus = bus
        self.reader = reader

    @classmethod
    async def open(cls, browser: Browser, bus: Installation, count: int, **plan: object) -> Shown:
        """Opens the page and publishes so many events; returns when they are handled."""
        reader = await open_reader(browser, bus, **plan)
        await reader.live()
        await browser.script(SHOW)
        await reader.has(await bus.publish(count) if count else [])
        return cls(browser, bus, reader)

    async def show(self, event: str, style: str, parent: str = "document.body") -> None:
        """Makes an element for an event in the page, and has it watched."""
        await self.browser.script(f"window.show(arguments[0], arguments[1], {parent})", event, style)

    async def confirmed(self, events: Iterable[str], level: str = "displayed") -> set[str]:
        """Which of these events are confirmed at a level, as a node tells it."""
        headers = {"authorization": f"Bearer {self.bus.token()}"}
        url = self.bus.nodes[0].url
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=False) as http:  # noqa: S501
            answers = {event: await http.get(f"/v1/events/{event}/confirmations") for event in events}
        return {
            event
            for event, answer in answers.items()
            if any(one["level"] == level for one in answer.json()["confirmations"])
        }

    async def is_displayed(self, *events: str) -> None:
        """Waits until these are, in the store."""

        async def are() -> bool:
            return await self.confirmed(events) == set(events)

        await until(are, 15_000, f"{events} are displayed", pace_ms=50)

    async def nothing_but(self, *events: str) -> None:
        """Shows one more event in sight; when that is displayed, those that were to be are too, and no others."""
        [control] = await self.bus.publish()
        await self.reader.has(self.bus.published)
        await self.show(control, f"{BLOCK} position: fixed; right: 0; bottom: 0; z-index: 9")
        await self.is_displayed(*events, control)
        assert await self.confirmed(self.bus.published) == {*events, control}
        await self.reader.check_page()


# --- what counts ------------------------------------------------------------------------------------------------------
async def test_an_element_in_sight_for_a_second_is_displayed_once(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 1)
    begin_ms = await browser.script("return performance.now()")
    await page.show("e1", BLOCK)
    await page.is_displayed("e1")
    await browser.script("window.client.displayed({ id: 'e1' }, window.make('again', arguments[0]))", BLOCK)
    await page.nothing_but("e1")
    sent = await browser.script("return window.sent")
    assert len(sent) == 2, "the event and the one that nothing_but adds"
    assert 1_000 <= sent[0]["atMs"] - begin_ms < 5_000


async def test_five_events_have_five_of_each_confirmation(browser: Browser, new_installation: NewInstallation) -> None:
    bus = await new_installation()
    page = await Shown.open(browser, bus, 0)
    await browser.script(
        """
        window.whenHandled = (event) => {
          const element = window.make(event.id, arguments[0]);
          window.client.displayed(event, element);
          element.addEventListener("click", () => window.client.confirm(event, "clicked"));
        };
        """,
        BLOCK,
    )
    events = await bus.publish(5)
    await page.is_displayed(*events)
    for event in events:
        await browser.click(f"#{event}")

    async def all_confirmed() -> bool:
        return await page.confirmed(events, "confirmed") == set(events)

    await until(all_confirmed, 10_000, "all are confirmed")
    assert await page.confirmed(events, "received") == await page.confirmed(events, "displayed") == set(events)
    await page.reader.check_page()


async def test_a_part_counts_when_it_is_half_of_the_element_or_fills_half_of_the_window(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 6)
    await page.show("e1", "position: absolute; top: -40px; left: 0; width: 200px; height: 100px")
    await page.show("e2", "position: absolute; top: -60px; left: 210px; width: 200px; height: 100px")
    await page.show("e3", "position: absolute; top: 0; left: 420px; width: 60vw; height: 9000px")
    await page.show("e4", "position: absolute; top: 200px; left: 0; width: 100px; height: 9000px")
    await browser.script(
        "window.make('box', 'position: absolute; top: 200px; left: 150px; width: 200px; height: 100px; overflow: auto')"
    )
    await page.show("e5", "height: 90px", "document.querySelector('#box')")
    await page.show("e6", "height: 90px", "document.querySelector('#box')")
    await page.nothing_but("e1", "e3", "e5")


async def test_of_a_long_list_only_those_are_displayed_that_the_user_stopped_at(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 200)
    in_sight = """
        return [...document.querySelectorAll("div")].filter((row) => {
          const { top, bottom } = row.getBoundingClientRect();
          return bottom - Math.max(top, 0) >= 50 && Math.min(bottom, innerHeight) - top >= 50;
        }).map((row) => row.id);
    """
    await browser.script("for (let i = 1; i <= 200; i += 1) window.show(`e${i}`, arguments[0])", BLOCK)
    first = await browser.script(in_sight)
    await page.is_displayed(*first)
    # Past all others, each in sight for a part of a second, to the end.
    await browser.script(
        """
        window.stepsMs = [];
        const step = () => {
          stepsMs.push(performance.now());
          scrollBy(0, 150);
          if (scrollY + innerHeight < document.body.scrollHeight - 200) requestAnimationFrame(step);
          else window.arrived = true;
        };
        step();
        """
    )
    await browser.wait_for("window.arrived", 20_000)
    last = await browser.script(in_sight)
    assert 5 <= len(first) <= 12
    assert 5 <= len(last) <= 12
    assert not set(first) & set(last)
    slowest_ms = await browser.script(
        """
        const steps = Math.ceil(innerHeight / 150) + 1; // so many bring a row from one edge of the window to the other
        return Math.max(...stepsMs.map((ms, i) => (stepsMs[i + steps] ?? stepsMs.at(-1)) - ms));
        """
    )
    if slowest_ms < 900:
        await page.nothing_but(*first, *last)
    else:  # a machine that scrolls so slowly has shown what lies between for long enough
        await page.is_displayed(*first, *last)


# --- what does not ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("vouches", [True, False], ids=["the browser vouches", "the browser does not vouch"])
async def test_what_a_user_can_not_see_is_not_displayed(
    vouches: bool, browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    page = await Shown.open(browser, bus, 10)
    if not vouches:
        await browser.script(WITHOUT_VOUCHING)
    cover = "position: absolute; top: 0; left: 0; width: 320px; height: 100px; background: white; z-index: 5"
    await browser.script("window.make('cover', arguments[0])", cover)
    await page.show("e1", f"{BLOCK} position: absolute; top: 0; left: 0")  # covered
    await page.show("e2", f"{BLOCK} position: absolute; top: 5000px")  # off screen
    await page.show("e3", f"{BLOCK} display: none")
    await page.show("e4", f"{BLOCK} visibility: hidden")
    await page.show("e5", f"{BLOCK} opacity: 0")
    await browser.script("window.make('faint', 'opacity: 0.05')")
    await page.show("e6", BLOCK, "document.querySelector('#faint')")
    await page.show("e7", "width: 300px; height: 0; overflow: hidden")
    await browser.script("window.make('shut', 'display: none')")
    await page.show("e8", BLOCK, "document.querySelector('#shut')")
    await browser.script("window.client.displayed({ id: 'e9' }, document.createElement('div'))")  # never in the page
    # As a control: such a style is no reason not to count, though the browser vouches for none of these.
    await page.show("e10", f"{BLOCK} position: absolute; top: 300px; opacity: 0.9; filter: blur(0.5px)")
    await page.nothing_but("e10")


@pytest.mark.parametrize("vouches", [True, False], ids=["the browser vouches", "the browser does not vouch"])
async def test_a_covered_element_is_displayed_when_what_covers_it_has_gone(
    vouches: bool, browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 1)
    if not vouches:
        await browser.script(WITHOUT_VOUCHING)
    await browser.script("window.make('cover', 'position: fixed; inset: 0; background: white; z-index: 5')")
    await page.show("e1", BLOCK)
    await page.nothing_but()
    await browser.script("document.querySelector('#cover').remove()")
    await page.is_displayed("e1")


async def test_less_than_a_second_in_sight_is_not_displayed_however_often(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 2)
    await page.show("e1", BLOCK)
    await browser.script(
        """
        // In sight for 200 ms and away for 100 ms, sixteen times: 3.2 s in all.
        window.longestMs = 0;
        const flicker = async () => {
          const [row] = document.querySelectorAll("#e1");
          const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
          for (let i = 0; i < 16; i += 1) {
            const beginMs = performance.now();
            row.style.display = "block";
            await pause(200);
            row.style.display = "none";
            longestMs = Math.max(longestMs, performance.now() - beginMs);
            await pause(100);
          }
          window.flickered = true;
        };
        flicker();
        """
    )
    await browser.wait_for("window.flickered", 20_000)
    if await browser.script("return window.longestMs") < 900:  # else the machine has shown it for long enough
        await page.nothing_but()
    await browser.script("document.querySelector('#e1').style.display = 'block'")
    await page.is_displayed("e1")


async def test_a_hidden_tab_displays_nothing_until_it_is_shown_again(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 2)
    await browser.script("window.make('cover', 'position: fixed; inset: 0; background: white; z-index: 5')")
    await page.show("e1", BLOCK)
    await page.nothing_but()
    await browser.minimize()
    assert await browser.script("return document.visibilityState") == "hidden"
    await browser.script("document.querySelector('#cover').remove()")  # from here on only the window hides it
    await page.show("e2", BLOCK)
    await browser.script("window.hiddenMs = performance.now()")
    await browser.wait_for("performance.now() - window.hiddenMs > 3000")
    assert await page.confirmed(["e1", "e2"]) == set()
    await browser.restore()
    await browser.wait_for("document.visibilityState === 'visible'")
    await page.is_displayed("e1", "e2")
    await page.reader.check_page()


async def test_an_element_is_displayed_when_the_user_scrolls_to_it(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 2)
    await page.show("e1", f"{BLOCK} position: absolute; top: 5000px")
    await page.nothing_but()
    await browser.script("document.querySelector('#e1').scrollIntoView()")
    await page.is_displayed("e1")
    assert await page.confirmed(["e2"]) == set()


async def test_an_element_that_left_the_page_is_watched_no_more_and_one_that_is_to_come_is(
    browser: Browser, new_installation: NewInstallation
) -> None:
    page = await Shown.open(browser, await new_installation(), 2)
    await browser.script(
        """
        window.late = document.createElement("div");
        window.late.style.cssText = arguments[0];
        window.client.displayed({ id: "e1" }, window.late);
        window.show("e2", arguments[0]);
        setTimeout(() => (window.gone = document.querySelector("#e2")).remove(), 500);
        """,
        BLOCK,
    )
    await browser.wait_for("window.gone !== undefined")
    await page.nothing_but()
    await browser.script("document.body.append(window.gone, window.late)")
    await page.is_displayed("e1")
    await page.nothing_but("e1", "e3")


# --- and the network --------------------------------------------------------------------------------------------------
@pytest.mark.fault
@pytest.mark.requirement("R2")
async def test_what_was_displayed_while_there_was_no_connection_is_told_by_the_next(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2)
    page = await Shown.open(browser, bus, 3)
    bus.proxy.refuse()
    bus.proxy.cut()
    await page.reader.until(lambda seen: seen.state == "waiting", "no connection")
    for event in ("e1", "e2", "e3"):
        await page.show(event, BLOCK)
    bus.nodes[0].child.kill()
    await browser.script("window.shownMs = performance.now()")
    await browser.wait_for("performance.now() - window.shownMs > 2000")
    bus.switch()
    bus.proxy.heal()
    await page.is_displayed("e1", "e2", "e3")
    assert len(await bus.sessions()) == 1
    assert page.reader.errors == []
