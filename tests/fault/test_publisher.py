"""What becomes of events when the publisher dies."""

from __future__ import annotations

import pytest

from tests.support.load.world import NewWorld

USERS = [f"user{number}" for number in range(20)]


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R4")
async def test_what_a_killed_publisher_was_answered_arrives_and_the_rest_at_most_once(new_world: NewWorld) -> None:
    world = new_world()
    await world.start_nodes("one", "two")
    await world.start_clients(USERS, ack_delay_ms=(20, 100))
    publishing = await world.start_publisher(USERS, 50_000, under_way=200)
    await world.published_at_least(publishing, 1_000)
    publishing.child.kill()

    report = await world.settled()
    world.assert_good(report)
    unsure = sum(map(len, publishing.log.unsure.values()))
    assert unsure > 0, "nothing was under way at the kill"
    assert report.repeated == 0


@pytest.mark.slow
@pytest.mark.requirement("R4")
async def test_a_publisher_that_takes_over_repeats_what_is_unsure_and_stores_nothing_twice(
    new_world: NewWorld,
) -> None:
    """The event id is the idempotency key, whoever says it."""
    world = new_world()
    await world.start_nodes("one")
    await world.start_clients(USERS)
    first = await world.start_publisher(USERS, 50_000, under_way=300)
    await world.published_at_least(first, 600)
    first.child.kill()
    tried = len(first.log.read().tried)
    # The same numbers are the same ids: it begins well before the kill.
    second = await world.start_publisher(USERS, tried + 200)
    report = await world.settled()

    world.assert_good(report)
    assert second.log.duplicates >= first.log.count
    assert second.log.count == tried + 200
    assert report.received == tried + 200, "each is stored once and delivered once"
