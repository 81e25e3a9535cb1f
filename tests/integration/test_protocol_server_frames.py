"""docs/protocol.md, section 3, and what section 7 adds to it: what a node sends, in which order, what it announces."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from eventbus.ids import UserId
from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import MSGPACK, Nodes, ids, opened, publish, settled, texts, token_of, wired


@pytest.fixture
def server(server_url: str) -> Iterator[Any]:
    """A bare connection to the server, for what happens to data behind the bus's back."""
    with redis.Redis.from_url(server_url) as client:
        yield client


def stream_of(server: Any, user: str = "alice") -> bytes:
    (key,) = server.scan_iter(match=f"eb:*:s:{user}")
    assert isinstance(key, bytes)
    return key


def order(entry: str) -> tuple[int, int]:
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number)


# --- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_first_deliveries_rise_strictly_and_come_in_the_order_of_the_stream(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    async with opened(node, window=1024) as client:
        await client.expect("caught_up")
        names = [f"n{number}" for number in range(300)]
        receipts = await node.bus.publish_many(
            [{"user": "alice", "type": "note", "data": {"text": name}} for name in names]
        )
        events = await client.events(300)
    assert texts(events) == names
    assert ids(events) == [receipt.entry for receipt in receipts]
    assert [order(entry) for entry in ids(events)] == sorted({order(entry) for entry in ids(events)})
    assert {event["delivery"] for event in events} == {1}


async def test_an_event_arrives_with_all_that_its_publisher_gave_and_nothing_null(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        data = {"text": "Grüße \u2028 \U0001f600", "deep": {"list": [1, 2.5, True, None, "x"]}, "big": 2**53}
        receipt = await node.bus.publish(
            user="alice", type="note", data=data, thread="t1", run="r1", id="own-id", time_ms=1_700_000_000_000
        )
        (event,) = await client.events(1)
    assert event == {
        "id": receipt.entry,
        "delivery": 1,
        "event": {
            "id": "own-id",
            "type": "note",
            "user": "alice",
            "thread": "t1",
            "run": "r1",
            "time_ms": 1_700_000_000_000,
            "data": data,
            "v": 1,
        },
    }


@pytest.mark.requirement("R22")
async def test_every_session_of_the_user_and_of_nobody_else_gets_an_event(node: Node) -> None:
    async with (
        opened(node, session="a") as first,
        opened(node, session="b") as second,
        opened(node, "bob", session="a") as other,
    ):
        for client in (first, second, other):
            await client.expect("caught_up")
        await publish(node, "for alice")
        assert texts(await first.events(1)) == ["for alice"]
        assert texts(await second.events(1)) == ["for alice"]
        await other.nothing_more()


async def test_one_events_frame_is_at_most_a_mebibyte(node: Node) -> None:
    text = "x" * 200_000
    for _ in range(8):
        await publish(node, text)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest")
        frames: list[list[dict[str, Any]]] = []
        while sum(len(events) for events in frames) < 8:
            frames.append((await client.expect("events"))["events"])
    assert [len(events) for events in frames] == [5, 3]


@pytest.mark.requirement("R22")
async def test_what_somebody_else_wrote_into_the_stream_becomes_a_dead_letter_and_stops_nothing(
    node: Node, server: Any
) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        await publish(node, "one")
        bad = server.xadd(stream_of(server), {"d": b"\xc1 no envelope"}).decode()
        # Another user's event in this user's stream is not shown either.
        await publish(node, "secret", user="bob")
        ((_, fields),) = server.xrange(stream_of(server, "bob"))
        misplaced = server.xadd(stream_of(server), fields).decode()
        await publish(node, "two")
        await node.bus.publish(user="alice", type="note", data={"text": "three"})
        got: list[str] = []
        dropped: set[str] = set()
        while len(got) < 3 or len(dropped) < 2:
            frame = await client.next()
            if frame["op"] == "dropped":
                assert frame["reason"] == "dead_lettered"
                dropped |= set(frame["ids"])
            else:
                got += texts(frame["events"])
        assert got == ["one", "two", "three"]
        assert dropped == {bad, misplaced}


# --- caught_up ------------------------------------------------------------------------------------------------------


async def test_caught_up_comes_at_once_when_nothing_was_stored_and_only_once(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up", cursor="0-0")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry])
        await publish(node, "two")
        await client.events(1)
        await client.nothing_more()


@pytest.mark.requirement("R7")
async def test_caught_up_never_comes_before_all_that_was_stored_at_the_opening(node: Node) -> None:
    entries = await publish(node, *(f"n{number}" for number in range(10)))
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest", window=4)
        for first in (0, 4, 8):
            events = await client.events(min(4, 10 - first))
            assert "caught_up" not in [frame["op"] for frame in client.seen]
            client.send("ack", upto=events[-1]["id"])
        await client.expect("caught_up", cursor=entries[-1])
        await client.nothing_more()


async def test_caught_up_comes_for_a_filter_that_lets_nothing_through(node: Node) -> None:
    entries = await publish(node, "one", "two")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest", filter={"types": []})
        await client.expect("caught_up", cursor=entries[-1])


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
@pytest.mark.requirement("R1")
async def test_a_session_goes_on_at_another_node_with_its_pending_entries_first_and_marked(
    nodes_on_each: Nodes,
) -> None:
    first, second = await nodes_on_each.start("n1"), await nodes_on_each.start("n2")
    async with opened(first) as client:
        welcome = client.seen[0]
        await client.expect("caught_up")
        one, two, three = await publish(first, "one", "two", "three")
        await client.events(3)
        client.send("ack", ids=[two], ref=1)
        await client.expect("acked")
    await settled(first)
    (four,) = await publish(second, "four")
    async with wired(second, token_of()) as client:
        again = await client.hello(session="tab", cursor="0-0", epoch=welcome["epoch"])
        assert (again["resumed"], again["pending"], again["node"]) == (True, 2, "n2")
        assert again["epoch"] == welcome["epoch"]
        assert again["connection"] != welcome["connection"]
        events = await client.events(3)
        assert [(event["id"], event["delivery"]) for event in events] == [(one, 2), (three, 2), (four, 1)]
        await client.expect("caught_up", cursor=four)


@pytest.mark.requirement("R7")
async def test_what_came_while_the_client_was_away_comes_when_it_is_back(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
    await settled(node)
    entries = await publish(node, "one", "two")
    async with wired(node, token_of()) as client:
        assert (await client.hello(session="tab"))["resumed"] is True
        assert ids(await client.events(2)) == entries
        await client.expect("caught_up")


@pytest.mark.requirement("R7")
async def test_pending_entries_of_many_pages_come_back_in_order_before_anything_new(node: Node) -> None:
    async with opened(node, window=100) as client:
        await client.expect("caught_up")
        entries = await publish(node, *(f"n{number}" for number in range(60)))
        await client.events(60)
    await settled(node)
    entries += await publish(node, *(f"m{number}" for number in range(5)))
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", window=7)
        got: list[str] = []
        while len(got) < 65:
            frame = await client.next()
            if frame["op"] != "caught_up":
                got += ids(frame["events"])
                client.send("ack", ids=ids(frame["events"]))
        assert got == entries


@pytest.mark.requirement("R7")
async def test_a_reconnect_makes_delivery_two_and_never_counts_as_an_attempt(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
    for _ in range(6):
        await settled(node)
        async with wired(node, token_of()) as client:
            await client.hello(session="tab")
            (event,) = await client.events(1)
            assert (event["id"], event["delivery"]) == (entry, 2)
    assert not node.counters.events_dead_lettered


async def test_acks_on_their_way_when_the_connection_goes_are_stored(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        entries = await publish(node, "one", "two")
        await client.events(2)
        client.send("ack", ids=entries)
        client.raw.frame(8, b"\x03\xe8")
        assert (await client.until_closed()).code == 1000
    await settled(node)
    async with wired(node, token_of()) as client:
        assert (await client.hello(session="tab"))["pending"] == 0


# --- takeover -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same node", "another node"])
async def test_a_session_that_is_opened_elsewhere_closes_the_old_connection_with_4504(
    nodes: Nodes, elsewhere: bool
) -> None:
    first = await nodes.start("n1")
    second = await nodes.start("n2") if elsewhere else first
    async with opened(first) as old:
        await old.expect("caught_up")
        (entry,) = await publish(first, "one")
        await old.events(1)
        async with wired(second, token_of()) as new:
            assert (await new.hello(session="tab"))["resumed"] is True
            assert (await old.until_closed()).code == 4504
            (event,) = await new.events(1)
            assert (event["id"], event["delivery"]) == (entry, 2)
            await new.expect("caught_up")
            await publish(first, "two")
            assert texts(await new.events(1)) == ["two"]
            await new.nothing_more()


@pytest.mark.requirement("R7")
async def test_of_a_crowd_that_opens_one_session_exactly_one_keeps_it(node: Node) -> None:
    async def attempt(number: int) -> int:
        async with wired(node, token_of()) as client:
            client.send("hello", session="tab")
            await client.expect("welcome")
            if number == 9:
                opened_last.set()
            try:
                return (await client.until_closed()).code or 0
            except (TimeoutError, asyncio.CancelledError):
                return 0

    opened_last = asyncio.Event()
    tasks = [asyncio.create_task(attempt(number)) for number in range(10)]
    try:
        await until(lambda: len([task for task in tasks if task.done()]) == 9)
        codes = [task.result() for task in tasks if task.done()]
        assert codes == [4504] * 9
        await until(lambda: len(node.hub) == 1)
        holder = next(iter(node.hub))
        (record,) = await node.store.sessions(UserId("alice"))
        assert record.live is not None
        assert record.live.connection == holder.connection_id
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- gaps -----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R7")
async def test_entries_that_the_cap_took_before_they_were_read_are_a_gap_with_range_and_count(
    nodes_on_each: Nodes,
) -> None:
    node = await nodes_on_each.start(max_stream_entries=5)
    async with opened(node) as client:
        await client.expect("caught_up")
        (first,) = await publish(node, "first")
        await client.events(1)
        client.send("ack", ids=[first], ref=1)
        await client.expect("acked")
    await settled(node)
    entries = await publish(node, *(f"n{number}" for number in range(12)))
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=first)
        gap = await client.expect("gap")
        kept = entries[-5:]
        assert gap == {"op": "gap", "reason": "trimmed", "after": first, "before": kept[0], "count": 7}
        assert ids(await client.events(5)) == kept
        await client.expect("caught_up")
    assert node.counters.gaps["trimmed"] == 1


@pytest.mark.requirement("R7")
async def test_a_lagging_session_whose_unread_entries_are_trimmed_is_told_while_its_socket_is_open(
    nodes: Nodes,
) -> None:
    node = await nodes.start(max_stream_entries=5)
    async with opened(node, window=2) as client:
        await client.expect("caught_up")
        entries = await publish(node, *(f"n{number}" for number in range(20)))
        first = await client.events(2)
        client.send("ack", ids=ids(first))
        seen = list(ids(first))
        while len(seen) < 2 + 5:
            frame = await client.next()
            if frame["op"] == "gap":
                assert frame["reason"] == "trimmed"
                assert frame["after"] == first[-1]["id"]
                assert frame["before"] == entries[-5]
            else:
                seen += ids(frame["events"])
                client.send("ack", ids=ids(frame["events"]))
        assert seen == ids(first) + entries[-5:]
        assert [frame["op"] for frame in client.seen].count("gap") == 1


@pytest.mark.requirement("R7")
async def test_pending_entries_that_are_trimmed_are_a_gap_when_the_session_comes_back(node: Node, server: Any) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        one, two, three = await publish(node, "one", "two", "three")
        await client.events(3)
    await settled(node)
    server.xdel(stream_of(server), one, two)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab")
        gap = await client.until_op("gap")
        assert (gap["reason"], gap["before"], gap["count"]) == ("trimmed", three, 2)
        assert ids(await client.events(1)) == [three]
        await until(lambda: node.counters.events_released["trimmed"] == 2)


@pytest.mark.requirement("R7")
@pytest.mark.requirement("R2")
async def test_a_server_that_lost_everything_under_an_open_socket_is_a_reset_and_delivery_goes_on(
    nodes_on_each: Nodes,
) -> None:
    node = await nodes_on_each.start(session_heartbeat_ms=50)
    async with opened(node) as client:
        before = client.seen[0]["epoch"]
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry], ref=1)
        await client.expect("acked")
        with redis.Redis.from_url(nodes_on_each.url) as server:
            server.flushall()
        gap = await client.expect("gap")
        assert gap["reason"] == "reset"
        await publish(node, "two")
        assert texts(await client.events(1)) == ["two"]
        await client.nothing_more()
    await settled(node)
    async with wired(node, token_of()) as client:
        assert (await client.hello(session="tab"))["epoch"] != before


@pytest.mark.requirement("R7")
async def test_a_client_that_comes_back_with_an_epoch_that_is_over_gets_a_reset_and_all_there_is(
    node: Node, server: Any
) -> None:
    async with opened(node) as client:
        epoch = client.seen[0]["epoch"]
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
    await settled(node)
    server.flushall()
    (new,) = await publish(node, "new life")
    async with wired(node, token_of()) as client:
        welcome = await client.hello(session="tab", cursor=entry, epoch=epoch)
        assert welcome["resumed"] is False
        gap = await client.expect("gap", reason="reset", after=entry)
        assert gap.get("before") == new
        assert texts(await client.events(1)) == ["new life"]


@pytest.mark.requirement("R7")
async def test_a_rolled_back_stream_is_a_gap_and_what_came_under_lower_ids_is_delivered(
    node: Node, server: Any
) -> None:
    async with opened(node) as client:
        epoch = client.seen[0]["epoch"]
        await client.expect("caught_up")
        (one,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[one], ref=1)
        await client.expect("acked")
        key = stream_of(server)
        copy = server.dump(key)
        (two,) = await publish(node, "two")
        await client.events(1)
        client.send("ack", ids=[two], ref=2)
        await client.expect("acked")
    await settled(node)
    # A failover to a replica that did not have the second entry.
    server.restore(key, 3_600_000, copy, replace=True)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=two, epoch=epoch)
        await client.expect("gap", reason="rollback", after=one)
        await publish(node, "three")
        assert texts((await client.until_op("events"))["events"]) == ["three"]


@pytest.mark.requirement("R7")
async def test_events_that_went_with_the_retention_are_a_gap(nodes: Nodes, server: Any) -> None:
    node = await nodes.start()
    async with opened(node) as client:
        await client.expect("caught_up")
        (first,) = await publish(node, "first")
        await client.events(1)
        client.send("ack", ids=[first], ref=1)
        await client.expect("acked")
    await settled(node)
    entries = await publish(node, "old", "older", "kept")
    server.xtrim(stream_of(server), minid=entries[-1], approximate=False)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=first)
        gap = await client.expect("gap", after=first, before=entries[-1], count=2)
        assert gap["reason"] in ("trimmed", "expired")
        assert ids(await client.events(1)) == [entries[-1]]


@pytest.mark.requirement("R7")
async def test_no_gap_is_announced_where_nothing_was_lost(node: Node, server: Any) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        one, two = await publish(node, "one", "two")
        await client.events(2)
        client.send("ack", ids=[one, two], ref=1)
        await client.expect("acked")
    await settled(node)
    # What was acked by everybody may be trimmed, the cursor's own entry with it.
    server.xtrim(stream_of(server), maxlen=0, approximate=False)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", cursor=two)
        await client.expect("caught_up", cursor=two)
        await client.nothing_more()


# --- expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_an_event_whose_time_is_over_is_not_delivered_and_counted_as_expired(node: Node) -> None:
    now_ms = node.clock.now_ms()
    await publish(node, "gone", expires_ms=now_ms + 1)
    await publish(node, "there", expires_ms=now_ms + 3_600_000)
    await until(lambda: node.clock.now_ms() > now_ms + 1)
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest")
        assert texts(await client.events(1)) == ["there"]
    await until(lambda: node.counters.events_released["expired"] == 1)


@pytest.mark.requirement("R1")
async def test_an_event_that_expires_in_flight_is_dropped_and_not_sent_again(nodes: Nodes) -> None:
    node = await nodes.start(ack_timeout_ms=1_550)
    async with opened(node) as client:
        await client.expect("caught_up")
        # It must have come before it expires, and its ack time-out be over soon after.
        (entry,) = await publish(node, "short", expires_ms=node.clock.now_ms() + 1_500)
        await client.events(1)
        await client.expect("dropped", ids=[entry], reason="expired")
        await client.nothing_more()


# --- the other format -----------------------------------------------------------------------------------------------


async def test_redeliveries_and_batches_are_the_same_in_messagepack(nodes: Nodes) -> None:
    node = await nodes.start(nack_base_ms=1)
    async with wired(node, token_of(), subprotocol=MSGPACK) as client:
        await client.hello(session="tab")
        await client.expect("caught_up")
        await node.bus.publish_many([{"user": "alice", "type": "note", "data": {"text": f"n{n}"}} for n in range(20)])
        events = await client.events(20)
        assert texts(events) == [f"n{n}" for n in range(20)]
        client.send("nack", id=events[3]["id"])
        (again,) = await client.events(1)
        assert again == {**events[3], "delivery": 2}
