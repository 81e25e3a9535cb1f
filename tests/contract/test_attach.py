"""Sessions: where they begin, how they go on, who may hold them, and how many there may be."""

from __future__ import annotations

import pytest

from eventbus.ids import ENTRY_ZERO, SessionId
from eventbus.store import Attached, AttachMode, AttachRefused, Beat, BeatState, LiveRecord, SessionRecord, Start
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, PHONE, World, fence_of

FIRST, SECOND = fence_of("c1"), fence_of("c2")


async def known(world: World) -> list[str]:
    return sorted(record.session for record in await world.store.sessions(ALICE))


async def test_new_session_gets_what_is_published_from_now_on(world: World) -> None:
    (old,) = await world.publish("old")
    _, epoch = await world.store.tail(ALICE)

    attached = await world.open(FIRST, start=Start.NEW)
    await world.publish("new")

    assert attached == Attached(
        resumed=False, epoch=epoch, position=old, tail=old, pending=0, gap=None, displaced=None, first_pending=None
    )
    assert await world.received(FIRST) == ["new"]


async def test_new_session_can_start_at_the_earliest_event(world: World) -> None:
    *_, last = await world.publish("e0", "e1")
    _, epoch = await world.store.tail(ALICE)

    attached = await world.open(FIRST, start=Start.EARLIEST)

    assert attached == Attached(
        resumed=False, epoch=epoch, position=ENTRY_ZERO, tail=last, pending=0, gap=None, displaced=None
    )
    assert await world.received(FIRST) == ["e0", "e1"]


@pytest.mark.corner("D9")
@pytest.mark.requirement("R7")
async def test_new_session_can_start_after_a_cursor(world: World) -> None:
    """A session that is gone and whose client has a cursor goes on behind it, not at the end."""
    first, _, last = await world.publish("e0", "e1", "e2")
    _, epoch = await world.store.tail(ALICE)

    attached = await world.open(FIRST, start=Start.CURSOR, cursor=first, epoch=epoch)

    assert attached == Attached(
        resumed=False, epoch=epoch, position=first, tail=last, pending=0, gap=None, displaced=None
    )
    assert await world.received(FIRST) == ["e1", "e2"]


async def test_session_of_a_user_without_a_stream_sees_the_first_event(world: World) -> None:
    attached = await world.open(FIRST, start=Start.NEW)
    await world.publish("first")

    assert (attached.position, attached.tail, attached.resumed) == (ENTRY_ZERO, ENTRY_ZERO, False)
    assert await world.received(FIRST) == ["first"]


@pytest.mark.requirement("R7")
@pytest.mark.parametrize("start", list(Start))
async def test_session_that_exists_goes_on_where_it_stood(world: World, start: Start) -> None:
    e0, e1, e2 = await world.publish("e0", "e1", "e2")
    opened = await world.open(FIRST)
    await world.read(FIRST, count=2)
    await world.ack(FIRST, e0)
    assert await world.store.detach(FIRST, e0) is True

    attached = await world.open(SECOND, start=start, node=OTHER_NODE, epoch=opened.epoch)

    assert attached == Attached(
        resumed=True,
        epoch=opened.epoch,
        position=e1,
        tail=e2,
        pending=1,
        gap=None,
        displaced=None,
        first_pending=e1,
    )
    assert await world.received(SECOND) == ["e2"]


@pytest.mark.requirement("R1")
async def test_every_session_gets_every_event(world: World) -> None:
    desk = fence_of("c3", session=SessionId("desk"))
    await world.open(FIRST)
    await world.open(desk)
    entries = await world.publish("e0", "e1")

    assert await world.received(FIRST) == ["e0", "e1"]
    assert await world.ack(FIRST, *entries) == 2
    assert await world.received(desk) == ["e0", "e1"]
    assert await world.waiting(desk) == [(entries[0], 1), (entries[1], 1)]


@pytest.mark.corner("D2")
async def test_takeover_names_the_connection_that_it_displaces(world: World) -> None:
    opened = await world.open(FIRST)
    (entry,) = await world.publish("e0")
    await world.read(FIRST)

    taken = await world.open(SECOND, node=OTHER_NODE)

    assert taken == Attached(
        resumed=True,
        epoch=opened.epoch,
        position=entry,
        tail=entry,
        pending=1,
        gap=None,
        displaced=FIRST.connection,
        first_pending=entry,
    )


async def test_session_that_was_left_displaces_nobody(world: World) -> None:
    await world.open(FIRST)
    await world.store.detach(FIRST, ENTRY_ZERO)

    assert (await world.open(SECOND)).displaced is None


@timely
async def test_session_that_was_silent_for_too_long_displaces_nobody(make_world: MakeWorld) -> None:
    world = await make_world(live_ttl_ms=200)
    await world.open(FIRST)
    await world.pass_time(201)

    attached = await world.open(SECOND)

    assert (attached.displaced, attached.resumed) == (None, True)


@pytest.mark.corner("D1")
async def test_reattach_with_the_same_connection_changes_nothing(world: World) -> None:
    entries = await world.publish("e0", "e1", "e2")
    opened = await world.open(FIRST)
    await world.read(FIRST, count=2)

    again = await world.reattach(FIRST, cursor=entries[0], epoch=opened.epoch)

    assert again == Attached(
        resumed=True,
        epoch=opened.epoch,
        position=entries[1],
        tail=entries[2],
        pending=2,
        gap=None,
        displaced=None,
        first_pending=entries[0],
    )
    assert await world.received(FIRST) == ["e2"]


@pytest.mark.corner("D1")
async def test_entries_of_a_read_whose_reply_was_lost_come_with_the_pending_pages(world: World) -> None:
    entries = await world.publish("e0", "e1")
    await world.open(FIRST)
    await world.read(FIRST)  # the reply never reached the node

    await world.reattach(FIRST)
    page = await world.page(FIRST)

    assert [(entry.id, entry.body) for entry in page.entries] == [(entries[0], b"e0"), (entries[1], b"e1")]


@pytest.mark.corner("D3")
async def test_reattach_never_replaces_another_connection(world: World) -> None:
    await world.open(FIRST)
    await world.open(SECOND, node=OTHER_NODE)
    before = await world.store.sessions(ALICE)

    refused = await world.attach(FIRST, mode=AttachMode.REATTACH)

    assert refused is AttachRefused.LOST
    assert await world.store.sessions(ALICE) == before
    await world.publish("e0")
    assert await world.received(SECOND) == ["e0"]


@pytest.mark.corner("D3")
@timely
async def test_reattach_takes_a_session_back_that_nobody_holds(make_world: MakeWorld) -> None:
    world = await make_world(live_ttl_ms=200)
    await world.open(FIRST)
    await world.pass_time(201)

    attached = await world.reattach(FIRST)
    await world.publish("e0")

    assert (attached.resumed, attached.displaced, attached.gap) == (True, None, None)
    assert await world.received(FIRST) == ["e0"]


async def test_one_live_session_too_many_is_refused(world: World) -> None:
    await world.open(FIRST, live_limit=2)
    await world.open(fence_of("c2", session=SessionId("desk")), live_limit=2)

    refused = await world.attach(fence_of("c3", session=SessionId("tv")), live_limit=2)

    assert refused is AttachRefused.TOO_MANY_SESSIONS
    assert await known(world) == ["desk", "phone"]


async def test_session_that_is_live_already_may_always_be_reopened(world: World) -> None:
    await world.open(FIRST, live_limit=2)
    await world.open(fence_of("c2", session=SessionId("desk")), live_limit=2)

    assert (await world.open(fence_of("c3"), live_limit=2)).displaced == FIRST.connection


async def test_session_that_left_makes_room_for_another(world: World) -> None:
    await world.open(FIRST, live_limit=1)
    await world.store.detach(FIRST, ENTRY_ZERO)

    await world.open(fence_of("c2", session=SessionId("desk")), live_limit=1)

    assert await world.attach(fence_of("c3"), live_limit=1) is AttachRefused.TOO_MANY_SESSIONS


@pytest.mark.corner("D16")
@timely
async def test_session_that_crashed_makes_room_when_its_field_is_old(make_world: MakeWorld) -> None:
    """Also while another session of the user keeps the hash alive."""
    world = await make_world(live_ttl_ms=1_000)
    desk = fence_of("c2", session=SessionId("desk"))
    await world.open(FIRST, live_limit=2)
    await world.open(desk, live_limit=2)
    await world.pass_time(550)
    await world.store.heartbeat([desk], NODE)
    await world.pass_time(550)

    await world.open(fence_of("c3", session=SessionId("tv")), live_limit=2)

    live = {record.session: record.live is not None for record in await world.store.sessions(ALICE)}
    assert live == {"phone": False, "desk": True, "tv": True}


async def test_session_longest_unseen_goes_when_there_are_too_many(world: World) -> None:
    """What it had pending is recorded as expired, and its name begins anew."""
    entries = await world.publish("e0", "e1")
    await world.open(FIRST, known_limit=2)
    await world.read(FIRST)
    await world.ack(FIRST, entries[0])
    await world.store.detach(FIRST, entries[0])
    await world.pass_time(5)
    desk = fence_of("c2", session=SessionId("desk"))
    await world.open(desk, known_limit=2)
    await world.store.detach(desk, ENTRY_ZERO)
    await world.pass_time(5)

    await world.open(fence_of("c3", session=SessionId("tv")), known_limit=2)

    assert await known(world) == ["desk", "tv"]
    records = [record for _, record in await world.store.confirmations(ALICE, ENTRY_ZERO, 10)]
    assert [(record.session, record.level, list(record.entries)) for record in records] == [
        (PHONE, "received", [entries[0]]),
        (PHONE, "expired", [entries[1]]),
    ]
    assert await world.waiting(FIRST) == []


async def test_live_session_is_never_the_one_that_goes(world: World) -> None:
    await world.open(FIRST, known_limit=2)
    await world.pass_time(5)
    desk = fence_of("c2", session=SessionId("desk"))
    await world.open(desk, known_limit=2)
    await world.store.detach(desk, ENTRY_ZERO)
    await world.pass_time(5)

    await world.open(fence_of("c3", session=SessionId("tv")), known_limit=2)

    assert await known(world) == ["phone", "tv"]


async def test_known_session_that_comes_back_ends_no_other(world: World) -> None:
    await world.open(FIRST, known_limit=2)
    await world.store.detach(FIRST, ENTRY_ZERO)
    desk = fence_of("c2", session=SessionId("desk"))
    await world.open(desk, known_limit=2)
    await world.store.detach(desk, ENTRY_ZERO)

    assert (await world.open(SECOND, known_limit=2)).resumed
    assert await known(world) == ["desk", "phone"]


@pytest.mark.corner("D16")
@timely
async def test_session_away_for_longer_than_its_life_is_forgotten(make_world: MakeWorld) -> None:
    """With its group: what it had pending is recorded as expired by the user's next attach."""
    world = await make_world(session_ttl_ms=300, live_ttl_ms=200)
    (entry,) = await world.publish("e0")
    await world.open(FIRST)
    await world.read(FIRST)
    await world.store.detach(FIRST, ENTRY_ZERO)
    await world.pass_time(301)

    await world.open(fence_of("c2", session=SessionId("desk")))

    assert await known(world) == ["desk"]
    records = [record for _, record in await world.store.confirmations(ALICE, ENTRY_ZERO, 10)]
    assert [(record.session, record.level, list(record.entries)) for record in records] == [(PHONE, "expired", [entry])]
    assert not (await world.open(SECOND, start=Start.NEW)).resumed


@pytest.mark.corner("D16")
@timely
async def test_heartbeats_keep_a_session_known(make_world: MakeWorld) -> None:
    world = await make_world(session_ttl_ms=1_100, live_ttl_ms=1_000)
    await world.open(FIRST)
    for _ in range(4):
        await world.pass_time(300)
        (beat,) = await world.store.heartbeat([FIRST], NODE)
        assert beat == Beat(state=BeatState.HELD)

    assert (await world.open(SECOND)).displaced == FIRST.connection


async def test_operators_see_a_live_session_whole(world: World) -> None:
    before_ms = await world.store.ping()
    entries = await world.publish("e0", "e1", "e2")
    await world.open(FIRST)
    await world.read(FIRST, count=2)
    after_ms = await world.store.ping()

    (record,) = await world.store.sessions(ALICE)

    assert before_ms <= record.created_ms <= record.last_seen_ms <= after_ms
    assert record.live is not None
    assert before_ms <= record.live.last_seen_ms <= after_ms
    assert record == SessionRecord(
        user=ALICE,
        session=PHONE,
        created_ms=record.created_ms,
        last_seen_ms=record.last_seen_ms,
        cursor=ENTRY_ZERO,
        position=entries[1],
        pending=2,
        unread=True,
        live=LiveRecord(node=NODE, connection=FIRST.connection, last_seen_ms=record.live.last_seen_ms),
        oldest_pending=entries[0],
        max_attempts=1,
    )


async def test_operators_see_a_session_that_is_away_whole(world: World) -> None:
    (entry,) = await world.publish("e0")
    await world.open(FIRST)
    await world.read(FIRST)
    await world.ack(FIRST, entry)
    await world.pass_time(5)
    before_ms = await world.store.ping()
    await world.store.detach(FIRST, entry)

    (record,) = await world.store.sessions(ALICE)

    assert record.created_ms < before_ms <= record.last_seen_ms
    assert record == SessionRecord(
        user=ALICE,
        session=PHONE,
        created_ms=record.created_ms,
        last_seen_ms=record.last_seen_ms,
        cursor=entry,
        position=entry,
        pending=0,
        unread=False,
        live=None,
        oldest_pending=None,
        max_attempts=0,
    )


async def test_user_without_sessions_has_none(world: World) -> None:
    await world.publish("e0")

    assert list(await world.store.sessions(ALICE)) == []


async def test_session_that_is_ended_is_gone_with_what_it_had_pending(world: World) -> None:
    entries = await world.publish("e0", "e1")
    await world.open(FIRST)
    await world.read(FIRST)

    assert await world.store.end_session(ALICE, PHONE) == 2
    assert await world.store.end_session(ALICE, PHONE) == 0

    assert list(await world.store.sessions(ALICE)) == []
    records = [record for _, record in await world.store.confirmations(ALICE, ENTRY_ZERO, 10)]
    assert [(record.session, record.level, list(record.entries)) for record in records] == [(PHONE, "expired", entries)]
    assert list(await world.store.heartbeat([FIRST], NODE)) == [Beat(state=BeatState.MISSING)]
    assert await world.retained() == ["e0", "e1"]
    assert not (await world.open(SECOND)).resumed
