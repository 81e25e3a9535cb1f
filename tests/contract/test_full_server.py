"""A server at its memory limit refuses what is new and can be drained (D14)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from eventbus.config import StoreSettings
from eventbus.errors import StoreFull
from eventbus.ids import ENTRY_ZERO, EventId
from eventbus.store import (
    Append,
    Attached,
    Beat,
    BeatState,
    DeadLetter,
    DeadOutcome,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    Store,
    Ticket,
)
from eventbus.store.redis_store import RedisStore
from tests.contract.conftest import SERVERS
from tests.contract.worlds import ALICE, NODE, PHONE, RedisPower, World, fence_of
from tests.support.servers import NewServer

pytestmark = pytest.mark.corner("D14")

FENCE, NEXT = fence_of("c1"), fence_of("c2")


@pytest.fixture(params=SERVERS)
async def full(request: pytest.FixtureRequest, new_server: NewServer) -> AsyncIterator[World]:
    """A server that holds five events for a live session, three of them delivered, and takes no byte more."""
    server = new_server(kind=request.param, appendonly=False)
    settings = StoreSettings()
    store: Store = RedisStore(server.url, settings)
    world = World(store, settings, RedisPower(server.url, store, settings))
    await world.open(FENCE)
    await world.publish("e0", "e1", "e2", "e3", "e4")
    await world.read(FENCE, count=3)
    await store.put_ticket(Ticket(ticket="t1", claims="{}", life_ms=60_000))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
    yield world
    await store.aclose()


@pytest.mark.requirement("R2")
async def test_full_server_refuses_publishes_with_a_reason_that_says_try_again(full: World) -> None:
    (result,) = await full.append(Append(user=ALICE, event=EventId("more"), body=b"more"))

    assert isinstance(result, StoreFull)
    assert result.retryable
    with pytest.raises(StoreFull):
        await full.store.put_ticket(Ticket(ticket="t2", claims="{}", life_ms=60_000))


async def test_full_server_is_drained_by_a_session_that_comes_back(full: World) -> None:
    attached = await full.open(NEXT)
    page = await full.page(NEXT)
    unread = await full.read(NEXT)
    everything = [entry.id for entry in page.entries] + [entry.id for entry in unread.entries]

    assert isinstance(attached, Attached)
    assert len(everything) == 5
    assert await full.ack(NEXT, *everything) == 5
    assert await full.store.heartbeat([NEXT], NODE) == [Beat(state=BeatState.HELD)]
    assert await full.store.detach(NEXT, everything[-1]) is True


async def test_full_server_still_redelivers_releases_and_gives_up(full: World) -> None:
    first, second, third = [entry.id for entry in (await full.page(FENCE)).entries]
    letter = DeadLetter(id=second, event=EventId("e1"), type="t", reason="ack_timeout", attempts=5, body=b"e1")

    assert await full.store.redeliver(FENCE, [Redelivery(id=first, attempts=2)]) == [RedeliveryOutcome.READY]
    assert await full.store.dead_letter(FENCE, letter) is DeadOutcome.DEAD
    assert await full.store.release(FENCE, [third], ReleaseReason.EXPIRED) == 1
    assert await full.store.end_session(ALICE, PHONE) == 1


async def test_full_server_still_answers_questions(full: World) -> None:
    assert len((await full.store.history(ALICE, ENTRY_ZERO, 10)).entries) == 5
    assert (await full.store.tail(ALICE))[0] != ENTRY_ZERO
    assert len(await full.store.sessions(ALICE)) == 1
    assert await full.store.take_ticket("t1") == "{}"
    assert await full.store.take_ticket("t1") is None
