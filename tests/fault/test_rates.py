"""Rates, confirmations of runs and presence against the books of the clients, with a node killed in the midst."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from eventbus import Subscriber
from eventbus.presence import Presence
from eventbus.rates import STATES, Rates
from eventbus.runs.confirmations import RunConfirmation
from tests.support.installation import USER, NewInstallation
from tests.support.waiting import until

RUNS = 12
THOUGHTS = 5
SHOWN = "agent_thinking"


class Client:
    """Handles what its filter lets through, and displays thoughts. `books` has every event that it handled."""

    def __init__(self, *types: str) -> None:
        self.types = types
        self.books: dict[str, tuple[str, str]] = {}  # event -> run, type

    async def follow(self, subscriber: Subscriber) -> None:
        async for delivery in subscriber:
            event = delivery.event
            if event.type == SHOWN:
                await delivery.displayed()
            self.books[event.id] = (event.run or "", event.type)
            await asyncio.sleep(0.001)  # real time: the pace of the publisher

    def levels(self, run: str) -> set[tuple[str, str]]:
        """Which events of a run it confirmed, and how far."""
        mine = {(event, kind) for event, (of, kind) in self.books.items() if of == run}
        return {(event, "received") for event, _ in mine} | {
            (event, "displayed") for event, kind in mine if kind == SHOWN
        }


def figures(rates: Rates) -> dict[str, int]:
    return {state: count for state in STATES if (count := getattr(rates, state))}


def own(stored: Counter[str], clients: dict[str, Client], run: str | None = None) -> dict[str, int]:
    """What the rates must be by the clients' own books; `stored` has the events by type."""
    total: Counter[str] = Counter(stored=sum(stored.values()))
    for client in clients.values():
        kinds = [kind for of, kind in client.books.values() if run in (None, of)]
        total["received"] += len(kinds)
        total["displayed"] += kinds.count(SHOWN)
        total["filtered"] += sum(count for kind, count in stored.items() if client.types and kind not in client.types)
    return dict(+total)


@pytest.mark.requirement("R12")
@pytest.mark.requirement("R14")
@pytest.mark.requirement("R35")
async def test_rates_confirmations_and_presence_are_those_of_the_clients_when_a_node_is_killed(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2)
    bus = installation.bus
    clients = {"phone": Client(), "laptop": Client("agent_started", "agent_completed")}
    stored: Counter[str] = Counter()
    confirmed: dict[str, list[RunConfirmation]] = {}
    came: list[Presence] = []
    changes = bus.presence(USER)

    async def watch_presence() -> None:
        async for change in changes:
            came.append(change)

    async def watch_run(run: str) -> None:
        async for one in bus.run_confirmations(run, user=USER):
            confirmed.setdefault(run, []).append(one)

    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        endless = [group.create_task(watch_presence())]
        for session, client in clients.items():
            subscriber = await stack.enter_async_context(
                Subscriber(
                    installation.url,
                    token=installation.token,
                    session=session,
                    start="earliest",
                    filter={"types": client.types} if client.types else None,
                )
            )
            endless.append(group.create_task(client.follow(subscriber)))
        await until(lambda: len(came) == 2, message="both sessions are live")

        watching = []
        for number in range(RUNS):
            run = f"run_{number}"
            watching.append(group.create_task(watch_run(run)))
            async with bus.run(user=USER, agent="planner", run=run) as agent:
                for thought in range(THOUGHTS):
                    await agent.thinking(f"thought {thought}")
                await agent.flush()
                if number == RUNS // 2:
                    old, _ = installation.switch()
                    old.child.kill()
            stored += Counter(agent_started=1, agent_thinking=THOUGHTS, agent_completed=1)

        # Each ends by itself: its run has completed and each event was received.
        async with asyncio.timeout(30):
            await asyncio.gather(*watching)
        await installation.all_acked(30_000)
        wanted = own(stored, clients)

        async def equal() -> bool:
            return figures(await bus.rates(user=USER)) == wanted

        await until(equal, 10_000, f"rates of the user: {wanted}")
        everyone = await bus.rates()
        assert figures(everyone) == wanted, "counted when it happened, over all users: there is one"
        assert everyone.success == 1.0
        for number in range(RUNS):
            one = Counter(agent_started=1, agent_thinking=THOUGHTS, agent_completed=1)
            found = await bus.rates(user=USER, run=f"run_{number}")
            assert figures(found) == own(one, clients, f"run_{number}")
        shown = await bus.rates(user=USER, type=SHOWN)
        assert (shown.stored, shown.displayed) == (RUNS * THOUGHTS, RUNS * THOUGHTS)
        assert figures(shown) == figures(everyone.by_type[SHOWN])
        for task in endless:
            task.cancel()
    await changes.aclose()

    for run, found_of_run in confirmed.items():
        told = [(one.session, one.event, one.level.value) for one in found_of_run]
        assert len(told) == len(set(told)), "each once"
        # It ends when each event was received by one session; what came later is not told.
        for session, client in clients.items():
            assert {(event, level) for of, event, level in told if of == session} <= client.levels(run)
        assert {event for _, event, _ in told} == {
            event for c in clients.values() for event, (of, _) in c.books.items() if of == run
        }
    assert len(confirmed) == RUNS
    # A session that moved to the other node never went, and came once.
    assert [(change.session, change.online) for change in came] in (
        [("laptop", True), ("phone", True)],
        [("phone", True), ("laptop", True)],
    )
