"""The demo as a visitor meets it: real processes, a real browser, and a real SIGKILL."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.browser.webdriver import Browser
from tests.support.processes import Child, Processes
from tests.support.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

FORTUNE = "The walrus sang.\nNobody had asked the walrus.\n\nThe oysters left early.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    process: Child
    url: str
    data: Path

    def published(self) -> list[dict[str, str]]:
        """What the agent itself wrote down, in its order."""
        return [json.loads(line) for line in (self.data / "published.jsonl").read_text().splitlines()]


@pytest.fixture
async def demo(processes: Processes, tmp_path: Path) -> AsyncIterator[Demo]:
    data = tmp_path / "data"
    process = processes.gateway("dev", "--port", "0", "--data-dir", data, "--no-open")
    line = await process.line(r"^Open http://")
    yield Demo(process=process, url=line.removeprefix("Open "), data=data)
    process.interrupt()
    assert await process.wait() == 0


async def open_page(browser: Browser, demo: Demo) -> None:
    await browser.open(demo.url)
    await browser.wait_for("document.querySelector('#tab-state').textContent === 'live'")


async def serving(browser: Browser) -> str:
    return str(await browser.wait_for("document.querySelector('.node.serves')?.dataset.node"))


async def start_run(browser: Browser) -> None:
    await browser.wait_for("document.querySelector('#file').options.length > 0")
    await browser.choose("#pace", "200")
    await browser.click("#start")


async def steps_shown(browser: Browser, count: int) -> None:
    await browser.wait_for(f"document.querySelectorAll('#steps .entry').length >= {count}")


async def verdict(browser: Browser, begins: str) -> str:
    condition = f"document.querySelector('#verdict').textContent.startsWith({json.dumps(begins)})"
    await browser.wait_for(condition, 20_000)
    return await browser.text("#verdict")


async def errors_in_console(browser: Browser) -> list[str]:
    return [line for line in await browser.console() if line.startswith("SEVERE")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def pid_of(browser: Browser, node: str) -> int:
    shown = await browser.text(f"[data-node='{node}'] .state")
    return int(shown.removeprefix("pid ").split(",")[0])


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
async def test_a_run_arrives_complete_although_the_node_that_serves_the_tab_is_killed(
    demo: Demo, browser: Browser, tmp_path: Path
) -> None:
    await open_page(browser, demo)
    assert await browser.text("#verdict") == "Start a run to see."
    first = await serving(browser)
    await start_run(browser)
    await steps_shown(browser, 6)
    killed = await pid_of(browser, first)
    assert alive(killed)

    await browser.click(f"[data-node='{first}'] button")
    await until(lambda: not alive(killed), message="the node is dead")
    said = await verdict(browser, "Nothing is missing: ")

    published = [line["entry"] for line in demo.published()]
    assert said == f"Nothing is missing: {len(published)} published, {len(published)} received, each once and in order."
    assert await browser.texts("#steps .entry") == published
    nodes = dict.fromkeys(await browser.texts("#steps .meta span:nth-child(3)"))
    assert list(nodes) == [f"by {first}", f"by {await serving(browser)}"]
    await browser.wait_for("document.querySelectorAll('#steps .acked').length === " + str(len(published)))
    await browser.wait_for("document.querySelector('#pending').textContent === '0'")
    of_lighthouse = (await browser.texts("#steps .success .body"))[0]
    assert "“lamp” 7 times" in of_lighthouse

    await browser.click(f"[data-node='{first}'] button")
    await browser.wait_for(f"document.querySelector('[data-node={first}]').className.includes('ready')")
    assert alive(await pid_of(browser, first))
    assert await pid_of(browser, first) != killed

    # Another file, another result: nothing is made up beforehand.
    own = tmp_path / "walrus.txt"
    own.write_text(FORTUNE)
    await browser.write("#own", str(own))
    await browser.wait_for("document.querySelector('#file').selectedOptions[0].text.startsWith('walrus.txt')")
    await browser.write("#question", "Who asked the walrus?")
    await browser.choose("#pace", "0")
    await browser.click("#start")
    await browser.wait_for("document.querySelector('#steps .success')?.textContent.includes('walrus.txt')")
    of_walrus = (await browser.texts("#steps .success .body"))[0]
    assert "“asked” once and “walrus” twice" in of_walrus
    await verdict(browser, "Nothing is missing: ")
    assert await errors_in_console(browser) == []


@pytest.mark.requirement("R2")
async def test_events_wait_in_the_store_while_no_node_is_alive(demo: Demo, browser: Browser) -> None:
    await open_page(browser, demo)
    await start_run(browser)
    await steps_shown(browser, 3)
    for node in ("node-1", "node-2"):
        await browser.click(f"[data-node='{node}'] button")
        await browser.wait_for(f"document.querySelector('[data-node={node}]').className.includes('ended')")
    shown = len(await browser.texts("#steps .entry"))
    await verdict(browser, "Not connected. ")
    await until(lambda: len(demo.published()) > shown + 4, 10_000, "the agent goes on")

    await browser.click("[data-node='node-2'] button")
    await verdict(browser, "Nothing is missing: ")
    assert await browser.texts("#steps .entry") == [line["entry"] for line in demo.published()]
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
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    await browser.write("#own", str(picture))
    await browser.wait_for("document.querySelector('#file').selectedOptions[0].text.startsWith('picture.png')")
    assert await browser.script("return document.querySelector('#alert').hidden")
    await browser.write("#question", markup)
    await browser.choose("#pace", "0")
    await browser.click("#start")
    await browser.wait_for("document.querySelectorAll('#steps .failed').length === 2")
    assert (await browser.texts("#steps .failed .body"))[
        -1
    ] == "agent_completed picture.png is no text: it holds zero bytes"
    # What came in an event is shown as text.
    assert markup in (await browser.texts("#steps .body"))[0]
    assert await browser.script("return document.querySelectorAll('#steps img').length") == 0
    await verdict(browser, "Nothing is missing: 4 published, 4 received")
    assert await errors_in_console(browser) == []
