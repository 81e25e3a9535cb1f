"""Reading, acking, redelivering, giving up: what happens to the entries of one session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from eventbus.config import ConfirmationRecords
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Beat,
    BeatState,
    ConfirmationRecord,
    DeadLetter,
    DeadLetterRecord,
    DeadOutcome,
    Lost,
    NewRead,
    PendingEntry,
    PendingPage,
    ReadRequest,
    ReadState,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    StoredEntry,
)
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, PHONE, World, fence_of, held

FENCE = fence_of("c1")
DESK = fence_of("c2", session=SessionId("desk"))
NOWHERE = EntryId("1-1")


async def delivered(world: World, *names: str) -> list[EntryId]:
    """A live session to which these events were delivered."""
    await world.open(FENCE)
    entries = await world.publish(*names)
    assert await world.received(FENCE, count=len(names)) == list(names)
    return entries


def letter(entry: EntryId) -> DeadLetter:
    return DeadLetter(
        id=entry,
        event=EventId("order:1"),
        type="tool_completed",
        reason="ack_timeout",
        attempts=5,
        body=b"\x00body\xff",
    )


async def outcomes(world: World, *entries: tuple[EntryId, int]) -> list[RedeliveryOutcome]:
    result: Sequence[RedeliveryOutcome] | Lost = await world.store.redeliver(
        FENCE, [Redelivery(id=entry, attempts=attempts) for entry, attempts in entries]
    )
    return list(held(result))


# --- reading what is new ----------------------------------------------------------------------------------------------


@pytest.mark.requirement("R6")
async def test_read_gives_what_is_new_in_order_and_no_more_than_asked_for(world: World) -> None:
    await world.open(FENCE)
    entries = await world.publish("e0", "e1", "e2")

    first = await world.read(FENCE, count=2)
    second = await world.read(FENCE, count=2)
    third = await world.read(FENCE, count=2)

    assert [list(read.entries) for read in (first, second, third)] == [
        [StoredEntry(entries[0], b"e0"), StoredEntry(entries[1], b"e1")],
        [StoredEntry(entries[2], b"e2")],
        [],
    ]
    assert {(read.state, read.gap) for read in (first, second, third)} == {(ReadState.OK, None)}


async def test_read_entry_is_pending_with_one_attempt(world: World) -> None:
    entries = await delivered(world, "e0", "e1")

    assert await world.waiting(FENCE) == [(entries[0], 1), (entries[1], 1)]


async def test_reads_of_many_users_and_sessions_are_answered_in_order(world: World) -> None:
    bob = fence_of("c3", user=UserId("bob"))
    for fence in (FENCE, DESK, bob):
        await world.open(fence)
    await world.publish("a0", "a1")
    await world.publish("b0", user=bob.user)

    results = await world.store.read_new(
        [
            ReadRequest(fence=DESK, count=1),
            ReadRequest(fence=bob, count=10),
            ReadRequest(fence=fence_of("c4", user=UserId("carol")), count=10),
            ReadRequest(fence=FENCE, count=10),
        ]
    )

    seen = [
        (result.state, [entry.body for entry in result.entries]) for result in results if isinstance(result, NewRead)
    ]
    assert seen == [
        (ReadState.OK, [b"a0"]),
        (ReadState.OK, [b"b0"]),
        (ReadState.LOST, []),
        (ReadState.OK, [b"a0", b"a1"]),
    ]


# --- pages of pending entries -----------------------------------------------------------------------------------------


@pytest.mark.corner("D20")
async def test_pending_entries_are_read_in_pages(world: World) -> None:
    entries = await delivered(world, *(f"e{i}" for i in range(7)))
    everything = [PendingEntry(entry, b"e%d" % i, 1) for i, entry in enumerate(entries)]

    first = await world.page(FENCE, ENTRY_ZERO, 3)
    second = await world.page(FENCE, entries[2], 3)
    third = await world.page(FENCE, entries[5], 3)

    assert first == PendingPage(entries=tuple(everything[:3]), last=False)
    assert second == PendingPage(entries=tuple(everything[3:6]), last=False)
    assert third == PendingPage(entries=tuple(everything[6:]), last=True)
    assert await world.page(FENCE, entries[6], 3) == PendingPage(entries=(), last=True)


@pytest.mark.corner("D20")
async def test_page_that_is_just_full_is_the_last(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")

    assert (await world.page(FENCE, entries[0], 2)).last


@pytest.mark.corner("D20")
async def test_pages_leave_out_what_is_acked_or_unread(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")
    await world.publish("unread")
    await world.ack(FENCE, entries[1])

    page = await world.page(FENCE)

    assert page == PendingPage(
        entries=(PendingEntry(entries[0], b"e0", 1), PendingEntry(entries[2], b"e2", 1)), last=True
    )


@pytest.mark.corner("D8")
async def test_reconnects_do_not_count_as_attempts(world: World) -> None:
    (entry,) = await delivered(world, "e0")
    for number in range(5):
        fence = fence_of(f"again{number}")
        await world.open(fence)
        assert await world.page(fence) == PendingPage(entries=(PendingEntry(entry, b"e0", 1),), last=True)

    assert await world.waiting(FENCE) == [(entry, 1)]


@pytest.mark.corner("D8")
async def test_page_leaves_the_idle_time_as_it_was(world: World) -> None:
    await delivered(world, "e0")
    await world.pass_time(50)
    await world.page(FENCE)

    (record,) = await world.store.pending(ALICE, PHONE, ENTRY_ZERO, 10)

    assert record.idle_ms >= 50


@pytest.mark.corner("D8")
async def test_page_shows_the_attempts_that_were_counted(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    await outcomes(world, (entries[1], 3))
    second = fence_of("second")
    await world.open(second)

    page = await world.page(second)

    assert list(page.entries) == [PendingEntry(entries[0], b"e0", 1), PendingEntry(entries[1], b"e1", 3)]


@pytest.mark.requirement("R7")
async def test_trimmed_pending_entry_comes_without_a_body(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")
    await world.power.trim(ALICE, 1)

    page = await world.page(FENCE)

    assert page == PendingPage(
        entries=(
            PendingEntry(entries[0], None, 1),
            PendingEntry(entries[1], None, 1),
            PendingEntry(entries[2], b"e2", 1),
        ),
        last=True,
    )
    assert await world.page(FENCE) == page


async def test_trimmed_pending_entry_is_released_like_any_other(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    await world.power.trim(ALICE, 1)

    assert await world.store.release(FENCE, [entries[0]], ReleaseReason.TRIMMED) == 1

    assert await world.waiting(FENCE) == [(entries[1], 1)]


# --- acks -------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_acked_entry_never_comes_again(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")

    assert await world.ack(FENCE, entries[0], entries[2]) == 2

    second = fence_of("second")
    attached = await world.open(second)
    assert (attached.pending, attached.first_pending) == (1, entries[1])
    assert [entry.id for entry in (await world.page(second)).entries] == [entries[1]]
    assert await world.received(second) == []


async def test_ack_counts_only_what_was_pending(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    (unread,) = await world.publish("unread")

    assert await world.ack(FENCE, entries[0], NOWHERE, unread) == 1
    assert await world.ack(FENCE, entries[0]) == 0
    assert await world.ack(FENCE) == 0

    assert await world.received(FENCE) == ["unread"]


async def test_ack_for_a_session_or_user_that_is_unknown_is_none(world: World) -> None:
    (entry,) = await delivered(world, "e0")

    assert await world.store.ack(ALICE, SessionId("nobody"), [entry]) == 0
    assert await world.store.ack(UserId("bob"), PHONE, [entry]) == 0

    assert await world.waiting(FENCE) == [(entry, 1)]


async def test_ack_of_one_session_leaves_the_others_alone(world: World) -> None:
    await world.open(DESK)
    (entry,) = await delivered(world, "e0")
    await world.received(DESK)

    assert await world.ack(FENCE, entry) == 1

    assert await world.waiting(DESK) == [(entry, 1)]


async def test_acks_of_many_sessions_are_answered_in_order(world: World) -> None:
    bob = fence_of("c3", user=UserId("bob"))
    await world.open(DESK)
    await world.open(bob)
    first, second = await delivered(world, "e0", "e1")
    await world.received(DESK)
    (his,) = await world.publish("b0", user=bob.user)
    await world.received(bob)

    results = await world.store.ack_many(
        [
            AckRequest(user=ALICE, session=PHONE, entries=[first, second]),
            AckRequest(user=bob.user, session=bob.session, entries=[first, his]),
            AckRequest(user=ALICE, session=SessionId("nobody"), entries=[first]),
            AckRequest(user=ALICE, session=DESK.session, entries=[second]),
            AckRequest(user=ALICE, session=PHONE, entries=[]),
        ]
    )

    assert list(results) == [2, 1, 0, 1, 0]
    assert await world.waiting(DESK) == [(first, 1)]
    assert list(await world.store.ack_many([])) == []


@pytest.mark.requirement("R1")
async def test_ack_is_recorded_with_its_session_and_time(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")
    before_ms = await world.store.ping()
    await world.ack(FENCE, entries[0], entries[1])
    after_ms = await world.store.ping()

    ((_, record),) = await world.store.confirmations(ALICE, ENTRY_ZERO, 10)

    assert before_ms <= record.time_ms <= after_ms
    assert list(record.entries) == entries[:2]
    assert record == ConfirmationRecord(
        session=PHONE, level="received", time_ms=record.time_ms, entries=record.entries, note=None
    )


async def test_ack_that_released_nothing_is_no_record(world: World) -> None:
    """What was not delivered to a session can not be confirmed by it."""
    (entry,) = await delivered(world, "e0")
    (unread,) = await world.publish("unread")
    await world.ack(FENCE, entry)
    await world.ack(FENCE, entry, unread, NOWHERE)

    records = await world.store.confirmations(ALICE, ENTRY_ZERO, 10)

    assert [list(record.entries) for _, record in records] == [[entry]]


async def test_acks_are_not_recorded_when_the_setting_says_so(make_world: MakeWorld) -> None:
    world = await make_world(confirmation_records=ConfirmationRecords.OFF)
    (entry,) = await delivered(world, "e0")

    assert await world.ack(FENCE, entry) == 1

    assert list(await world.store.confirmations(ALICE, ENTRY_ZERO, 10)) == []


async def test_records_are_read_in_pages(world: World) -> None:
    entries = await delivered(world, "e0", "e1", "e2")
    for entry in entries:
        await world.ack(FENCE, entry)

    first = await world.store.confirmations(ALICE, ENTRY_ZERO, 2)
    second = await world.store.confirmations(ALICE, first[-1][0], 2)

    assert [list(record.entries) for _, record in first] == [[entries[0]], [entries[1]]]
    assert [list(record.entries) for _, record in second] == [[entries[2]]]
    assert list(await world.store.confirmations(ALICE, second[-1][0], 2)) == []


@pytest.mark.requirement("R1")
@pytest.mark.parametrize("reason", list(ReleaseReason))
async def test_release_by_the_node_is_recorded_as_what_it_is(world: World, reason: ReleaseReason) -> None:
    entries = await delivered(world, "e0", "e1")
    before_ms = await world.store.ping()

    assert await world.store.release(FENCE, [entries[0], NOWHERE], reason) == 1
    assert await world.store.release(FENCE, [entries[0]], reason) == 0

    after_ms = await world.store.ping()
    assert await world.waiting(FENCE) == [(entries[1], 1)]
    ((_, record),) = await world.store.confirmations(ALICE, ENTRY_ZERO, 10)
    assert before_ms <= record.time_ms <= after_ms
    assert (record.session, record.level, list(record.entries), record.note) == (
        PHONE,
        reason.value,
        [entries[0]],
        None,
    )


# --- redelivery and dead letters --------------------------------------------------------------------------------------


@pytest.mark.corner("D11")
async def test_redelivery_counts_and_is_ready(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    await world.pass_time(50)

    assert await outcomes(world, (entries[0], 2)) == [RedeliveryOutcome.READY]

    first, second = await world.store.pending(ALICE, PHONE, ENTRY_ZERO, 10)
    assert [(record.id, record.attempts) for record in (first, second)] == [(entries[0], 2), (entries[1], 1)]
    assert second.idle_ms - first.idle_ms >= 50


@pytest.mark.corner("D11")
@pytest.mark.requirement("R3")
async def test_count_of_redeliveries_outlives_its_node(world: World) -> None:
    (entry,) = await delivered(world, "e0")
    await outcomes(world, (entry, 2))
    await outcomes(world, (entry, 3))

    second = fence_of("second")
    await world.open(second)

    assert list((await world.page(second)).entries) == [PendingEntry(entry, b"e0", 3)]
    (record,) = await world.store.sessions(ALICE)
    assert record.max_attempts == 3


@pytest.mark.corner("D11")
async def test_redelivery_of_an_entry_acked_elsewhere_is_gone(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    await world.ack(FENCE, entries[0])

    assert await outcomes(world, (entries[0], 2), (entries[1], 2)) == [RedeliveryOutcome.GONE, RedeliveryOutcome.READY]

    assert await world.waiting(FENCE) == [(entries[1], 2)]


@pytest.mark.corner("D11")
async def test_redelivery_of_an_entry_that_was_never_delivered_is_gone(world: World) -> None:
    await delivered(world, "e0")
    (unread,) = await world.publish("unread")

    assert await outcomes(world, (unread, 2), (NOWHERE, 2)) == [RedeliveryOutcome.GONE] * 2

    assert await world.received(FENCE) == ["unread"]


@pytest.mark.corner("D11")
async def test_redelivery_of_a_trimmed_entry_says_so_and_keeps_it_pending(world: World) -> None:
    entries = await delivered(world, "e0", "e1")
    await world.power.trim(ALICE, 1)

    assert await outcomes(world, (entries[0], 2), (entries[1], 2)) == [
        RedeliveryOutcome.TRIMMED,
        RedeliveryOutcome.READY,
    ]

    waiting = await world.waiting(FENCE)
    assert [entry for entry, _ in waiting] == entries
    assert waiting[1] == (entries[1], 2)
    assert await world.ack(FENCE, entries[0]) == 1


@pytest.mark.corner("D21")
@pytest.mark.requirement("R3")
async def test_entry_is_dead_lettered_once_with_all_that_is_known(world: World) -> None:
    (entry,) = await delivered(world, "e0")
    before_ms = await world.store.ping()

    first = await world.store.dead_letter(FENCE, letter(entry))
    again = await world.store.dead_letter(FENCE, letter(entry))

    after_ms = await world.store.ping()
    assert (first, again) == (DeadOutcome.DEAD, DeadOutcome.GONE)
    assert await world.waiting(FENCE) == []
    (partition,) = await world.store.dead_letter_partitions()
    (record,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert before_ms <= record.time_ms <= after_ms
    assert record == DeadLetterRecord(
        id=record.id,
        partition=partition,
        user=ALICE,
        session=PHONE,
        entry=entry,
        event=EventId("order:1"),
        type="tool_completed",
        reason="ack_timeout",
        attempts=5,
        node=NODE,
        time_ms=record.time_ms,
        body=b"\x00body\xff",
    )


async def test_dead_letter_without_its_envelope_takes_it_from_the_stream(world: World) -> None:
    (entry,) = await delivered(world, "e0")

    await world.store.dead_letter(FENCE, replace(letter(entry), body=b""))

    (partition,) = await world.store.dead_letter_partitions()
    (record,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert record.body == b"e0"


async def test_dead_letter_of_a_trimmed_entry_may_have_no_envelope(world: World) -> None:
    (entry,) = await delivered(world, "e0")
    await world.power.trim(ALICE, 0)

    assert await world.store.dead_letter(FENCE, replace(letter(entry), body=b"")) is DeadOutcome.DEAD

    (partition,) = await world.store.dead_letter_partitions()
    (record,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    assert (record.entry, record.body) == (entry, b"")


@pytest.mark.corner("D21")
async def test_entry_that_was_acked_is_not_dead_lettered(world: World) -> None:
    (entry,) = await delivered(world, "e0")
    await world.ack(FENCE, entry)

    assert await world.store.dead_letter(FENCE, letter(entry)) is DeadOutcome.GONE

    assert list(await world.store.dead_letter_partitions()) == []


@pytest.mark.corner("D21")
async def test_entry_that_was_never_delivered_is_not_dead_lettered(world: World) -> None:
    await delivered(world, "e0")
    (unread,) = await world.publish("unread")

    assert await world.store.dead_letter(FENCE, letter(unread)) is DeadOutcome.GONE

    assert list(await world.store.dead_letter_partitions()) == []
    assert await world.received(FENCE) == ["unread"]


@pytest.mark.corner("D21")
async def test_entry_is_given_up_for_one_session_only(world: World) -> None:
    await world.open(DESK)
    (entry,) = await delivered(world, "e0")
    await world.received(DESK)

    await world.store.dead_letter(FENCE, letter(entry))

    assert await world.waiting(DESK) == [(entry, 1)]


async def test_dead_letters_of_a_partition_are_read_in_pages(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    entries = await delivered(world, "e0", "e1", "e2")
    for entry in entries:
        await world.store.dead_letter(FENCE, letter(entry))

    assert list(await world.store.dead_letter_partitions()) == [0]
    first = await world.store.dead_letters(0, ENTRY_ZERO, 2)
    second = await world.store.dead_letters(0, first[-1].id, 2)
    end = await world.store.dead_letters(0, second[-1].id, 2)

    assert [record.entry for record in [*first, *second, *end]] == entries
    assert (len(first), len(second), len(end)) == (2, 1, 0)


async def test_dead_letters_end_their_life(make_world: MakeWorld) -> None:
    world = await make_world(dead_letter_ttl_ms=3_000)
    (entry,) = await delivered(world, "e0")
    await world.store.dead_letter(FENCE, letter(entry))
    (partition,) = await world.store.dead_letter_partitions()
    await world.pass_time(3_001)

    assert list(await world.store.dead_letters(partition, ENTRY_ZERO, 10)) == []
    assert list(await world.store.dead_letter_partitions()) == []


# --- heartbeats -------------------------------------------------------------------------------------------------------


@pytest.mark.corner("D1")
async def test_heartbeat_tells_what_the_sweep_wants_to_know(world: World) -> None:
    await world.open(FENCE)
    await world.open(DESK)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FENCE, count=2)
    await world.received(DESK)
    await world.ack(DESK, *entries)

    assert list(await world.store.heartbeat([FENCE, DESK], NODE)) == [
        Beat(state=BeatState.HELD, pending=2, unread=True),
        Beat(state=BeatState.HELD, pending=0, unread=False),
    ]


@pytest.mark.corner("D17")
@timely
async def test_heartbeats_keep_a_session_live(make_world: MakeWorld) -> None:
    world = await make_world(live_ttl_ms=1_000)  # so long that a busy machine is in time with each of them
    await world.open(FENCE)
    for _ in range(4):
        await world.pass_time(300)
        assert list(await world.store.heartbeat([FENCE], NODE)) == [Beat(state=BeatState.HELD)]

    await world.publish("e0")
    assert await world.received(FENCE) == ["e0"]


@pytest.mark.corner("D1")
async def test_heartbeat_counts_trimmed_entries_that_wait(world: World) -> None:
    await delivered(world, "e0", "e1")
    await world.power.trim(ALICE, 0)

    assert list(await world.store.heartbeat([FENCE], NODE)) == [Beat(state=BeatState.HELD, pending=2, unread=False)]
