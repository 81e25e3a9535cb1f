"""R14: how many entries of which type reached which state, counted by the store itself and only when they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from zlib import crc32

import msgpack
import pytest

from eventbus.config import ConfirmationRecords
from eventbus.event import Level
from eventbus.ids import EntryId, EventId, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Append,
    ConfirmRequest,
    DeadLetter,
    DeadOutcome,
    EntryFacts,
    Fence,
    ReleaseReason,
)
from tests.contract.worlds import ALICE, World, fence_of, stored

pytestmark = pytest.mark.requirement("R14")

PHONE = fence_of("c1")
LAPTOP = fence_of("c2", session=SessionId("laptop"))


async def publish(world: World, *kinds: str, **fields: object) -> list[EntryId]:
    """Stores an event of each of these types."""
    events = []
    for number, kind in enumerate(kinds):
        name = EventId(f"{kind}-{number}")
        body: bytes = msgpack.packb(
            {"id": name, "type": kind, "user": ALICE, "time_ms": 1, "data": {}, "v": 1} | fields
        )
        events.append(Append(user=ALICE, event=name, body=body, type=kind))
    return [stored(result).entry for result in await world.append(*events)]


async def ack(world: World, fence: Fence, entries: list[EntryId], facts: list[EntryFacts | None]) -> None:
    request = AckRequest(
        user=fence.user, session=fence.session, entries=entries, facts=facts, connection=fence.connection
    )
    await world.store.ack_many([request])


async def confirm(world: World, fence: Fence, level: Level, *entries: EntryId) -> None:
    request = ConfirmRequest(
        user=ALICE, session=fence.session, level=level, entries=entries, connection=fence.connection
    )
    await world.store.confirm_many([request])


async def counts(world: World, *states: str) -> dict[str, int]:
    """What is counted in the user's partition, of these states."""
    (found,) = await world.store.counts([crc32(ALICE.encode()) % world.settings.partitions])
    assert not isinstance(found, Exception), found
    return {f"{state}:{kind}": n for (state, kind), n in found.items() if not states or state in states}


NOTE, CHAT = EntryFacts("note"), EntryFacts("chat")


async def test_acks_count_by_type_once_each_whoever_knows_the_type(world: World) -> None:
    await world.open(PHONE)
    entries = await publish(world, "note", "chat", "note", "note")
    await world.read(PHONE)

    await ack(world, PHONE, entries[:3], [NOTE, CHAT, NOTE])
    await ack(world, PHONE, entries[:3], [NOTE, CHAT, NOTE])
    await ack(world, PHONE, [*entries, EntryId("1-0")], [NOTE, CHAT, NOTE, None, None])

    assert await counts(world, "received") == {"received:note": 3, "received:chat": 1}


async def test_levels_count_where_they_are_newly_reached_with_those_before_them(world: World) -> None:
    await world.open(PHONE)
    entries = await publish(world, "note", "note", "chat")
    await world.read(PHONE)
    await ack(world, PHONE, entries[:1], [NOTE])

    await confirm(world, PHONE, Level.DISPLAYED, *entries[:2])
    await confirm(world, PHONE, Level.DISPLAYED, *entries[:2])
    await confirm(world, PHONE, Level.CONFIRMED, *entries)

    assert await counts(world, "received", "displayed", "confirmed") == {
        f"{state}:{kind}": n
        for state in ("received", "displayed", "confirmed")
        for kind, n in (("note", 2), ("chat", 1))
    }


async def test_each_session_counts_for_itself(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    entries = await publish(world, "note")
    for fence in (PHONE, LAPTOP):
        await world.read(fence)
        await ack(world, fence, entries, [NOTE])

    assert await counts(world, "received") == {"received:note": 2}


async def test_what_a_node_takes_off_counts_by_its_reason_and_is_never_received(world: World) -> None:
    await world.open(PHONE)
    entries = await publish(world, "note", "chat", "note")
    await world.read(PHONE)

    for _ in range(2):
        await world.store.release(PHONE, entries[:2], ReleaseReason.FILTERED, [NOTE, CHAT])
    await world.store.release(PHONE, entries[2:], ReleaseReason.EXPIRED)

    assert await counts(world, "received", "filtered", "expired") == {
        "filtered:note": 1,
        "filtered:chat": 1,
        "expired:note": 1,
    }


async def test_what_another_session_released_counts_as_released(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    entries = await publish(world, "note", "chat", deliver="any")
    await world.read(PHONE)
    await world.read(LAPTOP)

    await ack(world, PHONE, entries, [EntryFacts("note", shared=True), EntryFacts("chat", shared=True)])
    await ack(world, LAPTOP, entries, [EntryFacts("note", shared=True), EntryFacts("chat", shared=True)])

    assert await counts(world, "received", "released") == {
        "received:note": 1,
        "received:chat": 1,
        "released:note": 1,
        "released:chat": 1,
    }


async def test_a_dead_letter_counts_once(world: World) -> None:
    await world.open(PHONE)
    (entry,) = await publish(world, "note")
    await world.read(PHONE)
    letter = DeadLetter(id=entry, event=EventId("e"), type="note", reason="nacked", attempts=5, body=b"")

    assert await world.store.dead_letter(PHONE, letter) is DeadOutcome.DEAD
    assert await world.store.dead_letter(PHONE, letter) is DeadOutcome.GONE

    assert await counts(world, "dead_lettered", "received") == {"dead_lettered:note": 1}


async def test_what_an_ended_session_had_pending_counts_as_expired(world: World) -> None:
    await world.open(PHONE)
    await publish(world, "note", "chat")
    await world.read(PHONE)

    assert await world.store.end_session(ALICE, PHONE.session) == 2

    assert await counts(world, "expired") == {"expired:other": 2}


async def test_a_lost_call_counts_nothing(world: World) -> None:
    await world.open(PHONE)
    (entry,) = await publish(world, "note")
    await world.read(PHONE)
    await world.open(fence_of("c9"))
    letter = DeadLetter(id=entry, event=EventId("e"), type="note", reason="nacked", attempts=5, body=b"")

    await world.store.release(PHONE, [entry], ReleaseReason.FILTERED, [NOTE])
    await world.store.dead_letter(PHONE, letter)

    assert await counts(world, "filtered", "dead_lettered") == {}


@pytest.mark.parametrize("records", list(ConfirmationRecords))
async def test_acks_count_whether_they_are_recorded_or_not(
    make_world: Callable[..., Awaitable[World]], records: ConfirmationRecords
) -> None:
    world = await make_world(confirmation_records=records)
    await world.open(PHONE)
    entries = await publish(world, "note", "note")
    await world.read(PHONE)

    await ack(world, PHONE, entries[:1], [NOTE])
    await confirm(world, PHONE, Level.CONFIRMED, entries[1])

    assert (await counts(world, "received")) == {"received:note": 2}


async def test_more_types_than_fit_count_as_other(world: World) -> None:
    await world.open(PHONE)
    kinds = [f"kind{number}" for number in range(520)]
    entries = await publish(world, *kinds)
    await world.read(PHONE, count=1000)

    await ack(world, PHONE, entries, [EntryFacts(kind) for kind in kinds])

    found: dict[str, Any] = await counts(world)
    assert sum(n for name, n in found.items() if name.startswith("received:")) == 520
    assert found["received:other"] >= 20
    assert len(found) <= 502


async def test_what_many_users_store_and_ack_together_counts_once_each_in_the_sum_of_all_partitions(
    world: World,
) -> None:
    users = [UserId(f"user{number}") for number in range(20)]
    fences = [fence_of(f"c{number}", user=user) for number, user in enumerate(users)]
    for fence in fences:
        await world.open(fence)
    kinds = [("note", "chat")[number % 2] for number in range(20)]
    appends = [
        Append(user=user, event=EventId("once"), body=kind.encode(), type=kind)
        for user, kind in zip(users, kinds, strict=True)
    ]
    entries = [stored(result).entry for result in await world.append(*appends)]
    assert [stored(result).duplicate for result in await world.append(*appends)] == [True] * 20
    for fence in fences:
        await world.read(fence)
    requests = [
        AckRequest(
            user=fence.user,
            session=fence.session,
            entries=[entry, EntryId("1-0")],
            facts=[EntryFacts(kind)] * 2,
            connection=fence.connection,
        )
        for fence, entry, kind in zip(fences, entries, kinds, strict=True)
    ]

    assert await world.store.ack_many(requests) == [1] * 20
    assert await world.store.ack_many(requests) == [0] * 20

    summed: Counter[str] = Counter()
    for found in await world.store.counts(range(world.settings.partitions)):
        assert not isinstance(found, Exception), found
        summed.update({f"{state}:{kind}": n for (state, kind), n in found.items()})
    assert summed == {f"{state}:{kind}": 10 for state in ("stored", "received") for kind in ("note", "chat")}
