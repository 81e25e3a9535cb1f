"""Acks are kept until the store has answered, whatever becomes of everything else."""

from __future__ import annotations

import pytest

from eventbus.ids import UserId
from eventbus.testing import MemoryStore
from tests.support.deaf_store import DeafStore
from tests.support.waiting import until
from tests.support.wire_client import Nodes, ids, opened, publish

ALICE = UserId("alice")


@pytest.mark.requirement("R1")
@pytest.mark.requirement("R2")
async def test_an_ack_that_the_store_did_not_take_is_repeated_until_it_does(nodes: Nodes) -> None:
    store = DeafStore("acks")
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "one", "two")
        client.send("ack", ids=ids(await client.events(2)))
        await until(lambda: not store.refusals)
        await until(lambda: _none_pending(store))
        assert node.counters.events_redelivered == 0
        assert not node.counters.reattaches


@pytest.mark.requirement("R1")
@pytest.mark.requirement("R2")
async def test_an_ack_that_the_store_did_not_take_outlives_its_connection(nodes: Nodes) -> None:
    store = DeafStore("acks")
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "one")
        client.send("ack", ids=ids(await client.events(1)))
        await until(lambda: store.refusals < 3)
    await until(lambda: _none_pending(store))


async def _none_pending(store: MemoryStore) -> bool:
    return [session.pending for session in await store.sessions(ALICE)] == [0]
