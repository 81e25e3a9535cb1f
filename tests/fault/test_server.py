"""What becomes of events when the server is killed, frozen, or loses its data."""

from __future__ import annotations

import pytest

from tests.support.load.world import NewWorld
from tests.support.servers import freeze, thaw

USERS = [f"user{number}" for number in range(20)]


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.parametrize("appendfsync", ["everysec", "always"])
async def test_a_killed_server_comes_back_with_its_file_and_nothing_is_lost(
    new_world: NewWorld, appendfsync: str
) -> None:
    """Sockets stay open; a publish that the server did not answer is retried; what it lost is sent again."""
    world = new_world(server={"appendfsync": appendfsync})
    nodes = await world.start_nodes("one", "two")
    clients = await world.start_clients(USERS, ack_delay_ms=(50, 200), silence_ms=10_000)
    publishing = await world.start_publisher(USERS, 3_000, rate=1_000)
    for count in (700, 1_700):
        await world.published_at_least(publishing, count)
        pending = await world.pending()
        assert sum(pending.values()) > 0, "nothing was pending at the kill"
        await world.kill_server()

    report = await world.settled()
    # A killed process takes nothing with it that the system had been given: under `always` everything answered. Under
    # `everysec` a write may wait for a sync; then it is the living publisher that sends the event again.
    world.assert_good(report, gaps=("rollback",) if appendfsync == "everysec" else ())
    assert not publishing.log.errors
    assert not clients.closes, "the sockets stay open while the server is away"
    assert all(node.child.running for node in nodes)


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_a_frozen_server_delays_and_loses_nothing(new_world: NewWorld) -> None:
    """Every request in flight times out: whether it took effect is unknown, and the nodes find out (D1)."""
    world = new_world(redis_timeout_ms=500)
    (node, _) = await world.start_nodes("one", "two")
    clients = await world.start_clients(USERS, ack_delay_ms=(50, 200), silence_ms=10_000)
    publishing = await world.start_publisher(USERS, 2_000, rate=1_000)
    await world.published_at_least(publishing, 700)
    freeze(world.server.pid)

    async def says_no() -> bool:
        return not await world.ready(node)

    await world.wait_async(says_no, 15_000, "readiness says no")
    thaw(world.server.pid)

    report = await world.settled()
    world.assert_good(report)
    assert not clients.closes, "the sockets stay open while the server is away"
    await world.wait_async(lambda: world.ready(node), 10_000, "readiness says yes again")


@pytest.mark.slow
@pytest.mark.requirement("R7")
async def test_data_that_is_gone_is_announced_to_every_session_and_delivery_goes_on(new_world: NewWorld) -> None:
    world = new_world(session_heartbeat_ms=500)
    await world.start_nodes("one")
    clients = await world.start_clients(USERS)
    await world.start_publisher(USERS, 200)
    await world.settled()

    assert await world.redis.flushall()
    await world.wait(
        lambda: all(clients.seen(user).gaps for user in USERS), 10_000, lambda: f"{len(clients.gaps)} gaps are told"
    )
    assert {gap[0] for gap in clients.gaps} == {"reset"}
    await world.start_publisher(USERS, 200, first=200)
    world.assert_good(await world.settled(), gaps=("reset",))
    assert not clients.closes
