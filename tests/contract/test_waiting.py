"""The index of who has something waiting, over every store."""

from __future__ import annotations

import pytest

from eventbus import inspection
from eventbus.errors import StoreError
from eventbus.ids import ENTRY_ZERO, EntryId, SessionId, UserId, entry_order
from eventbus.inspection import Timing
from eventbus.store import Redelivery
from eventbus.store.mending import TakenHow, TakeOff
from eventbus.store.waiting import AwayPending, PartitionFigures, WaitingMark, WaitingPlace, WaitingUser
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, World, fence_of

BOB, CYD = UserId("bob"), UserId("cyd")
PHONE = fence_of("c1")
TABLET = fence_of("c2", session=SessionId("tablet"))
pytestmark = pytest.mark.requirement("R27")


async def indexed(world: World, count: int = 100) -> list[UserId]:
    """Everybody in the index, of whichever partition, by the time since when it waits."""
    marks = [WaitingMark(since_ms=1, partition=number) for number in range(world.settings.partitions)]
    found: list[tuple[int, UserId]] = []
    for page in await world.store.waiting_users(marks, count):
        assert not isinstance(page, StoreError)
        found += [(one.since_ms, one.user) for one in page]
    return [user for _, user in sorted(found)]


async def away(world: World, user: UserId = ALICE) -> None:
    """The user has a session, which is away."""
    fence = fence_of("c1", user)
    await world.open(fence)
    await world.store.detach(fence, EntryId("0-0"))


async def test_a_user_without_a_live_session_is_in_it_from_the_publish_on(world: World) -> None:
    await away(world)
    assert await indexed(world) == []
    (entry, _) = await world.publish("a", "b")
    assert await indexed(world) == [ALICE]
    (since_ms,) = await world.store.recheck_waiting([ALICE])
    assert since_ms == entry_order(entry)[0]


async def test_who_has_read_and_acked_everything_is_not_in_it(world: World) -> None:
    await away(world)
    (entry,) = await world.publish("a")
    await world.open(PHONE)
    await world.received(PHONE)
    await world.ack(PHONE, entry)
    await world.store.heartbeat([PHONE], NODE)
    assert await indexed(world) == []


async def test_a_session_that_goes_away_with_something_pending_leaves_its_user_in_it(world: World) -> None:
    await world.open(PHONE)
    await world.publish("a")
    await world.received(PHONE)
    await world.store.detach(PHONE, EntryId("0-0"))
    assert await indexed(world) == [ALICE]


async def test_a_session_that_goes_away_with_nothing_pending_takes_its_user_out(world: World) -> None:
    await away(world)
    (entry,) = await world.publish("a")
    await world.open(PHONE)
    await world.received(PHONE)
    await world.ack(PHONE, entry)
    await world.store.detach(PHONE, entry)
    assert await indexed(world) == []


@timely
async def test_a_heartbeat_finds_what_waits_for_the_users_other_sessions(make_world: MakeWorld) -> None:
    world = await make_world(live_ttl_ms=1_600)
    await world.open(TABLET)
    await world.store.detach(TABLET, EntryId("0-0"))
    await world.open(PHONE)
    (entry,) = await world.publish("a")
    await world.received(PHONE)
    await world.ack(PHONE, entry)
    # What waits for less than a sixteenth of the life of a hold is on its way.
    await world.pass_time(150)
    await world.store.heartbeat([PHONE], NODE)
    assert await indexed(world) == [ALICE]


async def test_what_is_sent_again_waits(world: World) -> None:
    await world.open(PHONE)
    (entry,) = await world.publish("a")
    await world.received(PHONE)
    await world.store.redeliver(PHONE, [Redelivery(id=entry, attempts=2)])
    await world.store.heartbeat([PHONE], NODE)
    assert await indexed(world) == [ALICE]


async def test_a_session_that_is_ended_takes_what_waited_for_it_with_it(world: World) -> None:
    await away(world)
    await world.publish("a")
    await world.store.end_session(ALICE, SessionId("phone"))
    assert await indexed(world) == []


async def test_who_waits_longest_comes_first_and_pages_follow_each_other(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    users = [ALICE, BOB, CYD]
    for user in users:
        await away(world, user)
        await world.publish("a", user=user)
        await world.pass_time(2)
    mark, found = WaitingMark(since_ms=1, partition=0), list[WaitingUser]()
    while True:
        (page,) = await world.store.waiting_users([mark], 1)
        assert not isinstance(page, StoreError)
        if not page:
            break
        found += page
        mark = WaitingMark(since_ms=page[-1].since_ms, partition=0, user=page[-1].user)
    assert [one.user for one in found] == users


async def test_partitions_tell_how_much_they_hold(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    await away(world)
    (entry,) = await world.publish("a")
    await world.open(fence_of("c1", BOB))
    (figures,) = await world.store.partition_figures([0])
    assert figures == PartitionFigures(
        partition=0,
        waiting_users=1,
        oldest_ms=entry_order(entry)[0],
        dead_letters=0,
        deadlines=0,
        operator_events=0,
        live_users=1,
    )


async def test_what_waits_for_sessions_that_are_away_is_counted_once_for_each(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    await world.open(PHONE)
    (first, _) = await world.publish("a", "b")
    await world.received(PHONE)
    await world.ack(PHONE, first)
    await world.open(TABLET)
    await world.received(TABLET, 1)
    await world.store.detach(TABLET, EntryId("0-0"))
    await world.publish("c")
    # The phone is live: what it was sent is its node's to count. The tablet has `a` pending, and `b` and `c` to read.
    everybody = [WaitingPlace(partition=0, offset=0, count=10)]
    await world.store.recheck_waiting([ALICE])
    assert list(await world.store.away_pending(everybody)) == [AwayPending(users=1, entries=3)]
    await world.store.detach(PHONE, EntryId("0-0"))
    assert list(await world.store.away_pending(everybody)) == [AwayPending(users=1, entries=5)]


async def test_a_place_in_the_index_holds_no_more_users_than_were_asked_for(make_world: MakeWorld) -> None:
    world = await make_world(partitions=1)
    for number, user in enumerate([ALICE, BOB, CYD], 1):
        await away(world, user)
        await world.publish(*"abc"[:number], user=user)
        await world.pass_time(2)
    places = [WaitingPlace(partition=0, offset=1, count=1), WaitingPlace(partition=0, offset=2, count=10)]
    assert list(await world.store.away_pending(places)) == [AwayPending(users=1, entries=n) for n in (2, 3)]


async def test_pages_of_all_users_meet_everybody_once_the_longest_waiting_first(make_world: MakeWorld) -> None:
    world = await make_world(partitions=4)
    users = [UserId(f"user-{number}") for number in range(25)]
    for user in users:
        await away(world, user)
        await world.publish("a", user=user)
    found: list[UserId] = []
    cursor, pages = "", 0
    while True:
        page = await inspection.pending_of_users(world.store, Timing(), partitions=4, cursor=cursor, count=10)
        found += [row.user for row in page.rows]
        cursor, pages = page.cursor, pages + 1
        if not cursor:
            break
    assert (sorted(found), pages) == (sorted(users), 3)


async def test_a_user_whose_node_died_with_nothing_waiting_is_found_all_the_same(make_world: MakeWorld) -> None:
    """The index is told nothing: the field of the dead node's session still counts as live."""
    world = await make_world(partitions=1)
    await world.open(PHONE)
    await world.publish("a")
    page = await inspection.pending_of_users(world.store, Timing(), partitions=1)
    assert [(row.user, row.pending) for row in page.rows] == [(ALICE, 1)]


async def test_an_index_that_was_lost_is_made_anew(world: World) -> None:
    await away(world)
    await world.publish("a")
    async for _ in inspection.reindex(world.store):
        pass
    assert await indexed(world) == [ALICE]


async def test_who_has_a_dead_letter_put_back_is_in_it(world: World) -> None:
    await world.open(PHONE)
    (entry,) = await world.publish("a")
    await world.received(PHONE)
    await world.store.take_off(TakeOff(user=ALICE, session=PHONE.session, entries=[entry], how=TakenHow.DEAD))
    await world.store.detach(PHONE, entry)
    assert await indexed(world) == []
    (partition,) = await world.store.dead_letter_partitions()
    (letter,) = await world.store.dead_letters(partition, ENTRY_ZERO, 10)
    await world.store.put_back(ALICE, PHONE.session, letter.id, entry)
    assert await indexed(world) == [ALICE]
