"""Displayed and confirmed: what is recorded, for which entries, and what is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from eventbus.config import ConfirmationRecords
from eventbus.event import Level
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId
from eventbus.store import Confirmed, ConfirmRequest, Fence, ReleaseReason, Start
from tests.contract.worlds import ALICE, World, fence_of

PHONE = fence_of("c1")
LAPTOP = fence_of("c2", session=SessionId("laptop"))


async def confirm(
    world: World, *entries: EntryId, level: Level = Level.DISPLAYED, fence: Fence = PHONE, note: str | None = None
) -> Confirmed:
    request = ConfirmRequest(user=fence.user, session=fence.session, level=level, entries=entries, note=note)
    (result,) = await world.store.confirm_many([request])
    assert isinstance(result, Confirmed), result
    return result


async def records(world: World) -> list[tuple[str, str, tuple[EntryId, ...], str | None]]:
    """Session, level, entries and note of all that is on record."""
    found = await world.store.confirmations(ALICE, ENTRY_ZERO, 1000)
    return [(record.session, record.level, tuple(record.entries), record.note) for _, record in found]


async def delivered(world: World, *names: str, fence: Fence = PHONE) -> list[EntryId]:
    """Publishes and reads: the entries are pending for the session."""
    await world.open(fence)
    entries = await world.publish(*names)
    assert await world.received(fence) == list(names)
    return entries


@pytest.mark.requirement("R11")
async def test_a_level_is_recorded_for_entries_that_were_acked_before(world: World) -> None:
    entries = await delivered(world, "a", "b")
    await world.ack(PHONE, *entries)

    assert await confirm(world, *entries) == Confirmed(0, 2)
    assert await confirm(world, entries[1], level=Level.CONFIRMED, note="read aloud") == Confirmed(0, 1)

    assert await records(world) == [
        ("phone", "received", tuple(entries), None),
        ("phone", "displayed", tuple(entries), None),
        ("phone", "confirmed", (entries[1],), "read aloud"),
    ]


@pytest.mark.requirement("R11")
async def test_a_level_releases_what_is_pending_and_implies_received(world: World) -> None:
    entries = await delivered(world, "a", "b")

    assert await confirm(world, entries[0], level=Level.CONFIRMED) == Confirmed(1, 1)

    assert [entry for entry, _ in await world.waiting(PHONE)] == [entries[1]]
    assert await records(world) == [
        ("phone", "received", (entries[0],), None),
        ("phone", "confirmed", (entries[0],), None),
    ]


@pytest.mark.requirement("R11")
async def test_a_repeated_or_lower_level_is_no_error_and_changes_nothing(world: World) -> None:
    (entry,) = await delivered(world, "a")
    assert await confirm(world, entry, entry, level=Level.CONFIRMED, note="first") == Confirmed(1, 1)
    before = await records(world)

    assert await confirm(world, entry, level=Level.CONFIRMED, note="again") == Confirmed(0, 0)
    assert await confirm(world, entry) == Confirmed(0, 0)

    assert await records(world) == before


@pytest.mark.requirement("R11", "R22")
async def test_an_entry_that_was_not_delivered_to_the_session_cannot_be_confirmed_by_it(world: World) -> None:
    await world.open(PHONE)
    entries = await world.publish("a", "b")
    assert await world.received(PHONE, count=1) == ["a"]

    assert await confirm(world, *entries) == Confirmed(1, 1), "b is stored and not yet read"
    assert await confirm(world, EntryId("1-0"), EntryId("9999999999999-0")) == Confirmed(0, 0)

    assert [entry for *_, found, _ in await records(world) for entry in found] == [entries[0]] * 2


@pytest.mark.requirement("R11", "R22")
async def test_what_another_session_received_is_not_this_sessions_to_confirm(world: World) -> None:
    entries = await delivered(world, "a")
    await world.ack(PHONE, *entries)
    await world.open(LAPTOP, start=Start.NEW)
    await world.publish("b")
    assert await world.received(LAPTOP) == ["b"]

    assert await confirm(world, *entries, fence=LAPTOP) == Confirmed(0, 0)

    assert {session for session, *_ in await records(world)} == {"phone"}


@pytest.mark.requirement("R11")
async def test_what_the_node_filtered_out_cannot_be_confirmed(world: World) -> None:
    (entry,) = await delivered(world, "a")
    assert await world.store.release(PHONE, [entry], ReleaseReason.FILTERED) == 1

    assert await confirm(world, entry) == Confirmed(0, 0)
    assert await records(world) == [("phone", "filtered", (entry,), None)]


@pytest.mark.requirement("R11")
async def test_a_session_confirms_on_a_later_connection_what_it_received_on_an_earlier(world: World) -> None:
    (entry,) = await delivered(world, "a")
    await world.ack(PHONE, entry)
    await world.store.detach(PHONE, entry)
    again = fence_of("c9")
    await world.open(again)

    assert await confirm(world, entry, fence=again) == Confirmed(0, 1)


@pytest.mark.requirement("R11")
@pytest.mark.parametrize("behind", [0, 1_200])
async def test_the_ack_is_found_among_many_records_from_either_end(world: World, behind: int) -> None:
    """1,200 records that follow are more than one direction looks at; those before are none."""
    (entry,) = await delivered(world, "a")
    await world.ack(PHONE, entry)
    await world.open(LAPTOP)
    for start in range(0, behind, 300):
        more = await world.publish(*(f"n{start + number}" for number in range(300)))
        await world.read(LAPTOP, count=1000)
        for one in more:
            await world.ack(LAPTOP, one)

    assert await confirm(world, entry) == Confirmed(0, 1)


@pytest.mark.requirement("R11")
async def test_several_sessions_confirm_in_one_call_each_for_itself(world: World) -> None:
    entries = await delivered(world, "a")
    await world.open(LAPTOP)
    await world.read(LAPTOP)

    results = await world.store.confirm_many(
        [
            ConfirmRequest(user=ALICE, session=PHONE.session, level=Level.DISPLAYED, entries=entries),
            ConfirmRequest(user=ALICE, session=LAPTOP.session, level=Level.CONFIRMED, entries=entries, note="ok"),
            ConfirmRequest(user=ALICE, session=SessionId("nobody"), level=Level.CONFIRMED, entries=entries),
            ConfirmRequest(user=ALICE, session=LAPTOP.session, level=Level.CONFIRMED, entries=()),
        ]
    )

    assert list(results) == [Confirmed(1, 1), Confirmed(1, 1), Confirmed(0, 0), Confirmed(0, 0)]


async def test_nothing_is_recorded_where_records_are_off(make_world: Callable[..., Awaitable[World]]) -> None:
    world = await make_world(confirmation_records=ConfirmationRecords.OFF)
    (entry,) = await delivered(world, "a")

    assert await confirm(world, entry, level=Level.CONFIRMED) == Confirmed(1, 0)
    assert await records(world) == []
