"""`deliver: any` while a node is killed: each event is received once, by one session, and is pending nowhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from eventbus import Subscriber
from eventbus.ids import ENTRY_ZERO, EntryId, UserId
from eventbus.store.redis_store import RedisStore
from tests.support.installation import USER, Installation, NewInstallation
from tests.support.waiting import until

JOBS, SESSIONS = 600, 4


async def work(subscriber: Subscriber, mine: list[str], pace_s: float) -> None:
    async for delivery in subscriber:
        mine.append(delivery.event.id)
        await asyncio.sleep(pace_s)  # real time: the pace of the publisher


async def levels_of(store: RedisStore) -> dict[EntryId, Counter[str]]:
    """What sessions did with each entry, by the store's records."""
    found: dict[EntryId, Counter[str]] = {}
    after = ENTRY_ZERO
    while page := await store.confirmations(UserId(USER), after, 500):
        after = page[-1][0]
        for _, record in page:
            for entry in record.entries:
                found.setdefault(entry, Counter())[record.level] += 1
    return found


async def counted(store: RedisStore) -> dict[tuple[str, str], int]:
    """The store's own counts."""
    total: Counter[tuple[str, str]] = Counter()
    for counts in await store.counts(range(store.settings.partitions)):
        assert not isinstance(counts, Exception)
        total.update(counts)
    return dict(total)


@asynccontextmanager
async def looking(installation: Installation) -> AsyncIterator[RedisStore]:
    """The installation's store, for a look."""
    store = RedisStore(installation.server.url)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.mark.slow
@pytest.mark.requirement("R1", "R2", "R14")
async def test_each_any_event_is_received_by_exactly_one_session_though_a_node_is_killed(
    new_installation: NewInstallation,
) -> None:
    """D19 under fire: releases, late releases and what the takeover reads again add up for each session."""
    installation = await new_installation(nodes=2)
    first, second = installation.nodes
    done: dict[str, list[str]] = {f"worker-{number}": [] for number in range(SESSIONS)}
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        workers = []
        for number, (session, mine) in enumerate(done.items()):
            # Two stand before the node that dies, and find the other one by the proxy; two are at the other one.
            url = installation.url if number % 2 == 0 else second.url
            subscriber = await stack.enter_async_context(
                Subscriber(url, token=installation.token, session=session, start="earliest")
            )
            workers.append(group.create_task(work(subscriber, mine, pace_s=0.001 * number)))
        publishing = group.create_task(installation.publish(JOBS, pace_s=0.002, type="job", deliver="any"))
        await until(lambda: len(installation.entries) >= JOBS // 3, 20_000, "a third is published")
        installation.switch()
        first.child.kill()
        await publishing
        await installation.all_acked(30_000)
        for worker in workers:
            worker.cancel()

    handled = set().union(*done.values())
    assert handled == set(installation.entries), "somebody worked at each"
    async with looking(installation) as store:
        levels = await levels_of(store)
        assert set(levels) == set(installation.entries.values())
        wrong = {entry: found for entry, found in levels.items() if found["received"] != 1}
        assert not wrong, "received by another number of sessions than one"
        counts = await counted(store)
    assert counts["received", "job"] == JOBS
    assert counts["received", "job"] + counts["released", "job"] == JOBS * SESSIONS
    assert counts["stored", "job"] == JOBS
