"""Everything at once: nodes and the server are killed at random under 200 users, while events wait for their acks."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass, field

import pytest

from tests.support.load.plans import Mode
from tests.support.load.world import NewWorld, World

USERS = [f"user{number}" for number in range(200)]
EVENTS = 20_000


@dataclass(slots=True)
class _Harm:
    """Kills at random, and writes down what was pending right before each kill."""

    world: World
    chance: random.Random
    kills: list[tuple[str, int]] = field(default_factory=list)

    async def kill_node(self) -> None:
        """SIGKILL to a node that holds sessions, and a new start on the same port."""
        pending = await self.world.pending()
        node = self.chance.choice([node for node in self.world.nodes if pending[node.name]] or self.world.nodes)
        node.child.kill()
        self.kills.append((node.name, pending[node.name]))
        await self.world.restart(node)

    async def kill_server(self) -> None:
        """SIGKILL, and a new start with the same file."""
        pending = await self.world.pending()
        await self.world.kill_server()
        self.kills.append(("server", sum(pending.values())))

    async def anything(self) -> None:
        """Kills a node, or now and then the server."""
        if self.chance.random() < 0.25:
            await self.kill_server()
        else:
            await self.kill_node()

    @property
    def hits(self) -> int:
        """Kills that hit while entries were pending with whom they hit."""
        return sum(pending > 0 for _, pending in self.kills)


def _chance() -> random.Random:
    seed = int(os.environ.get("EVENTBUS_TEST_SEED") or random.randrange(1_000_000))
    print(f"EVENTBUS_TEST_SEED={seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R6")
@pytest.mark.requirement("R7")
async def test_20_000_events_in_flight_survive_random_kills_of_nodes_and_server(new_world: NewWorld) -> None:
    """Nothing is acked until all are published, so that all of them are in flight at once, and killed at."""
    world = new_world(server={"appendfsync": "always"})
    harm = _Harm(world, _chance())
    await world.start_nodes("one", "two", "three")
    release = world.server.directory / "release"
    await world.start_clients(USERS, mode=Mode.HOLD, release=str(release), window=512)
    publishing = await world.start_publisher(USERS, EVENTS, rate=3_000)

    for count in sorted(harm.chance.randrange(1_000, EVENTS - 1_000) for _ in range(6)):
        await world.published_at_least(publishing, count)
        await harm.anything()
    await world.published()
    await world.wait(lambda: world.arrived == EVENTS, 30_000, lambda: f"{world.arrived} have arrived: {world.report()}")
    in_flight = sum((await world.pending()).values())
    await harm.kill_server()
    await harm.kill_node()
    release.touch()
    await harm.kill_node()

    report = await world.settled()
    told = f"{report}\nkills: {harm.kills}"
    assert in_flight == EVENTS, told
    assert harm.hits >= 3, f"fewer than 3 kills hit while entries were pending: {told}"
    assert ("server", EVENTS) in harm.kills, told
    world.assert_good(report)
    assert report.published == EVENTS
    assert report.repeated > 0, told
    assert not await world.dead(), "a kill counts towards nobody's deliveries"


@pytest.mark.soak
@pytest.mark.timeout(1_500)
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R33")
async def test_ten_minutes_of_random_kills_lose_nothing(new_world: NewWorld) -> None:
    """Acks flow all the time; a server that syncs every second may lose its last writes, and says so."""
    world = new_world()
    harm = _Harm(world, _chance())
    await world.start_nodes("one", "two", "three")
    await world.start_clients(USERS, ack_delay_ms=(100, 1_500))
    publishing = await world.start_publisher(USERS, 300_000, rate=500)
    await world.published_at_least(publishing, 1_000)
    while not publishing.log.read().done:
        await harm.anything()
        await asyncio.sleep(harm.chance.uniform(0, 8))  # real time: everything is quiet again now and then

    report = await world.settled(120_000)
    assert harm.hits >= 50, harm.kills
    world.assert_good(report, gaps=("rollback",))
    assert not publishing.log.errors
