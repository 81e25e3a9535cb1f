"""The demo's ticks are what the sessions have confirmed, and nothing follows a run that nobody asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from eventbus.event import Level
from gateway.demo.ticks import FOLLOW_MS, UNASKED_MS, Ticks
from tests.support.sessions import ADA, Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.bus:
        await made.attach("tab")
        yield made


def following() -> list[str]:
    return sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("demo:ticks:"))


@pytest.mark.requirement("R11")
@pytest.mark.requirement("R12")
async def test_each_event_of_a_run_has_the_highest_level_that_a_session_gave_also_after_the_wait_began_anew(
    bench: Bench,
) -> None:
    ticks = Ticks(bench.bus, bench.clock, ADA)
    async with bench.bus.run(user=ADA, agent="reader", run="run_1") as run:
        await run.thinking("hm")
    started, thinking, completed = (receipt.event for receipt in run.receipts)
    assert ticks.of_run("run_1") == {}
    await bench.clock.pass_time(300)
    entries = await bench.read("tab")
    await bench.ack("tab", entries)
    await bench.clock.pass_time(300)
    assert ticks.of_run("run_1") == dict.fromkeys((started, thinking, completed), Level.RECEIVED)

    await bench.confirm("tab", entries[1:], Level.DISPLAYED)
    for _ in range(2 * FOLLOW_MS // 500):
        await bench.clock.pass_time(500)
    await bench.confirm("tab", entries[2:], Level.CONFIRMED)
    await bench.clock.pass_time(300)
    assert ticks.of_run("run_1") == {
        started: Level.RECEIVED,
        thinking: Level.DISPLAYED,
        completed: Level.CONFIRMED,
    }
    await ticks.aclose()
    assert following() == []


async def test_a_run_that_is_asked_for_no_more_is_left_alone(bench: Bench) -> None:
    ticks = Ticks(bench.bus, bench.clock, ADA)
    ticks.of_run("run_1")
    ticks.of_run("run_2")
    await bench.clock.pass_time(UNASKED_MS)
    ticks.of_run("run_2")
    await bench.clock.pass_time(1)
    ticks.of_run("run_2")
    await asyncio.sleep(0)
    assert following() == ["demo:ticks:run_2"]
    await ticks.aclose()
