"""`deliver: any` over real sockets, nodes and servers: the first session that receives an event has it for all."""

from __future__ import annotations

import pytest
import redis

from eventbus import Subscriber
from eventbus.config import StoreSettings
from eventbus.ids import EntryId, UserId
from eventbus.inspection.lookup import fate
from eventbus.inspection.verdicts import Fate
from eventbus.store import AckRequest, EntryFacts
from eventbus.store.redis_store import RedisStore
from gateway.node import Node
from tests.support.redis_stores import ALICE, event_of, fence_of, open_session, read
from tests.support.redis_stores import publish as publish_to
from tests.support.subscribing import Log
from tests.support.waiting import until
from tests.support.wire_client import Nodes, ids, opened, publish, token_of


async def fates(node: Node, entry: str) -> dict[str, Fate]:
    """What became of an entry, by session."""
    report = await fate(node.store, UserId("alice"), entry, partitions=node.node_settings.store.partitions)
    assert report is not None
    return {one.session: one.state for one in report.fates}


async def pending(node: Node, session: str) -> int:
    """How many entries wait for an ack of a session."""
    records = await node.store.sessions(UserId("alice"))
    return next(record.pending for record in records if record.session == session)


@pytest.mark.requirement("R1")
async def test_the_first_received_releases_an_event_for_sessions_on_every_node(nodes_on_each: Nodes) -> None:
    first, second = await nodes_on_each.start("n1"), await nodes_on_each.start("n2")
    async with (
        opened(first, session="phone") as phone,
        opened(first, session="tablet") as tablet,
        opened(second, session="laptop") as laptop,
    ):
        for client in (phone, tablet, laptop):
            await client.expect("caught_up")
        shared, each = [*await publish(first, "a", deliver="any"), *await publish(first, "b")]
        for client in (phone, tablet, laptop):
            assert ids(await client.events(2)) == [shared, each]

        laptop.send("ack", ids=[shared], ref="mine")

        assert (await laptop.expect("acked", ref="mine"))["count"] == 1
        for client in (phone, tablet):
            await client.expect("released", ids=[shared])
            client.send("ack", ids=[shared], ref="late")
            assert (await client.expect("acked", ref="late"))["count"] == 0
        await laptop.nothing_more()
        assert [await pending(first, session) for session in ("phone", "tablet", "laptop")] == [1, 1, 1]
        assert await fates(first, shared) == {
            "phone": Fate.RELEASED,
            "tablet": Fate.RELEASED,
            "laptop": Fate.ACKED,
        }

        async with opened(second, session="watch", start="earliest") as watch:
            assert ids(await watch.events(1)) == [each]
            await watch.expect("caught_up")
            await until(lambda: second.counters.events_released["released"] == 1)
            assert (await fates(first, shared))["watch"] is Fate.RELEASED


@pytest.mark.requirement("R1")
async def test_a_session_that_was_away_does_not_get_what_another_has_received_meanwhile(node: Node) -> None:
    async with opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        (in_flight,) = await publish(node, "a", deliver="any")
        await phone.events(1)
    (unread,) = await publish(node, "b", deliver="any")
    async with opened(node, session="laptop", start="earliest") as laptop:
        assert ids(await laptop.events(2)) == [in_flight, unread]
        laptop.send("ack", upto=unread, ref="both")
        await laptop.until_op("acked")
    assert (await fates(node, unread))["phone"] is Fate.RELEASED, "before it has read anything"

    async with opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        await phone.nothing_more()
    assert await pending(node, "phone") == 0


@pytest.mark.requirement("R8")
async def test_the_python_client_hands_a_released_event_to_nobody(node: Node) -> None:
    """It waits behind another one in the subscriber's queue when it is released."""
    log = Log()
    url = f"http://127.0.0.1:{node.port}"
    async with Subscriber(url, token=token_of(), session="desk") as desk, opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        (first,) = await publish(node, "a")
        in_hand = await anext(desk)
        (shared,) = await publish(node, "b", deliver="any")
        await phone.events(2)
        await until(lambda: node.counters.events_delivered == 4)
        phone.send("ack", ids=[shared], ref="mine")
        await phone.expect("acked", ref="mine")
        (last,) = await publish(node, "c")
        await phone.events(1)
        await until(lambda: node.counters.events_delivered == 6)
        await in_hand.ack()
        assert (await anext(desk)).entry == last
    assert (in_hand.entry, log.numbers) == (first, [])


@pytest.mark.requirement("R14")
async def test_an_ack_through_another_door_leaves_the_window_of_the_node_that_holds_the_session(node: Node) -> None:
    async with opened(node, session="phone") as phone:
        await phone.expect("caught_up")
        (entry,) = await publish(node, "a")
        await phone.events(1)
        (session,) = node.hub.of_user(UserId("alice"))
        assert session.delivery.in_flight == 1

        assert await node.store.ack(UserId("alice"), session.session_id, [EntryId(entry)]) == 1

        await until(lambda: session.delivery.in_flight == 0, message="the node hears of it")


@pytest.mark.requirement("R9")
async def test_ids_of_what_is_not_stored_any_more_do_not_gather_for_ever(redis_url: str) -> None:
    """Two thousand events for any session, of which the stream holds sixteen."""
    store = RedisStore(redis_url, StoreSettings(max_stream_entries=16))
    fence = fence_of()
    await open_session(store, fence)
    entries: list[EntryId] = []
    for batch in range(128):
        stored = await publish_to(store, *(event_of(f"e{batch}-{number}") for number in range(16)))
        await read(store, fence)
        entries = [one.entry for one in stored]
        facts = [EntryFacts("note", shared=True)] * len(entries)
        assert await store.ack_many([AckRequest(user=ALICE, session=fence.session, entries=entries, facts=facts)]) == [
            16
        ]
    key = store.keys.user(ALICE).released
    await store.aclose()
    with redis.Redis.from_url(redis_url) as client:
        kept = {EntryId(entry.decode()) for entry in client.smembers(key)}
    assert set(entries) <= kept
    assert len(kept) < 1_100
