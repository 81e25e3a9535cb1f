"""A session belongs to one connection: every call of another one changes nothing (D2, D3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from eventbus.ids import ENTRY_ZERO, EntryId, EventId, SessionId
from eventbus.store import (
    LOST,
    Beat,
    BeatState,
    DeadLetter,
    Fence,
    NewRead,
    ReadRequest,
    ReadState,
    Redelivery,
    ReleaseReason,
    Store,
)
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, World, fence_of

OLD, NEW = fence_of("old"), fence_of("new")
OUTCOME_LOST = "lost"

Call = Callable[[Store, Fence, EntryId], Awaitable[object]]


async def read_new(store: Store, fence: Fence, entry: EntryId) -> object:
    (result,) = await store.read_new([ReadRequest(fence=fence, count=10)])
    assert isinstance(result, NewRead)
    return LOST if result == NewRead(state=ReadState.LOST) else result


async def read_pending(store: Store, fence: Fence, entry: EntryId) -> object:
    return await store.read_pending(fence, ENTRY_ZERO, 10)


async def redeliver(store: Store, fence: Fence, entry: EntryId) -> object:
    return await store.redeliver(fence, [Redelivery(id=entry, attempts=4)])


async def release(store: Store, fence: Fence, entry: EntryId) -> object:
    return await store.release(fence, [entry], ReleaseReason.FILTERED)


async def dead_letter(store: Store, fence: Fence, entry: EntryId) -> object:
    letter = DeadLetter(id=entry, event=EventId("e"), type="t", reason="ack_timeout", attempts=5, body=b"")
    return await store.dead_letter(fence, letter)


async def heartbeat(store: Store, fence: Fence, entry: EntryId) -> object:
    (beat,) = await store.heartbeat([fence], NODE)
    assert isinstance(beat, Beat)
    return LOST if beat == Beat(state=BeatState.LOST) else beat


async def detach(store: Store, fence: Fence, entry: EntryId) -> object:
    return await store.detach(fence, entry)


CALLS: list[Call] = [read_new, read_pending, redeliver, release, dead_letter, heartbeat, detach]


@pytest.fixture(params=CALLS, ids=lambda call: str(call.__name__))
def call(request: pytest.FixtureRequest) -> Call:
    made: Call = request.param
    return made


async def picture(world: World) -> dict[str, Any]:
    """Everything that a fenced call could have changed."""
    sessions = await world.store.sessions(ALICE)
    return {
        "sessions": list(sessions),
        "pending": await world.waiting(NEW),
        "confirmations": list(await world.store.confirmations(ALICE, ENTRY_ZERO, 100)),
        "dead": list(await world.store.dead_letter_partitions()),
    }


async def taken_over(world: World) -> EntryId:
    """A session that `OLD` opened and `NEW` holds, with one pending entry and one unread."""
    await world.open(OLD)
    entry, _ = await world.publish("pending", "unread")
    await world.read(OLD, count=1)
    await world.open(NEW, node=OTHER_NODE)
    return entry


@pytest.mark.corner("D2")
@pytest.mark.requirement("R2")
async def test_displaced_connection_changes_nothing(world: World, call: Call) -> None:
    entry = await taken_over(world)
    before = await picture(world)

    assert await call(world.store, OLD, entry) is LOST

    assert await picture(world) == before
    assert await world.received(NEW) == ["unread"]


@pytest.mark.corner("D2")
async def test_connection_that_never_held_the_session_changes_nothing(world: World, call: Call) -> None:
    entry = await taken_over(world)
    before = await picture(world)

    assert await call(world.store, fence_of("stranger"), entry) is LOST

    assert await picture(world) == before


@pytest.mark.corner("D3")
@timely
async def test_connection_whose_field_expired_changes_nothing(make_world: MakeWorld, call: Call) -> None:
    """A script is lost; a heartbeat says that the field is missing, so that the node re-attaches."""
    world = await make_world(live_ttl_ms=200)
    await world.open(NEW)
    entry, _ = await world.publish("pending", "unread")
    await world.read(NEW, count=1)
    await world.pass_time(201)
    before = await picture(world)

    result = await call(world.store, NEW, entry)

    assert result == (Beat(state=BeatState.MISSING) if call is heartbeat else LOST)
    assert await picture(world) == before


@pytest.mark.corner("D16")
@timely
async def test_field_that_is_too_old_does_not_count_while_its_hash_lives(make_world: MakeWorld, call: Call) -> None:
    """Another session of the user keeps the key; the crashed one's field is still no title."""
    world = await make_world(live_ttl_ms=400)
    await world.open(NEW)
    desk = fence_of("desk", session=SessionId("desk"))
    await world.open(desk)
    (entry,) = await world.publish("pending")
    await world.read(NEW)
    await world.pass_time(250)
    await world.store.heartbeat([desk], NODE)
    await world.pass_time(250)

    result = await call(world.store, NEW, entry)

    assert result == (Beat(state=BeatState.MISSING) if call is heartbeat else LOST)
    assert await world.waiting(NEW) == [(entry, 1)]


@pytest.mark.corner("D3")
async def test_connection_whose_hash_is_gone_changes_nothing(world: World, call: Call) -> None:
    await world.open(NEW)
    (entry,) = await world.publish("pending")
    await world.read(NEW)
    await world.power.lose_live(ALICE)
    before = await picture(world)

    result = await call(world.store, NEW, entry)

    assert result == (Beat(state=BeatState.MISSING) if call is heartbeat else LOST)
    assert await picture(world) == before


@pytest.mark.corner("D3")
async def test_connection_that_detached_changes_nothing(world: World, call: Call) -> None:
    await world.open(NEW)
    (entry,) = await world.publish("pending")
    await world.read(NEW)
    await world.store.detach(NEW, ENTRY_ZERO)
    before = await picture(world)

    result = await call(world.store, NEW, entry)

    assert result == (Beat(state=BeatState.MISSING) if call is heartbeat else LOST)
    assert await picture(world) == before


@pytest.mark.corner("D3")
@timely
async def test_old_holder_stays_fenced_after_the_new_one_expired_too(make_world: MakeWorld, call: Call) -> None:
    """A counter would begin again and match; a random connection id never does."""
    world = await make_world(live_ttl_ms=200)
    entry = await taken_over(world)
    await world.pass_time(201)
    await world.open(fence_of("third"))

    assert await call(world.store, OLD, entry) is LOST


async def test_holder_of_one_session_can_not_act_for_another(world: World, call: Call) -> None:
    desk = fence_of("desk", session=SessionId("desk"))
    await world.open(NEW)
    await world.open(desk)
    entry, _ = await world.publish("pending", "unread")
    await world.read(NEW, count=1)
    crossed = Fence(user=ALICE, session=NEW.session, connection=desk.connection)
    before = await picture(world)

    assert await call(world.store, crossed, entry) is LOST

    assert await picture(world) == before


@pytest.mark.corner("D2")
async def test_ack_of_a_client_counts_whoever_holds_the_session(world: World) -> None:
    entry = await taken_over(world)

    assert await world.ack(OLD, entry) == 1

    assert await world.waiting(NEW) == []


@pytest.mark.corner("D2")
async def test_reads_of_one_call_are_fenced_one_by_one(world: World) -> None:
    await taken_over(world)
    desk = fence_of("desk", session=SessionId("desk"))
    await world.open(desk)

    results = await world.store.read_new(
        [
            ReadRequest(fence=OLD, count=10),
            ReadRequest(fence=desk, count=10),
            ReadRequest(fence=NEW, count=10),
        ]
    )

    assert [
        (result.state, [entry.body for entry in result.entries]) for result in results if isinstance(result, NewRead)
    ] == [
        (ReadState.LOST, []),
        (ReadState.OK, [b"pending", b"unread"]),
        (ReadState.OK, [b"unread"]),
    ]


async def test_heartbeats_of_one_call_are_fenced_one_by_one(world: World) -> None:
    await taken_over(world)

    beats = await world.store.heartbeat([OLD, NEW, fence_of("x", session=SessionId("nobody"))], OTHER_NODE)

    assert list(beats) == [
        Beat(state=BeatState.LOST),
        Beat(state=BeatState.HELD, pending=1, unread=True),
        Beat(state=BeatState.MISSING),
    ]
