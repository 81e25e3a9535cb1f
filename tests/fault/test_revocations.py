"""R23: revoking while a node stands still, is killed, or cannot reach the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from eventbus import revoking
from eventbus.ids import UserId
from eventbus.store.redis_store import RedisStore
from eventbus.store.revoking import Revoke, Subject
from tests.support.installation import USER, Installation, NewInstallation, Node
from tests.support.raw_websocket import connected, upgrade_head
from tests.support.stalls import within
from tests.support.waiting import until
from tests.support.wire_client import JSON, WireClient

WITHIN_S = 2.0

pytestmark = [pytest.mark.timeout(120), pytest.mark.requirement("R23")]


@asynccontextmanager
async def open_on(node: Node, token: str) -> AsyncIterator[WireClient]:
    """A session on a node, past the proxy."""
    async with connected(node.port) as raw:
        await raw.upgrade(authorization=f"Bearer {token}", sec_websocket_protocol=JSON)
        client = WireClient(raw)
        await client.hello()
        await client.expect("caught_up")
        yield client


async def refusal(node: Node, token: str) -> int:
    """The status of a handshake; 101 when it is taken."""
    async with connected(node.port) as raw:
        raw.write(upgrade_head("/v1/connect", method="GET", authorization=f"Bearer {token}"))
        return int((await raw.head()).split(" ")[1])


async def revoke_user(installation: Installation) -> None:
    store = RedisStore(installation.server.url)
    try:
        await revoking.revoke(store, Revoke(subject=Subject(user=UserId(USER))))
    finally:
        await store.aclose()


async def both(installation: Installation) -> tuple[Node, Node]:
    one, two = installation.nodes
    for node in (one, two):
        await until(node.ready)
    return one, two


@pytest.mark.slow
async def test_a_node_that_stood_still_closes_what_was_revoked_meanwhile_as_soon_as_it_goes_on(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    frozen, other = await both(installation)
    ada, bob = installation.token(), installation.token(user="bob")
    async with AsyncExitStack() as stack:
        on_frozen, on_other = [await stack.enter_async_context(open_on(node, ada)) for node in (frozen, other)]
        bobs = [await stack.enter_async_context(open_on(node, bob)) for node in (frozen, other)]
        frozen.child.freeze()
        try:
            async with within(WITHIN_S):
                await revoke_user(installation)
                assert (await on_other.until_closed()).code == 4501
            # Longer than any message waits, and than a stall that the node says nothing of.
            await asyncio.sleep(6)  # real time: the node must have stood still for more than 5 s
        finally:
            frozen.child.thaw()
        async with within(WITHIN_S):
            assert (await on_frozen.until_closed()).code == 4501
        assert await refusal(frozen, ada) == await refusal(other, ada) == 401
        for client in bobs:
            await client.nothing_more()


@pytest.mark.slow
async def test_a_node_that_is_killed_and_started_again_knows_what_was_revoked(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    killed, other = await both(installation)
    ada = installation.token()
    killed.child.kill()
    async with open_on(other, ada) as client, within(WITHIN_S):
        await revoke_user(installation)
        assert (await client.until_closed()).code == 4501
    await installation.restart(killed)
    assert await refusal(killed, ada) == 401
    assert await refusal(killed, installation.token(user="bob")) == 101


async def test_a_killed_store_that_comes_back_with_its_file_has_its_revocations(
    new_installation: NewInstallation,
) -> None:
    """And what is revoked then reaches the nodes, whatever became of their subscriptions."""
    installation = await new_installation(nodes=2, redis_timeout_ms=1_000)
    one, two = await both(installation)
    ada, bob = installation.token(), installation.token(user="bob")
    await revoke_user(installation)
    async with open_on(one, bob) as on_one, open_on(two, bob) as on_two:
        installation.server.kill()
        installation.server.start()
        for node in (one, two):
            await until(node.ready, 20_000)
        assert await refusal(one, ada) == await refusal(two, ada) == 401
        store = RedisStore(installation.server.url)
        async with within(WITHIN_S):
            await revoking.revoke(store, Revoke(subject=Subject(user=UserId("bob"))))
            assert (await on_one.until_closed()).code == (await on_two.until_closed()).code == 4501
        await store.aclose()
