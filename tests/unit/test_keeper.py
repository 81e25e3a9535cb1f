"""Holds in the store: attaches and heartbeats in bounded batches, tried again until they are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from eventbus.errors import StoreUnavailable
from eventbus.ids import NodeName, UserId
from eventbus.store import Attach, Attached, AttachRefused, Fence
from eventbus.testing import ManualClock, MemoryStore
from gateway.delivery.keeper import BATCH_MAX
from tests.support.bench import Bench
from tests.support.waiting import until


class CountingStore(MemoryStore):
    """Knows how many attaches are under way at once, and how large a heartbeat was; fails for some users."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.attaching = self.most_attaching = self.attaches = 0
        self.beats: list[int] = []
        self.failing: dict[str, int] = {}

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        self.attaches += 1
        self.attaching += 1
        self.most_attaching = max(self.most_attaching, self.attaching)
        try:
            if self.failing.get(request.fence.user, 0) > 0:
                self.failing[request.fence.user] -= 1
                raise StoreUnavailable("down")
            return await super().attach(request)
        finally:
            self.attaching -= 1

    async def heartbeat(self, fences: Sequence[Fence], node: NodeName) -> Any:
        self.beats.append(len(fences))
        return await super().heartbeat(fences, node)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(CountingStore(clock), clock) as made:
        yield made


def counts(bench: Bench) -> CountingStore:
    assert isinstance(bench.store, CountingStore)
    return bench.store


@pytest.mark.requirement("R9")
async def test_a_storm_of_reattaches_is_bounded_at_any_moment_and_ends(bench: Bench) -> None:
    """After a subscription was lost every session is attached again: 2,000 here, 256 at a time."""
    sessions = []
    for number in range(2_000):
        client = bench.connect(f"u{number}")
        client.say("hello", session="tab")
        sessions.append(client.session)
    await until(lambda: all(session.is_open for session in sessions), 30_000)
    counts(bench).most_attaching = 0
    bench.node.hearing.subscribed()
    bench.node.hearing.subscribed()
    assert bench.node.keeper.waiting == 2_000
    await until(lambda: all(session.attaches == 2 for session in sessions), 30_000)
    assert counts(bench).most_attaching == BATCH_MAX
    assert bench.node.keeper.waiting == 0
    await until(lambda: not bench.node.reader.is_busy)


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R25")
async def test_an_attach_is_tried_until_the_store_answers(bench: Bench) -> None:
    counts(bench).failing["alice"] = 3
    client = bench.connect()
    client.say("hello", session="tab")
    await until(lambda: client.ops()[:1] == ["welcome"])
    assert counts(bench).attaches == 4
    assert bench.node.counters.store_errors == {"store_unavailable": 3}


async def test_a_session_that_is_gone_is_not_attached_any_more(bench: Bench) -> None:
    counts(bench).failing["alice"] = 1
    client = bench.connect()
    client.say("hello", session="tab")
    await bench.settle()
    client.hang_up()
    assert bench.node.keeper.waiting == 0
    other = await bench.open("bob")
    assert other.session.is_open
    assert await bench.store.sessions(UserId("alice")) == []


@pytest.mark.requirement("R9")
async def test_a_session_that_can_not_be_attached_does_not_hold_up_the_others(bench: Bench) -> None:
    counts(bench).failing["alice"] = 1_000
    bad = bench.connect()
    bad.say("hello")
    await bench.settle()
    good = await bench.open("bob")
    assert good.session.is_open
    assert not bad.session.is_open
    assert counts(bench).attaches == 2
    assert bench.node.keeper.waiting == 1


async def test_heartbeats_of_many_sessions_leave_together_and_bounded(bench: Bench) -> None:
    clients = []
    for number in range(BATCH_MAX + 50):
        client = bench.connect(f"u{number}")
        client.say("hello", session="tab")
        clients.append(client)
    await until(lambda: all(client.session.is_open for client in clients))
    for client in clients:
        bench.node.keeper.beat(client.session)
        bench.node.keeper.beat(client.session)
    await until(lambda: sum(counts(bench).beats) >= BATCH_MAX + 50)
    assert counts(bench).beats == [BATCH_MAX, 50]


async def test_a_heartbeat_that_fails_is_counted_and_costs_nobody_a_connection(bench: Bench) -> None:
    client = await bench.open()
    bench.store.fail(calls=1)
    bench.node.keeper.beat(client.session)
    await until(lambda: bench.node.counters.store_errors)
    assert client.close_code() is None


async def test_attaches_wait_for_nothing_but_the_store(bench: Bench) -> None:
    bench.store.hang()
    clients = [bench.connect(f"u{number}") for number in range(10)]
    for client in clients:
        client.say("hello")
    await bench.settle()
    assert counts(bench).most_attaching == 10
    bench.store.resume()
    await until(lambda: all(client.session.is_open for client in clients))
    assert repr(bench.node.keeper) == "<Keeper attaches=0 beats=0>"
