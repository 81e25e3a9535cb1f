"""A node that is deaf, or can not read, leaves the load balancer by itself and lets nobody wait for events."""

from __future__ import annotations

import asyncio

import pytest

from eventbus.errors import CloseCode
from tests.support.balancer import NAMES, Fleet, NewFleet, new_fleet
from tests.support.balancer_store import StoreWay
from tests.support.load.world import Clients, Node
from tests.support.servers import request
from tests.support.stalls import within

__all__ = ["new_fleet"]

USERS = [f"user{number}" for number in range(9)]
NEWCOMERS = [f"new{number}" for number in range(6)]


async def _not_ready_within_5_s(fleet: Fleet, node: Node) -> None:
    async def not_ready() -> bool:
        return not await fleet.ready(node)

    async with within(5.0):
        await fleet.wait_async(not_ready, 20_000, "the node says that it is not ready")


async def _ready_again(fleet: Fleet, node: Node) -> None:
    async def ready() -> bool:
        return await fleet.ready(node)

    await fleet.wait_async(ready, 10_000, "the node is ready again, by itself")
    await fleet.balancer.has(node.name, "UP")


async def _holders(fleet: Fleet, users: list[str]) -> set[str]:
    return {(await fleet.holder(user) or ("nobody",))[0] for user in users}


async def _started(fleet: Fleet, **urls: str) -> tuple[Node, Clients, list[str]]:
    """Sessions on all nodes; returns the first node, all clients, and the users that this node has."""
    await fleet.start(redis_urls={NAMES[0]: urls["first"]})
    clients = await fleet.start_clients(USERS, silence_ms=20_000, hello_ms=20_000)
    mine = await fleet.sessions_on(NAMES[0], USERS)
    assert mine, "the load balancer gives the first node sessions"
    return fleet.nodes[0], clients, mine


@pytest.mark.slow
@pytest.mark.requirement("R30")
@pytest.mark.requirement("R2")
async def test_a_deaf_node_gets_nobody_new_and_its_sessions_get_their_events_all_the_same(new_fleet: NewFleet) -> None:
    """Its subscription is half-open and silent; everything else of its way to Redis is as before."""
    # So long that what comes in time was not found by the heartbeat of its session.
    fleet = new_fleet(session_heartbeat_ms=40_000)
    async with StoreWay(fleet.server.url) as way:
        node, clients, mine = await _started(fleet, first=way.url)
        way.deaf = True
        await fleet.start_publisher(USERS, 90, rate=90)
        async with within(9.0):
            await _not_ready_within_5_s(fleet, node)
            assert await asyncio.to_thread(request, way.url, "PING") == b"+PONG"
            await fleet.settled(20_000)

        await fleet.balancer.has(node.name, "DOWN")
        await fleet.start_clients(NEWCOMERS)
        assert node.name not in await _holders(fleet, NEWCOMERS)
        assert not clients.closes, "those who are there stay where they are"
        assert await fleet.sessions_on(node.name, USERS) == mine

        way.deaf = False
        await _ready_again(fleet, node)
        await fleet.start_publisher(USERS, 90, first=90)
        fleet.assert_good(await fleet.settled())
        assert not clients.closes


@pytest.mark.slow
@pytest.mark.requirement("R30")
@pytest.mark.requirement("R2")
async def test_a_node_that_can_not_read_gets_nobody_new_and_its_sessions_go_to_others(new_fleet: NewFleet) -> None:
    """It may write, subscribe and PING as before; only the reading is blocked."""
    fleet = new_fleet(node_heartbeat_ms=1_000)
    host = fleet.server.url.removeprefix("redis://")
    await fleet.redis.execute_command("ACL", "SETUSER", "one", "on", ">word", "~*", "&*", "+@all")
    node, clients, mine = await _started(fleet, first=f"redis://one:word@{host}")
    await fleet.redis.execute_command("ACL", "SETUSER", "one", "-xreadgroup")
    await _not_ready_within_5_s(fleet, node)
    assert await asyncio.to_thread(request, fleet.server.url, "PING") == b"+PONG"
    await fleet.balancer.has(node.name, "DOWN")
    await fleet.start_clients(NEWCOMERS)
    assert node.name not in await _holders(fleet, NEWCOMERS)

    await fleet.start_publisher(USERS, 90, rate=90)
    fleet.assert_good(await fleet.settled(25_000))
    assert set(clients.closes) <= {CloseCode.STORE_UNAVAILABLE, 503}
    assert await fleet.sessions_on(node.name, USERS) == []
    moved = [clients.seen(user) for user in mine]
    assert all([reason for reason, _ in seen.goaways] == ["rebalance"] for seen in moved)

    await fleet.redis.execute_command("ACL", "SETUSER", "one", "+xreadgroup")
    await _ready_again(fleet, node)
