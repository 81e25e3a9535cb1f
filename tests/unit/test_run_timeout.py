"""Runs that take too long: marked always, ended only where that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventbus import Bus, blocking
from eventbus.config import Settings
from eventbus.errors import InvalidEvent, RunTimeout
from eventbus.event import Event, decode_envelope
from eventbus.ids import ENTRY_ZERO, UserId
from eventbus.runs.timeout import TOOK_TOO_LONG
from eventbus.testing import ManualClock, MemoryStore

ADA = UserId("ada")


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.bus = Bus(store=self.store, clock=self.clock)

    async def events(self) -> list[Event]:
        page = await self.store.history(ADA, ENTRY_ZERO, 1_000)
        return [decode_envelope(entry.body) for entry in page.entries]

    async def last(self) -> dict[str, Any]:
        (*_, event) = await self.events()
        assert event.type == "agent_completed"
        return dict(event.data)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.bus:
        yield made


@pytest.mark.requirement("R24")
async def test_a_run_past_its_agent_timeout_is_ended_where_that_is_wanted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    run = bench.bus.run(user="ada", agent="planner", on_timeout="cancel")

    async def work() -> None:
        async with run, run.tool("search"):
            await run.flush()
            bench.clock.advance(29_999)
            await asyncio.sleep(0)
            bench.clock.advance(1)
            await asyncio.Event().wait()

    with pytest.raises(RunTimeout, match="30000 ms"):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the task is as it was"
    types = [event.type for event in await bench.events()]
    assert types == ["agent_started", "tool_executing", "tool_completed", "agent_completed"]
    assert await bench.last() == {"outcome": "failed", "error": TOOK_TOO_LONG}
    assert run.outcome == "failed"
    caplog.clear()


@pytest.mark.requirement("R24")
@pytest.mark.parametrize("minutes", [1, 10])
async def test_a_run_of_minutes_goes_on_to_its_end_by_default(bench: Bench, minutes: int) -> None:
    async with bench.bus.run(user="ada", agent="planner") as run:
        await run.flush()
        for _ in range(minutes * 60):
            bench.clock.advance(1_000)
            await asyncio.sleep(0)
        await run.thinking("still here")
        run.result = "done"
    assert await bench.last() == {"outcome": "success", "result": "done"}


@pytest.mark.requirement("R24")
async def test_the_time_is_that_of_the_runs_tier(bench: Bench) -> None:
    async with bench.bus.run(user="ada", agent="planner", tier="enterprise", on_timeout="cancel") as run:
        await run.flush()
        bench.clock.advance(119_999)
        await asyncio.sleep(0)
        run.result = "in time"
    assert (await bench.last())["outcome"] == "success"
    bench.clock.advance(1_000_000)
    await asyncio.sleep(0)  # a run that is over is not ended


async def test_a_cancellation_from_elsewhere_stays_one(bench: Bench) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with bench.bus.run(user="ada", agent="planner", on_timeout="cancel") as run:
            await run.flush()
            started.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await started.wait()
    bench.clock.advance(30_000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await bench.last())["outcome"] == "cancelled"


async def test_an_agent_that_goes_on_all_the_same_is_told_by_its_next_call(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with bench.bus.run(user="ada", agent="planner", on_timeout="cancel") as run:
            await run.flush()
            bench.clock.advance(30_000)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
            await run.thinking("one thing more")

    with pytest.raises(RunTimeout):
        await work()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert (await bench.last())["error"] == TOOK_TOO_LONG
    caplog.clear()


@pytest.mark.parametrize(
    "ms, inner, outer",
    [
        (10_000, {"outcome": "cancelled"}, {"outcome": "failed", "error": TOOK_TOO_LONG}),
        (30_000, {"outcome": "cancelled"}, {"outcome": "failed", "error": TOOK_TOO_LONG}),
    ],
    ids=["the parent's time is over", "the time of both"],
)
async def test_a_run_that_takes_too_long_takes_those_below_it_along(
    bench: Bench, caplog: pytest.LogCaptureFixture, ms: int, inner: dict[str, str], outer: dict[str, str]
) -> None:
    async def work() -> None:
        async with bench.bus.run(user="ada", agent="planner", on_timeout="cancel") as run:
            await run.flush()
            bench.clock.advance(20_000)
            async with run.child(agent="helper"):
                await run.flush()
                bench.clock.advance(ms)
                await asyncio.Event().wait()

    with pytest.raises(RunTimeout):
        await work()
    completed = [event.data for event in await bench.events() if event.type == "agent_completed"]
    assert completed == [inner, outer]
    caplog.clear()


async def test_a_resumed_run_has_what_is_left_of_its_time(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = Bus(store=bench.store, clock=bench.clock)
    async with other:
        left = other.run(user="ada", agent="planner", run="run_1")
        await left.__aenter__()
        await left.flush()
        bench.clock.advance(25_000)
        resumed = bench.bus.run(user="ada", agent="planner", run="run_1", resume=True, on_timeout="cancel")

        async def work() -> None:
            async with resumed:
                await resumed.flush()
                bench.clock.advance(4_999)
                await asyncio.sleep(0)
                await resumed.thinking("still here")
                bench.clock.advance(1)
                await asyncio.Event().wait()

        with pytest.raises(RunTimeout):
            await work()
    assert (await bench.last())["error"] == TOOK_TOO_LONG
    caplog.clear()


async def test_another_word_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidEvent, match="on_timeout") as caught:
        bench.bus.run(user="ada", agent="planner", on_timeout="explode")
    assert caught.value.field == "on_timeout"


def test_a_run_of_a_thread_is_told_by_its_next_call(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Nothing interrupts a thread."""
    file = tmp_path / "tiers.json"
    file.write_text('{"free": {"agent_timeout_ms": 50}}')
    settings = Settings.from_env({"EVENTBUS_TIERS_FILE": str(file)})
    store = MemoryStore()

    def work(bus: blocking.Bus) -> None:
        with bus.run(user="ada", agent="planner", on_timeout="cancel") as run:
            while True:
                run.thinking("still here")
                run.flush()

    with blocking.Bus(settings=settings, store=store) as bus, pytest.raises(RunTimeout):
        work(bus)
    blocking.shutdown()
    page = asyncio.run(store.history(ADA, ENTRY_ZERO, 100_000))
    assert decode_envelope(page.entries[-1].body).data == {"outcome": "failed", "error": TOOK_TOO_LONG}
    caplog.clear()
