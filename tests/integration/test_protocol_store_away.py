"""docs/protocol.md, section 7: what clients see while Redis is away, and that a node heals without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from eventbus.ids import ENTRY_ZERO, SessionId, UserId
from gateway.node import Node
from tests.support.proxy import Proxy
from tests.support.waiting import until
from tests.support.wire_client import (
    Nodes,
    WireClient,
    bearer,
    ids,
    publish,
    refused,
    settled,
    texts,
    token_of,
    wired,
)

# What is waited for takes tenths of a second here instead of half a minute.
QUICK: dict[str, Any] = {"ready_probe_ms": 50, "redis_timeout_ms": 300, "session_heartbeat_ms": 100}


@asynccontextmanager
async def behind_a_proxy(nodes: Nodes, **env: Any) -> AsyncIterator[tuple[Node, Proxy, Node]]:
    """A node whose way to the server a test can cut, and one beside it that always reaches it."""
    beside = await nodes.start("beside")
    async with Proxy(urlsplit(nodes.url).port or 0) as proxy:
        node = await nodes.start("n1", url=proxy.redis_url, **{**QUICK, **env})
        yield node, proxy, beside
        proxy.heal()
        await node.aclose()


@asynccontextmanager
async def came_in(node: Node, user: str = "alice") -> AsyncIterator[WireClient]:
    """An open session, as `opened`. A store that stands still for longer than these quick settings wait, because the
    machine does, refuses a hello; who is refused comes again, as the client libraries do.
    """

    async def let_in() -> WireClient | None:
        client = await stack.enter_async_context(wired(node, token_of(user)))
        client.send("hello", session="tab")
        return client if (await client.next())["op"] == "welcome" else None

    async with AsyncExitStack() as stack:
        client = await until(let_in)
        assert client is not None
        await client.expect("caught_up")
        yield client


async def readiness_of(node: Node) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{node.port}/readyz")).status_code


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R25")
@pytest.mark.parametrize("how", ["refuse", "half_open"])
async def test_while_the_store_is_away_sockets_stay_open_and_what_was_acked_is_stored_when_it_is_back(
    nodes_on_each: Nodes, how: str
) -> None:
    quick = {"store_wait_ms": 400, "heartbeat_ms": 200}
    async with behind_a_proxy(nodes_on_each, **quick) as (node, proxy, beside), came_in(node) as client:
        one, two = await publish(beside, "one", "two")
        await client.events(2)
        getattr(proxy, how)()
        pings = client.pings
        client.send("ack", ids=[one])
        client.send("ack", ids=[two], ref="kept")
        # Pings of the socket and of the protocol need no store.
        await client.nothing_more()
        error = await client.expect("error", code="store_unavailable")
        assert error["ref"] == "kept"
        await until(lambda: _status(node, 503))
        await publish(beside, "three")
        await client.nothing_more()
        assert client.pings > pings
        proxy.heal()
        proxy.cut()
        assert texts(await client.events(1)) == ["three"]
        await until(lambda: _status(node, 200))
        await until(lambda: _pending_is(beside, 1))
        assert node.counters.events_redelivered == 0
        await client.nothing_more()


async def _status(node: Node, status: int) -> bool:
    return await readiness_of(node) == status


async def _pending_is(node: Node, count: int) -> bool:
    return len(await node.store.pending(UserId("alice"), SessionId("tab"), ENTRY_ZERO, 100)) == count


@pytest.mark.requirement("R25")
async def test_a_hello_waits_for_the_store_and_is_welcomed_when_it_is_back(nodes: Nodes) -> None:
    async with behind_a_proxy(nodes) as (node, proxy, _):
        proxy.refuse()
        async with wired(node, token_of()) as client:
            client.send("hello", session="tab")
            await until(lambda: node.counters.store_errors)
            proxy.heal()
            await client.expect("welcome")
            await client.expect("caught_up")


@pytest.mark.requirement("R25")
async def test_a_hello_that_waited_in_vain_is_an_error_and_close_4005(nodes: Nodes) -> None:
    async with behind_a_proxy(nodes, store_wait_ms=200) as (node, proxy, _):
        proxy.refuse()
        async with wired(node, token_of()) as client:
            client.send("hello", session="tab")
            await client.expect("error", code="store_unavailable")
            assert (await client.until_closed()).code == 4005
        await until(lambda: len(node.hub) == 0)


@pytest.mark.requirement("R25")
async def test_when_the_store_stays_away_new_connections_get_503_and_old_ones_4005_until_it_is_back(
    nodes: Nodes,
) -> None:
    async with behind_a_proxy(nodes, store_down_ms=700) as (node, proxy, _):
        async with came_in(node) as client:
            proxy.refuse()
            assert (await client.until_closed()).code == 4005
        status, head, error = await refused(node, authorization=bearer(token_of()))
        assert (status, error["code"]) == (503, "store_unavailable")
        assert "retry-after: " in head
        async with wired(node, token_of(), host="localhost", origin="http://localhost") as browser:
            assert (await browser.until_closed()).code == 4005
        proxy.heal()
        await until(lambda: not node.store_is_down)
        async with came_in(node):
            pass


@pytest.mark.requirement("R2")
async def test_a_session_that_ends_while_the_store_is_away_keeps_its_acks_for_it(nodes: Nodes) -> None:
    async with behind_a_proxy(nodes) as (node, proxy, beside):
        async with came_in(node) as client:
            entries = await publish(beside, "one", "two", "three")
            await client.events(3)
            proxy.refuse()
            client.send("ack", ids=entries[:2])
            await client.nothing_more()
        await until(lambda: len(node.hub) == 0)
        proxy.heal()
        await settled(node)
        assert await _pending_is(beside, 1)
        (record,) = await beside.store.sessions(UserId("alice"))
        assert record.live is None


@pytest.mark.requirement("R2")
async def test_entries_of_a_read_whose_reply_is_lost_are_delivered_with_the_socket_open(nodes: Nodes) -> None:
    """D1: they are pending and `>` never shows them again."""
    async with behind_a_proxy(nodes, session_heartbeat_ms=10_000) as (node, proxy, beside), came_in(node) as client:
        # The next script that the node has carried out for this session is the read that the wake-up asks for.
        struck = proxy.cut_before_reply(b"tab")
        (entry,) = await publish(beside, "one")
        async with asyncio.timeout(5):
            await struck.wait()
        (event,) = await client.events(1)
        assert event["id"] == entry
        client.send("ack", ids=[entry], ref=1)
        await client.expect("acked", count=1)
        await publish(beside, "two")
        assert texts(await client.events(1)) == ["two"]
        await client.nothing_more()


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R1")
async def test_a_deaf_node_is_not_ready_and_delivers_by_its_sweep_until_it_hears_again(nodes: Nodes) -> None:
    async with behind_a_proxy(nodes) as (node, proxy, beside), came_in(node) as client:

        async def cut_each_subscription() -> None:
            while True:
                await proxy.cut_before_reply(b"SSUBSCRIBE").wait()

        cutting = asyncio.create_task(cut_each_subscription())
        try:
            await asyncio.sleep(0)
            proxy.cut()
            await until(lambda: "deaf" in (node.not_ready() or ""), message=lambda: repr(node.not_ready()))
            assert await readiness_of(node) == 503
            entries = await publish(beside, "one", "two")
            assert ids(await client.events(2)) == entries
            client.send("ack", ids=entries, ref=1)
            await client.expect("acked", count=2)
            assert await readiness_of(node) == 503
        finally:
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)
        proxy.heal()
        await until(lambda: _status(node, 200))
        await publish(beside, "three")
        assert texts(await client.events(1)) == ["three"]
        await client.nothing_more()


@pytest.mark.requirement("R30")
def test_with_the_default_settings_a_deaf_node_shows_it_within_five_seconds() -> None:
    node = Nodes("redis://127.0.0.1:1/0").make()
    assert node.readiness.proof_life_ms <= 5_000


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R25")
async def test_a_node_starts_without_its_store_says_so_and_serves_when_it_comes(nodes: Nodes) -> None:
    async with Proxy(urlsplit(nodes.url).port or 0) as proxy:
        proxy.refuse()
        node = await nodes.start(url=proxy.redis_url, proof_wait_ms=50, **QUICK)
        assert await readiness_of(node) == 503
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.port}") as http:
            assert (await http.get("/healthz")).status_code == 200
            answer = await http.get("/v1/events", headers={"Authorization": bearer(token_of())})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
            assert "retry-after" in answer.headers
        # Nobody is let in before the node knows what was revoked (R23).
        status, head, error = await refused(node, authorization=bearer(token_of()))
        assert (status, error["code"]) == (503, "store_unavailable")
        assert "retry-after" in head
        proxy.heal()
        await until(lambda: _status(node, 200))
        async with came_in(node):
            pass
        await node.aclose()


@pytest.mark.requirement("R9")
async def test_after_the_subscription_was_cut_sessions_attach_again_a_bounded_number_at_a_time(nodes: Nodes) -> None:
    async with behind_a_proxy(nodes) as (node, proxy, beside), came_in(node) as client, came_in(node, "bob") as other:
        stood, attached = node.counters.subscriptions, node.counters.reattaches.total()
        proxy.cut()
        await until(lambda: node.counters.subscriptions > stood)
        await until(lambda: node.counters.reattaches.total() >= attached + 2 and not node.keeper.waiting)
        await publish(beside, "one")
        await publish(beside, "two", user="bob")
        assert texts(await client.events(1)) == ["one"]
        assert texts(await other.events(1)) == ["two"]
        await client.nothing_more()
