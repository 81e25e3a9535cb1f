"""Thousands of clients lose their node at one moment: they come back as a queue, and those who are elsewhere do not
notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import pytest

from eventbus import Bus, Subscriber
from eventbus.clock import SystemClock
from eventbus.subscriber import Delivery, State, StateDetail
from eventbus.tokens import make_token
from tests.support.balancer import Balancer, Fleet, NewFleet, new_fleet
from tests.support.balancer_storm import Seen, StormPlan
from tests.support.load.world import SECRET
from tests.support.processes import Child, Processes
from tests.support.stalls import Stalls

__all__ = ["new_fleet"]

LIVE = 20
PACE_S = 0.02
CALM_S = 3

logger = logging.getLogger(__name__)


class Live:
    """Sessions on nodes that nothing happens to, and how late their events are."""

    def __init__(self, fleet: Fleet, addresses: list[str]) -> None:
        now_ms = SystemClock().now_ms()
        self.users = [f"live{number}" for number in range(LIVE)]
        self.late_ms: list[float] = []
        self.numbers: dict[str, list[int]] = {user: [] for user in self.users}
        self.closes: list[int | None] = []
        self.published = 0
        self._url = fleet.server.url
        self._subscribers = [
            Subscriber(
                f"http://{addresses[number % len(addresses)]}",
                make_token(user=user, secret=SECRET.encode(), now_ms=now_ms, ttl_ms=900_000),
                session="live",
                start="earliest",
                on_event=self._got,
                on_state=self._changed,
            )
            for number, user in enumerate(self.users)
        ]
        self._over = asyncio.Event()

    def _got(self, delivery: Delivery) -> None:
        self.late_ms.append((time.monotonic_ns() - delivery.event.data["at_ns"]) / 1e6)
        self.numbers[delivery.event.user].append(delivery.event.data["number"])

    def _changed(self, state: State, detail: StateDetail) -> None:
        if state is State.WAITING:
            self.closes.append(detail.code)

    async def __aenter__(self) -> Live:
        self._running = [asyncio.ensure_future(one.run()) for one in self._subscribers]
        self._publishing = asyncio.ensure_future(self._publish())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._over.set()
        await self._publishing
        for one in self._subscribers:
            await one.close()
        await asyncio.gather(*self._running)

    async def _publish(self) -> None:
        async with Bus.from_env(redis_url=self._url) as bus:
            while not self._over.is_set():
                user = self.users[self.published % LIVE]
                self.published += 1
                data = {"at_ns": time.monotonic_ns(), "number": self.published}
                await bus.publish(user=user, type="note", data=data)
                await asyncio.sleep(PACE_S)  # real time: the pace of a publisher

    def p99_ms(self) -> float:
        """Of what came since it was asked last."""
        late, self.late_ms = sorted(self.late_ms), []
        return late[int(len(late) * 0.99)]


class Storms:
    """The processes of a storm, each with its load balancer."""

    def __init__(self, children: list[Child]) -> None:
        self.children = children

    def seen(self) -> Seen:
        """What all of them saw so far."""
        whole = Seen()
        for child in self.children:
            lines = child.stdout.rpartition("\n")[0].splitlines()
            assert child.running, child.stderr[-2000:]
            if not lines:
                continue
            one = Seen.of(lines[-1])
            whole.open += one.open
            whole.lost += one.lost
            whole.back += one.back
            whole.attempts += one.attempts
            whole.worst_second += one.worst_second
            whole.told += one.told
            whole.away_p50_ms = max(whole.away_p50_ms, one.away_p50_ms)
            whole.away_p99_ms = max(whole.away_p99_ms, one.away_p99_ms)
            for code, count in one.refused.items():
                whole.refused[code] = whole.refused.get(code, 0) + count
            for tries, count in one.tries.items():
                whole.tries[tries] = whole.tries.get(tries, 0) + count
        return whole


async def _storm(fleet: Fleet, processes: Processes, directory: Path, count: int, balancers: int) -> float:
    """All clients of one node come back to the two others after its death; returns how late 99 of 100 events of others
    were at most meanwhile, in milliseconds.
    """
    await fleet.start()
    doors: list[Balancer] = [fleet.balancer]
    while len(doors) < balancers:
        await fleet.start_balancer()
        doors.append(fleet.balancer)
    victim, *others = fleet.nodes
    children = []
    for number, door in enumerate(doors):
        plan = StormPlan(
            first=victim.address,
            later=door.address,
            secret=SECRET,
            prefix=f"storm{number}-",
            clients=count // balancers,
        )
        path = plan.write(directory / f"storm-{number}.json")
        children.append(processes.python("-m", "tests.support.balancer_storm", path, name=f"storm-{number}"))
    storms = Storms(children)
    async with Live(fleet, [node.address for node in others]) as live:
        await fleet.wait(lambda: storms.seen().open == count, 300_000, lambda: f"all are open: {storms.seen().open}")
        live.late_ms.clear()
        await asyncio.sleep(CALM_S)  # real time: what is normal is measured
        calm_ms = live.p99_ms()
        with Stalls() as machine:
            begin = time.monotonic()
            victim.child.kill()
            await fleet.wait(lambda: storms.seen().back == count, 120_000, lambda: f"all are back: {storms.seen()}")
            took_s = time.monotonic() - begin
        storm_ms = live.p99_ms()
        await fleet.wait(lambda: storms.seen().open == count, 10_000, "all stay open")
        seen = storms.seen()
        figures = (
            f"{count} clients back in {took_s:.1f} s: {seen.attempts} attempts, refused {dict(seen.refused)}, at most "
            f"{seen.worst_second} a second, tries {dict(seen.tries)}, away p50 {seen.away_p50_ms} ms, p99 "
            f"{seen.away_p99_ms} ms; p99 of {LIVE} live sessions {storm_ms:.1f} ms, before {calm_ms:.1f}; the machine "
            f"took {machine.lost_s:.1f} s"
        )
        logger.warning(figures)
        if where := os.environ.get("EVENTBUS_TEST_FIGURES"):
            with Path(where).open("a") as file:
                file.write(figures + "\n")
    # They are refused with a time of their own at the most, and never cut off, closed or left without an answer.
    assert set(seen.refused) <= {"503"}, figures
    assert seen.attempts <= 3 * count, figures
    assert seen.told == 0
    # Nobody of the others noticed: no close, no event lost.
    assert live.closes == []
    assert sorted(number for numbers in live.numbers.values() for number in numbers) == list(
        range(1, live.published + 1)
    )
    assert took_s < 30 + machine.lost_s, figures
    return storm_ms


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.requirement("R10")
@pytest.mark.requirement("R33")
async def test_two_thousand_clients_come_back_as_a_queue_after_their_node_died(
    new_fleet: NewFleet, processes: Processes, tmp_path: Path
) -> None:
    # A pace at which a node can not keep all of them waiting: some are told when to come back.
    await _storm(new_fleet(handshakes_per_second=200), processes, tmp_path, 2_000, 1)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.requirement("R10")
@pytest.mark.requirement("R33")
async def test_ten_thousand_clients_come_back_as_a_queue_after_their_node_died(
    new_fleet: NewFleet, processes: Processes, tmp_path: Path
) -> None:
    # Of a machine that has two cores for all of this: it bounds what a node holds up, and is no promise of latency.
    assert await _storm(new_fleet(), processes, tmp_path, 10_000, 2) < 1_000
