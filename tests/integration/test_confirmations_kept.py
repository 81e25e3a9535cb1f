"""Confirmations are kept until the store has answered, whatever becomes of their connection; and they are bounded."""

from __future__ import annotations

import pytest

from eventbus.ids import ENTRY_ZERO, UserId
from eventbus.testing import MemoryStore
from gateway.delivery.confirming import WAITING_MAX
from tests.support.deaf_store import DeafStore
from tests.support.waiting import until
from tests.support.wire_client import Nodes, ids, opened, publish, settled

ALICE = UserId("alice")


async def _levels(store: MemoryStore) -> list[tuple[str, str | None]]:
    return [(record.level, record.note) for _, record in await store.confirmations(ALICE, ENTRY_ZERO, 100)]


@pytest.mark.requirement("R11")
async def test_a_confirmation_that_the_store_did_not_take_is_repeated_and_then_answered(nodes: Nodes) -> None:
    store = DeafStore("confirmations")
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "one", "two")
        client.send("ack", ids=ids(await client.events(2)), level="confirmed", note="ok", ref="c")
        assert (await client.expect("acked", ref="c"))["count"] == 2
        assert store.refusals == 0
        assert await _levels(store) == [("received", None), ("confirmed", "ok")]
        assert (node.counters.events_acked, node.counters.events_redelivered) == (2, 0)


@pytest.mark.requirement("R11")
async def test_a_confirmation_outlives_its_connection(nodes: Nodes) -> None:
    store = DeafStore("confirmations")
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "one")
        client.send("ack", ids=ids(await client.events(1)), level="displayed")
        await until(lambda: store.refusals < 3)
    await settled(node)
    assert await _levels(store) == [("received", None), ("displayed", None)]


@pytest.mark.requirement("R9")
async def test_a_client_that_confirms_without_end_while_the_store_is_away_is_bounded(nodes: Nodes) -> None:
    """What is beyond is told, and released like any other ack."""
    store = DeafStore("confirmations")
    store.refusals = 1_000_000
    node = await nodes.start(store=store)
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        for _ in range(WAITING_MAX // 4_096):
            client.send("ack", ids=[f"1-{number}" for number in range(4_096)], level="displayed")
        client.send("ack", ids=[entry], level="displayed", ref="late")
        await client.expect("error", code="overloaded", ref="late")
        assert (await client.expect("acked", ref="late"))["count"] == 1
        store.refusals = 0
    await settled(node)
    assert await _levels(store) == [("received", None)]
