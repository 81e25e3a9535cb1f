"""Subscriptions that follow the slots of their channels from server to server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import pytest

from eventbus.errors import StoreError
from eventbus.ids import UserId
from eventbus.store.ears import Ears
from eventbus.store.links import Links
from eventbus.store.listening import Subscription
from eventbus.store.topology import SLOTS, slot_of
from tests.support.fake_redis import FakeRedis, map_of
from tests.support.redis_stores import Listened
from tests.support.waiting import until


def channel_below(middle: bool) -> str:
    """A channel whose slot is in the lower or in the upper half."""
    names = (f"eb:{{{number}}}:w:n" for number in range(1_000))
    return next(name for name in names if (slot_of(name) < SLOTS // 2) is middle)


LOW, HIGH = channel_below(True), channel_below(False)


class Hearing:
    """A hearer that writes down what it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.stood: list[set[str]] = []
        self.fell: list[set[str]] = []

    def heard(self, channel: str, message: bytes) -> None:
        self.messages.append((channel, message))

    def standing(self, channels: Collection[str]) -> None:
        self.stood.append(set(channels))

    def fallen(self, channels: Collection[str], reason: StoreError) -> None:
        if channels:
            self.fell.append(set(channels))


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeRedis, FakeRedis]]:
    """Two servers of a Cluster, each with half of the slots."""
    async with FakeRedis("one", mode="cluster") as one, FakeRedis("two", mode="cluster") as two:
        one.map = two.map = map_of(one, two)
        yield one, two


@pytest.fixture
async def links(pair: tuple[FakeRedis, FakeRedis]) -> AsyncIterator[Links]:
    made = Links(f"redis+cluster://{pair[0].address},{pair[1].address}", timeout_ms=2_000, refresh_ms=600_000)
    yield made
    await made.aclose()


async def test_each_channel_is_subscribed_at_the_primary_of_its_slot(
    pair: tuple[FakeRedis, FakeRedis], links: Links
) -> None:
    one, two = pair
    hearing = Hearing()
    ears = Ears(links, hearing, name="test", timeout_ms=1_000, ping_ms=200, silence_ms=1_000)
    ears.want([LOW, HIGH])
    await until(lambda: ears.standing == 2)
    assert [b"SSUBSCRIBE", LOW.encode()] in one.log
    assert [b"SSUBSCRIBE", HIGH.encode()] in two.log
    two.push("smessage", HIGH, "ada")
    await until(lambda: hearing.messages == [(HIGH, b"ada")])
    await ears.aclose()


async def test_channel_whose_slot_has_moved_is_subscribed_where_it_is_now(
    pair: tuple[FakeRedis, FakeRedis], links: Links
) -> None:
    """The server ends the subscription by itself (sunsubscribe)."""
    one, two = pair
    hearing = Hearing()
    ears = Ears(links, hearing, name="test", timeout_ms=1_000, ping_ms=200, silence_ms=1_000)
    ears.want([LOW, HIGH])
    await until(lambda: ears.standing == 2)
    one.map = two.map = map_of(two)
    one.push("sunsubscribe", LOW, 0)
    await until(lambda: {LOW} in hearing.fell)
    await until(lambda: len(hearing.stood) == 3)
    assert hearing.stood[2] == {LOW}
    assert [b"SSUBSCRIBE", LOW.encode()] in two.log
    assert {HIGH} not in hearing.fell, "the other one stands all the time"
    await ears.aclose()


async def test_channel_that_is_refused_is_asked_for_again(pair: tuple[FakeRedis, FakeRedis], links: Links) -> None:
    """MOVED, while nobody knows yet where to."""
    one, _ = pair
    one.errors = ["MOVED 1 127.0.0.1:1", "CLUSTERDOWN Hash slot not served"]
    hearing = Hearing()
    ears = Ears(links, hearing, name="test", timeout_ms=1_000, ping_ms=200, silence_ms=1_000)
    ears.want([LOW])
    await until(lambda: hearing.stood == [{LOW}])
    assert hearing.fell == []
    await ears.aclose()


async def test_node_re_attaches_the_users_of_the_primary_that_was_lost_and_no_others(
    pair: tuple[FakeRedis, FakeRedis], links: Links
) -> None:
    """D1: what was stored meanwhile, and what a failover has taken back, concerns these alone."""
    one, two = pair
    listener = Listened()
    low, high = UserId("low"), UserId("high")
    subscription = Subscription(
        links,
        [LOW, HIGH],
        lambda user: [low, high].index(user),
        listener,
        timeout_ms=1_000,
        ping_ms=200,
        silence_ms=1_000,
    )
    subscription.start()
    await until(lambda: listener.subscriptions == 1)
    listener.resubscriptions.clear()
    await one.stop()
    two.map, two.epoch = map_of(two), 2
    await until(lambda: len(listener.resubscriptions) == 1)
    (concerns,) = listener.resubscriptions
    assert (concerns(low), concerns(high)) == (True, False)
    assert len(listener.losses) >= 1
    assert listener.subscriptions == 1
    await subscription.aclose()
