"""docs/protocol.md, section 2, and what section 7 adds to it: every frame of a client, right and wrong."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from eventbus.clock import SystemClock
from eventbus.ids import ENTRY_ZERO, SessionId, UserId
from eventbus.testing import ManualClock
from gateway.node import Node
from tests.support.raw_websocket import BINARY, TEXT
from tests.support.waiting import until
from tests.support.wire_client import (
    MSGPACK,
    Nodes,
    WireClient,
    ids,
    opened,
    pass_time,
    publish,
    texts,
    token_of,
    wired,
)

ALICE, TAB = UserId("alice"), SessionId("tab")

# (what is sent after `hello`, the field that the error names)
BAD_FRAMES: list[tuple[object, str]] = [
    ([], "frame"),
    ("ack", "frame"),
    (7, "frame"),
    (None, "frame"),
    ({}, "op"),
    ({"op": None}, "op"),
    ({"op": 7}, "op"),
    ({"op": ["ack"]}, "op"),
    ({"op": "ack"}, "ids"),
    ({"op": "ack", "ids": ["1-0"], "upto": "1-0"}, "ids"),
    ({"op": "ack", "ids": None}, "ids"),
    ({"op": "ack", "ids": "1-0"}, "ids"),
    ({"op": "ack", "ids": {"0": "1-0"}}, "ids"),
    ({"op": "ack", "ids": [1]}, "ids[0]"),
    ({"op": "ack", "ids": ["1-0", "event-7"]}, "ids[1]"),
    ({"op": "ack", "ids": ["1-0"] * 5_000}, "ids"),
    ({"op": "ack", "upto": 5}, "upto"),
    ({"op": "ack", "upto": "x"}, "upto"),
    ({"op": "ack", "upto": "-1-0"}, "upto"),
    ({"op": "ack", "upto": "99999999999999999999-0"}, "upto"),
    ({"op": "ack", "ids": [], "level": "seen"}, "level"),
    ({"op": "ack", "ids": [], "level": 1}, "level"),
    ({"op": "ack", "ids": [], "note": 1}, "note"),
    ({"op": "ack", "ids": [], "note": "n" * 257}, "note"),
    ({"op": "ack", "ids": [], "ref": []}, "ref"),
    ({"op": "ack", "ids": [], "ref": True}, "ref"),
    ({"op": "ack", "ids": [], "ref": 1.5}, "ref"),
    ({"op": "ack", "ids": [], "ref": "r" * 129}, "ref"),
    ({"op": "nack"}, "id"),
    ({"op": "nack", "id": 1}, "id"),
    ({"op": "nack", "id": "x"}, "id"),
    ({"op": "nack", "id": "1-0", "reason": 1}, "reason"),
    ({"op": "nack", "id": "1-0", "delay_ms": -1}, "delay_ms"),
    ({"op": "nack", "id": "1-0", "delay_ms": 3_600_001}, "delay_ms"),
    ({"op": "nack", "id": "1-0", "delay_ms": "5"}, "delay_ms"),
    ({"op": "nack", "id": "1-0", "delay_ms": 1.5}, "delay_ms"),
    ({"op": "nack", "id": "1-0", "delay_ms": True}, "delay_ms"),
    ({"op": "refresh"}, "token"),
    ({"op": "refresh", "token": 1}, "token"),
    ({"op": "filter"}, "filter"),
    ({"op": "filter", "filter": []}, "filter"),
    ({"op": "filter", "filter": {"types": "a"}}, "filter.types"),
    ({"op": "filter", "filter": {"types": ["ok", "Not"]}}, "filter.types[1]"),
    ({"op": "filter", "filter": {"threads": [""]}}, "filter.threads[0]"),
    ({"op": "filter", "filter": {"runs": [7]}}, "filter.runs[0]"),
    ({"op": "filter", "filter": {"types": ["a"] * 257}}, "filter.types"),
    ({"op": "filter", "filter": {}, "ref": {}}, "ref"),
    ({"op": "working"}, "ids"),
    ({"op": "working", "ids": "1-0"}, "ids"),
    ({"op": "working", "ids": ["x"]}, "ids[0]"),
    ({"op": "ping", "ref": {}}, "ref"),
]

BAD_HELLOS: list[tuple[object, str]] = [
    ({"op": "hello", "token": 1}, "token"),
    ({"op": "hello", "session": ""}, "session"),
    ({"op": "hello", "session": "a b"}, "session"),
    ({"op": "hello", "session": "s" * 65}, "session"),
    ({"op": "hello", "session": 1}, "session"),
    ({"op": "hello", "session": None}, "session"),
    ({"op": "hello", "start": "latest"}, "start"),
    ({"op": "hello", "start": 0}, "start"),
    ({"op": "hello", "start": "cursor"}, "cursor"),
    ({"op": "hello", "cursor": "x"}, "cursor"),
    ({"op": "hello", "cursor": 5}, "cursor"),
    ({"op": "hello", "epoch": 1}, "epoch"),
    ({"op": "hello", "window": 0}, "window"),
    ({"op": "hello", "window": 1025}, "window"),
    ({"op": "hello", "window": "10"}, "window"),
    ({"op": "hello", "window": True}, "window"),
    ({"op": "hello", "filter": {"threads": 1}}, "filter.threads"),
]


async def _refused(client: WireClient, frame: object, field: str) -> None:
    client.send_object(frame)
    error = await client.until_op("error")
    assert error["code"] == "bad_frame"
    assert error["message"].startswith(f"{field}: "), error
    assert (await client.until_closed()).code == 4500


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("frame, field", BAD_FRAMES)
async def test_a_malformed_frame_is_an_error_that_names_the_field_and_close_4500(
    node: Node, frame: object, field: str
) -> None:
    async with opened(node) as client:
        await _refused(client, frame, field)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("frame, field", BAD_HELLOS)
async def test_a_malformed_hello_is_an_error_that_names_the_field_and_close_4500(
    node: Node, frame: object, field: str
) -> None:
    async with wired(node, token_of()) as client:
        await _refused(client, frame, field)


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("payload", [b"", b"{", b'{"op":"ping"', b"{'op':'ping'}", b'{"op":"ping"} x', b"[" * 2000])
async def test_a_text_that_is_no_json_is_a_bad_frame(node: Node, payload: bytes) -> None:
    async with opened(node) as client:
        client.raw.frame(TEXT, payload)
        assert (await client.until_op("error"))["code"] == "bad_frame"
        assert (await client.until_closed()).code == 4500


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x81\xa2op", msgpack.packb([1]), b"\x91" * 5000, msgpack.packb({"op": "ping"}) + b"\x00"],
)
async def test_bytes_that_are_no_messagepack_are_a_bad_frame(node: Node, payload: bytes) -> None:
    async with wired(node, token_of(), subprotocol=MSGPACK) as client:
        await client.hello()
        client.raw.frame(BINARY, payload)
        assert (await client.until_op("error"))["code"] == "bad_frame"
        assert (await client.until_closed()).code == 4500


async def test_unknown_fields_are_ignored_in_every_frame(node: Node) -> None:
    (entry,) = await publish(node, "one")
    async with wired(node, token_of()) as client:
        await client.hello(session="tab", start="earliest", colour="red", nested={"a": [1]})
        await client.events(1)
        await client.expect("caught_up")
        client.send("ack", ids=[entry], ref="a", colour="red")
        await client.expect("acked", ref="a", count=1)
        client.send("filter", filter={"types": ["note"], "colours": ["red"]}, ref="f")
        await client.expect("filtered", ref="f")


async def test_an_unknown_op_is_an_error_with_the_ref_and_no_close(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("dance", ref="r1")
        await client.expect("error", code="unknown_op", ref="r1")
        client.send("dance")
        assert "ref" not in await client.expect("error", code="unknown_op")
        await client.nothing_more()


# --- ack ------------------------------------------------------------------------------------------------------------


async def pending_of(node: Node, session: str = "tab", user: str = "alice") -> list[str]:
    """What waits for an ack in the store."""
    records = await node.store.pending(UserId(user), SessionId(session), ENTRY_ZERO, 1000)
    return [record.id for record in records]


@pytest.mark.requirement("R1")
async def test_an_ack_by_ids_releases_these_and_is_answered_when_it_is_stored(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    async with opened(node) as client:
        await client.expect("caught_up")
        one, two, three = await publish(node, "one", "two", "three")
        await client.events(3)
        client.send("ack", ids=[one, three], ref="r")
        await client.expect("acked", ref="r", count=2)
        assert await pending_of(node) == [two]


@pytest.mark.requirement("R1")
async def test_an_ack_upto_releases_everything_delivered_up_to_and_with_the_id(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start()
    async with opened(node) as client:
        await client.expect("caught_up")
        entries = await publish(node, "one", "two", "three", "four")
        await client.events(4)
        client.send("ack", upto=entries[2], ref=1)
        await client.expect("acked", ref=1, count=3)
        assert await pending_of(node) == entries[3:]


@pytest.mark.requirement("R1")
async def test_an_ack_upto_an_id_beyond_what_was_delivered_releases_nothing_undelivered(node: Node) -> None:
    async with opened(node, window=2) as client:
        await client.expect("caught_up")
        entries = await publish(node, "one", "two", "three")
        await client.events(2)
        client.send("ack", upto="9999999999999-0", ref=1)
        # The room that the ack makes is filled at once: the event may overtake the answer.
        frames = {frame["op"]: frame for frame in (await client.next(), await client.next())}
        assert frames["acked"]["count"] == 2
        (event,) = frames["events"]["events"]
        assert (event["id"], event["delivery"]) == (entries[2], 1)


async def test_acking_twice_or_an_unknown_id_is_no_error_and_counts_nothing(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry, entry], ref=1)
        await client.expect("acked", ref=1, count=1)
        client.send("ack", ids=[entry], ref=2)
        await client.expect("acked", ref=2, count=0)
        client.send("ack", ids=["1-1", "2-2"], ref=3)
        await client.expect("acked", ref=3, count=0)
        client.send("ack", ids=[], ref=4)
        await client.expect("acked", ref=4, count=0)
        client.send("ack", upto=entry, ref=5)
        await client.expect("acked", ref=5, count=0)


async def test_two_acks_of_one_entry_in_one_breath_release_it_once(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry], ref=1)
        client.send("ack", ids=[entry], ref=2)
        client.send("ack", ids=[entry])
        counts = [(await client.expect("acked", ref=ref))["count"] for ref in (1, 2)]
        assert sum(counts) == 1


@pytest.mark.parametrize("ref", ["r", "", 0, -5, 2**53, "é" * 128])
async def test_a_ref_comes_back_as_it_was_given(node: Node, ref: str | int) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("ack", ids=[], ref=ref)
        assert (await client.expect("acked"))["ref"] == ref
        client.send("ping", ref=ref)
        assert (await client.expect("pong"))["ref"] == ref


async def test_an_ack_without_a_ref_is_not_answered(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry])
        await until(lambda: _empty(pending_of(node)))
        await client.nothing_more()


async def _empty(waiting: Any) -> bool:
    return not await waiting


@pytest.mark.parametrize("level", ["received", "displayed", "confirmed"])
async def test_each_level_implies_received_and_releases(node: Node, level: str) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry], level=level, note="n" * 256, ref=1)
        await client.expect("acked", ref=1, count=1)


@pytest.mark.requirement("R22")
async def test_an_ack_touches_no_other_session_and_no_other_user(node: Node) -> None:
    async with opened(node, session="a") as first, opened(node, session="b") as second, opened(node, "bob") as other:
        for client in (first, second, other):
            await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await first.events(1)
        await second.events(1)
        other.send("ack", ids=[entry], ref=1)
        await other.expect("acked", count=0)
        first.send("ack", ids=[entry], ref=1)
        await first.expect("acked", count=1)
        assert await pending_of(node, "b") == [entry]


async def test_an_entry_that_was_not_delivered_to_the_session_can_not_be_confirmed_by_it(node: Node) -> None:
    async with opened(node, window=1) as client:
        await client.expect("caught_up")
        one, two = await publish(node, "one", "two")
        await client.events(1)
        client.send("ack", ids=[two], ref=1)
        await client.expect("acked", count=0)
        client.send("ack", ids=[one])
        assert ids(await client.events(1)) == [two]


# --- nack, working --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R3")
@pytest.mark.requirement("R6")
async def test_a_nacked_event_comes_again_marked_as_redelivery(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start(nack_base_ms=50)
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("nack", id=entry, reason="no room")
        (again,) = await client.events(1)
        assert (again["id"], again["delivery"]) == (entry, 2)


@pytest.mark.requirement("R3")
async def test_a_nack_with_a_delay_waits_for_it_and_takes_no_room_in_the_window(nodes: Nodes) -> None:
    clock = ManualClock(SystemClock().now_ms())
    node = await nodes.start(clock=clock)
    async with opened(node, window=1) as client:
        await client.expect("caught_up")
        one, two = await publish(node, "one", "two")
        await client.events(1)
        client.send("nack", id=one, delay_ms=1_500)
        assert ids(await client.events(1)) == [two]
        client.send("ack", ids=[two], ref=1)
        await client.expect("acked")
        await pass_time(node, clock, 1_400)
        await client.nothing_more()
        await pass_time(node, clock, 200)
        (again,) = await client.events(1)
        assert (again["id"], again["delivery"]) == (one, 2)


@pytest.mark.requirement("R3")
async def test_nacks_count_towards_max_deliveries_and_then_the_event_is_dropped(nodes_on_each: Nodes) -> None:
    node = await nodes_on_each.start(max_deliveries=3, nack_base_ms=1)
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        for delivery in (1, 2, 3):
            (event,) = await client.events(1)
            assert (event["id"], event["delivery"]) == (entry, delivery)
            client.send("nack", id=entry)
        await client.expect("dropped", ids=[entry], reason="dead_lettered")
        await client.nothing_more()
        (partition,) = await node.store.dead_letter_partitions()
        (letter,) = await node.store.dead_letters(partition, ENTRY_ZERO, 10)
        assert (letter.entry, letter.reason, letter.attempts, letter.node) == (entry, "nacked", 3, "n1")
        assert await pending_of(node) == []


@pytest.mark.requirement("R3")
async def test_an_event_that_is_not_acked_in_time_comes_again_and_is_dead_lettered_in_the_end(
    nodes_on_each: Nodes,
) -> None:
    node = await nodes_on_each.start(max_deliveries=3, ack_timeout_ms=20, max_wait_ms=100)
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        deliveries = [(await client.events(1))[0]["delivery"] for _ in range(3)]
        assert deliveries == [1, 2, 3]
        await client.expect("dropped", ids=[entry], reason="dead_lettered")
        (partition,) = await node.store.dead_letter_partitions()
        (letter,) = await node.store.dead_letters(partition, ENTRY_ZERO, 10)
        assert (letter.reason, letter.attempts, letter.session) == ("ack_timeout", 3, "tab")


async def test_nacking_what_is_not_in_flight_is_no_error(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("nack", id="1-1")
        client.send("working", ids=["1-1", "2-2"])
        await client.nothing_more()


async def test_a_clients_nack_that_comes_after_its_ack_is_too_late(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        (entry,) = await publish(node, "one")
        await client.events(1)
        client.send("ack", ids=[entry])
        client.send("nack", id=entry, delay_ms=0)
        client.send("ack", ids=[], ref=1)
        await client.expect("acked")
        assert await pending_of(node) == []
        await client.nothing_more()


# --- filter ---------------------------------------------------------------------------------------------------------


async def test_a_filter_in_hello_gives_only_what_matches(node: Node) -> None:
    async with opened(node, filter={"types": ["note", "memo"], "threads": ["t1"]}) as client:
        await client.expect("caught_up")
        await publish(node, "no thread")
        await publish(node, "other thread", thread="t2")
        await publish(node, "wanted", thread="t1")
        await publish(node, "other type", type="alarm", thread="t1")
        await publish(node, "wanted too", type="memo", thread="t1", run="r1")
        assert texts(await client.events(1)) == ["wanted"]
        assert texts(await client.events(1)) == ["wanted too"]
        await client.nothing_more()


async def test_a_filter_by_run_and_an_empty_list_that_wants_nothing(node: Node) -> None:
    async with opened(node, filter={"runs": ["r1"]}) as client:
        await client.expect("caught_up")
        await publish(node, "r2", run="r2")
        await publish(node, "r1", run="r1")
        assert texts(await client.events(1)) == ["r1"]
        client.send("filter", filter={"types": []}, ref="none")
        await client.expect("filtered", ref="none")
        await publish(node, "r1 again", run="r1")
        await until(lambda: _released(node, 2))
        await client.nothing_more()


def _released(node: Node, count: int) -> bool:
    return node.counters.events_released["filtered"] >= count


async def test_filter_changes_what_comes_from_here_on(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("filter", filter={"types": ["alarm"]})
        assert "ref" not in await client.expect("filtered")
        await publish(node, "note")
        await publish(node, "alarm", type="alarm")
        assert texts(await client.events(1)) == ["alarm"]
        client.send("filter", filter={}, ref=1)
        await client.expect("filtered", ref=1)
        await publish(node, "note again")
        assert texts(await client.events(1)) == ["note again"]


@pytest.mark.requirement("R1")
async def test_what_does_not_match_is_released_as_filtered_and_never_counts_as_delivered_or_acked(
    nodes_on_each: Nodes,
) -> None:
    node = await nodes_on_each.start()
    async with opened(node, filter={"types": ["alarm"]}) as client:
        await client.expect("caught_up")
        entries = await publish(node, "one", "two")
        await until(lambda: _released(node, 2))
        assert await pending_of(node) == []
        records = [record for _, record in await node.store.confirmations(ALICE, ENTRY_ZERO, 100)]
        assert {record.level for record in records} == {"filtered"}
        assert sorted(entry for record in records for entry in record.entries) == entries
        assert (node.counters.events_delivered, node.counters.events_acked) == (0, 0)


async def test_a_client_whose_filter_lets_little_through_still_advances(node: Node) -> None:
    async with opened(node, window=2, filter={"types": ["alarm"]}) as client:
        await client.expect("caught_up")
        await publish(node, *(f"n{number}" for number in range(20)))
        (wanted,) = await publish(node, "alarm", type="alarm")
        assert ids(await client.events(1)) == [wanted]


# --- window ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R9")
async def test_no_more_events_are_in_flight_than_the_window(node: Node) -> None:
    async with opened(node, window=3) as client:
        await client.expect("caught_up")
        entries = await publish(node, *(f"n{number}" for number in range(8)))
        await client.events(3)
        await client.nothing_more()
        client.send("ack", ids=entries[1:2])
        assert ids(await client.events(1)) == entries[3:4]
        await client.nothing_more()
        client.send("ack", upto=entries[3])
        assert ids(await client.events(3)) == entries[4:7]
        await client.nothing_more()


# --- refresh --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R23")
async def test_a_refreshed_token_is_answered_with_its_end(node: Node) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        before = client.seen[0]["token_expires_ms"]
        client.send("refresh", token=token_of(ttl_ms=7_200_000))
        refreshed = await client.expect("refreshed")
        assert 3_590_000 < refreshed["token_expires_ms"] - before < 3_610_000


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    "token, code, close",
    [
        (token_of("bob"), "forbidden", 4502),
        (token_of(scopes=("publish",)), "forbidden", 4502),
        (token_of(session="another"), "forbidden", 4502),
        ("nonsense", "unauthenticated", 4501),
    ],
    ids=["another sub", "no scope", "another session", "no token"],
)
async def test_a_refresh_with_a_token_that_is_not_of_this_session_ends_it(
    node: Node, token: str, code: str, close: int
) -> None:
    async with opened(node) as client:
        await client.expect("caught_up")
        client.send("refresh", token=token)
        await client.expect("error", code=code)
        assert (await client.until_closed()).code == close


@pytest.mark.requirement("R23")
async def test_a_connection_goes_on_with_a_token_that_was_refreshed_in_time(nodes: Nodes) -> None:
    clock = ManualClock(SystemClock().now_ms())
    node = await nodes.start(clock=clock)
    async with wired(node, token_of(ttl_ms=6_000)) as client:
        ends_ms = (await client.hello(session="tab"))["token_expires_ms"]
        client.send("refresh", token=token_of())
        await client.until_op("refreshed")
        await pass_time(node, clock, ends_ms - clock.now_ms() + 3_000)
        await client.nothing_more()
