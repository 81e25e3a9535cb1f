"""Waiting for confirmations: how often the store is asked, and how a wait ends."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus import Bus, ConfirmationTimeout, blocking
from eventbus.blocking import Bus as BlockingBus
from eventbus.config import ConfirmationRecords, Settings, StoreSettings
from eventbus.confirmation import Standing
from eventbus.errors import EventBusError, InvalidField
from eventbus.event import Level, make_event
from eventbus.ids import ConnectionId, EntryId, NodeName, SessionId, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.store import (
    Attach,
    AttachMode,
    ConfirmationRecord,
    ConfirmRequest,
    Fence,
    ReadRequest,
    Start,
)
from eventbus.testing import ManualClock, MemoryStore

ADA, TAB = UserId("ada"), SessionId("tab")
FENCE = Fence(user=ADA, session=TAB, connection=ConnectionId("c".ljust(32, "0")))


class _Bench:
    """A bus over a store and a clock that stand still, and one session."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(StoreSettings(), self.clock)
        self.bus = Bus(store=self.store, clock=self.clock)

    async def attach(self) -> None:
        await self.store.attach(
            Attach(
                fence=FENCE, node=NodeName("n1"), mode=AttachMode.OPEN, start=Start.EARLIEST, cursor=None, epoch=None,
                live_limit=10, known_limit=40,
            )
        )  # fmt: skip

    async def note(self) -> Receipt:
        return await self.bus.publish(user=ADA, type="note", data={})

    async def confirm(self, receipt: Receipt, level: Level = Level.DISPLAYED, note: str | None = None) -> None:
        await self.store.read_new([ReadRequest(fence=FENCE, count=100)])
        await self.store.confirm_many(
            [ConfirmRequest(user=ADA, session=TAB, level=level, entries=[receipt.entry], note=note)]
        )

    def wait(self, receipt: Receipt, level: str = "displayed", **how: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(receipt.wait(level, **how))


@pytest.fixture
async def bench() -> AsyncIterator[_Bench]:
    made = _Bench()
    async with made.bus:
        await made.attach()
        yield made


@pytest.mark.requirement("R12")
async def test_one_reader_serves_a_thousand_waits_for_a_user_and_asks_four_times_a_second(bench: _Bench) -> None:
    receipts = [await bench.note() for _ in range(10)]
    waits = [bench.wait(receipts[number % 10], timeout_ms=60_000) for number in range(1_000)]
    await bench.clock.pass_time(1_000)
    before = bench.store.calls
    for _ in range(1_000):
        await bench.clock.pass_time(10)
    assert 30 <= bench.store.calls - before <= 50, "10 s at one look in 250 ms"
    for receipt in receipts:
        await bench.confirm(receipt)
    await bench.clock.pass_time(250)
    assert {len(await wait) for wait in waits} == {1}


@pytest.mark.requirement("R12")
async def test_nobody_asks_when_nobody_waits(bench: _Bench) -> None:
    receipt = await bench.note()
    timers = bench.clock.waiting
    wait = bench.wait(receipt)
    await bench.clock.pass_time(0)
    await bench.clock.pass_time(100)
    wait.cancel()
    await asyncio.wait([wait])
    await bench.clock.pass_time(0)
    before = bench.store.calls
    await bench.clock.pass_time(5_000)
    assert (bench.store.calls, bench.clock.waiting) == (before, timers)


@pytest.mark.requirement("R12")
async def test_what_was_confirmed_before_the_wait_counts(bench: _Bench) -> None:
    receipt = await bench.note()
    await bench.confirm(receipt, Level.CONFIRMED, "done")
    other = bench.wait(await bench.note(), timeout_ms=60_000)
    await bench.clock.pass_time(1_000)
    (one,) = await receipt.wait("confirmed", sessions="all_live")
    assert (one.session, one.level, one.note) == ("tab", "confirmed", "done")
    other.cancel()


@pytest.mark.requirement("R12")
async def test_a_wait_ends_at_its_time_and_not_before(bench: _Bench) -> None:
    wait = bench.wait(await bench.note(), timeout_ms=1_000)
    await bench.clock.pass_time(0)
    await bench.clock.pass_time(999)
    assert not wait.done()
    await bench.clock.pass_time(1)
    with pytest.raises(ConfirmationTimeout, match="within 1000 ms 0 sessions"):
        await wait


@pytest.mark.requirement("R12")
async def test_a_store_that_is_away_is_waited_for(bench: _Bench) -> None:
    receipt = await bench.note()
    wait, short = bench.wait(receipt), bench.wait(receipt, timeout_ms=1_000)
    bench.store.fail()
    for _ in range(10):
        await bench.clock.pass_time(250)
    with pytest.raises(ConfirmationTimeout) as caught:
        await short
    assert isinstance(caught.value.__cause__, EventBusError)
    bench.store.heal()
    await bench.confirm(receipt)
    await bench.clock.pass_time(250)
    assert len(await wait) == 1


@pytest.mark.requirement("R25")
async def test_waits_end_when_the_bus_is_closed(bench: _Bench) -> None:
    receipt = await bench.note()
    wait = bench.wait(receipt)
    await bench.clock.pass_time(100)
    await bench.bus.aclose()
    with pytest.raises(EventBusError, match="closed"):
        await wait
    with pytest.raises(EventBusError, match="closed"):
        await receipt.wait("received")


@pytest.mark.parametrize(
    "level, how, field",
    [
        ("seen", {}, "level"),
        ("received", {"sessions": "all"}, "sessions"),
        ("received", {"sessions": 0}, "sessions"),
        ("received", {"sessions": True}, "sessions"),
        ("received", {"timeout_ms": 0}, "timeout_ms"),
    ],
)
async def test_a_wrong_argument_of_a_wait_is_named(bench: _Bench, level: str, how: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        await (await bench.note()).wait(level, **how)
    assert caught.value.field == field


async def test_a_wait_for_what_is_not_recorded_is_refused() -> None:
    settings = Settings(store=StoreSettings(confirmation_records=ConfirmationRecords.OFF))
    async with Bus(store=MemoryStore(), settings=settings) as bus:
        receipt = await bus.publish(user=ADA, type="note", data={})
        with pytest.raises(EventBusError, match="EVENTBUS_CONFIRMATION_RECORDS"):
            await receipt.wait("received")


async def test_a_receipt_that_was_pickled_is_waited_for_through_a_bus(bench: _Bench) -> None:
    receipt = await bench.note()
    await bench.confirm(receipt)
    copy = pickle.loads(pickle.dumps(receipt))  # noqa: S301
    assert copy == receipt
    with pytest.raises(EventBusError, match=r"bus\.wait"):
        await copy.wait("displayed")
    assert len(await bench.bus.wait(copy, "displayed")) == 1


async def test_confirmations_are_had_by_receipt_by_event_and_by_event_id(bench: _Bench) -> None:
    event = make_event(id="e-1", type="note", user=ADA, time_ms=bench.clock.now_ms(), data={})
    (receipt,) = await bench.bus.publish_many([event])
    await bench.confirm(receipt)
    found = await bench.bus.confirmations(receipt)
    assert [one.level for one in found] == [Level.RECEIVED, Level.DISPLAYED]
    assert await bench.bus.confirmations(event) == found
    assert await bench.bus.confirmations("e-1", user="ada") == found
    assert await bench.bus.confirmations("e-1", user="bob") == []
    with pytest.raises(InvalidField, match="user"):
        await bench.bus.confirmations("e-1")


def test_the_earliest_record_counts_however_often_and_in_which_order_they_come() -> None:
    entry = EntryId("5-0")

    def record(level: str, time_ms: int, note: str | None = None) -> ConfirmationRecord:
        return ConfirmationRecord(session=TAB, level=level, time_ms=time_ms, entries=(entry,), note=note)

    standing = Standing(entry)
    for one in (record("confirmed", 30, "b"), record("displayed", 20), record("confirmed", 40, "a")) * 2:
        standing.add(one)
    assert [(one.level, one.time_ms, one.note) for one in standing.all()] == [
        (Level.RECEIVED, 20, None),
        (Level.DISPLAYED, 20, None),
        (Level.CONFIRMED, 30, "b"),
    ]


@pytest.fixture
def end_of_the_thread() -> Any:
    yield
    blocking.shutdown()


@pytest.mark.requirement("R12")
@pytest.mark.usefixtures("end_of_the_thread")
def test_a_thread_waits_for_confirmations() -> None:
    store = MemoryStore()
    with BlockingBus(store=store) as bus:
        receipt = bus.publish(user=ADA, type="note", data={})
        with pytest.raises(ConfirmationTimeout):
            receipt.wait("received", timeout_ms=20)
        assert bus.confirmations(receipt) == []
        (one,) = bus.publish_many([{"user": ADA, "type": "note", "data": {}}])
        with pytest.raises(ConfirmationTimeout):
            bus.wait(one, "received", timeout_ms=20)
