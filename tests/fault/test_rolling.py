"""Rolling restarts of all nodes behind the load balancer, with the last release beside the new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.errors import CloseCode
from eventbus.subscriber import Delivery
from eventbus.tokens import make_token
from tests.support.balancer import Fleet, NewFleet, new_fleet
from tests.support.load.world import SECRET
from tests.support.waiting import until

__all__ = ["new_fleet"]

USERS = [f"user{number}" for number in range(20)]
PHONES = ["ada", "bob", "cyd"]
DRAIN_MS = 3_000


class Phone:
    """What an application is handed by the client library, over the load balancer."""

    def __init__(self, fleet: Fleet, user: str) -> None:
        token = make_token(user=user, secret=SECRET.encode(), now_ms=SystemClock().now_ms(), ttl_ms=600_000)
        self.user = user
        self.numbers: list[int] = []
        self.gaps: list[object] = []
        self.subscriber = Subscriber(
            fleet.balancer.url, token, session="phone", start="earliest", on_event=self._got, on_gap=self.gaps.append
        )

    def _got(self, delivery: Delivery) -> None:
        self.numbers.append(int(delivery.event.data["number"]))


@asynccontextmanager
async def phones(fleet: Fleet) -> AsyncIterator[list[Phone]]:
    """Clients whose application writes down what it is handed, and events for them until the end."""
    made = [Phone(fleet, user) for user in PHONES]
    over = asyncio.Event()
    published = 0

    async def publish(bus: Bus) -> None:
        nonlocal published
        while not over.is_set():
            published += 1
            for phone in made:
                await bus.publish(user=phone.user, type="note", data={"number": published})
            await asyncio.sleep(0.01)  # real time: the pace of a publisher

    async with Bus.from_env(redis_url=fleet.server.url) as bus:
        running = [asyncio.ensure_future(phone.subscriber.run()) for phone in made]
        publishing = asyncio.ensure_future(publish(bus))
        try:
            yield made
            over.set()
            await publishing
            await until(
                lambda: all(len(phone.numbers) >= published for phone in made),
                20_000,
                lambda: f"{published} came to each: {[len(phone.numbers) for phone in made]}",
            )
            for phone in made:
                # Once each, in order, nothing missing.
                assert phone.numbers == list(range(1, published + 1))
                assert phone.gaps == []
        finally:
            over.set()
            for phone in made:
                await phone.subscriber.close()
            await asyncio.gather(publishing, *running, return_exceptions=True)


async def _roll(fleet: Fleet, *, start: Path | None, to: Path | None) -> None:
    """Restarts all nodes of one release as another, under load, and judges what the clients saw."""
    await fleet.start(of=start)
    # A busy machine is no reason for a client to give its connection up.
    clients = await fleet.start_clients(USERS, ack_delay_ms=(5, 60), silence_ms=20_000, hello_ms=20_000)
    # Those who publish are not restarted with the nodes: of both releases, all the time.
    await fleet.start_publisher_of(fleet.release, USERS[:10], 1_500, rate=100)
    await fleet.start_publisher(USERS[10:], 1_500, rate=100)
    async with phones(fleet) as made:
        for node in fleet.nodes:
            before = {phone: len(phone.numbers) for phone in made}
            await fleet.replace(node, of=to)
            # Events go on all the time: these clients are sent some while each of the nodes is replaced.
            assert all(len(phone.numbers) > count for phone, count in before.items())
        report = await fleet.settled()

    fleet.assert_good(report)
    # A node waits half a second for acks; clients that stood still for nearly as long sent theirs too late.
    in_time = clients.log.read().stalled_ms < 300
    assert report.repeated == 0 or not in_time, f"an event came twice although its ack had been sent: {report}"
    # Everyone was told when to come back, and nobody was cut off without a word.
    assert set(clients.closes) <= {CloseCode.DRAINING, 503}, clients.closes
    sessions = clients.log.read().sessions.values()
    told = [wait for seen in sessions for reason, wait in seen.goaways if reason == "draining"]
    assert len(told) == clients.closes[CloseCode.DRAINING] >= len(USERS)
    assert len(set(told)) > 3, f"the clients are not spread over time: {told}"
    assert await _versions(fleet) == {"new" if to is None else "old"}


async def _versions(fleet: Fleet) -> set[str]:
    """Of which release the nodes are that tell of themselves: what the last one told of its room is new."""
    found: dict[str, Any] = await fleet.redis.hgetall("eb:nodes")
    return {"new" if '"room"' in record else "old" for record in found.values()}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.requirement("R10")
async def test_an_upgrade_of_every_node_from_the_last_release_loses_and_repeats_nothing(new_fleet: NewFleet) -> None:
    fleet = new_fleet(node_heartbeat_ms=500, drain_ms=DRAIN_MS)
    await _roll(fleet, start=fleet.release, to=None)


@pytest.mark.soak
@pytest.mark.timeout(180)
@pytest.mark.requirement("R10")
async def test_a_rollback_of_every_node_to_the_last_release_loses_and_repeats_nothing(new_fleet: NewFleet) -> None:
    fleet = new_fleet(node_heartbeat_ms=500, drain_ms=DRAIN_MS)
    await _roll(fleet, start=None, to=fleet.release)
