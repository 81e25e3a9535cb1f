"""What can not be given any more is announced with its range, and nothing else is (D4, D7, D9, D10, D15)."""

from __future__ import annotations

import pytest

from eventbus.config import StreamFullPolicy
from eventbus.ids import ENTRY_ZERO, EntryId, EventId, SessionId, entry_order
from eventbus.store import (
    Append,
    Attached,
    Beat,
    BeatState,
    GapReason,
    NewRead,
    PendingPage,
    ReadState,
    Redelivery,
    RedeliveryOutcome,
    ReleaseReason,
    Start,
    StoredEntry,
    StoreGap,
)
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, PHONE, World, fence_of, stored

pytestmark = pytest.mark.requirement("R7")

FIRST, SECOND, THIRD = fence_of("c1"), fence_of("c2"), fence_of("c3")


async def settled(world: World, *names: str) -> tuple[Attached, list[EntryId]]:
    """A session that read and acked these events."""
    attached = await world.open(FIRST)
    entries = await world.publish(*names)
    assert await world.received(FIRST) == list(names)
    assert await world.ack(FIRST, *entries) == len(names)
    return attached, entries


async def names(world: World, result: NewRead) -> list[str]:
    assert result.state is ReadState.OK
    return [entry.body.decode() for entry in result.entries]


# --- trimmed ----------------------------------------------------------------------------------------------------------


async def test_events_trimmed_while_a_session_was_away_are_a_gap_with_its_range(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    await world.store.detach(FIRST, entries[1])
    lost = await world.publish("e2", "e3", "e4", "e5")
    await world.power.trim(ALICE, 1)

    attached = await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[1], before=lost[3], count=3)
    assert await world.received(SECOND) == ["e5"]


async def test_gap_is_found_without_a_cursor_too(world: World) -> None:
    """A client that kept no cursor still has a session, whose group knows how much it read."""
    _, entries = await settled(world, "e0", "e1")
    await world.store.detach(FIRST, entries[1])
    later = await world.publish("e2", "e3")
    await world.power.trim(ALICE, 1)

    attached = await world.open(SECOND)

    assert attached.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[1], before=later[1], count=1)


async def test_gap_reaches_to_the_end_when_everything_was_trimmed(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.store.detach(FIRST, entries[0])
    await world.publish("e1", "e2")
    await world.power.trim(ALICE, 0)

    attached = await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[0], before=None, count=2)
    await world.publish("e3")
    assert await world.received(SECOND) == ["e3"]


@pytest.mark.corner("D15")
async def test_gap_is_announced_once(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    await world.store.detach(FIRST, entries[1])
    await world.publish("e2", "e3")
    await world.power.trim(ALICE, 1)
    assert (await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)).gap is not None
    read = await world.read(SECOND)
    cursor = read.entries[-1].id
    await world.ack(SECOND, cursor)

    again = await world.open(THIRD, cursor=cursor, epoch=opened.epoch)

    assert (read.gap, again.gap) == (None, None)


async def test_gap_is_announced_again_when_the_socket_died_before_anything_was_read_behind_it(world: World) -> None:
    """Nobody knows whether the frame with the gap arrived, so the next connection is told too."""
    opened, entries = await settled(world, "e0", "e1")
    await world.store.detach(FIRST, entries[1])
    lost = await world.publish("e2", "e3", "e4")
    await world.power.trim(ALICE, 1)
    expected = StoreGap(reason=GapReason.TRIMMED, after=entries[1], before=lost[2], count=2)

    gaps = [(await world.open(fence, cursor=entries[1], epoch=opened.epoch)).gap for fence in (SECOND, THIRD, FIRST)]

    assert gaps == [expected, expected, expected]
    assert await world.received(FIRST) == ["e4"]
    assert (await world.open(SECOND, cursor=lost[2], epoch=opened.epoch)).gap is None


@pytest.mark.parametrize("keep", [0, 1])
async def test_gap_that_nobody_can_count_is_announced_again_too(world: World, keep: int) -> None:
    opened, entries = await settled(world, "e0")
    await world.store.end_session(ALICE, PHONE)
    later = await world.publish("e1", "e2")
    await world.power.trim(ALICE, keep)

    first = await world.open(SECOND, start=Start.CURSOR, cursor=entries[0], epoch=opened.epoch)
    again = await world.open(THIRD, start=Start.CURSOR, cursor=entries[0], epoch=opened.epoch)

    assert first.gap is not None
    assert first.gap.count is None
    assert again.gap == first.gap
    assert await world.received(THIRD) == ["e2"][:keep]
    (entry,) = await world.publish("e3")
    assert await world.received(THIRD) == ["e3"]
    assert (await world.open(SECOND, cursor=entry, epoch=opened.epoch)).gap is None
    assert later


@pytest.mark.corner("D1")
async def test_connection_that_was_told_of_a_gap_is_not_told_again_when_it_re_attaches(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.publish("e1", "e2", "e3")
    await world.power.trim(ALICE, 2)
    first = await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)

    again = await world.reattach(SECOND, cursor=entries[0], epoch=opened.epoch)
    await world.power.trim(ALICE, 1)
    third = await world.reattach(SECOND, cursor=entries[0], epoch=opened.epoch)

    assert first.gap is not None
    assert third.gap is not None
    assert (first.gap.count, again.gap, third.gap.count) == (1, None, 1)
    assert await world.received(SECOND) == ["e3"]


async def test_what_goes_between_the_attach_and_the_first_read_is_counted_by_itself(world: World) -> None:
    opened, entries = await settled(world, "e0")
    later = await world.publish("e1", "e2", "e3")
    await world.power.trim(ALICE, 2)
    attached = await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)
    await world.power.trim(ALICE, 1)

    read = await world.read(SECOND)

    assert attached.gap is not None
    assert attached.gap.count == 1
    assert read.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[0], before=later[2], count=1)
    assert await names(world, read) == ["e3"]


async def test_cursor_at_the_end_of_a_stream_that_was_trimmed_is_no_gap(world: World) -> None:
    """Nothing came behind it, so nothing is lost, though the session is not known any more."""
    opened, entries = await settled(world, "e0", "e1")
    await world.store.end_session(ALICE, PHONE)
    await world.power.trim(ALICE, 0)

    attached = await world.open(SECOND, start=Start.CURSOR, cursor=entries[1], epoch=opened.epoch)

    assert attached.gap is None


@pytest.mark.corner("D15")
async def test_second_gap_counts_only_what_was_lost_since_the_first(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    await world.publish("e2", "e3")
    await world.power.trim(ALICE, 1)
    await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)
    read = await world.read(SECOND)
    cursor = read.entries[-1].id
    await world.ack(SECOND, cursor)
    later = await world.publish("e4", "e5", "e6")
    await world.power.trim(ALICE, 1)

    attached = await world.open(THIRD, cursor=cursor, epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.TRIMMED, after=cursor, before=later[2], count=2)


async def test_cursor_of_a_session_that_is_gone_and_was_trimmed_is_a_gap(world: World) -> None:
    """Nobody knows how much was lost: the group that read is gone."""
    opened, entries = await settled(world, "e0")
    await world.store.end_session(ALICE, PHONE)
    later = await world.publish("e1", "e2")
    await world.power.trim(ALICE, 1)

    attached = await world.open(SECOND, start=Start.CURSOR, cursor=entries[0], epoch=opened.epoch)

    assert not attached.resumed
    assert attached.gap is not None
    assert (attached.gap.after, attached.gap.before) == (entries[0], later[1])
    assert await world.received(SECOND) == ["e2"]


# --- no false gaps ----------------------------------------------------------------------------------------------------


async def test_known_cursor_is_no_gap(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    await world.publish("e2")

    attached = await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)

    assert attached.gap is None


@pytest.mark.corner("D15")
@pytest.mark.parametrize("cursor", [None, ENTRY_ZERO])
async def test_client_that_has_seen_nothing_misses_nothing(world: World, cursor: EntryId | None) -> None:
    entries = await world.publish("e0", "e1", "e2")
    await world.power.trim(ALICE, 1)
    _, epoch = await world.store.tail(ALICE)

    attached = await world.open(FIRST, start=Start.CURSOR, cursor=cursor, epoch=epoch)

    assert attached.gap is None
    assert attached.tail == entries[2]
    assert await world.received(FIRST) == ["e2"]


@pytest.mark.corner("D15")
@pytest.mark.parametrize("start", [Start.NEW, Start.EARLIEST])
async def test_new_session_misses_nothing_of_what_was_trimmed_before_it(world: World, start: Start) -> None:
    await world.publish("e0", "e1", "e2")
    await world.power.trim(ALICE, 1)
    opened = await world.open(FIRST, start=start)
    read = await world.read(FIRST)
    (entry,) = await world.publish("e3")
    later = await world.read(FIRST)

    resumed = await world.open(SECOND, cursor=entry, epoch=opened.epoch)

    assert (opened.gap, read.gap, later.gap, resumed.gap) == (None, None, None, None)


@pytest.mark.corner("D15")
@pytest.mark.parametrize("keep", [0, 1])
async def test_cursor_that_was_acked_and_trimmed_is_no_gap(world: World, keep: int) -> None:
    opened, entries = await settled(world, "e0", "e1", "e2")
    await world.store.detach(FIRST, entries[1])
    await world.power.trim(ALICE, keep)

    attached = await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)

    assert attached.gap is None
    await world.publish("e3")
    assert await world.received(SECOND) == ["e3"]


@pytest.mark.corner("D15")
async def test_trimming_up_to_what_is_unread_is_no_gap(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    await world.publish("e2", "e3")
    await world.power.trim(ALICE, 2)

    attached = await world.open(SECOND, cursor=entries[1], epoch=opened.epoch)

    assert attached.gap is None
    assert await world.received(SECOND) == ["e2", "e3"]


@pytest.mark.corner("D15")
async def test_pending_entries_that_were_trimmed_are_told_by_the_pages_alone(world: World) -> None:
    """The attach counts what was never read; a pending entry without a body is a gap of its own."""
    opened = await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.received(FIRST)
    await world.power.trim(ALICE, 1)

    attached = await world.open(SECOND, cursor=ENTRY_ZERO, epoch=opened.epoch)

    assert (attached.gap, attached.pending, attached.first_pending) == (None, 3, entries[0])


@pytest.mark.corner("D15")
@timely
async def test_quiet_session_outlives_the_retention(make_world: MakeWorld) -> None:
    """Its heartbeats renew the life of the stream, so its cursor and its group stay."""
    world = await make_world(retention_ms=1_000, live_ttl_ms=900)
    opened, entries = await settled(world, "e0")
    for _ in range(3):
        await world.pass_time(500)
        assert list(await world.store.heartbeat([FIRST], NODE)) == [Beat(state=BeatState.HELD)]

    attached = await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)

    assert (attached.resumed, attached.gap) == (True, None)
    assert (attached.position, attached.tail) == (entries[0], entries[0])
    await world.publish("e1")
    assert await world.received(SECOND) == ["e1"]


@pytest.mark.corner("D15")
@timely
async def test_attach_renews_the_life_of_the_stream(make_world: MakeWorld) -> None:
    world = await make_world(retention_ms=1_000)
    opened, entries = await settled(world, "e0")
    await world.pass_time(600)
    await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)
    await world.pass_time(600)

    attached = await world.open(THIRD, cursor=entries[0], epoch=opened.epoch)

    assert (attached.resumed, attached.gap, attached.position) == (True, None, entries[0])


# --- under a live session (D7) ----------------------------------------------------------------------------------------


@pytest.mark.corner("D7")
async def test_cap_that_overtakes_a_live_session_is_a_gap_in_its_next_read(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.GAP)
    await world.open(FIRST)
    first = await world.publish("e0", "e1", "e2")
    full = await world.read(FIRST, count=2)
    later = await world.publish("e3", "e4", "e5", "e6")

    result = await world.read(FIRST, count=2, verify=full.entries[-1].id)

    assert result == NewRead(
        state=ReadState.OK,
        entries=result.entries,
        gap=StoreGap(reason=GapReason.TRIMMED, after=first[1], before=later[1], count=2),
    )
    assert list(result.entries) == [StoredEntry(later[1], b"e4"), StoredEntry(later[2], b"e5")]


@pytest.mark.corner("D7")
async def test_cap_that_overtakes_a_session_that_had_read_everything_is_a_gap_too(make_world: MakeWorld) -> None:
    """Its last read was no full one, so the node does not ask: the store remembers where it took entries away."""
    world = await make_world(max_stream_entries=3)
    _, entries = await settled(world, "e0")
    later = await world.publish("e1", "e2", "e3", "e4", "e5")

    result = await world.read(FIRST)

    assert result.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[0], before=later[2], count=2)
    assert await names(world, result) == ["e3", "e4", "e5"]
    assert (await world.read(FIRST)).gap is None


@pytest.mark.corner("D7")
async def test_every_live_session_that_the_cap_overtakes_is_told(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=2)
    desk = fence_of("c9", session=SessionId("desk"))
    await world.open(FIRST)
    await world.open(desk)
    entries = await world.publish("e0", "e1", "e2", "e3")

    told = [await world.read(FIRST), await world.read(desk)]

    expected = StoreGap(reason=GapReason.TRIMMED, after=None, before=entries[2], count=2)
    assert [result.gap for result in told] == [expected, expected]
    assert [await names(world, result) for result in told] == [["e2", "e3"], ["e2", "e3"]]


@pytest.mark.corner("D7")
async def test_read_after_a_gap_is_whole_again(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3)
    await world.open(FIRST)
    await world.publish("e0", "e1", "e2")
    full = await world.read(FIRST, count=2)
    await world.publish("e3", "e4", "e5", "e6")
    gapped = await world.read(FIRST, count=2, verify=full.entries[-1].id)

    result = await world.read(FIRST, count=2, verify=gapped.entries[-1].id)

    assert (await names(world, result), result.gap) == (["e6"], None)


@pytest.mark.corner("D7")
async def test_gap_is_found_when_nothing_is_left_to_read(world: World) -> None:
    await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST, count=2)
    await world.power.trim(ALICE, 0)

    result = await world.read(FIRST, count=2, verify=entries[1])

    assert result.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[1], before=None, count=1)
    assert await names(world, result) == []


@pytest.mark.corner("D7")
async def test_last_id_read_that_is_still_there_is_no_gap(world: World) -> None:
    await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST, count=2)
    await world.power.trim(ALICE, 2)

    result = await world.read(FIRST, count=2, verify=entries[1])

    assert (await names(world, result), result.gap) == (["e2"], None)


@pytest.mark.corner("D7")
@pytest.mark.corner("D18")
async def test_last_id_read_that_was_acked_and_trimmed_is_no_gap(world: World) -> None:
    """At the cap, append trims up to what is still needed: the last id read goes, and nothing is lost with it."""
    await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST, count=2)
    await world.ack(FIRST, *entries[:2])
    await world.power.trim(ALICE, 1)

    result = await world.read(FIRST, count=2, verify=entries[1])

    assert (await names(world, result), result.gap) == (["e2"], None)


# --- rolled back (D4) -------------------------------------------------------------------------------------------------


@pytest.mark.corner("D4")
async def test_cursor_ahead_of_a_stream_that_was_rolled_back_is_a_gap(world: World) -> None:
    opened, entries = await settled(world, "e0", "e1")
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    await world.read(FIRST)
    await world.ack(FIRST, lost)
    await world.power.roll_back(ALICE, snapshot)

    attached = await world.open(SECOND, cursor=lost, epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[1], before=None)
    assert (attached.position, attached.tail) == (entries[1], entries[1])
    await world.publish("e2")
    assert await world.received(SECOND) == ["e2"]


@pytest.mark.corner("D4")
async def test_cursor_that_was_rolled_back_is_found_after_the_stream_ran_past_it(world: World) -> None:
    """By then no comparison of ids shows the loss: the inclusive look at the cursor does."""
    opened, entries = await settled(world, "e0", "e1")
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    await world.read(FIRST)
    await world.ack(FIRST, lost)
    await world.power.roll_back(ALICE, snapshot)
    await world.pass_time(5)
    later = await world.publish("e2", "e3")
    assert entry_order(later[0]) > entry_order(lost)

    attached = await world.open(SECOND, cursor=lost, epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[1], before=later[0])
    assert attached.position == entries[1]
    assert await world.received(SECOND) == ["e2", "e3"]


@pytest.mark.corner("D4")
async def test_new_session_with_a_cursor_that_was_rolled_back_reads_on_from_what_survived(world: World) -> None:
    entries = await world.publish("e0", "e1")
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    _, epoch = await world.store.tail(ALICE)
    await world.power.roll_back(ALICE, snapshot)

    attached = await world.open(FIRST, start=Start.CURSOR, cursor=lost, epoch=epoch)

    assert attached.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[1], before=None)
    assert attached.position == entries[1]
    await world.publish("e2")
    assert await world.received(FIRST) == ["e2"]


@pytest.mark.corner("D4")
async def test_cursor_of_a_stream_of_which_nothing_survived_is_a_gap(world: World) -> None:
    opened = await world.open(FIRST)
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    await world.read(FIRST)
    await world.ack(FIRST, lost)
    await world.power.roll_back(ALICE, snapshot)

    attached = await world.open(SECOND, cursor=lost, epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.ROLLBACK, after=lost, before=None)
    assert (attached.position, attached.tail) == (ENTRY_ZERO, ENTRY_ZERO)
    await world.publish("e0")
    assert await world.received(SECOND) == ["e0"]


@pytest.mark.corner("D4")
async def test_group_ahead_of_its_stream_goes_back_instead_of_reading_nothing(world: World) -> None:
    """Also for a client that has no cursor to compare."""
    opened, entries = await settled(world, "e0", "e1")
    ms, _ = entry_order(entries[1])
    await world.power.misplace_group(ALICE, PHONE, EntryId(f"{ms + 3_600_000}-0"))

    attached = await world.open(SECOND, epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[1], before=None)
    assert attached.position == entries[1]
    await world.publish("e2")
    assert await world.received(SECOND) == ["e2"]


@pytest.mark.corner("D4")
@pytest.mark.corner("D1")
async def test_live_session_finds_a_rollback_when_it_re_attaches(world: World) -> None:
    opened, entries = await settled(world, "e0")
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    await world.read(FIRST)
    await world.power.roll_back(ALICE, snapshot)

    again = await world.reattach(FIRST, cursor=lost, epoch=opened.epoch)

    assert again.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[0], before=None)
    await world.publish("e1")
    assert await world.received(FIRST) == ["e1"]


@pytest.mark.corner("D4")
@pytest.mark.corner("D7")
async def test_read_that_verifies_an_id_which_was_rolled_back_is_a_gap(world: World) -> None:
    await world.open(FIRST)
    entries = await world.publish("e0")
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await world.publish("lost")
    await world.read(FIRST, count=2)
    await world.power.roll_back(ALICE, snapshot)
    await world.power.misplace_group(ALICE, PHONE, lost)
    await world.pass_time(5)
    later = await world.publish("e1", "e2")

    result = await world.read(FIRST, verify=lost)

    assert result.gap == StoreGap(reason=GapReason.ROLLBACK, after=entries[0], before=later[0])
    assert await names(world, result) == ["e1", "e2"]


@pytest.mark.corner("D4")
@pytest.mark.corner("D5")
async def test_event_that_was_rolled_back_is_stored_anew_when_it_is_published_again(world: World) -> None:
    """The failover lost the entry and the memory of its event id together."""
    await world.open(FIRST)
    await world.publish("e0")
    lost = Append(user=ALICE, event=EventId("lost"), body=b"lost")
    snapshot = await world.power.snapshot(ALICE)
    await world.append(lost)
    await world.power.roll_back(ALICE, snapshot)

    (again,) = await world.append(lost)

    assert not stored(again).duplicate
    assert await world.retained() == ["e0", "lost"]


# --- reset ------------------------------------------------------------------------------------------------------------


async def test_epoch_stays_while_the_data_stays(world: World) -> None:
    opened = await world.open(FIRST)
    await world.publish("e0")
    resumed = await world.open(SECOND, epoch=opened.epoch)
    _, epoch = await world.store.tail(ALICE)

    assert opened.epoch == resumed.epoch == epoch != ""


async def test_lost_data_are_announced_as_a_reset(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.power.flush()
    (new,) = await world.publish("new")

    attached = await world.open(SECOND, start=Start.CURSOR, cursor=entries[0], epoch=opened.epoch)

    assert attached.epoch != opened.epoch
    assert attached.gap is not None
    assert (attached.gap.reason, attached.gap.after, attached.gap.before) == (GapReason.RESET, entries[0], new)
    assert not attached.resumed
    assert await world.received(SECOND) == ["new"]


async def test_lost_data_are_a_reset_also_when_nothing_came_since(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.power.flush()

    attached = await world.open(SECOND, start=Start.CURSOR, cursor=entries[0], epoch=opened.epoch)

    assert attached.gap is not None
    assert attached.gap.reason is GapReason.RESET
    assert (attached.position, attached.tail) == (ENTRY_ZERO, ENTRY_ZERO)
    await world.publish("e1")
    assert await world.received(SECOND) == ["e1"]


@pytest.mark.parametrize("start", list(Start))
async def test_client_of_lost_data_gets_all_there_is(world: World, start: Start) -> None:
    """Wherever a new session would begin: what came since the loss was meant for this client too."""
    opened, entries = await settled(world, "e0")
    await world.power.flush()
    await world.publish("new")

    attached = await world.open(SECOND, start=start, cursor=entries[0], epoch=opened.epoch)

    assert attached.gap is not None
    assert await world.received(SECOND) == ["new"]


async def test_client_with_an_old_epoch_is_told_until_it_knows_the_new_one(world: World) -> None:
    """Whoever lost the connection before the gap arrived is told again, and the session keeps its place."""
    opened, entries = await settled(world, "e0")
    await world.power.flush()
    await world.publish("new")
    first = await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)
    assert await world.received(SECOND) == ["new"]

    again = await world.open(THIRD, cursor=entries[0], epoch=opened.epoch)
    informed = await world.open(FIRST, epoch=again.epoch)

    assert again.gap is not None
    assert again.gap == first.gap
    assert (again.resumed, again.pending, again.epoch) == (True, 1, first.epoch)
    assert informed.gap is None


@pytest.mark.corner("D10")
async def test_live_session_finds_lost_data_by_its_heartbeat_and_its_read(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.power.flush()
    await world.publish("new")

    assert list(await world.store.heartbeat([FIRST], NODE)) == [Beat(state=BeatState.MISSING)]
    assert await world.read(FIRST) == NewRead(state=ReadState.LOST)
    again = await world.reattach(FIRST, cursor=entries[0], epoch=opened.epoch)

    assert again.gap is not None
    assert again.gap.reason is GapReason.RESET
    assert await world.received(FIRST) == ["new"]


# --- a vanished group (D10) -------------------------------------------------------------------------------------------


@pytest.mark.corner("D10")
async def test_read_without_its_group_says_so(world: World) -> None:
    await settled(world, "e0")
    await world.power.lose_group(ALICE, PHONE)

    assert await world.read(FIRST) == NewRead(state=ReadState.NO_GROUP)


@pytest.mark.corner("D10")
async def test_session_without_its_group_has_nothing_pending_and_is_to_re_attach(world: World) -> None:
    await world.open(FIRST)
    (entry,) = await world.publish("e0")
    await world.read(FIRST)
    await world.power.lose_group(ALICE, PHONE)

    assert await world.page(FIRST) == PendingPage(entries=(), last=True)
    assert await world.store.redeliver(FIRST, [Redelivery(id=entry, attempts=2)]) == [RedeliveryOutcome.GONE]
    assert await world.store.release(FIRST, [entry], ReleaseReason.EXPIRED) == 0
    assert await world.ack(FIRST, entry) == 0
    assert list(await world.store.heartbeat([FIRST], NODE)) == [Beat(state=BeatState.MISSING)]


@pytest.mark.corner("D10")
async def test_vanished_group_is_made_anew_at_the_beginning_and_skips_nothing(world: World) -> None:
    """What was acked comes again, for the acks are gone with the group; the client drops it by its event id."""
    opened, entries = await settled(world, "e0")
    await world.publish("unread")
    await world.power.lose_group(ALICE, PHONE)

    again = await world.reattach(FIRST, start=Start.NEW, cursor=entries[0], epoch=opened.epoch)

    assert again.position == ENTRY_ZERO
    assert await world.received(FIRST) == ["e0", "unread"]


@pytest.mark.corner("D10")
async def test_session_whose_group_vanished_while_it_was_away_skips_nothing(world: World) -> None:
    opened, entries = await settled(world, "e0")
    await world.store.detach(FIRST, entries[0])
    await world.publish("unread")
    await world.power.lose_group(ALICE, PHONE)

    attached = await world.open(SECOND, start=Start.NEW, cursor=entries[0], epoch=opened.epoch)

    assert attached.position == ENTRY_ZERO
    assert await world.received(SECOND) == ["e0", "unread"]


# --- gaps that nobody may have heard of -------------------------------------------------------------------------------


async def overtaken(world: World) -> tuple[Attached, list[EntryId], NewRead]:
    """A session reads behind a gap of two. Returns its opening, the entries, and the read."""
    opened, entries = await settled(world, "e0")
    entries += await world.publish("e1", "e2", "e3", "e4")
    await world.power.trim(ALICE, 2)
    await world.open(SECOND, cursor=entries[0], epoch=opened.epoch)
    return opened, entries, await world.read(SECOND)


@pytest.mark.requirement("R7")
async def test_gap_is_told_again_when_the_socket_died_before_the_client_handled_what_came_behind_it(
    world: World,
) -> None:
    opened, entries, read = await overtaken(world)
    assert [entry.id for entry in read.entries] == entries[3:]
    expected = StoreGap(reason=GapReason.TRIMMED, after=entries[0], before=entries[3], count=2)

    for fence in (THIRD, FIRST):
        assert (await world.open(fence, cursor=entries[0], epoch=opened.epoch)).gap == expected
    await world.ack(FIRST, entries[3])
    assert (await world.open(SECOND, cursor=entries[3], epoch=opened.epoch)).gap is None
    assert (await world.open(THIRD, cursor=entries[0], epoch=opened.epoch)).gap is None, "it is done with"


@pytest.mark.requirement("R7")
async def test_gap_is_told_again_to_a_client_that_gives_no_cursor_until_it_acks_what_came_behind_it(
    world: World,
) -> None:
    _, entries, _ = await overtaken(world)

    assert (await world.open(THIRD)).gap is not None
    await world.ack(THIRD, entries[3])
    assert (await world.open(FIRST)).gap is None


@pytest.mark.requirement("R7")
@pytest.mark.corner("D1", "D7")
async def test_gap_in_a_read_whose_answer_was_lost_is_told_by_the_next_attach(make_world: MakeWorld) -> None:
    world = await make_world(max_stream_entries=3, stream_full_policy=StreamFullPolicy.GAP)
    opened = await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST, count=2)
    entries += await world.publish("e3", "e4", "e5", "e6")
    lost = await world.read(FIRST, count=2, verify=entries[1])
    assert lost.gap is not None

    again = await world.reattach(FIRST, cursor=entries[1], epoch=opened.epoch)

    assert again.gap == lost.gap


@pytest.mark.requirement("R7")
async def test_trimmed_pending_entries_are_told_again_too(world: World) -> None:
    await world.open(FIRST)
    entries = await world.publish("e0", "e1", "e2")
    await world.read(FIRST)
    await world.power.trim(ALICE, 1)
    await world.store.release(FIRST, entries[:2], ReleaseReason.TRIMMED)

    again = await world.open(SECOND)

    assert again.gap == StoreGap(reason=GapReason.TRIMMED, after=None, before=entries[2], count=2)
    await world.ack(SECOND, entries[2])
    assert (await world.open(THIRD)).gap is None


async def test_a_second_gap_is_told_together_with_one_that_was_not_heard_of(world: World) -> None:
    opened, entries, _ = await overtaken(world)
    entries += await world.publish("e5", "e6")
    await world.power.trim(ALICE, 1)

    attached = await world.open(THIRD, cursor=entries[0], epoch=opened.epoch)

    assert attached.gap == StoreGap(reason=GapReason.TRIMMED, after=entries[0], before=entries[6], count=3)


async def test_gap_of_a_session_that_is_over_is_not_told_to_one_of_its_name(world: World) -> None:
    _, _, _ = await overtaken(world)
    await world.store.end_session(ALICE, PHONE)

    assert (await world.open(THIRD)).gap is None
