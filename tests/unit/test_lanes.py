"""Users whose primary is away hold up nobody else: publishes, reads and attaches go in lanes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from eventbus import Bus
from eventbus.config import PublishSettings, Settings
from eventbus.errors import StoreError, StoreUnavailable
from eventbus.ids import UserId
from eventbus.store import (
    Append,
    Appended,
    Attach,
    Attached,
    AttachRefused,
    Durability,
    NewRead,
    ReadRequest,
)
from eventbus.store.topology import LANES
from eventbus.testing import MemoryStore
from tests.support.bench import Bench
from tests.support.waiting import until

pytestmark = [pytest.mark.requirement("R2"), pytest.mark.requirement("R32")]

AWAY = "away"


class LanedStore(MemoryStore):
    """Two lanes: in that of `AWAY` calls stand still while `stands` is not set, and fail while `fails`."""

    def __init__(self) -> None:
        super().__init__()
        self.stands = asyncio.Event()
        self.stands.set()
        self.fails = False
        self.appends: list[list[UserId]] = []

    def lane_of(self, user: UserId) -> int:
        return LANES - 1 if user.startswith(AWAY) else 0

    async def _pass(self, *users: UserId) -> None:
        assert len({self.lane_of(user) for user in users}) == 1, "no call is of two lanes"
        if users[0].startswith(AWAY):
            await self.stands.wait()
            if self.fails:
                raise StoreUnavailable("the primary is away")

    async def append(
        self, events: Sequence[Append], durability: Durability = Durability.MEMORY
    ) -> Sequence[Appended | StoreError]:
        users = [event.user for event in events]
        self.appends.append(users)
        await self._pass(*users)
        return await super().append(events, durability)

    async def read_new(self, requests: Sequence[ReadRequest]) -> Sequence[NewRead | StoreError]:
        await self._pass(*(request.fence.user for request in requests))
        return await super().read_new(requests)

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        await self._pass(request.fence.user)
        return await super().attach(request)


@pytest.fixture
async def store() -> AsyncIterator[LanedStore]:
    made = LanedStore()
    yield made
    made.stands.set()


async def test_publishes_of_others_go_on_while_a_lane_stands_still(store: LanedStore) -> None:
    """Also when as many calls of that lane are under way as may be, and more publishes wait behind them."""
    async with Bus(store=store) as bus:
        store.stands.clear()
        late = []
        for number in range(100):
            late.append(asyncio.create_task(bus.publish(user=f"{AWAY}{number}", type="note", data={})))
            await asyncio.sleep(0)
            await bus.publish(user="here", type="note", data={})
        assert not any(task.done() for task in late)
        store.stands.set()
        assert len(await asyncio.gather(*late)) == 100


async def test_publishes_of_one_moment_leave_in_one_call_for_each_lane(store: LanedStore) -> None:
    async with Bus(store=store) as bus:
        users = [f"{place}{number}" for number in range(20) for place in (AWAY, "here")]
        await asyncio.gather(*(bus.publish(user=user, type="note", data={}) for user in users))
    assert [len(users) for users in store.appends] == [20, 20]


async def test_calls_of_a_lane_that_fail_do_not_stop_all_when_another_was_answered_since(store: LanedStore) -> None:
    settings = Settings(publish=PublishSettings(breaker_failures=3))
    async with Bus(store=store, settings=settings) as bus:
        store.stands.clear()
        store.fails = True
        late = []
        for number in range(6):
            late.append(asyncio.create_task(bus.publish(user=f"{AWAY}{number}", type="note", data={})))
            await until(lambda: len(store.appends) == len(late))
        await bus.publish(user="here", type="note", data={})
        store.stands.set()
        await until(lambda: bus.statistics().retries >= 6)
        assert bus.statistics().breaker_opened == 0
        store.fails = False
        await asyncio.gather(*late)


async def test_breaker_opens_when_no_lane_is_answered(store: LanedStore) -> None:
    settings = Settings(publish=PublishSettings(breaker_failures=3))
    async with Bus(store=store, settings=settings) as bus:
        await bus.publish(user="here", type="note", data={})
        store.fails = True
        late = asyncio.create_task(bus.publish(user=AWAY, type="note", data={}))
        await until(lambda: bus.statistics().breaker_opened == 1)
        store.fails = False
        await late


@pytest.fixture
async def bench(store: LanedStore) -> AsyncIterator[Bench]:
    async with Bench(store) as made:
        yield made
        store.stands.set()


async def test_sessions_of_others_read_and_attach_while_a_lane_stands_still(bench: Bench, store: LanedStore) -> None:
    away, here = await bench.open(AWAY), await bench.open("here")
    store.stands.clear()
    bench.node.hearing.woken(UserId(AWAY))
    late = bench.connect(f"{AWAY}2")
    late.say("hello", session="tab")
    await bench.settle()

    await bench.publish(3, user="here")
    await until(lambda: len(here.events()) == 3)
    assert (await bench.open("new")).session.is_open

    assert away.session.is_open
    assert not late.session.is_open
    assert bench.node.keeper.waiting == 0
    assert bench.node.reader.is_busy
    store.stands.set()
    await until(lambda: late.session.is_open)
    await until(lambda: not bench.node.reader.is_busy)
