"""Many users: who waits is found without a look at everybody, each once, those for whom it waits longest first."""

from __future__ import annotations

from itertools import pairwise

import pytest
import redis

from benchmarks.inspection import fill
from eventbus import inspection
from eventbus.inspection import Timing
from eventbus.store.redis_store import RedisStore

USERS, WAITING = 10_000, 1_200


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.requirement("R27")
async def test_pages_of_those_who_wait_are_found_by_the_index_alone(server_url: str) -> None:
    store = RedisStore(server_url, command_timeout_ms=30_000)
    try:
        names = await fill(store, USERS, WAITING)
        with redis.Redis.from_url(server_url) as client:
            client.config_resetstat()
            found: list[tuple[str, int]] = []
            cursor, pages = "", 0
            while pages == 0 or cursor:
                page = await inspection.pending_of_users(
                    store, Timing(), partitions=store.keys.partitions, cursor=cursor, count=500
                )
                rows = [(row.user, row.oldest_ms) for row in page.rows]
                # Ages are measured one after another: a moment apart.
                assert all(later <= earlier + 1_000 for (_, earlier), (_, later) in pairwise(rows))
                found += rows
                cursor, pages = page.cursor, pages + 1
            used = client.info("commandstats")
        assert sorted(user for user, _ in found) == sorted(names[:WAITING])
        assert pages == 3
        assert not {"cmdstat_keys", "cmdstat_scan"} & set(used)
        looked = await inspection.overview(store, partitions=store.keys.partitions)
        assert looked.waiting_users == WAITING
    finally:
        await store.aclose()
