"""What HTTP requests may cost, over a store in memory."""

from __future__ import annotations

from typing import Any

import pytest

from eventbus.errors import RateLimited, StoreUnavailable
from eventbus.ids import UserId
from eventbus.testing import ManualClock, MemoryStore
from eventbus.tiers import Tier
from gateway.access.auth import Identity, Scope
from gateway.config import LimitSettings, ListenSettings
from gateway.counters import Counters
from gateway.web.quotas import BodiesFull, Quotas

pytestmark = pytest.mark.requirement("R23")

SLOW = Tier(
    name="slow",
    agent_timeout_ms=30_000,
    connection_timeout_ms=40_000,
    live_sessions=1,
    frames_per_second=1,
    publishes_per_second=100,
    publish_bytes_per_second=1_000,
)


class Bench:
    def __init__(self, **limits: Any) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.counters = Counters()
        settings = LimitSettings(**{"max_body_bytes": 5_000, **limits})
        self.quotas = Quotas(self.store, settings, ListenSettings(), self.clock, self.counters)

    async def publish(self, events: int = 1, size: int = 1, user: str = "ada", client: str = "192.0.2.1") -> None:
        identity = Identity(
            user=UserId(user), session=None, tier="slow", scopes=frozenset({Scope.PUBLISH}), expires_ms=2**40
        )
        await self.quotas.count_publish(identity, SLOW, client, events, size)


async def test_a_user_publishes_ten_seconds_worth_at_once_and_is_told_when_the_next_may_come() -> None:
    bench = Bench()
    await bench.publish(events=1_000)
    with pytest.raises(RateLimited, match="'slow' allows 100 events") as refused:
        await bench.publish(events=50)
    assert refused.value.retry_after_ms == 500
    await bench.publish(events=1_000, user="bob")
    bench.clock.advance(500)
    await bench.publish(events=50)
    assert bench.counters.requests_limited == {"user": 1}


async def test_the_bytes_of_a_user_are_limited_too() -> None:
    bench = Bench()
    await bench.publish(size=10_000)
    with pytest.raises(RateLimited, match="1000 bytes a second") as refused:
        await bench.publish(size=2_000)
    assert refused.value.retry_after_ms == 2_000


async def test_a_list_of_the_most_events_and_the_longest_body_are_taken_in_any_tier() -> None:
    bench = Bench(max_body_bytes=50_000)
    await bench.publish(events=500, size=50_000)
    assert bench.counters.requests_limited == {}


async def test_events_of_an_address_are_limited_whoever_publishes_there() -> None:
    bench = Bench(publishes_per_address=10)
    await bench.publish(events=60, user="ada")
    with pytest.raises(RateLimited, match="from one address"):
        await bench.publish(events=60, user="bob")
    await bench.publish(events=60, user="bob", client="192.0.2.2")


async def test_requests_of_an_address_are_limited() -> None:
    bench = Bench(requests_per_address=2)
    for _ in range(20):
        bench.quotas.count_request("192.0.2.1")
    with pytest.raises(RateLimited):
        bench.quotas.count_request("192.0.2.1")
    bench.quotas.count_request("192.0.2.9")
    assert bench.counters.requests_limited == {"address": 1}


async def test_a_store_that_is_away_refuses_no_publish_here() -> None:
    bench = Bench()
    bench.store.fail(StoreUnavailable("away"))
    await bench.publish()
    assert bench.counters.store_errors["store_unavailable"] == 1


async def test_bodies_have_a_bound_together_and_make_room_when_they_are_done() -> None:
    bench = Bench(max_bodies_bytes=1_000)
    with bench.quotas.holding() as one, bench.quotas.holding() as other:
        one.add(600)
        with pytest.raises(BodiesFull, match="600 bytes"):
            other.add(500)
        other.add(400)
        assert bench.quotas.bodies_bytes == 1_000
    assert bench.quotas.bodies_bytes == 0
    with bench.quotas.holding() as third:
        third.add(1_000)
