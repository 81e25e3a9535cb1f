"""What is wrong in a call is said by the call, naming the field or what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from eventbus import Bus, Run
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.errors import EventBusError, InvalidEvent, InvalidField, RunMisused
from eventbus.testing import MemoryStore


@pytest.mark.requirement("R19")
async def test_text_is_streamed_by_a_run_that_is_open_alone() -> None:
    """Before it has started and after its end there is no run whose event would hold the text for good."""
    async with Bus(store=MemoryStore()) as bus:
        run = bus.run(user="ada", agent="planner")
        with pytest.raises(RunMisused, match="inside `async with"):
            run.stream()
        async with run:
            pass
        with pytest.raises(RunMisused, match="inside `async with"):
            run.stream()


@pytest.mark.parametrize(
    "use",
    [
        lambda run: run.thinking("Hm"),
        lambda run: run.publish("note", {}),
        lambda run: run.ask("May I?"),
        lambda run: run.flush(),
        lambda run: run.tool("search").__aenter__(),
    ],
)
async def test_a_run_is_used_in_its_own_event_loop(use: Callable[[Run], Awaitable[Any]]) -> None:
    def elsewhere(run: Run) -> None:
        async def used() -> None:
            with pytest.raises(RunMisused, match="belongs to another event loop"):
                await use(run)

        asyncio.run(used())

    async with Bus(store=MemoryStore()) as bus, bus.run(user="ada", agent="planner") as run:
        await asyncio.to_thread(elsewhere, run)
        assert len(run.receipts) <= 1


async def test_words_for_the_user_are_words_or_make_them() -> None:
    async with Bus(store=MemoryStore()) as bus:
        wrong: Any = 5
        with pytest.raises(InvalidEvent) as refused:
            bus.run(user="ada", agent="planner", public_error=wrong)
        assert refused.value.field == "public_error"
        async with bus.run(user="ada", agent="planner") as run:
            with pytest.raises(InvalidEvent) as refused:
                run.tool("search", public_error=wrong)
            assert refused.value.field == "public_error"


@pytest.mark.parametrize("wrong", [5, [5], ["run_1"]])
async def test_confirmations_are_of_a_run_or_of_receipts(wrong: Any) -> None:
    async with Bus(store=MemoryStore()) as bus:
        with pytest.raises(InvalidField) as refused:
            bus.run_confirmations(wrong)
        assert refused.value.field == "run"


@pytest.mark.requirement("R13")
async def test_a_demand_of_a_run_that_nothing_can_meet_is_refused() -> None:
    off = Settings(store=StoreSettings(confirmation_records=ConfirmationRecords.OFF))
    demand = {"level": "displayed", "within_ms": 1_000}
    async with Bus(settings=off, store=MemoryStore(off.store)) as bus, bus.run(user="ada", agent="planner") as run:
        with pytest.raises(InvalidEvent, match="EVENTBUS_CONFIRMATION_RECORDS"):
            await run.publish("note", {}, require=demand)
        await run.publish("note", {})
        await run.flush()
        assert [receipt.duplicate for receipt in run.receipts] == [False, False]


@pytest.mark.requirement("R13")
async def test_a_demand_beyond_what_is_kept_is_refused() -> None:
    settings = Settings(store=StoreSettings(retention_ms=60_000))
    late = {"level": "displayed", "within_ms": 60_001}
    async with Bus(settings=settings, store=MemoryStore(settings.store)) as bus:
        with pytest.raises(InvalidEvent, match="EVENTBUS_RETENTION_MS") as refused:
            await bus.publish(user="ada", type="note", data={}, require=late)
        assert refused.value.field == "require.within_ms"
        await bus.publish(user="ada", type="note", data={}, require={**late, "within_ms": 60_000})


@pytest.mark.requirement("R25")
async def test_what_a_run_waits_for_ends_when_its_bus_is_closed() -> None:
    bus = await Bus(store=MemoryStore()).__aenter__()
    waiting = asyncio.Event()

    async def ask() -> None:
        async with bus.run(user="ada", agent="asking") as run:
            await run.flush()
            waiting.set()
            await run.ask("May I?")

    async def write() -> None:
        async with bus.run(user="ada", agent="writing") as run, run.stream() as stream:
            while True:
                await stream.write("word ")
                await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(ask()), asyncio.ensure_future(write())]
    await waiting.wait()
    await bus.aclose()
    async with asyncio.timeout(5):
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert type(result) is EventBusError
            assert "the bus is closed" in str(result)
