"""The programs of docs/frontend.md run, and do what the page says: in Node, and in Chromium with a real agent."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from tests.browser.webdriver import Browser
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.needs import program
from tests.support.processes import ROOT, Processes
from tests.support.reader import needs_ws

PAGE = (ROOT / "docs" / "frontend.md").read_text()
FILES = {
    name: f"/* {name} */\n{body}"
    for name, body in re.findall(r"^```js\n/\* (\S+) \*/\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
}
[HTML] = re.findall(r"^```html\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHOWN = "[...document.querySelectorAll('#events p')].map((one) => `${one.className}: ${one.textContent}`)"


def test_every_program_of_the_page_is_one_that_is_run_here() -> None:
    assert len(re.findall(r"^```js\n", PAGE, re.MULTILINE)) == len(FILES)
    assert set(FILES) == {
        "watch.mjs",
        "conversation.js",
        "events.js",
        "ticks.js",
        "texts.js",
        "questions.js",
        "threads.js",
        "status.js",
    }


# --- in Node, against `eventbus-gateway dev` --------------------------------------------------------------------------
@pytest.mark.soak
async def test_the_first_program_prints_what_the_agent_of_the_demo_does(processes: Processes, tmp_path: Path) -> None:
    node = program("node")
    needs_ws()
    data = tmp_path / "dev"
    demo = processes.gateway("dev", "--data-dir", data, "--no-open", "--port", "0", "--run", "Where is the cat?")
    url = (await demo.line(r"^Open http://")).removeprefix("Open ")
    made = processes.eventbus("token", "--user", "demo", "--jwt-secret-file", data / "jwt-secret")
    assert await made.wait() == 0
    async with httpx.AsyncClient(trust_env=False) as client:
        script = await client.get(f"{url}/client/eventbus-client.js")
    (tmp_path / "eventbus-client.js").write_text(script.text)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "watch.mjs").write_text(FILES["watch.mjs"])
    (tmp_path / "node_modules").symlink_to(ROOT / "clients" / "js" / "node_modules")
    child = processes.start(node, tmp_path / "watch.mjs", name="watch", env={"BUS": url, "TOKEN": made.stdout.strip()})
    assert await child.wait(30_000) == 0, child.stderr
    lines = child.stdout.splitlines()
    assert lines[0].startswith("agent_started ")
    assert {line.split()[0] for line in lines} >= {"agent_thinking", "tool_executing", "tool_completed"}
    assert lines[-1] == "agent_completed success"
    demo.interrupt()
    assert await demo.wait() == 0


# --- in Chromium ------------------------------------------------------------------------------------------------------
@pytest.fixture
async def bus(new_installation: NewInstallation) -> Installation:
    """An installation whose application serves the page."""
    made = await new_installation()
    serve(made)
    return made


def serve(made: Installation) -> None:
    made.pages.routes["/"] = lambda: HTML
    for name, body in FILES.items():
        here = body.replace("https://bus.example.com/client", f"{made.nodes[0].url}/client")
        here = here.replace("https://bus.example.com", made.url)
        made.pages.routes[f"/{name}"] = lambda here=here: here  # type: ignore[misc]


async def show(browser: Browser, bus: Installation, thread: str) -> None:
    """Opens the page, and waits until it shows the thread and listens."""
    await browser.open(f"{bus.pages.origin}/?thread={thread}")
    await bus.bus.publish(user=USER, thread=thread, type="note", data={"text": "here"})
    await browser.wait_for(f'{SHOWN}.includes(\'other: note {{"text":"here"}}\')')


async def quiet(browser: Browser) -> None:
    assert [line for line in await browser.console() if "WebSocket connection to" not in line] == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.requirement("R11")
@pytest.mark.requirement("R15")
@pytest.mark.requirement("R19")
@pytest.mark.requirement("R20")
async def test_the_page_shows_a_run_its_text_and_its_question_and_sends_the_ticks(
    browser: Browser, bus: Installation
) -> None:
    await show(browser, bus, "dinner")
    async with bus.bus.run(user=USER, thread="dinner", agent="waiter") as run:
        await run.thinking("of food")
        async with run.tool("menu", {"day": "today"}) as tool:
            tool.result = ["soup"]
        async with run.stream() as stream:
            await stream.write("Soup 🍲 ")
            await browser.wait_for("document.querySelector('.writing')?.textContent === 'Soup 🍲 '")
            await stream.write("and bread")
        asking = asyncio.create_task(run.ask("When?", options=["seven", "eight"], timeout_ms=20_000))
        await browser.wait_for("document.querySelector('.question button')")
        await browser.click(".question button:last-child")
        assert await asking == "eight"
        run.result = "eaten"
    await browser.wait_for("document.querySelector('.read')")
    shown = await browser.script(f"return {SHOWN}")
    assert shown[1:] == [
        "agent: waiter",
        "thinking: of food",
        "tool: menu ...",
        'tool: menu: ["soup"]',
        "text: Soup 🍲 and bread",
        "question: When?   eight",
        "success: eatenGot it",
    ]
    assert await browser.script("return document.querySelector('.stop')") is None
    await browser.click(".read")
    [confirmed] = await run.receipts[-1].wait("confirmed", timeout_ms=10_000)
    assert confirmed.note == "read"
    await run.receipts[-1].wait("displayed", timeout_ms=10_000)
    await bus.all_acked()
    await quiet(browser)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.requirement("R20")
async def test_the_page_stops_a_run_and_sends_a_message(browser: Browser, bus: Installation) -> None:
    await show(browser, bus, "dinner")
    async with bus.bus.run(user=USER, thread="dinner", agent="waiter") as run:
        await run.thinking("of food")
        await browser.wait_for("document.querySelector('.stop')")
        await browser.click(".stop")
        await asyncio.Event().wait()
    assert run.outcome == "cancelled"
    await browser.wait_for("document.querySelector('p.cancelled')?.textContent.startsWith('the user pressed Stop')")
    await browser.write("#say input", "Something else, please")
    await browser.click("#say button")
    async with bus.bus.commands(user=USER) as commands:
        async with asyncio.timeout(10):
            message = await anext(command async for command in commands if command.type == "message")
    assert (message.data, message.thread) == ({"text": "Something else, please"}, "dinner")
    await browser.wait_for("document.querySelector('#say input').value === ''")
    await quiet(browser)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.requirement("R26")
async def test_the_page_lists_threads_and_switches_without_a_hole_or_a_repeat(
    browser: Browser, bus: Installation
) -> None:
    await bus.publish(120, thread="trip")
    await bus.publish(10, thread="dinner")
    await show(browser, bus, "dinner")
    await browser.wait_for("document.querySelectorAll('#events p').length === 11")
    await browser.wait_for("document.querySelectorAll('#threads button').length === 2")
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish(60, thread="trip", pace_s=0.01))
        await browser.click("#threads button:last-child")
    await browser.wait_for("document.querySelectorAll('#events p').length >= 180")
    numbers = [int(text.rpartition(":")[2].rstrip("}")) for text in await browser.texts("#events p")]
    assert numbers == [*range(1, 121), *range(131, 191)]
    await bus.all_acked()
    await quiet(browser)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.requirement("R7")
async def test_the_page_loads_its_thread_anew_after_a_gap(browser: Browser, bus: Installation) -> None:
    await show(browser, bus, "dinner")
    await bus.redis.flushall()
    await bus.publish(3, thread="dinner")
    await browser.wait_for(f"{SHOWN}.length === 3")
    assert await browser.texts("#events p") == [f'step.done {{"number":{number}}}' for number in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.browser
async def test_the_page_says_that_it_reconnects_when_that_takes_long_and_what_has_ended(
    browser: Browser, bus: Installation
) -> None:
    await show(browser, bus, "dinner")
    assert await browser.script("return document.querySelector('#status').hidden")
    bus.proxy.refuse()
    await browser.wait_for("document.querySelector('#status').textContent === 'Reconnecting'")
    bus.proxy.heal()
    await browser.wait_for("document.querySelector('#status').hidden", 20_000)
    bus.pages.routes["/my/token"] = lambda: "no.good.token"
    await browser.open(f"{bus.pages.origin}/?thread=dinner")
    await browser.wait_for("document.querySelector('#status').textContent === 'You are signed out. Sign in again.'")


@pytest.mark.slow
@pytest.mark.browser
async def test_the_page_in_two_tabs_has_one_session_and_shows_the_same(browser: Browser, bus: Installation) -> None:
    await show(browser, bus, "dinner")
    first = await browser.tab()
    second = await browser.open_tab(f"{bus.pages.origin}/?thread=dinner")
    await browser.wait_for("document.querySelectorAll('#events p').length === 1")
    await bus.publish(20, thread="dinner")
    for tab in (first, second):
        await browser.switch(tab)
        await browser.wait_for("document.querySelectorAll('#events p').length === 21")
    await bus.all_acked()
    assert len(await bus.sessions()) == 1
