"""Runs that take as long as agents do, over real sockets and in real time: the connection outlives them (R24).

The quiet stretches are the point: nothing is published, and only the node's pings pass. Compressed time is in
tests/unit/test_session.py.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from eventbus import Bus, Subscriber
from eventbus.subscriber import Delivery, State, StateDetail
from gateway.node import Node
from tests.support.waiting import until
from tests.support.wire_client import Nodes, token_of

pytestmark = pytest.mark.requirement("R24")


@dataclass
class Person:
    """A user with a client, and everything that happens to the connection."""

    user: str
    tier: str
    events: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def heard(self, delivery: Delivery) -> None:
        self.events.append(delivery.event.type)

    def stands(self, state: State, detail: StateDetail) -> None:
        self.states.append(state)

    async def follow(self, node: Node) -> None:
        url, token = f"http://127.0.0.1:{node.port}", token_of(self.user, tier=self.tier)
        await Subscriber(url, token=token, on_event=self.heard, on_state=self.stands).run()


async def quiet_run(bus: Bus, user: str, seconds: float) -> None:
    """Says that it begins, works, and says what it found."""
    async with bus.run(user=user, agent="planner") as run, run.tool("search") as tool:
        await asyncio.sleep(seconds)  # real time: the run's own work, in which nothing is sent
        tool.result = run.result = "found"


async def busy_run(bus: Bus, user: str, seconds: float) -> None:
    """Says something all the time."""
    end_s = time.monotonic() + seconds
    async with bus.run(user=user, agent="planner") as run:
        while time.monotonic() < end_s:
            await run.thinking("still at it")
            await asyncio.sleep(0.05)  # real time: the pace of the agent


async def watch_runs(node: Node, bus: Bus, seconds: float) -> None:
    """A quiet and a busy run in each tier, side by side; each client keeps the one connection that it made."""
    people = [Person(f"{kind}-{tier}", tier) for kind in ("quiet", "busy") for tier in ("free", "pro", "enterprise")]
    following = [asyncio.create_task(person.follow(node)) for person in people]
    try:
        await until(
            lambda: all(State.LIVE in person.states for person in people),
            10_000,
            lambda: f"{[(p.user, p.states) for p in people]} {following}",
        )
        begun_s = time.monotonic()
        await asyncio.gather(
            *(
                (quiet_run if person.user.startswith("quiet") else busy_run)(bus, person.user, seconds)
                for person in people
            )
        )
        assert time.monotonic() - begun_s >= seconds
        await until(lambda: all(person.events[-1] == "agent_completed" for person in people), 10_000)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    for person in people:
        # One connection: it was live once, and nothing came between.
        assert person.states.count(State.LIVE) == 1, (person.user, person.states)
        assert State.WAITING not in person.states, (person.user, person.states)
        assert (person.events[0], person.events.count("agent_completed")) == ("agent_started", 1)
    assert 1011 not in node.counters.connections_closed


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.requirement("R25")
async def test_a_run_of_37_seconds_quiet_or_busy_never_costs_the_connection(nodes: Nodes) -> None:
    node = await nodes.start()
    async with Bus(nodes.url) as bus:
        await watch_runs(node, bus, 37)


@pytest.mark.soak
@pytest.mark.timeout(700)
@pytest.mark.requirement("R25")
async def test_a_run_of_ten_minutes_quiet_or_busy_never_costs_the_connection(nodes: Nodes) -> None:
    node = await nodes.start()
    async with Bus(nodes.url) as bus:
        await watch_runs(node, bus, 600)
