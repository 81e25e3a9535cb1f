"""What becomes of events when connections are slow, cut, half-open, or end between a request and its reply."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eventbus.store.scripts import script
from tests.support.load.world import NewWorld
from tests.support.proxy import Proxy

USERS = [f"user{number}" for number in range(20)]


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
async def test_cut_slow_and_half_open_sockets_of_clients_lose_nothing(new_world: NewWorld) -> None:
    world = new_world()
    one, two = await world.start_nodes("one", "two")
    async with Proxy(one.port) as first, Proxy(two.port) as second:
        world.publish_addresses(f"127.0.0.1:{first.port}", f"127.0.0.1:{second.port}")
        clients = await world.start_clients(USERS, ack_delay_ms=(20, 120), silence_ms=500)
        publishing = await world.start_publisher(USERS, 4_000, rate=800)

        first.to_client.delay_ms = second.to_server.delay_ms = 30
        for count in (400, 900):
            await world.published_at_least(publishing, count)
            first.cut()
        second.to_client.cut_after_bytes = 20_000  # in the middle of a frame
        await world.published_at_least(publishing, 1_400)
        second.half_open()
        await world.published_at_least(publishing, 2_600)
        second.heal()
        second.cut()
        # The client's words arrive no more, while it hears the node well.
        first.to_server.swallow = True
        await world.published_at_least(publishing, 3_500)
        first.heal()
        first.cut()

        report = await world.settled()
        world.assert_good(report)
        assert clients.closes[1006] >= len(USERS), f"the network did no harm: {clients.closes}"
        assert report.repeated > 0


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_cut_slow_and_half_open_connections_between_node_and_server_lose_nothing(new_world: NewWorld) -> None:
    """The sockets stay open: it is not the clients' network that fails."""
    world = new_world(redis_timeout_ms=500)
    async with Proxy(world.server.port) as first, Proxy(world.server.port) as second:
        await world.start_nodes("one", redis_url=first.redis_url)
        await world.start_nodes("two", redis_url=second.redis_url)
        clients = await world.start_clients(USERS, ack_delay_ms=(20, 120), silence_ms=20_000)
        publishing = await world.start_publisher(USERS, 4_000, rate=800)

        second.to_client.delay_ms = 40
        for count in (300, 600, 900):
            await world.published_at_least(publishing, count)
            first.cut()
        second.cut()
        await world.published_at_least(publishing, 1_400)
        first.half_open()
        second.to_client.swallow = True  # requests arrive, no reply does
        await world.published_at_least(publishing, 2_600)
        for proxy in (first, second):
            proxy.heal()
        await world.published_at_least(publishing, 3_200)
        first.stall()
        await world.published_at_least(publishing, 3_700)
        first.heal()

        report = await world.settled()
        world.assert_good(report)
        assert not clients.closes
        assert first.accepted > 4


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.parametrize("name", ["read", "ack", "attach", "pending", "redeliver"])
async def test_a_reply_of_the_server_that_never_comes_loses_nothing(new_world: NewWorld, name: str) -> None:
    """The request took effect and the node does not know it: the connection ends in between (D1)."""
    # The sweep does not help: it comes later than the test.
    late = {"session_heartbeat_ms": 300_000, "live_ttl_ms": 900_000}
    # Nor does the ack time-out, but where it is what the test needs.
    late["ack_timeout_ms"] = 400 if name == "redeliver" else 5_000
    world = new_world(redis_timeout_ms=1_000, max_deliveries=10, **late)
    async with Proxy(world.server.port) as proxy:
        (node,) = await world.start_nodes("one", redis_url=proxy.redis_url)
        async with Proxy(node.port) as door:
            world.publish_addresses(f"127.0.0.1:{door.port}")
            # Every fourth batch takes longer than the ack time-out, so that some are redelivered.
            slow = (0, 550) if name == "redeliver" else (0, 30)
            clients = await world.start_clients(USERS[:3], ack_delay_ms=slow, silence_ms=20_000)
            publishing = await world.start_publisher(USERS[:3], 600, rate=200)
            provoke = door.cut if name in ("attach", "pending") else None
            for count in (100, 200, 300):
                await world.published_at_least(publishing, count)
                await _struck(proxy, script(name).sha.encode(), provoke)

            report = await world.settled()
            world.assert_good(report)
            if provoke is None:
                assert not clients.closes
            if name in ("read", "ack"):
                assert report.repeated == 0, "what was acked, or never sent, does not come twice"


async def _struck(proxy: Proxy, request: bytes, provoke: Callable[[], None] | None) -> None:
    """Cuts the connection between one such request and its reply."""
    struck = proxy.cut_before_reply(request)
    if provoke is not None:
        provoke()
    async with asyncio.timeout(10):
        await struck.wait()


@pytest.mark.slow
@pytest.mark.requirement("R4")
async def test_a_publish_whose_reply_never_came_is_stored_once_and_in_its_place(new_world: NewWorld) -> None:
    world = new_world(redis_timeout_ms=1_000)
    async with Proxy(world.server.port) as proxy:
        await world.start_nodes("one")
        await world.start_clients(USERS[:5])
        publishing = await world.start_publisher(USERS[:5], 1_500, rate=500, url=proxy.redis_url)
        for count in (200, 500, 800, 1_100):
            await world.published_at_least(publishing, count)
            await _struck(proxy, script("append").sha.encode(), None)

        report = await world.settled()
        world.assert_good(report)
        assert report.received == 1_500, "each event is stored once"
        assert publishing.log.duplicates > 0, "a retry found the event stored"
