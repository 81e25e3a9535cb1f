"""The store's counts against the books of the clients, with nodes that are killed and sessions that move (R14)."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from eventbus import Subscriber
from tests.fault.test_any import counted, looking
from tests.support.installation import NewInstallation
from tests.support.waiting import until

EVENTS = 200
KINDS = ("note", "chat", "broken", "noise")


class Client:
    """An application that writes down what it did: handled, shown, refused.

    Attributes:
        wants: the types that its filter lets through.
        refuses: the types that it can not handle.
        shows: the types that it displays.
    """

    def __init__(self, *, wants: tuple[str, ...] = KINDS, refuses: tuple[str, ...] = (), shows: str = "") -> None:
        self.wants = wants
        self.refuses = refuses
        self.shows = shows
        self.handled: dict[str, str] = {}
        self.refused: Counter[str] = Counter()

    async def follow(self, subscriber: Subscriber) -> None:
        async for delivery in subscriber:
            event = delivery.event
            if event.type in self.refuses:
                self.refused[event.id] += 1
                await delivery.nack("cannot", delay_ms=0)
                continue
            if event.type == self.shows:
                await delivery.displayed()
            self.handled[event.id] = event.type
            await asyncio.sleep(0.001)  # real time: the pace of the publisher


def own_counts(published: Counter[str], clients: dict[str, Client]) -> dict[tuple[str, str], int]:
    """What the store must have counted, by the clients' own books."""
    total: Counter[tuple[str, str]] = Counter({("stored", kind): count for kind, count in published.items()})
    for client in clients.values():
        for kind in client.handled.values():
            total["received", kind] += 1
            total["displayed", kind] += kind == client.shows
        for kind, count in published.items():
            total["filtered", kind] += count * (kind not in client.wants)
            total["dead_lettered", kind] += count * (kind in client.refuses)
    return dict(+total)


@pytest.mark.slow
@pytest.mark.requirement("R14", "R2")
async def test_counts_are_those_of_the_clients_over_kills_takeovers_and_redeliveries(
    new_installation: NewInstallation,
) -> None:
    installation = await new_installation(nodes=2, max_deliveries=3, ack_timeout_ms=2_000)
    clients = {
        "phone": Client(shows="note"),
        "laptop": Client(wants=("note", "chat", "broken")),
        "fussy": Client(refuses=("broken",), shows="chat"),
    }
    published: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        following = []
        for session, client in clients.items():
            subscriber = await stack.enter_async_context(
                Subscriber(
                    installation.url,
                    token=installation.token,
                    session=session,
                    start="earliest",
                    filter={"types": client.wants},
                )
            )
            following.append(group.create_task(client.follow(subscriber)))
        for number in range(EVENTS):
            kind = KINDS[number % len(KINDS)]
            await installation.publish(1, type=kind, pace_s=0.002)
            published[kind] += 1
            if number in (EVENTS // 4, EVENTS // 2):
                # SIGKILL with acks and redeliveries on their way; its sessions move to the other node.
                old, _ = installation.switch()
                old.child.kill()
                await installation.restart(old)
            if number == 3 * EVENTS // 4:
                installation.proxy.cut()
        await installation.all_acked(60_000)
        await until(lambda: all(len(client.handled) == owed(client, published) for client in clients.values()))
        async with looking(installation) as store:
            wanted = own_counts(published, clients)

            async def equal() -> bool:
                return await counted(store) == wanted

            await until(equal, message=f"counts of the clients: {wanted}")
        for task in following:
            task.cancel()
    assert sum(clients["fussy"].refused.values()) >= 3 * published["broken"], "there were redeliveries"


def owed(client: Client, published: Counter[str]) -> int:
    """How many events the client handles in the end."""
    return sum(count for kind, count in published.items() if kind in client.wants and kind not in client.refuses)
