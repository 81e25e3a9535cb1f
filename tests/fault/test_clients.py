"""What becomes of events when a client misbehaves, and of everybody else meanwhile."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.load.plans import Mode
from tests.support.load.world import Clients, NewWorld, World
from tests.support.proxy import Proxy
from tests.support.stalls import Stalls

USERS = [f"user{number}" for number in range(10)]


async def _delivered(world: World, clients: Clients, user: str, count: int) -> None:
    await world.wait(
        lambda: len(clients.seen(user).events) >= count,
        20_000,
        lambda: f"{count} events of {user}: {len(clients.seen(user).events)}",
    )


@pytest.mark.slow
@pytest.mark.requirement("R3")
@pytest.mark.requirement("R1")
async def test_an_event_that_is_never_acked_is_tried_with_growing_waits_and_then_a_dead_letter(
    new_world: NewWorld,
) -> None:
    world = new_world(ack_timeout_ms=250, max_deliveries=4)
    await world.start_nodes("one")
    await world.start_clients(USERS)
    deaf = await world.start_clients(["deaf"], mode=Mode.NEVER)
    with Stalls() as machine:
        await world.start_publisher([*USERS, "deaf"], 11 * 3, rate=100)
        await world.wait(lambda: len(deaf.seen("deaf").dropped) == 3, 20_000, lambda: str(deaf.seen("deaf").deliveries))
        lost_ms = 1_000 * machine.lost_s

    seen = deaf.seen("deaf")
    for event in seen.events:
        sightings = [sighting for sighting in seen.deliveries if sighting.received.event == event]
        assert [sighting.received.delivery for sighting in sightings] == [1, 2, 3, 4]
        waits_ms = [after.time_ms - before.time_ms for before, after in pairwise(sightings)]
        for number, wait_ms in enumerate(waits_ms):
            # The first wait doubles with each attempt, and 20 % of jitter is added. A busy machine is late; when it
            # stood still for a while one wait may be longer by that, and the next one shorter.
            least_ms, most_ms = 250 * 2**number - 20, 250 * 2**number * 1.2 + 500
            assert least_ms - lost_ms <= wait_ms <= most_ms + lost_ms, (waits_ms, lost_ms)
    assert {reason for _, reason in seen.dropped} == {"dead_lettered"}
    dead = await world.dead()
    assert {letter["event"] for letter in dead} == seen.events
    assert {(d["user"], d["session"], d["reason"], d["attempts"], d["node"]) for d in dead} == {
        ("deaf", "tab", "ack_timeout", "4", "one")
    }
    world.assert_good(await world.settled())


@pytest.mark.slow
@pytest.mark.requirement("R3")
@pytest.mark.requirement("R6")
async def test_a_nacked_event_comes_again_marked_and_after_the_wait_that_was_asked_for(new_world: NewWorld) -> None:
    world = new_world()
    await world.start_nodes("one")
    await world.start_clients(USERS)
    wary = await world.start_clients(["wary"], mode=Mode.NACK, nack_delay_ms=300)
    await world.start_publisher([*USERS, "wary"], 11 * 20, rate=400)
    report = await world.settled()

    world.assert_good(report)
    seen = wary.seen("wary")
    await world.wait(lambda: len(wary.seen("wary").deliveries) == 40, 5_000, "each comes twice")
    for event in seen.events:
        first, second = (sighting for sighting in seen.deliveries if sighting.received.event == event)
        assert (first.received.delivery, second.received.delivery) == (1, 2)
        assert second.time_ms - first.time_ms >= 295
    assert not await world.dead()


@pytest.mark.requirement("R1")
async def test_acking_twice_is_no_error_and_releases_nothing_else(new_world: NewWorld) -> None:
    world = new_world()
    await world.start_nodes("one")
    eager = await world.start_clients(USERS, mode=Mode.TWICE, ack_delay_ms=(0, 50))
    await world.start_publisher(USERS, 600, rate=400)
    report = await world.settled()

    world.assert_good(report)
    assert report.repeated == 0
    assert not eager.closes
    assert not [seen.errors for seen in eager.log.sessions.values() if seen.errors]


@pytest.mark.slow
@pytest.mark.requirement("R3")
@pytest.mark.requirement("R7")
async def test_quick_reconnects_kill_no_event(new_world: NewWorld) -> None:
    """Only an ack time-out or a nack counts towards the cap; a tunnel does not (D8)."""
    world = new_world(max_deliveries=3)
    await world.start_nodes("one", "two")
    clients = await world.start_clients(USERS, mode=Mode.FLAP, flaps=6, ack_delay_ms=(1_500, 1_600))
    await world.start_publisher(USERS, 200)
    await world.wait(
        lambda: all(len(clients.seen(user).opened) == 7 for user in USERS), 20_000, "all have flapped six times"
    )
    counted = {attempts for user in USERS for attempts in (await world.attempts(user)).values()}
    assert counted == {1}, f"reconnects were counted as attempts: {counted}"
    report = await world.settled()

    world.assert_good(report)
    assert report.repeated > 0
    assert not await world.dead()
    assert not [seen.dropped for seen in clients.log.sessions.values() if seen.dropped]


@pytest.mark.slow
@pytest.mark.requirement("R9")
async def test_a_stuck_client_costs_bounded_memory_and_delays_nobody_else(new_world: NewWorld) -> None:
    """It reads nothing while 30 MB are published for it: the node holds its window and no more."""
    world = new_world(ack_timeout_ms=1_000)
    (node,) = await world.start_nodes("one")
    others = await world.start_clients(USERS, silence_ms=20_000, hello_ms=20_000)
    stuck = await world.start_clients(["stuck"], mode=Mode.STUCK, window=64)
    warm = await world.start_publisher(USERS, 200)
    await world.published()
    before_kib = _resident_kib(node.child.pid)
    with Stalls() as machine:
        await world.start_publisher(["stuck"], 3_000, bytes=10_000, under_way=50)
        await world.start_publisher(USERS, 1_000, rate=300, first=200)
        await world.published()
        await world.wait(lambda: _has(others, 1_200), 10_000, "the others have everything")
        lost_ms = 1_000 * machine.lost_s
    grown_kib = _resident_kib(node.child.pid) - before_kib
    assert grown_kib < 12 * 1024, f"the node has grown by {grown_kib} KiB"

    stamps = world.publishers[2].log.entries
    late_ms = sorted(
        sighting.time_ms - int(stamps[sighting.received.event].partition("-")[0])
        for seen in others.log.sessions.values()
        for sighting in seen.deliveries
        if sighting.received.event in stamps
    )
    assert late_ms[int(len(late_ms) * 0.99)] < 500 + lost_ms, f"the others wait for it: {late_ms[-10:]}, {lost_ms}"
    assert not others.closes
    assert warm.log.done

    # Whoever opens the session next gets everything, in order.
    stuck.child.kill()
    await world.start_clients(["stuck"])
    world.assert_good(await world.settled())
    assert not await world.dead()


def _has(clients: Clients, count: int) -> bool:
    return sum(len(seen.events) for seen in clients.log.read().sessions.values()) >= count


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS of {pid}")


@pytest.mark.slow
@pytest.mark.requirement("R7")
async def test_a_quiet_user_outlives_the_retention_and_is_told_of_no_gap(new_world: NewWorld) -> None:
    """All that it had was acked and has gone with age; it missed nothing (D15)."""
    # Whoever stands still for longer than the session lives has lost it.
    world = new_world(retention_ms=2_500, session_ttl_ms=2_500, session_heartbeat_ms=200)
    (node,) = await world.start_nodes("one")
    async with Proxy(node.port) as door:
        world.publish_addresses(f"127.0.0.1:{door.port}")
        clients = await world.start_clients(["quiet", "busy"], silence_ms=20_000)
        await world.start_publisher(["quiet"], 30)
        await _delivered(world, clients, "quiet", 30)
        # Twice the retention, told by the server's clock: the other user's events are stamped by it.
        busy = await world.start_publisher(["busy"], 260, rate=50)
        await world.published_at_least(busy, 260)
        await world.start_publisher(["quiet"], 10, first=1_000)
        await _delivered(world, clients, "quiet", 40)
        door.cut()
        await world.wait(lambda: len(clients.seen("quiet").opened) == 2, 10_000, "it is back")
        await world.start_publisher(["quiet"], 10, first=2_000)
        world.assert_good(await world.settled())


@pytest.mark.slow
@pytest.mark.requirement("R7")
@pytest.mark.requirement("R1")
async def test_what_the_cap_took_from_a_session_that_was_away_is_announced_with_its_range(
    new_world: NewWorld,
) -> None:
    world = new_world(max_stream_entries=50)
    await world.start_nodes("one")
    away = await world.start_clients(["ann"])
    before = await world.start_publisher(["ann"], 20)
    await world.settled()
    away.child.kill()
    publishing = await world.start_publisher(["ann"], 200, first=20)
    await world.published()
    kept = int(await world.redis.xlen(world.keys.user("ann").stream))  # type: ignore[arg-type]
    answered = publishing.log.answered["ann"]
    world.missed["ann"] = set(answered[:-kept])

    back = await world.start_clients(["ann"])
    world.assert_good(await world.settled(), gaps=("trimmed", "overflow"))
    ((_, after, first, count),) = back.gaps
    assert after == before.log.entries["ann.19"]
    assert first == publishing.log.entries[answered[-kept]]
    assert int(count) == 200 - kept
    assert 0 < kept <= 50
