"""The JavaScript client through the life of a page: reloads, hidden and frozen tabs, refusals, the guide."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable

import pytest

from eventbus.ids import UserId
from eventbus.store.keys import Keys
from tests.browser.page_reader import PageReader, open_reader
from tests.browser.webdriver import Browser
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.processes import ROOT
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SEED = 20_261_121
RELOADS = 5


async def reload(browser: Browser, reader: PageReader) -> None:
    """Reloads the page, whatever it is at; returns when the new one has its client."""
    lives = len((await reader.look()).of("page"))
    await browser.script("location.reload()")
    await reader.until(lambda seen: len(seen.of("page")) > lives, "the page is there again")


# --- reloads ----------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R8")
async def test_a_reloaded_page_goes_on_with_its_session(browser: Browser, new_installation: NewInstallation) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, storage=True)
    await reader.live()
    chance = random.Random(SEED)

    def handled(least: int) -> Callable[[PageReader], bool]:
        return lambda seen: len(seen.events) >= least

    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(600, pace_s=0.003))
        for share in range(1, RELOADS + 1):
            await reader.until(handled(share * 90), "some events")
            await asyncio.sleep(chance.random() * 0.05)  # real time: a reload at any moment
            await reload(browser, reader)

    await reader.has(bus.published)
    await bus.all_acked()
    assert len(reader.of("page")) == RELOADS + 1
    assert {record.get("session") for record in reader.of("state") if record["state"] == "live"} == {
        *await bus.sessions()
    }
    assert (reader.of("gap"), reader.errors) == ([], [])
    await reader.check_page()


@pytest.mark.requirement("R7")
async def test_a_tab_that_crashed_is_given_what_it_had_not_acked(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, storage=True, slowMs=20)
    await reader.live()
    await bus.publish(30)
    await reader.until(lambda seen: len(seen.events) >= 5, "some events")
    await browser.script("window.client = undefined; WebSocket.prototype.send = () => {}")  # its last words are lost
    await reload(browser, reader)
    await reader.until(lambda seen: seen.events[-1:] == bus.published[-1:], "the last event")
    await bus.all_acked()
    assert list(dict.fromkeys(reader.events)) == bus.published
    again = [record for place, record in enumerate(reader.of("event")) if record["id"] in reader.events[:place]]
    assert all(record["redelivered"] for record in again)
    await reader.check_page()


@pytest.mark.requirement("R8")
async def test_a_duplicated_tab_has_a_session_of_its_own_from_where_the_first_stood(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, storage=True)
    await reader.live()
    early = await bus.publish(10)
    await reader.has(early)
    await bus.all_acked()

    await browser.script("window.open(location.href)")  # with a copy of the storage, as "Duplicate" makes it
    await reader.until(lambda seen: seen.states.count("live") == 2, "the copy is live")
    late = await bus.publish(10)
    await reader.until(lambda seen: len(seen.events) >= 30, "both have the later events")
    await bus.all_acked()

    first, copy = dict.fromkeys(record["tab"] for record in reader.records)
    events = {tab: [record["id"] for record in reader.of("event") if record["tab"] == tab] for tab in (first, copy)}
    assert events == {first: early + late, copy: late}
    assert len(await bus.sessions()) == 2
    assert (reader.errors, reader.of("gap"), reader.closes) == ([], [], [])


@pytest.mark.requirement("R8")
async def test_a_page_that_one_comes_back_to_goes_on_with_the_session_that_the_next_page_had(
    browser: Browser, new_installation: NewInstallation
) -> None:
    """The browser keeps the page as it was, for it let its connection go; the page after it had the same session."""
    bus = await new_installation()
    reader = await open_reader(browser, bus, storage=True)
    await reader.live()
    await reader.has(await bus.publish(5))
    await browser.script("window.kept = true; location.href = `?next${location.hash}`")
    await reader.until(lambda seen: len(seen.of("page")) == 2 and seen.state == "live", "the next page is live")
    await bus.publish(5)
    await reader.has(bus.published)
    await browser.script("history.back()")
    await browser.wait_for("window.kept && document.querySelector('#state').textContent === 'live'")
    await bus.publish(5)
    await reader.has(bus.published)
    await bus.all_acked()
    assert (len(reader.of("page")), len(await bus.sessions())) == (2, 1)
    assert (reader.errors, reader.of("gap")) == ([], [])
    await reader.check_page()


# --- tabs in the background -------------------------------------------------------------------------------------------
@pytest.mark.requirement("R8")
async def test_a_hidden_tab_handles_and_acks_as_fast_as_a_visible_one(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus)
    await reader.live()
    visible_ms = sorted([await _acked_after_ms(bus) for _ in range(6)])
    await browser.minimize()
    assert await browser.script("return document.visibilityState") == "hidden"
    # Chromium waits for ten seconds before it lets the timers of a hidden page run but once a second.
    await browser.script(
        """
        const time = () => {
          const beginMs = performance.now();
          setTimeout(() => (performance.now() - beginMs > 500 ? (window.throttled = true) : time()), 10);
        };
        time();
        """
    )
    await browser.wait_for("window.throttled", 20_000)
    hidden_ms = sorted([await _acked_after_ms(bus) for _ in range(12)])
    # What waits for a timer often takes a second. Two of twelve may be the machine's, and what a visible page takes is.
    assert hidden_ms[-3] < 450 + visible_ms[3], (hidden_ms, visible_ms)
    await reader.has(bus.published)
    await reader.check_page()


async def _acked_after_ms(bus: Installation) -> float:
    """How long it takes until new events are acked, with no look at the page, whose scripts would wait for timers."""
    begin = time.monotonic()
    await bus.publish(50)
    await bus.all_acked()
    return (time.monotonic() - begin) * 1_000


@pytest.mark.requirement("R8")
async def test_a_frozen_tab_holds_no_session_and_is_told_everything_once_when_it_thaws(
    browser: Browser, new_installation: NewInstallation
) -> None:
    """What is delivered to a page that stands still would time out, and become dead letters."""
    bus = await new_installation(ack_timeout_ms=5_000)
    reader = await open_reader(browser, bus)
    await reader.live()
    await reader.has(await bus.publish(10))
    await bus.all_acked()
    await browser.cdp("Page.setWebLifecycleState", state="frozen")

    async def gone() -> bool:
        return bool(await bus.redis.hlen(Keys("eb", 1024).user(UserId(USER)).live) == 0)

    await until(gone, 5_000, "nobody is live")
    late = await bus.publish(50)
    assert (await bus.pending(), await bus.unread()) == (0, 50)
    await browser.cdp("Page.setWebLifecycleState", state="active")
    await reader.has(bus.published)
    await bus.all_acked()
    assert (reader.errors, reader.of("dropped")) == ([], [])
    assert [record["delivery"] for record in reader.of("event") if record["id"] in late] == [1] * 50
    await reader.check_page()


# --- the network as the browser sees it ------------------------------------------------------------------------------
async def test_a_browser_that_was_offline_goes_on_where_it_stopped(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, speed=5)
    await reader.live()
    await reader.has(await bus.publish(10))
    await browser.cdp("Network.enable")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await browser.cdp("Network.emulateNetworkConditions", offline=True, **offline)
    bus.proxy.cut()
    await reader.until(lambda seen: seen.state == "waiting", "it waits")
    await bus.publish(20)
    await browser.cdp("Network.emulateNetworkConditions", offline=False, **offline)
    await reader.has(bus.published)
    await bus.all_acked()
    assert (reader.of("gap"), reader.errors) == ([], [])
    await reader.check_page()


@pytest.mark.requirement("R25")
async def test_a_page_that_computed_while_it_connected_is_not_lost(
    browser: Browser, new_installation: NewInstallation
) -> None:
    # So long that the second hello comes within it on any machine.
    bus = await new_installation(hello_timeout_ms=2_500)
    reader = await open_reader(browser, bus, blockMs=3_500)
    await reader.has(await bus.publish(3))
    assert reader.closes == [4503]
    assert reader.errors == []
    await reader.check_page()


@pytest.mark.requirement("R23")
async def test_a_page_of_a_foreign_origin_waits_and_hears_nothing(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(allowed_origins="https://elsewhere.example")
    bus.proxy.aim(bus.nodes[0].port)
    await bus.publish(3)
    bus.serve_client()
    reader = await open_reader(browser, bus, speed=5, module="/client.js")
    await reader.until(lambda seen: len(seen.closes) >= 4, "four attempts")
    assert set(reader.closes) == {1006}
    assert (reader.events, reader.errors) == ([], [])
    assert [record["waitMs"] for record in reader.of("state") if "waitMs" in record][:1] < [250]
    await reader.check_page()


@pytest.mark.requirement("R25")
async def test_a_ticket_that_is_refused_looks_like_a_lost_connection(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, speed=5, url=f"{bus.url}/v1/connect?ticket=none")
    await reader.until(lambda seen: len(seen.closes) >= 3, "three attempts")
    assert set(reader.closes) == {1006}
    assert reader.errors == []
    await reader.check_page()


@pytest.mark.requirement("R10")
async def test_a_node_that_drains_turns_a_page_away_by_name_and_the_other_takes_it(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2, drain_ms=4_000)
    reader = await open_reader(browser, bus, speed=5)
    await reader.live()
    await reader.has(await bus.publish(5))
    old, _ = bus.nodes
    old.child.terminate()
    await reader.until(lambda seen: 4001 in seen.closes, "a close of a node that drains", 10_000)
    bus.switch()
    await bus.publish(5)
    await reader.has(bus.published)
    await bus.all_acked()
    assert (reader.of("gap"), reader.errors) == ([], [])
    assert await old.child.wait() == 0
    await reader.check_page()


async def test_a_page_that_the_node_itself_serves_needs_no_list_of_origins(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(allowed_origins="")
    await bus.publish(3)
    await browser.open(f"{bus.nodes[0].url}/healthz")
    await browser.script(
        """
        const [token] = arguments;
        document.body.replaceChildren();
        import("/client.js").then(({ EventBusClient }) => {
          window.client = new EventBusClient("/", { token, onEvent: ({ id }) => document.body.append(`${id} `) });
        });
        """,
        bus.token(),
    )
    await browser.wait_for("document.body.textContent === 'e1 e2 e3 '")
    await bus.all_acked()


@pytest.mark.fault
@pytest.mark.requirement("R20")
async def test_each_command_is_stored_once_though_connections_are_cut_and_a_node_is_killed(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation(nodes=2)
    reader = await open_reader(browser, bus, speed=5)
    await reader.live()
    await browser.script(
        """
        window.stored = 0;
        window.failures = [];
        let number = 0;
        const timer = setInterval(() => {
          number += 1;
          if (number === 100) clearInterval(timer);
          window.client.message(`${number}`).then(() => (window.stored += 1), ({ code }) => window.failures.push(code));
        }, 30);
        """
    )

    async def stored(least: int) -> None:
        await browser.wait_for(f"window.stored >= {least} || window.failures.length", 20_000)

    for least in (10, 30):
        await stored(least)
        bus.proxy.cut()
    await stored(50)
    bus.nodes[0].child.kill()
    bus.switch()
    await stored(100)
    assert await browser.script("return [window.stored, window.failures]") == [100, []]

    heard = []
    async with bus.bus.commands(user=USER) as commands:
        async for command in commands:
            heard.append(int(command.data["text"]))
            if len(heard) == 100:
                break
    assert sorted(heard) == list(range(1, 101))
    assert await bus.redis.xlen(Keys("eb", 1024).user(UserId(USER)).commands) == 100
    await reader.check_page()


@pytest.mark.requirement("R26")
@pytest.mark.requirement("R35")
async def test_a_page_lists_its_users_threads_page_by_page_and_where_they_are_connected(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    await publish_notes(bus, range(3))
    reader = await open_reader(browser, bus, options={"session": "tab-1"})
    await reader.live()
    found = await browser.script(
        """
        const pages = async () => {
          const threads = [];
          for await (const page of window.client.threads({ limit: 1 })) threads.push(...page.threads);
          const { online, sessions } = await window.client.presence();
          return [threads.map(({ thread }) => thread), online, sessions.map(({ session }) => session)];
        };
        return pages();
        """
    )
    assert found == [["dinner", "trip"], True, ["tab-1"]]
    await reader.check_page()


async def test_an_event_that_another_session_was_first_with_is_not_handed_over_behind_a_slow_handler(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    reader = await open_reader(browser, bus, options={"session": "slow"})
    await reader.live()
    await browser.script(
        """
        const [url, module, token] = arguments;
        window.first = [];
        import(module).then(({ EventBusClient }) => {
          const onEvent = ({ id }) => void window.first.push(id);
          window.quick = new EventBusClient(url, { token, session: "quick", onEvent });
        });
        // The first handler of the slow one takes until it is told to go on.
        window.whenHandled = () => (window.whenHandled = undefined, new Promise((resolve) => (window.goOn = resolve)));
        """,
        bus.url,
        f"{bus.nodes[0].url}/client.js",
        bus.token(),
    )
    await browser.wait_for("window.quick?.state === 'live'")
    await bus.publish(1)
    await browser.wait_for("window.goOn !== undefined")
    await bus.publish(3, deliver="any")
    last = await bus.publish(1)
    await browser.wait_for(f"window.first.at(-1) === '{last[0]}'")

    def released(seen: PageReader) -> int:
        return sum(len(record["ids"]) for record in seen.of("released"))

    await reader.until(lambda seen: released(seen) == 3, "three are released")
    await browser.script("window.goOn()")
    await reader.has(["e1", *last])
    assert await browser.script("return window.first") == bus.published
    await bus.all_acked()
    await reader.check_page()


# --- the guide --------------------------------------------------------------------------------------------------------
@pytest.mark.requirement("R8")
async def test_the_guides_page_works_as_it_stands_there(browser: Browser, new_installation: NewInstallation) -> None:
    bus = await new_installation()
    guide = (ROOT / "docs" / "javascript.md").read_text()
    [page] = re.findall(r"^```html\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    here = page.replace("https://bus.example.com", bus.url)
    assert here.count(bus.url) == 2
    bus.pages.routes["/"] = lambda: here.replace("<p id", '<link rel="icon" href="data:,"><p id', 1)
    await browser.open(f"{bus.pages.origin}/")
    await browser.wait_for("document.querySelector('#state').textContent === 'live'")
    await bus.publish(3)
    await browser.wait_for("document.querySelectorAll('#events li').length === 3")
    assert await browser.texts("#events li") == [f'step.done {{"number":{number}}}' for number in (1, 2, 3)]
    await bus.all_acked()

    loaded = len(bus.pages.requests)
    await bus.redis.flushall()
    await bus.publish(1)
    await until(lambda: bus.pages.requests[loaded:].count("/") == 1, 10_000, "a gap makes it load its state anew")
    await browser.wait_for("document.querySelector('#state')?.textContent === 'live'")
    assert await browser.console() == []


async def open_piece(browser: Browser, bus: Installation, number: int, page: str) -> None:
    """Runs a piece of the guide in a page; `EventBusClient`, `token` and `list` are there."""
    guide = (ROOT / "docs" / "javascript.md").read_text()
    pieces = re.findall(r"^```javascript\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    assert len(pieces) == 5
    piece = pieces[number].replace("https://bus.example.com", bus.url)
    bus.pages.routes["/"] = lambda: page
    await browser.open(f"{bus.pages.origin}/")
    await browser.script(
        """
        const [module, token, piece] = arguments;
        const list = document.querySelector("#list");
        import(module).then(({ EventBusClient }) => {
          const Piece = (async () => {}).constructor;
          return new Piece("EventBusClient", "token", "list", piece)(EventBusClient, token, list);
        }).then(() => (window.ended = true), (error) => (window.failure = `${error.stack}`));
        """,
        f"{bus.nodes[0].url}/client.js",
        bus.token(),
        piece,
    )


async def publish_notes(bus: Installation, numbers: Iterable[int]) -> None:
    """Publishes notes, those with even numbers in the thread `dinner`, the others in `trip`."""
    for number in numbers:
        thread = ("dinner", "trip")[number % 2]
        await bus.bus.publish(user=USER, thread=thread, type="note", data={"text": f"n{number}"})


BARE_PAGE = '<!doctype html><link rel="icon" href="data:,"><ul id="list"></ul>'
SHOWN = "[...document.querySelectorAll('#list li')].map((line) => line.textContent).join()"


@pytest.mark.requirement("R11")
async def test_the_guides_list_tells_what_was_seen_and_clicked(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    await open_piece(browser, bus, 0, BARE_PAGE)
    receipt = await bus.bus.publish(user=USER, type="note", data={"text": "hello"})
    assert [one.level.value for one in await receipt.wait("displayed", timeout_ms=10_000)] == ["displayed"]
    await browser.click("#list li")
    [confirmed] = await receipt.wait("confirmed", timeout_ms=10_000)
    assert confirmed.note == "clicked"


@pytest.mark.requirement("R19")
async def test_the_guides_page_shows_a_text_while_it_is_written(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    await open_piece(browser, bus, 1, BARE_PAGE)
    async with bus.bus.run(user=USER, thread="dinner", agent="waiter") as run:
        await run.thinking("of food")
        async with run.stream() as stream:
            await stream.write("Soup 🍲, ")
            await browser.wait_for(f"{SHOWN} === 'Soup 🍲, '")
            bus.proxy.cut()
            await stream.write("bread 🥖 and ")
            await stream.write("cheese")
            await browser.wait_for(f"{SHOWN} === 'Soup 🍲, bread 🥖 and cheese'")
        run.result = "eaten"
    await bus.all_acked()
    assert await browser.script(f"return {SHOWN}") == "Soup 🍲, bread 🥖 and cheese"
    assert await browser.script("return window.failure ?? null") is None


@pytest.mark.requirement("R20")
async def test_the_guides_page_speaks_to_the_agent(browser: Browser, new_installation: NewInstallation) -> None:
    bus = await new_installation()
    await open_piece(browser, bus, 2, BARE_PAGE)
    await browser.wait_for("window.ended || window.failure")
    assert await browser.script("return window.failure ?? null") is None
    async with bus.bus.commands(user=USER) as commands:
        command = await anext(commands)
        assert (command.type, command.thread) == ("message", "dinner")
        assert command.data == {"text": "Book me a table for four"}

    async def click_an_option() -> None:
        await browser.wait_for("document.querySelector('#list li button')")
        await browser.click("#list li button:last-child")

    async with bus.bus.run(user=USER, thread="dinner", agent="waiter") as run:
        await run.thinking("of tables")
        clicking = asyncio.create_task(click_an_option())
        assert await run.ask("When?", options=["seven", "eight"], timeout_ms=20_000) == "eight"
        await clicking
        await browser.wait_for("document.querySelectorAll('#list li').length === 0")
        await browser.click("#list button")
        await asyncio.Event().wait()  # until the user cancels
    assert run.outcome == "cancelled"
    await bus.all_acked()


@pytest.mark.requirement("R26")
async def test_the_guides_page_goes_on_live_behind_its_history(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    await publish_notes(bus, range(150))
    await open_piece(browser, bus, 3, BARE_PAGE)
    await browser.wait_for("window.ended || window.failure")
    await publish_notes(bus, range(150, 170))
    await bus.all_acked()
    expected = "".join(f"dinner: n{number} " for number in range(0, 170, 2))
    await browser.wait_for("document.querySelector('#list').textContent.includes('n168')")
    assert await browser.script("return document.querySelector('#list').textContent") == expected


@pytest.mark.requirement("R26")
async def test_the_guides_page_switches_threads_on_the_live_socket(
    browser: Browser, new_installation: NewInstallation
) -> None:
    bus = await new_installation()
    await publish_notes(bus, range(30))
    await open_piece(browser, bus, 4, BARE_PAGE)
    await browser.wait_for("window.ended || window.failure")
    assert await browser.script("return window.failure ?? null") is None
    await publish_notes(bus, range(30, 40))
    expected = ",".join(f"n{number}" for number in range(1, 40, 2))
    await browser.wait_for(f"{SHOWN} === '{expected}'")
    assert len(await bus.sessions()) == 1
