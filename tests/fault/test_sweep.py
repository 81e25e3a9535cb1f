"""What nobody told the node about is found by its heartbeats: lost wake-ups, lost replies, strangers in the stream."""

from __future__ import annotations

import time

import pytest

from eventbus.event import encode_envelope, make_event
from eventbus.ids import UserId
from tests.support.load.world import NewWorld, World


def _envelope(user: str, event: str) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    return encode_envelope(make_event(id=event, type="load", user=user, time_ms=now_ms, data={}))


async def _store_without_a_word(world: World, user: str, *bodies: bytes) -> list[str]:
    """Stores entries as a publisher does, but wakes nobody."""
    stream = world.keys.user(UserId(user)).stream
    return [await world.redis.xadd(stream, {"d": body}) for body in bodies]


@pytest.mark.requirement("R2")
async def test_an_event_whose_wake_up_was_lost_arrives_within_a_heartbeat(new_world: NewWorld) -> None:
    world = new_world(session_heartbeat_ms=400)
    await world.start_nodes("one")
    clients = await world.start_clients(["ann"], silence_ms=20_000, hello_ms=20_000)
    (entry,) = await _store_without_a_word(world, "ann", _envelope("ann", "silent"))

    await world.wait(lambda: clients.seen("ann").events, 5_000, "the event arrives")
    (sighting,) = clients.seen("ann").deliveries
    assert (sighting.received.entry, sighting.received.delivery) == (entry, 1)
    await world.all_acked()


@pytest.mark.requirement("R2")
async def test_entries_that_are_pending_and_that_nobody_holds_are_found_within_a_heartbeat(
    new_world: NewWorld,
) -> None:
    """As if the reply of a read had been lost without any connection's end (D1)."""
    world = new_world(session_heartbeat_ms=400)
    await world.start_nodes("one")
    clients = await world.start_clients(["ann"], silence_ms=20_000, hello_ms=20_000)
    stream = world.keys.user(UserId("ann")).stream
    pipeline = world.redis.pipeline(transaction=True)
    for number in range(3):
        pipeline.xadd(stream, {"d": _envelope("ann", f"taken{number}")})
    pipeline.xreadgroup("tab", "c", {stream: ">"})
    await pipeline.execute()

    await world.wait(lambda: len(clients.seen("ann").events) == 3, 5_000, "the events arrive")
    assert [s.received.delivery for s in clients.seen("ann").deliveries] == [1, 1, 1], "it is the first time"
    assert not clients.closes
    await world.all_acked()


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R1")
async def test_what_a_stranger_wrote_into_a_stream_is_never_sent_and_ends_as_a_dead_letter(
    new_world: NewWorld,
) -> None:
    """An envelope that names another user, and one that is none: told by their reason, and in nobody's way."""
    world = new_world(session_heartbeat_ms=400)
    await world.start_nodes("one")
    clients = await world.start_clients(["ann"], silence_ms=20_000, hello_ms=20_000)
    await _store_without_a_word(world, "ann", _envelope("bob", "foreign"), b"\xff\xfe", _envelope("ann", "own"))

    await world.wait(lambda: len(clients.seen("ann").dropped) == 2, 5_000, "both are dropped")
    assert clients.seen("ann").events == {"own"}
    assert {letter["reason"].partition(":")[0] for letter in await world.dead()} == {"misplaced", "undecodable"}
    await world.all_acked()


@pytest.mark.requirement("R2")
async def test_a_session_whose_live_field_is_gone_attaches_again_at_its_next_read(new_world: NewWorld) -> None:
    """Whoever reads then is told that the session is not its; nobody else has it, so it takes it back (D3)."""
    world = new_world(session_heartbeat_ms=300_000, live_ttl_ms=900_000)
    await world.start_nodes("one")
    clients = await world.start_clients(["ann"], silence_ms=20_000, hello_ms=20_000)
    keys = world.keys.user(UserId("ann"))
    await world.redis.delete(keys.live)
    await _store_without_a_word(world, "ann", _envelope("ann", "unheard"))
    await world.redis.execute_command("SPUBLISH", f"{keys.partition.channel}one", "ann")

    await world.wait(lambda: clients.seen("ann").events, 5_000, "the event arrives")
    assert not clients.closes
    assert (await world.holder("ann") or ())[:1] == ("one",)
    await world.all_acked()
