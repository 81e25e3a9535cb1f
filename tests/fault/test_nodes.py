"""What becomes of events when a node dies, freezes, or is told to go."""

from __future__ import annotations

import pytest

from tests.support.load.plans import Mode
from tests.support.load.world import NewWorld, World

USERS = [f"user{number}" for number in range(20)]


def _last_nodes(world: World) -> set[str]:
    return {node for c in world.clients for s in c.log.read().sessions.values() for node, *_ in s.opened[-1:]}


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
async def test_a_killed_node_loses_nothing_and_its_sessions_resume_on_another(new_world: NewWorld) -> None:
    world = new_world()
    first, _ = await world.start_nodes("one", "two")
    await world.start_clients(USERS, ack_delay_ms=(100, 400))
    publishing = await world.start_publisher(USERS, 3_000, rate=1_000)
    await world.published_at_least(publishing, 1_000)

    pending = await world.pending()
    first.child.kill()
    assert pending["one"] > 0, f"nothing was pending at the kill: {pending}"

    report = await world.settled()
    world.assert_good(report)
    assert report.repeated > 0, "what was pending at the kill comes again"
    assert _last_nodes(world) == {"two"}


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_a_frozen_node_loses_nothing_and_its_sessions_resume_on_another(new_world: NewWorld) -> None:
    world = new_world()
    first, _ = await world.start_nodes("one", "two")
    clients = await world.start_clients(USERS, ack_delay_ms=(100, 400), silence_ms=500)
    publishing = await world.start_publisher(USERS, 3_000, rate=800)
    await world.published_at_least(publishing, 800)

    pending = await world.pending()
    first.child.freeze()
    assert pending["one"] > 0, f"nothing was pending at the freeze: {pending}"
    moved = [name for name in clients.names if clients.seen(*name).opened[-1][0] == "one"]
    await world.wait(lambda: _last_nodes(world) == {"two"}, 10_000, "all sessions have left the frozen node")
    first.child.thaw()

    report = await world.settled()
    world.assert_good(report)
    assert moved
    assert report.repeated > 0, "what was pending at the freeze comes again"
    for name in moved:
        assert await world.holder(*name) == clients.seen(*name).opened[-1][:2], "the thawed node took nothing back"


async def _until_forgotten(world: World, *users: str, timeout_ms: int = 20_000) -> None:
    """Waits until the live fields of the frozen node have aged out."""

    async def forgotten() -> bool:
        return not any([await world.holder(user) for user in users])

    await world.wait_async(forgotten, timeout_ms, "the live fields of the frozen node age out")


async def _take_over(world: World, *, forgotten_ms: int = 0) -> None:
    """A session is opened on a second node while the first one is frozen, with entries unread and its window full."""
    first, second = await world.start_nodes("one", "two")
    old = await world.start_clients(["ann"], at=first, silence_ms=600_000)
    await world.start_publisher(["ann"], 5)
    await world.wait(lambda: len(old.seen("ann").events) == 5, 10_000, "the first events")
    await world.all_acked()

    first.child.freeze()
    # Wake-ups for these wait in the frozen node's socket.
    await world.start_publisher(["ann"], 20, first=5)
    await world.published()
    if forgotten_ms:
        await _until_forgotten(world, "ann", timeout_ms=forgotten_ms)
    release = world.server.directory / "release"
    new = await world.start_clients(["ann"], at=second, mode=Mode.HOLD, release=str(release), window=4)
    await world.wait(lambda: len(new.seen("ann").events) == 4, 10_000, "a full window")
    first.child.thaw()

    await world.wait(lambda: old.seen("ann").closed, 15_000, "the old connection is closed")
    assert [code for code, _ in old.seen("ann").closed] == [4504]
    assert len(old.seen("ann").deliveries) == 5, "the thawed node sent something that is not its any more"
    assert sum((await world.pending()).values()) == 4, "the thawed node took entries away from the session"
    release.touch()
    report = await world.settled()
    world.assert_good(report)
    assert report.repeated == 0


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_a_thawed_nodes_late_reads_take_nothing_from_the_session_that_was_taken_over(
    new_world: NewWorld,
) -> None:
    """The fencing token in every read (D2)."""
    await _take_over(new_world(session_heartbeat_ms=2_000))


@pytest.mark.slow
@pytest.mark.requirement("R2")
async def test_a_node_frozen_for_longer_than_its_sessions_live_takes_nothing_back(new_world: NewWorld) -> None:
    """The token is compared for equality, whatever became of the field meanwhile (D3)."""
    await _take_over(new_world(live_ttl_ms=2_500, session_heartbeat_ms=500), forgotten_ms=20_000)


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.requirement("R2")
async def test_a_node_frozen_for_longer_than_90_seconds_takes_nothing_back(new_world: NewWorld) -> None:
    """As above, with the lives that are the default (D3)."""
    await _take_over(new_world(), forgotten_ms=100_000)


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R7")
async def test_sessions_of_a_thawed_node_that_nobody_took_over_go_on_with_their_sockets_open(
    new_world: NewWorld,
) -> None:
    """A missing live field is a cause to attach again, and no loss (D1, D3)."""
    world = new_world(live_ttl_ms=2_500, session_heartbeat_ms=500)
    (node,) = await world.start_nodes("one")
    clients = await world.start_clients(["ann", "bob"], silence_ms=600_000)
    await world.start_publisher(["ann", "bob"], 200, rate=100)
    await world.wait(lambda: world.arrived > 50, 10_000, "some have arrived")

    node.child.freeze()
    await _until_forgotten(world, "ann", "bob")
    node.child.thaw()

    world.assert_good(await world.settled())
    assert not clients.closes
    assert (await world.holder("ann") or ())[:1] == ("one",)


@pytest.mark.slow
@pytest.mark.requirement("R10")
@pytest.mark.requirement("R2")
async def test_draining_every_node_in_turn_loses_nothing_and_repeats_nothing(new_world: NewWorld) -> None:
    world = new_world()
    nodes = await world.start_nodes("one", "two")
    clients = await world.start_clients(USERS, ack_delay_ms=(5, 60))
    publishing = await world.start_publisher(USERS, 4_000, rate=700)
    for node, count in zip(nodes, (700, 2_100), strict=True):
        await world.published_at_least(publishing, count)
        node.child.terminate()
        assert await node.child.wait() == 0
        await world.restart(node)

    report = await world.settled()
    world.assert_good(report)
    # A node waits half a second for acks; clients that stood still for nearly as long sent theirs too late.
    in_time = clients.log.read().stalled_ms < 300
    assert report.repeated == 0 or not in_time, f"an event came twice although its ack had been sent: {report}"
    assert set(clients.closes) <= {4001, 503, 1006}, clients.closes
    assert clients.closes[4001] >= len(USERS)
    waits = [wait for seen in clients.log.sessions.values() for reason, wait in seen.goaways if reason == "draining"]
    assert len(waits) >= len(USERS)
    assert len(set(waits)) > 3, f"the clients are not spread over time: {waits}"
