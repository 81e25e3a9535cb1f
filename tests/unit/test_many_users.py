"""One event to many users: a receipt each, one id for all, and what failed told by user."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from eventbus import Bus, Receipts
from eventbus import blocking as blocking_module
from eventbus.blocking import Bus as BlockingBus
from eventbus.errors import InvalidEvent, PartialPublish, StoreMisconfigured
from eventbus.event import decode_envelope
from eventbus.ids import ENTRY_ZERO, UserId
from eventbus.publishing.receipt import Receipt
from eventbus.testing import MemoryStore
from tests.support.scripted_store import Outcome, ScriptedStore
from tests.support.waiting import until

STORED, REFUSED = Outcome.STORED, Outcome.REFUSED


@pytest.mark.requirement("R36")
async def test_an_event_to_many_users_gives_a_receipt_each_in_the_order_given() -> None:
    store = MemoryStore()
    async with Bus(store=store) as bus:
        receipts = await bus.publish(users=["cyd", "ada", "bob"], type="note", data={"n": 1}, thread="th")
        assert list(receipts) == ["cyd", "ada", "bob"]
        for user, receipt in receipts.items():
            (entry,) = (await store.history(UserId(user), ENTRY_ZERO, 10)).entries
            event = decode_envelope(entry.body)
            assert (receipt.user, receipt.entry, receipt.event) == (user, entry.id, receipts.event)
            assert (event.user, event.id, event.data, event.thread) == (user, receipts.event, {"n": 1}, "th")
    assert isinstance(receipts, Receipts)


@pytest.mark.requirement("R36")
async def test_a_user_named_twice_gets_the_event_once() -> None:
    store = ScriptedStore()
    async with Bus(store=store) as bus:
        receipts = await bus.publish(users=iter(["ada", "bob", "ada"]), type="note", data={}, id="one")
    assert list(receipts) == ["ada", "bob"]
    assert store.streams == {"ada": ["one"], "bob": ["one"]}


@pytest.mark.requirement("R36")
async def test_what_failed_is_told_by_user_and_stored_once_when_it_is_published_again_under_the_same_id() -> None:
    store = ScriptedStore([STORED, REFUSED, STORED])
    async with Bus(store=store) as bus:
        with pytest.raises(PartialPublish) as caught:
            await bus.publish(users=["ada", "bob", "cyd"], type="note", data={})
        error = caught.value
        assert {user: type(result) for user, result in error.by_user.items()} == {
            "ada": Receipt,
            "bob": StoreMisconfigured,
            "cyd": Receipt,
        }
        # Whoever is careful may name all of them again: those who have it are answered with their first entry.
        again = await bus.publish(users=["ada", "bob", "cyd"], type="note", data={}, id=error.event)
    assert store.streams == {user: [error.event] for user in ("ada", "bob", "cyd")}
    assert [receipt.duplicate for receipt in again.values()] == [True, False, True]


@pytest.mark.requirement("R36")
async def test_an_event_that_nobody_gets_for_one_reason_raises_that_reason() -> None:
    async with Bus(store=ScriptedStore([REFUSED] * 2)) as bus:
        with pytest.raises(StoreMisconfigured):
            await bus.publish(users=["ada", "bob"], type="note", data={})


@pytest.mark.requirement("R21")
@pytest.mark.requirement("R36")
@pytest.mark.parametrize(
    "who, wrong",
    [
        ({}, "user"),
        ({"user": None, "users": None}, "user"),
        ({"user": "ada", "users": ["bob"]}, "users"),
        ({"users": []}, "users"),
        ({"users": "ada"}, "users"),
        ({"users": ["ada", "run_1"]}, "users[1]"),
        ({"users": ["thread_1"]}, "users[0]"),
        ({"users": ["ada", 7]}, "users[1]"),
    ],
)
async def test_recipients_that_are_none_are_named_and_nothing_is_sent(who: dict[str, Any], wrong: str) -> None:
    store = ScriptedStore()
    async with Bus(store=store) as bus:
        with pytest.raises(InvalidEvent) as caught:
            await bus.publish(**who, type="note", data={})
    assert caught.value.field == wrong
    assert store.batches == []


async def test_the_event_is_judged_once_and_refused_as_a_whole() -> None:
    store = ScriptedStore()
    async with Bus(store=store) as bus:
        with pytest.raises(InvalidEvent) as caught:
            await bus.publish(users=["ada", "bob"], type="agent_thinking", data={"text": " "})
    assert caught.value.field == "data.text"
    assert store.batches == []


@pytest.mark.requirement("R36")
async def test_an_event_for_a_thousand_users_is_handed_over_in_one_turn_in_as_few_calls_as_it_takes() -> None:
    """What a store is asked in one turn leaves in one write."""
    store = ScriptedStore()
    store.gate.clear()
    async with Bus(store=store) as bus:
        work = asyncio.ensure_future(
            bus.publish(users=[f"user-{number}" for number in range(1_000)], type="note", data={})
        )
        await until(lambda: bool(store.batches), message="the first call")
        assert [len(batch) for batch in store.batches] == [500, 500], "both before the first was answered"
        store.gate.set()
        assert len(await work) == 1_000


def test_an_error_of_many_users_survives_pickling() -> None:
    made = PartialPublish("1 of 2", ["a", "b"], ["ada", "bob"], "id-1")
    error = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert (error.by_user, error.event, str(error)) == ({"ada": "a", "bob": "b"}, "id-1", "1 of 2")


@pytest.mark.requirement("R36")
def test_the_blocking_bus_gives_receipts_that_wait_in_results_and_in_errors() -> None:
    try:
        with BlockingBus(store=ScriptedStore([STORED, STORED, STORED, REFUSED])) as bus:
            receipts = bus.publish(users=["ada", "bob"], type="note", data={})
            assert [receipt.blocking_bus for receipt in receipts.values()] == [bus, bus]
            with pytest.raises(PartialPublish) as caught:
                bus.publish(users=["ada", "bob"], type="note", data={})
            kept = caught.value.by_user["ada"]
            assert isinstance(kept, blocking_module.Receipt)
            assert kept.blocking_bus is bus
            with pytest.raises(InvalidEvent, match="users"):
                bus.publish(type="note", data={})  # type: ignore[call-overload]
    finally:
        blocking_module.shutdown()
