"""A publisher over a Cluster in which everything shifts: whatever is promoted, lost, late or told wrongly, when all is
in order again each event is stored once and in the order of the calls where its user is, and no publish has failed.

The parts are the real ones (`Publisher`, `Kept`, `Lines`); the store is `tests.support.shifting_cluster`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventbus.config import PublishSettings
from eventbus.ids import EventId, RunId, UserId
from eventbus.publishing.lines import Future
from eventbus.publishing.publisher import Publisher
from eventbus.store import Append, Durability, RunStep
from eventbus.testing import ManualClock
from tests.support.shifting_cluster import ShiftingCluster

ADA, BOB, CYD = UserId("ada"), UserId("bob"), UserId("cyd")
USERS = {ADA: 0, BOB: 0, CYD: 1}
RUNNER = BOB  # whose events are the steps of a run
SETTINGS = replace(PublishSettings(), publish_deadline_ms=600_000, breaker_failures=10_000, retry_max_ms=100)
STEPS = (
    *["publish"] * 6,
    *["flow"] * 4,
    *["turn"] * 2,
    "pass",
    "serve",
    "answer",
    "connect",
    "cut",
    "learn",
    "learn",
    "mislead",
    "farewell",
    "replicate",
    "promote",
    "promote",
    "hear",
    "migrate",
    "late",
    "lost",
    "stands",
)
Step = tuple[str, int]


class Walk:
    """A publisher, its store, and what was published."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = ShiftingCluster(USERS)
        self.store.connect()
        self.publisher = Publisher(self.store, SETTINGS, clock=self.clock, timers=self.clock)
        self.published: dict[UserId, list[EventId]] = {user: [] for user in USERS}
        self.futures: list[Future] = []

    def publish(self, user: UserId) -> None:
        events = self.published[user]
        event = EventId(f"{user[0]}{len(events) + 1}")
        step = RunStep(run=RunId("run_1"), seq=len(events) + 1, owner="me", lease_ms=0) if user == RUNNER else None
        events.append(event)
        append = Append(user=user, event=event, body=b"x", step=step)
        self.futures.append(self.publisher.submit(append, Durability.MEMORY, SETTINGS.publish_deadline_ms))

    async def flow(self, ms: int) -> None:
        """What is under way arrives, a little later."""
        await self.clock.pass_time(0)
        self.store.serve(1 << 30)
        self.store.arrive()
        await self.clock.pass_time(ms)

    async def step(self, name: str, number: int) -> None:
        store = self.store
        match name:
            case "publish":
                self.publish(list(USERS)[number % len(USERS)])
            case "flow":
                await self.flow(number % 2 * 10)
            case "turn":
                await asyncio.sleep(0)
            case "pass":
                await self.clock.pass_time((0, 5, 25, 60)[number % 4])
            case "serve":
                store.serve(number + 1)
            case "answer":
                store.arrive(number + 1)
            case "lost" | "stands":
                store.tell(lost=name == "lost")
            case "connect" | "learn" | "farewell" | "late":
                getattr(store, name)()
            case _:
                getattr(store, name)(number)

    async def settle(self) -> None:
        """All is in order again, and the publisher closes when it has done what it had to do."""
        self.store.calm()
        for _ in range(100):
            if all(future.done() for future in self.futures):
                break
            await self.flow(50)
        closing = asyncio.ensure_future(self.publisher.aclose(10_000))
        while not closing.done():
            await self.flow(50)
        await closing


async def walked(steps: list[Step]) -> None:
    walk = Walk()
    for name, number in steps:
        await walk.step(name, number)
    await walk.settle()
    assert all(future.done() for future in walk.futures), "each publish has its answer"
    assert not [future.exception() for future in walk.futures if future.exception()], "no publish fails"
    assert {user: walk.store.stored(user) for user in USERS} == walk.published
    assert walk.publisher.statistics().resend_failed == 0


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=40, max_size=120))
@pytest.mark.requirement("R2")
@pytest.mark.requirement("R6")
@pytest.mark.requirement("R32")
def test_whatever_shifts_each_event_is_stored_once_and_in_its_place(steps: list[Step]) -> None:
    asyncio.run(walked(steps))


@pytest.mark.soak
@settings(max_examples=20_000, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=40, max_size=200))
def test_whatever_shifts_for_long_each_event_is_stored_once_and_in_its_place(steps: list[Step]) -> None:
    asyncio.run(walked(steps))
