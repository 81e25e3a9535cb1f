"""What a publisher sends again when users are elsewhere now: in order, once, and also at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from eventbus.config import PublishSettings
from eventbus.ids import EventId, UserId
from eventbus.publishing.publisher import Publisher
from eventbus.store import Append, Durability
from eventbus.testing import ManualClock
from tests.support.shifting_cluster import ShiftingCluster

pytestmark = pytest.mark.requirement("R2")

ADA = UserId("ada")
SETTINGS = replace(PublishSettings(), publish_deadline_ms=600_000, retry_max_ms=50)


class World:
    """A publisher over a store in which ada's primary is `a`, and `b` its replica."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = ShiftingCluster({ADA: 0, UserId("bob"): 1})
        self.store.connect()
        self.publisher = Publisher(self.store, SETTINGS, clock=self.clock, timers=self.clock)

    def publish(self, name: str) -> asyncio.Future[object]:
        event = Append(user=ADA, event=EventId(name), body=b"x")
        return asyncio.ensure_future(self.publisher.submit(event, Durability.MEMORY, 600_000))

    async def flow(self, ms: int = 0) -> None:
        await self.clock.pass_time(0)
        self.store.serve(1 << 30)
        self.store.arrive()
        await self.clock.pass_time(ms)

    async def stored(self, *names: str) -> None:
        for name in names:
            done = self.publish(name)
            await self.flow()
            await done

    def fail_over(self) -> None:
        """The replica is promoted with what it has, and everybody knows at once."""
        self.store.promote(0)
        self.store.hear(0)
        self.store.learn()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.store.calm()
    closing = asyncio.ensure_future(made.publisher.aclose(1_000))
    while not closing.done():
        await made.flow(50)
    await closing


@pytest.mark.requirement("R6")
async def test_what_is_kept_is_sent_again_once_however_often_primaries_are_told_of(world: World) -> None:
    """A Cluster tells of each slot that moves and of each connection that stands."""
    names = [f"e{number}" for number in range(5)]
    await world.stored(*names)
    world.fail_over()
    world.store.connect()
    late = world.publish("late")
    for _ in range(20):
        world.store.tell(lost=False)
        await world.flow(10)
    await late
    assert world.store.stored(ADA) == [*names, "late"]
    assert world.store.sent == [*names, *names, "late"]
    assert world.publisher.statistics().resent == len(names)


async def test_second_failover_while_events_are_sent_again_keeps_their_order(world: World) -> None:
    """The server of the first one answers for some of them when it is none any more."""
    names = [f"e{number}" for number in range(5)]
    await world.stored(*names)
    world.fail_over()
    world.store.connect()
    late = world.publish("late")
    await world.flow()  # e0 is at the second
    await world.clock.pass_time(0)
    world.store.serve(1)  # and e1, but its answer is on its way
    world.fail_over()
    world.store.connect()
    world.store.arrive()
    while not late.done():
        await world.flow(50)
    assert world.store.stored(ADA) == [*names, "late"]


async def test_answer_that_comes_after_a_failover_has_its_event_sent_to_the_new_primary(world: World) -> None:
    """Nothing more is published, and the look at what was kept is over by then."""
    done = world.publish("e1")
    await world.clock.pass_time(0)
    world.store.serve(1)
    world.store.promote(0)
    world.store.learn()
    world.store.connect()
    await world.clock.pass_time(100)
    world.store.arrive()
    await world.flow()
    await done
    await world.flow(50)
    assert world.store.stored(ADA) == ["e1"]


async def test_publisher_that_closes_right_after_a_failover_sends_again_what_it_kept(world: World) -> None:
    await world.stored("e1", "e2")
    world.fail_over()
    world.store.connect()
    closing = asyncio.ensure_future(world.publisher.aclose(1_000))
    for _ in range(5):
        await world.flow()
    assert closing.done()
    assert world.store.stored(ADA) == ["e1", "e2"]


async def test_what_could_not_be_sent_again_before_the_end_is_told(world: World) -> None:
    await world.stored("e1", "e2")
    world.fail_over()
    world.store.connect()
    closing = asyncio.ensure_future(world.publisher.aclose(1_000))
    await world.clock.pass_time(0)
    await world.clock.pass_time(1_000)
    assert closing.done()
    assert world.publisher.statistics().resend_failed == 2


async def closed(world: World, closing: asyncio.Future[None]) -> None:
    while not closing.done():
        await world.flow(50)
    await closing


async def test_publisher_that_closes_while_its_primary_is_away_waits_for_the_next_one(world: World) -> None:
    """The replica lacks what was published last, and nobody else could send it again."""
    await world.stored("e1", "e2")
    world.store.promote(0)
    world.store.cut(0)
    closing = asyncio.ensure_future(world.publisher.aclose(10_000))
    for _ in range(20):
        await world.flow(50)
    assert not closing.done(), "a second is not ten"
    world.store.learn()
    world.store.connect()
    await closed(world, closing)
    assert world.store.stored(ADA) == ["e1", "e2"]
    assert world.publisher.statistics().resend_failed == 0


async def test_publisher_that_closes_while_its_primary_is_away_ends_when_it_is_back_as_it_was(world: World) -> None:
    await world.stored("e1", "e2")
    world.store.cut(0)
    closing = asyncio.ensure_future(world.publisher.aclose(600_000))
    await world.flow(50)
    assert not closing.done()
    world.store.connect()
    await closed(world, closing)
    assert world.store.sent == ["e1", "e2"], "nothing has to go again"


async def test_publisher_that_closes_does_not_wait_for_primaries_of_others(world: World) -> None:
    """`bob` is elsewhere, and nothing of his is kept."""
    await world.stored("e1")
    world.store.cut(1)
    closing = asyncio.ensure_future(world.publisher.aclose(600_000))
    await world.flow()
    assert closing.done()


async def test_publisher_that_ends_without_a_primary_says_how_many_events_it_leaves(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.stored("e1", "e2")
    world.store.cut(0)
    closing = asyncio.ensure_future(world.publisher.aclose(1_000))
    await world.clock.pass_time(0)
    assert not closing.done()
    await world.clock.pass_time(1_000)
    assert closing.done()
    assert "the last 2 events" in caplog.text


async def test_what_was_published_before_a_long_absence_of_its_primary_goes_again_when_the_next_one_stands(
    world: World,
) -> None:
    """A failover that takes longer than events are kept: their time does not pass while nobody can say who has them."""
    await world.stored("e1", "e2")
    world.store.promote(0)
    world.store.cut(0)
    for _ in range(10):
        await world.flow(SETTINGS.kept_ms // 5)
        world.store.tell(lost=True)
    assert world.publisher.statistics().kept_events == 2
    world.store.learn()
    world.store.connect()
    for _ in range(5):
        await world.flow(50)
    assert world.store.stored(ADA) == ["e1", "e2"]
    await world.flow(SETTINGS.kept_ms + 1)
    assert world.publisher.statistics().kept_events == 0


async def test_what_the_store_would_not_know_again_is_let_go(world: World) -> None:
    """By then its id is forgotten: it would be stored twice."""
    await world.stored("e1")
    world.store.cut(0)
    await world.flow(world.store.settings.dedupe_ms + 1)
    assert world.publisher.statistics().kept_events == 0
