"""A connection of a session: `deliver: any` events that another session released, and reminders."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventbus.ids import EntryId, UserId
from eventbus.store import StoredEntry
from gateway.transport.payload import Payload, payload_of
from tests.support.bench import Bench

ALICE = UserId("alice")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench() as made:
        yield made


async def payload(bench: Bench, entry: EntryId) -> tuple[EntryId, Payload]:
    """What the node would hold of a stored entry."""
    stored = await bench.store.entry(ALICE, entry)
    assert isinstance(stored, StoredEntry)
    made = payload_of(ALICE, entry, stored.body)
    assert isinstance(made, Payload)
    return entry, made


@pytest.mark.requirement("R20")
async def test_a_reminder_sends_what_was_acked_and_leaves_out_what_is_in_flight_or_not_for_the_session(
    bench: Bench,
) -> None:
    client = await bench.open(filter={"types": ["note"]})
    acked, held = await bench.publish(2)
    (other,) = await bench.publish(type="chatter")
    client.say("ack", ids=[acked])
    await bench.settle()
    unread = EntryId(f"{int(held.partition('-')[0]) + 1000}-0")

    items = [await payload(bench, entry) for entry in (acked, held, other)]
    client.session.remind([*items, (unread, items[0][1])], bench.clock.now_ms())

    assert client.events() == [(acked, 1), (held, 1), (acked, 2)]
    client.say("ack", ids=[acked], ref="again")
    await bench.settle()
    assert [frame["count"] for frame in client.of("acked")] == [0]


async def test_a_new_session_is_reminded_of_what_was_stored_before_it(bench: Bench) -> None:
    (entry,) = await bench.publish()
    client = await bench.open()

    client.session.remind([await payload(bench, entry)], bench.clock.now_ms())

    assert client.events() == [(entry, 2)]


async def test_a_session_that_is_over_is_not_reminded(bench: Bench) -> None:
    (entry,) = await bench.publish()
    client = await bench.open()
    reminder = [await payload(bench, entry)]
    client.hang_up()

    client.session.remind(reminder, bench.clock.now_ms())

    assert client.events() == []


# --- `deliver: any` -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_the_first_ack_withdraws_a_shared_event_from_the_other_sessions(bench: Bench) -> None:
    phone, laptop = await bench.open(session="phone"), await bench.open(session="laptop")
    (shared,) = await bench.publish(deliver="any")
    (each,) = await bench.publish()
    assert phone.events() == laptop.events() == [(shared, 1), (each, 1)]

    phone.say("ack", ids=[shared, each], ref="mine")
    await bench.settle()

    assert [frame["count"] for frame in phone.of("acked")] == [2]
    assert phone.of("released") == []
    assert laptop.of("released") == [{"op": "released", "ids": [shared]}]
    assert await bench.pending(session="laptop") == [each]
    assert laptop.session.delivery.in_flight == 1
    laptop.say("ack", ids=[shared], ref="late")
    await bench.settle()
    assert [frame["count"] for frame in laptop.of("acked")] == [0]


@pytest.mark.requirement("R1")
async def test_what_was_released_is_not_delivered_to_who_comes_later(bench: Bench) -> None:
    phone = await bench.open(session="phone")
    (shared,) = await bench.publish(deliver="any")
    phone.say("ack", ids=[shared])
    await bench.settle()

    laptop = await bench.open(session="laptop", start="earliest")
    (each,) = await bench.publish()

    assert laptop.events() == [(each, 1)]
    assert laptop.ops().count("caught_up") == 1
    assert laptop.of("released") == []
    assert await bench.pending(session="laptop") == [each]
    assert bench.node.counters.events_released["released"] == 1


async def test_a_release_that_a_node_did_not_hear_of_shows_when_the_session_is_attached_again(bench: Bench) -> None:
    phone, laptop = await bench.open(session="phone"), await bench.open(session="laptop")
    (shared,) = await bench.publish(deliver="any")
    await bench.deafen()
    phone.say("ack", ids=[shared])
    await bench.settle()
    assert laptop.of("released") == []

    laptop.session.reattach("subscribed")
    await bench.settle()

    assert laptop.of("released") == [{"op": "released", "ids": [shared]}]
    assert laptop.session.delivery.in_flight == 0


async def test_a_release_that_nobody_heard_of_shows_in_place_of_a_redelivery(bench: Bench) -> None:
    phone, laptop = await bench.open(session="phone"), await bench.open(session="laptop")
    (shared,) = await bench.publish(deliver="any")
    await bench.deafen()
    phone.say("ack", ids=[shared])
    await bench.settle()

    for _ in range(4):
        laptop.alive()
        phone.alive()
        await bench.pass_time(10_000)

    assert laptop.of("released") == [{"op": "released", "ids": [shared]}]
    assert laptop.events() == [(shared, 1)]


async def test_a_filtered_shared_event_stays_with_the_other_sessions(bench: Bench) -> None:
    """D19: a node's own ack never releases."""
    await bench.open(session="phone", filter={"types": ["chatter"]})
    laptop = await bench.open(session="laptop")

    (shared,) = await bench.publish(deliver="any")

    assert laptop.events() == [(shared, 1)]
    assert laptop.of("released") == []


async def test_a_message_for_a_session_that_is_not_open_yet_is_no_defect(bench: Bench) -> None:
    client = bench.connect()
    client.say("hello", session="tab")
    client.session.released_elsewhere([EntryId("1-1")])
    client.session.acked_elsewhere([EntryId("1-1")])
    await bench.settle()
    assert client.ops()[0] == "welcome"


async def test_counts_of_a_node_are_those_of_its_clients(bench: Bench) -> None:
    client = await bench.open(filter={"types": ["note", "chat"]})
    entries = [(await bench.publish(type=kind))[0] for kind in ("note", "chat", "noise", "note")]
    client.say("ack", upto=entries[1])
    client.say("ack", ids=[entries[3]], level="displayed")
    await bench.settle()
    client.say("ack", ids=[entries[0]], level="confirmed")
    await bench.settle()

    found: dict[tuple[str, str], int] = {}
    for counted in await bench.store.counts(range(bench.store.settings.partitions)):
        assert not isinstance(counted, Exception)
        found |= counted
    assert {key: count for key, count in found.items() if key[0] != "stored"} == {
        ("received", "note"): 2,
        ("received", "chat"): 1,
        ("filtered", "noise"): 1,
        ("displayed", "note"): 2,
        ("confirmed", "note"): 1,
    }


@pytest.mark.requirement("R7")
async def test_a_client_that_died_before_it_handled_what_came_behind_a_gap_is_told_again(bench: Bench) -> None:
    client = await bench.open()
    (first,) = await bench.publish()
    client.say("ack", ids=[first])
    await bench.settle()
    client.hang_up()
    await bench.settle()
    entries = await bench.publish(3)
    bench.store.trim(ALICE, 1)

    for _ in range(2):
        client = await bench.open(cursor=first)
        assert [(gap["reason"], gap["after"], gap["before"], gap["count"]) for gap in client.of("gap")] == [
            ("trimmed", first, entries[2], 2)
        ]
        assert [entry for entry, _ in client.events()] == [entries[2]]
        # It dies with the frames on their way.
        client.hang_up()
        await bench.settle()

    client = await bench.open(cursor=first)
    client.say("ack", ids=[entries[2]])
    await bench.settle()
    client.hang_up()
    await bench.settle()
    assert (await bench.open(cursor=entries[2])).of("gap") == []
