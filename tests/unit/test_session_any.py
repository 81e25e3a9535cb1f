"""A connection of a session: `deliver: any` events that another session released, and reminders."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventbus.ids import EntryId, UserId
from eventbus.store import StoredEntry
from gateway.payload import Payload, payload_of
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
    client.session.remind([*items, (unread, items[0][1])])

    assert client.events() == [(acked, 1), (held, 1), (acked, 2)]
    client.say("ack", ids=[acked], ref="again")
    await bench.settle()
    assert [frame["count"] for frame in client.of("acked")] == [0]


async def test_a_new_session_is_reminded_of_what_was_stored_before_it(bench: Bench) -> None:
    (entry,) = await bench.publish()
    client = await bench.open()

    client.session.remind([await payload(bench, entry)])

    assert client.events() == [(entry, 2)]


async def test_a_session_that_is_over_is_not_reminded(bench: Bench) -> None:
    (entry,) = await bench.publish()
    client = await bench.open()
    reminder = [await payload(bench, entry)]
    client.hang_up()

    client.session.remind(reminder)

    assert client.events() == []
