"""The receipt of an event of a run, and what an event of a run may demand."""

from __future__ import annotations

import pytest

from eventbus import (
    Bus,
    ConfirmationTimeout,
    InvalidEvent,
    Receipt,
    Require,
    Run,
    RunClosed,
    RunMisused,
    StoreUnavailable,
)
from eventbus import blocking as threads
from eventbus.config import PublishSettings, Settings
from eventbus.event import Level
from eventbus.ids import EventId
from eventbus.testing import MemoryStore
from tests.support.waiting import until

QUICK = Settings(publish=PublishSettings(publish_deadline_ms=50))


async def tried(run: Run, event: EventId) -> Receipt | None:
    try:
        return await run.receipt(event)
    except StoreUnavailable:
        return None


async def test_the_receipt_of_an_event_of_a_run_is_had_once_it_is_stored() -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus, bus.run(user="ada", agent="clerk") as run:
        first = await run.thinking("of a number")
        invoice = await run.publish("invoice", {"number": 7})
        receipt = await run.receipt(invoice)
        assert [event.id for event in store.published("ada")][1:] == [first, invoice]
        assert (receipt.event, receipt.entry) == (invoice, run.receipts[-1].entry)
        assert (await run.receipt(first)).event == first
        with pytest.raises(ConfirmationTimeout):
            await receipt.wait("received", timeout_ms=1)


async def test_an_event_of_another_run_has_no_receipt_in_this_one() -> None:
    async with Bus(store=MemoryStore()) as bus:
        async with bus.run(user="ada", agent="clerk") as other:
            foreign = await other.thinking("elsewhere")
        async with bus.run(user="ada", agent="clerk") as run:
            with pytest.raises(RunMisused, match="no receipt"):
                await run.receipt(foreign)


async def test_the_receipt_of_an_event_that_can_not_be_stored_raises_why() -> None:
    store = MemoryStore()
    async with Bus(store=store, settings=QUICK) as bus, bus.run(user="ada", agent="clerk") as run:
        store.fail()
        thought = await run.thinking("into the void")
        with pytest.raises(StoreUnavailable):
            await run.receipt(thought)
        store.heal()
        receipt = await until(lambda: tried(run, thought))
        assert receipt is not None
        assert receipt.event == thought


async def test_the_receipt_of_an_event_of_a_lost_run_says_that_it_is_lost() -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus:
        lost = bus.run(user="ada", agent="clerk", run="trip")
        await lost.__aenter__()
        await lost.flush()
        async with bus.run(user="ada", agent="clerk", run="trip", resume=True):
            thought = await lost.thinking("where was I?")
            with pytest.raises(RunClosed):
                await lost.receipt(thought)
        with pytest.raises(RunClosed):
            await lost.__aexit__(None, None, None)


@pytest.mark.requirement("R13")
@pytest.mark.parametrize(
    "demand", [{"level": "displayed", "within_ms": 500}, Require(level=Level.DISPLAYED, within_ms=500)]
)
async def test_an_event_of_a_run_may_demand_a_level_in_the_words_of_publish(demand: object) -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus, bus.run(user="ada", agent="clerk") as run:
        await run.publish("invoice", {"number": 7}, require=demand)  # type: ignore[arg-type]
        await run.flush()
    assert store.published("ada")[1].require == Require(level=Level.DISPLAYED, within_ms=500)


@pytest.mark.parametrize(
    "demand,field",
    [
        ({"level": "displayed"}, "require.within_ms"),
        ({"level": "seen", "within_ms": 500}, "require.level"),
        ({"level": "displayed", "within_ms": 500, "by": "mail"}, "require.by"),
        ("displayed", "require"),
    ],
)
async def test_a_demand_that_is_none_is_refused_at_the_call(demand: object, field: str) -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus, bus.run(user="ada", agent="clerk") as run:
        with pytest.raises(InvalidEvent) as refused:
            await run.publish("invoice", {"number": 7}, require=demand)  # type: ignore[arg-type]
        assert refused.value.field == field
    assert [event.seq for event in store.published("ada")] == [1, 2]


def test_threads_have_the_receipt_of_an_event_of_a_run() -> None:
    with threads.Bus(store=MemoryStore()) as bus, bus.run(user="ada", agent="clerk") as run:
        invoice: EventId = run.publish("invoice", {"number": 7}, require={"level": "received", "within_ms": 500})
        receipt = run.receipt(invoice)
        assert isinstance(receipt, threads.Receipt)
        assert receipt.event == invoice
    threads.shutdown()
