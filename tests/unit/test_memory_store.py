"""The faults of a store in memory. What it shares with every store is held by tests/contract."""

from __future__ import annotations

import asyncio

import pytest

from eventbus.errors import StoreError, StoreTimeout, StoreUnavailable
from eventbus.ids import ENTRY_ZERO, ConnectionId, EventId, NodeName, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Append,
    Appended,
    Attach,
    AttachMode,
    Beat,
    BeatState,
    Fence,
    NewRead,
    ReadRequest,
    Start,
    Store,
)
from eventbus.testing import ManualClock, MemoryStore

ALICE = UserId("alice")
FENCE = Fence(user=ALICE, session=SessionId("phone"), connection=ConnectionId("c1"))
NODE = NodeName("node-1")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(clock=ManualClock())


async def publish(store: Store, name: str = "e1") -> Appended | StoreError:
    (result,) = await store.append([Append(user=ALICE, event=EventId(name), body=b"body")])
    return result


async def opened(store: Store) -> None:
    await store.attach(
        Attach(
            fence=FENCE,
            node=NODE,
            mode=AttachMode.OPEN,
            start=Start.EARLIEST,
            cursor=None,
            epoch=None,
            live_limit=10,
            known_limit=40,
        )
    )


async def retained(store: Store) -> int:
    return len((await store.history(ALICE, ENTRY_ZERO, 100)).entries)


async def test_failing_call_has_no_effect(store: MemoryStore) -> None:
    error = StoreTimeout("too late")
    store.fail(error)

    assert await publish(store) is error
    with pytest.raises(StoreTimeout, match="too late"):
        await store.ping()

    store.heal()
    assert await retained(store) == 0


async def test_failure_may_be_for_some_calls_only(store: MemoryStore) -> None:
    store.fail(calls=2)

    results = [await publish(store) for _ in range(3)]

    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable, Appended]


async def test_call_whose_reply_is_lost_has_taken_effect(store: MemoryStore) -> None:
    store.lose_replies(calls=1)

    lost, again = await publish(store), await publish(store)

    assert isinstance(lost, StoreUnavailable)
    assert isinstance(again, Appended)
    assert again.duplicate
    assert await retained(store) == 1


async def test_entries_of_a_read_whose_reply_is_lost_are_pending(store: MemoryStore) -> None:
    await opened(store)
    await publish(store)
    store.lose_replies(calls=1)

    (lost,) = await store.read_new([ReadRequest(fence=FENCE, count=10)])
    (after,) = await store.read_new([ReadRequest(fence=FENCE, count=10)])

    assert isinstance(lost, StoreUnavailable)
    assert isinstance(after, NewRead)
    assert after.entries == ()
    assert await store.heartbeat([FENCE], NODE) == [Beat(state=BeatState.HELD, pending=1)]


async def test_batches_fail_for_each_of_their_parts(store: MemoryStore) -> None:
    store.fail()

    for results in (
        await store.append([Append(user=ALICE, event=EventId(name), body=b"") for name in ("e1", "e2")]),
        await store.read_new([ReadRequest(fence=FENCE, count=1)] * 2),
        await store.heartbeat([FENCE] * 2, NODE),
        await store.ack_many([AckRequest(user=ALICE, session=FENCE.session, entries=[])] * 2),
    ):
        assert [type(result) for result in results] == [StoreUnavailable] * 2


async def test_hanging_calls_go_on_in_their_order(store: MemoryStore) -> None:
    store.hang()
    calls = [asyncio.create_task(publish(store, name)) for name in ("e1", "e2", "e3")]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(call.done() for call in calls)

    store.resume()
    results = await asyncio.gather(*calls)

    entries = [result.entry for result in results if isinstance(result, Appended)]
    assert entries == sorted(entries)
    assert len(set(entries)) == 3


async def test_cancelled_call_that_hung_has_no_effect(store: MemoryStore) -> None:
    store.hang()
    call = asyncio.create_task(publish(store))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    store.resume()

    assert await retained(store) == 0


async def test_closing_ends_calls_that_hang(store: MemoryStore) -> None:
    store.hang()
    call = asyncio.create_task(publish(store))
    await asyncio.sleep(0)

    await store.aclose()

    assert isinstance(await call, StoreUnavailable)


async def test_flush_takes_everything(store: MemoryStore) -> None:
    await opened(store)
    await publish(store)
    _, epoch = await store.tail(ALICE)

    store.flush()

    assert await store.heartbeat([FENCE], NODE) == [Beat(state=BeatState.MISSING)]
    assert await retained(store) == 0
    assert (await store.tail(ALICE))[1] != epoch


async def test_restart_keeps_the_data_and_shows_another_server(store: MemoryStore) -> None:
    first = await publish(store)

    store.restart()

    again = await publish(store)
    assert isinstance(first, Appended)
    assert isinstance(again, Appended)
    assert again.duplicate
    assert again.primary != first.primary


async def test_trim_says_how_many_went(store: MemoryStore) -> None:
    for name in ("e1", "e2", "e3"):
        await publish(store, name)

    assert (store.trim(ALICE, keep=1), store.trim(ALICE, keep=1), store.trim(UserId("bob"), keep=0)) == (2, 0, 0)
    assert await retained(store) == 1


async def test_clock_that_runs_backwards_makes_no_lower_entry_ids() -> None:
    clock = ManualClock(start_ms=1_000)
    store = MemoryStore(clock=clock)
    await publish(store, "e1")
    clock.set_wall(500)

    result = await publish(store, "e2")

    assert isinstance(result, Appended)
    assert result.entry == "1000-1"


async def test_store_shows_its_health(store: MemoryStore) -> None:
    assert repr(store) == "<MemoryStore users=0 nodes=0 healthy>"
    store.hang()
    assert store.health == "hanging"
    store.heal()
    store.fail(StoreTimeout("too late"))
    assert store.health == "failing with StoreTimeout('too late')"
    await store.aclose()
    assert store.health == "closed"
