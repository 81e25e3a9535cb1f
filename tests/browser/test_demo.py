"""The demo as a visitor meets it: real processes, a real browser, and a real SIGKILL.

One demo serves all the tests, each of which has its own browser and begins a conversation of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.browser.webdriver import Browser
from tests.support.processes import Child, Processes
from tests.support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.xdist_group("browser")]

FORTUNE = "The walrus sang.\nNobody had asked the walrus.\n\nThe oysters left early.\n"
LONG = " ".join(str(number) for number in range(110))
"""The agent takes some seconds to say it."""
LEASE_MS = 5_000
STEPS = "document.querySelectorAll('.turn.selected .entry').length"
WORDS = "document.querySelector('.turn.selected .words')?.textContent.length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    process: Child
    data: Path

    async def url(self) -> str:
        return (await self.process.line(r"^Open http://")).removeprefix("Open ")

    def published(self, run: str) -> list[str]:
        """What the agent itself wrote down of a run, in its order: entry ids."""
        lines = (json.loads(line) for line in (self.data / "published.jsonl").read_text().splitlines())
        return [line["entry"] for line in lines if line["run"] == run and "entry" in line]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    directory = tmp_path_factory.mktemp("demo")
    (directory / "processes").mkdir()
    processes = Processes(directory / "processes")
    try:
        data = directory / "data"
        process = processes.gateway("dev", "--port", "0", "--data-dir", data, "--no-open")
        yield Demo(process=process, data=data)
        process.interrupt()
        assert asyncio.run(process.wait()) == 0
    finally:
        processes.reap()


async def open_page(browser: Browser, demo: Demo) -> None:
    """Opens the page with all nodes alive and a conversation that is new."""
    await browser.open(await demo.url())
    await browser.wait_for("document.querySelectorAll('.node').length === 2", 20_000)
    for node in await browser.script(
        "return Array.from(document.querySelectorAll('.node.ended')).map((e) => e.dataset.node)"
    ):
        await browser.click(f"[data-node='{node}'] button")
    await browser.wait_for("document.querySelectorAll('.node.ready').length === 2", 20_000)
    await live(browser)
    await browser.click("#new")
    await browser.wait_for("document.querySelectorAll('.turn').length === 0")


async def live(browser: Browser) -> None:
    await browser.wait_for("document.querySelector('#tab-state').textContent === 'live'", 20_000)


async def ask(browser: Browser, pace: str = "200", question: str | None = None) -> str:
    """Asks the agent something; returns the run."""
    await browser.wait_for("document.querySelector('#file').options.length > 0")
    if question is not None:
        await browser.write("#question", question)
    await browser.choose("#pace", pace)
    turns = await browser.script("return document.querySelectorAll('.turn').length")
    await browser.click("#start")
    await browser.wait_for(f"document.querySelectorAll('.turn').length > {turns}")
    return str(await browser.script("return Array.from(document.querySelectorAll('.turn')).at(-1).dataset.run"))


async def answer(browser: Browser, option: int = 1) -> str:
    """Answers the agent's question by a click, as soon as it is there."""
    button = f".turn.selected .asking:not([hidden]) .options button:nth-child({option})"
    await browser.wait_for(f"document.querySelector({json.dumps(button)}) !== null", 15_000)
    chosen = await browser.text(button)
    await browser.click(button)
    await browser.wait_for("document.querySelector('.turn.selected .asking').hidden")
    return chosen


async def under_way(browser: Browser) -> bool:
    """Whether the run that is shown has not ended."""
    return bool(await browser.script("return !document.querySelector('.turn.selected .cancel').hidden"))


async def verdict(browser: Browser, begins: str) -> str:
    condition = f"document.querySelector('#verdict').textContent.startsWith({json.dumps(begins)})"
    await browser.wait_for(condition, 20_000)
    return await browser.text("#verdict")


async def errors_in_console(browser: Browser) -> list[str]:
    """Without the browser's own word of a socket whose node was killed in the midst of its handshake."""
    lines = [line for line in await browser.console() if line.startswith("SEVERE")]
    return [line for line in lines if "WebSocket connection to" not in line]


async def steps_of(browser: Browser, step_type: str) -> list[str]:
    return await browser.texts(f".turn.selected li[data-type='{step_type}'] .body")


async def entries(browser: Browser, *, others: int) -> list[str]:
    """The entry ids that the page shows, without those of events that others than the agent have stored."""
    shown = await browser.texts(".turn.selected li:not([data-type='agent_answered']) .entry")
    assert len(await browser.texts(".turn.selected .entry")) - len(shown) == others
    return shown


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def pid_of(browser: Browser, selector: str) -> int:
    return int((await browser.text(selector)).removeprefix("pid ").split(",")[0])


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R19")
@pytest.mark.requirement("R20")
async def test_a_question_is_answered_by_a_click_and_a_node_killed_in_the_midst_of_the_text_costs_nothing(
    demo: Demo, browser: Browser, tmp_path: Path
) -> None:
    await open_page(browser, demo)
    assert await browser.text("#verdict") == "Ask something to see."
    await browser.script(
        "window.said = []; const place = document.querySelector('[role=status]#verdict-said');"
        "new MutationObserver(() => said.push(place.textContent)).observe(place, {childList: true})"
    )
    await own_file(browser, tmp_path / "lamps.txt", f"The lamps.\n\n\nA lamp counted {LONG}.\n")
    run = await ask(browser, question="Which lamp?")
    chosen = await answer(browser, 2)
    assert chosen.startswith("line 4: A lamp counted 0 1 2 ")
    assert (await browser.text(".turn.selected .choice")).startswith(chosen)
    await browser.wait_for(f"{WORDS} > 40")

    first = str(await browser.script("return document.querySelector('.node.serves').dataset.node"))
    killed = await pid_of(browser, f"[data-node='{first}'] .state")
    assert alive(killed)
    await browser.click(f"[data-node='{first}'] button")
    await until(lambda: not alive(killed), message="the node is dead")
    assert await steps_of(browser, "agent_text") == [], "the text was still under way"

    said = await verdict(browser, "Nothing is missing: ")
    published = demo.published(run)
    assert said == f"Nothing is missing: {len(published)} published, {len(published)} received, each once and in order."
    read_out = await browser.script("return said")
    assert read_out[-1] == said
    assert len([one for one in read_out if "so far" in one]) <= 3, "not with each event"
    assert await entries(browser, others=1) == published
    answered = await browser.text(".turn.selected .words")
    assert answered == f"lamps.txt has “lamp” twice. The passage to read begins in line 4: “A lamp counted {LONG}.”"
    # What came word by word over two nodes is the very text of the event that follows it.
    await browser.wait_for(f"document.querySelector('#streamed').textContent === '{len(answered)}, exact'")
    nodes = dict.fromkeys(name for name in await browser.texts(".turn.selected .meta .by") if name)
    assert list(nodes) == [f"by {first}", "by node-2" if first == "node-1" else "by node-1"]
    await browser.wait_for(f"document.querySelectorAll('.turn.selected .acked').length === {len(published) + 1}")
    await browser.wait_for("document.querySelector('#pending').textContent === '0'")

    await browser.click(f"[data-node='{first}'] button")
    await browser.wait_for(f"document.querySelector('[data-node={first}]').className.includes('ready')", 20_000)
    assert await pid_of(browser, f"[data-node='{first}'] .state") != killed
    assert await errors_in_console(browser) == []


@pytest.mark.requirement("R2")
async def test_events_wait_in_the_store_while_no_node_is_alive(demo: Demo, browser: Browser, tmp_path: Path) -> None:
    await open_page(browser, demo)
    await own_file(browser, tmp_path / "walrus.txt", FORTUNE * 4)
    run = await ask(browser, question="Who sang?")
    await browser.wait_for(f"{STEPS} >= 3")
    for node in ("node-1", "node-2"):
        await browser.click(f"[data-node='{node}'] button")
        await browser.wait_for(f"document.querySelector('[data-node={node}]').className.includes('ended')")
    shown = len(await browser.texts(".turn.selected .entry"))
    await verdict(browser, "Not connected. ")
    await until(lambda: len(demo.published(run)) > shown + 4, 10_000, "the agent goes on")

    await browser.click("[data-node='node-2'] button")
    await answer(browser)
    await verdict(browser, "Nothing is missing: ")
    assert await entries(browser, others=1) == demo.published(run)
    assert await errors_in_console(browser) == []


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R20")
async def test_a_run_is_cancelled_by_its_visitor_and_one_whose_agent_is_killed_ends_as_failed_within_its_lease(
    demo: Demo, browser: Browser
) -> None:
    await open_page(browser, demo)
    run = await ask(browser)
    await browser.wait_for(f"{STEPS} >= 4")
    await browser.click(".turn.selected .cancel")
    await browser.wait_for("document.querySelector('.turn.selected .outcome.cancelled:not([hidden])') !== null")
    assert await browser.text(".turn.selected .outcome") == "The run was cancelled: you cancelled it."
    assert len(await steps_of(browser, "tool_executing")) == len(await steps_of(browser, "tool_completed"))
    await verdict(browser, "Nothing is missing: ")
    assert await entries(browser, others=0) == demo.published(run)

    await ask(browser)
    await browser.wait_for(f"{STEPS} >= 4")
    killed = await pid_of(browser, "#agent-state")
    await browser.click("#kill-agent")
    await until(lambda: not alive(killed), message="the agent is dead")
    failed = "document.querySelector('.turn.selected .outcome.failed:not([hidden])') !== null"
    await browser.wait_for(failed, LEASE_MS + 5_000)
    assert await browser.text(".turn.selected .outcome") == "The run failed: the agent stopped before it was done."
    assert len(await steps_of(browser, "tool_executing")) == len(await steps_of(browser, "tool_completed"))
    await verdict(browser, "Nothing is missing: ")
    await browser.wait_for(f"document.querySelector('#agent-state').textContent.match(/^pid (?!{killed}$)/)")
    assert await errors_in_console(browser) == []


@pytest.mark.requirement("R11")
@pytest.mark.requirement("R20")
@pytest.mark.requirement("R26")
async def test_conversations_are_switched_survive_a_reload_and_a_question_is_settled_in_all_tabs(
    demo: Demo, browser: Browser, tmp_path: Path
) -> None:
    await open_page(browser, demo)
    await own_file(browser, tmp_path / "walrus.txt", FORTUNE)
    await ask(browser, "0", "Who asked the walrus?")
    await browser.wait_for("document.querySelector('.turn.selected .got') !== null")
    walrus = await browser.text(".turn.selected .words")
    assert "“asked” once and “walrus” twice" in walrus

    # The agent's side is told: received, then on screen for a second, then that the visitor got it.
    ticks = "document.querySelector('.turn.selected .foot .ticks').dataset.level"
    await browser.wait_for(f"{ticks} === 'displayed'")
    await browser.click(".turn.selected .got")
    await browser.wait_for(f"{ticks} === 'confirmed'")
    assert await browser.text(".turn.selected .foot .ticks") == "✓✓✓"
    unseen = "document.querySelectorAll('.turn.selected li .ticks:not([data-level])').length"
    await browser.wait_for(f"{unseen} === 0")

    # Another conversation, in two tabs: the question comes to both, and one answer settles it in both.
    await browser.click("#new")
    await browser.wait_for("document.querySelectorAll('.turn').length === 0")
    await own_file(browser, tmp_path / "long.txt", f"The walrus sang.\n\n\nThe walrus sang {LONG[:170]}\n")
    await ask(browser, question="Who sang?")
    await browser.wait_for("document.querySelector('.turn.selected .options button') !== null")
    first = await browser.tab()
    second = await browser.open_tab(await demo.url())
    await live(browser)
    await browser.wait_for("document.querySelector('.turn.selected .options button') !== null")
    # The question itself is among what the agent has written down.
    shown = "document.querySelector('#{}').textContent"
    await browser.wait_for(
        f"{shown.format('received')} > 0 && {shown.format('received')} === {shown.format('published')}"
    )
    await browser.switch(first)
    chosen = await answer(browser, 2)
    await browser.switch(second)
    await browser.wait_for("document.querySelector('.turn.selected .asking').hidden")
    assert await under_way(browser), "the question is settled by its answer and not by the end of the run"
    assert (await browser.text(".turn.selected .choice")).startswith(chosen)
    await browser.wait_for("document.querySelector('.turn.selected .got') !== null")
    song = await browser.text(".turn.selected .words")
    assert "begins in line 4" in song

    # After a reload all of it is there again, the same session goes on, and the other conversation is one click away.
    session = await browser.text("#tab-detail")
    await browser.script("location.reload()")
    await browser.wait_for("document.querySelector('.turn.selected .words')?.textContent.length > 0")
    assert await browser.text(".turn.selected .words") == song
    await live(browser)
    assert await browser.text("#tab-detail") == session
    await verdict(browser, "Nothing is missing: ")
    other = "Array.from(document.querySelectorAll('.thread')).find((e) => e.textContent === 'Who asked the walrus?')"
    await browser.wait_for(f"{other} !== undefined")
    await browser.script(f"{other}.click()")
    await browser.wait_for(f"document.querySelector('.turn.selected .words')?.textContent === {json.dumps(walrus)}")
    await verdict(browser, "Nothing is missing: ")
    assert len(await browser.texts(".turn")) == 1
    assert await errors_in_console(browser) == []


@pytest.mark.requirement("R19")
@pytest.mark.requirement("R26")
async def test_a_text_under_way_is_whole_after_another_conversation_was_looked_at_and_after_a_reload(
    demo: Demo, browser: Browser, tmp_path: Path
) -> None:
    await open_page(browser, demo)
    await own_file(browser, tmp_path / "long.txt", f"The walrus sang {LONG}.\n")
    await ask(browser, question="What about the walrus?")
    await browser.wait_for(f"{WORDS} > 60", 20_000)
    mine = await browser.script("return document.querySelector('.thread[aria-current]').dataset.thread")
    await browser.click("#new")
    await browser.wait_for("document.querySelectorAll('.turn').length === 0")
    await browser.click(f".thread[data-thread='{mine}']")
    await browser.wait_for(f"{WORDS} > 90")
    so_far = await browser.text(".turn.selected .words")
    assert await under_way(browser)

    await browser.script("location.reload()")
    await browser.wait_for(f"{WORDS} > 0")
    assert (await browser.text(".turn.selected .words")).startswith(so_far)
    assert await steps_of(browser, "agent_text") == [], "the text is still under way"
    await browser.wait_for("document.querySelector('.turn.selected .got') !== null")
    whole = await browser.text(".turn.selected .words")
    assert whole.endswith(f"“The walrus sang {LONG}.”")
    await browser.wait_for(f"document.querySelector('#streamed').textContent === '{len(whole)}, exact'")
    await verdict(browser, "Nothing is missing: ")
    assert await errors_in_console(browser) == []


async def test_what_can_not_be_read_is_said_and_ends_the_run_as_failed(
    demo: Demo, browser: Browser, tmp_path: Path
) -> None:
    await open_page(browser, demo)
    large = tmp_path / "large.txt"
    large.write_bytes(b"x" * (1024 * 1024 + 1))
    await browser.write("#own", str(large))
    await browser.wait_for("!document.querySelector('#alert').hidden")
    assert "1 MiB is the most" in await browser.text("#alert")

    markup = "<img src=x onerror=alert(1)>"
    await own_file(browser, tmp_path / "picture.png", "\x89PNG\r\n\x1a\n\0\0")
    assert await browser.script("return document.querySelector('#alert').hidden")
    await ask(browser, "0", markup)
    await browser.wait_for("document.querySelectorAll('.turn.selected li.failed').length === 2")
    assert (
        await browser.text(".turn.selected .outcome") == "The run failed: picture.png is no text: it holds zero bytes."
    )
    # What came in an event is shown as text.
    assert (await browser.text(".turn.selected .visitor")).startswith(markup)
    assert await browser.script("return document.querySelectorAll('#log img').length") == 0
    await verdict(browser, "Nothing is missing: 5 published, 5 received")
    assert await errors_in_console(browser) == []


async def own_file(browser: Browser, path: Path, content: str) -> None:
    """Gives the agent a file."""
    path.write_text(content, encoding="latin-1")
    await browser.write("#own", str(path))
    chosen = f"document.querySelector('#file').selectedOptions[0]?.text.startsWith('{path.name}')"
    await browser.wait_for(chosen)
