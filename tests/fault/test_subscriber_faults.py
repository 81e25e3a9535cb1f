"""The Python client behind a network that cuts, tears, delays, freezes and refuses, and nodes that die or drain.

The seed of all chance is printed with a failure; EVENTBUS_TEST_SEED repeats it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventbus import Subscriber
from eventbus.ids import UserId
from eventbus.subscriber import Delivery, Gap, State
from eventbus.testing import ManualClock
from gateway.node import Node
from tests.support.installation import Installation, NewInstallation, Storm
from tests.support.proxy import Proxy
from tests.support.stalls import within
from tests.support.subscribing import Log, background, running_node, token
from tests.support.waiting import until

SEED = int(os.environ.get("EVENTBUS_TEST_SEED", "20261121"))
EVENTS = 2_000
FORMATS = pytest.mark.parametrize("wire_format", ["json", "msgpack"])


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def node(server_url: str) -> AsyncIterator[Node]:
    async with running_node(server_url, EVENTBUS_HANDSHAKES_PER_ADDRESS="0", EVENTBUS_HEARTBEAT_MS="1000") as node:
        yield node


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[Proxy]:
    async with Proxy(node.port) as proxy:
        yield proxy


def client(proxy: Proxy, log: Log, **options: Any) -> Subscriber:
    chance = random.Random(SEED)
    given = {
        "token": token,
        "session": "desk",
        "on_state": log.on_state,
        "on_error": log.errors.append,
        "random": lambda: chance.random() * 0.001,  # waits of at most 15 ms
        **options,
    }
    return Subscriber(f"http://127.0.0.1:{proxy.port}", **given)


@asynccontextmanager
async def following(proxy: Proxy, log: Log, **options: Any) -> AsyncIterator[Subscriber]:
    async with client(proxy, log, **options) as subscriber, background(lambda: log.follow(subscriber)):
        yield subscriber


async def publish(node: Node, *numbers: int) -> None:
    await node.bus.publish_many([{"user": "ann", "type": "step", "data": {"number": n}} for n in numbers])


async def nothing_pending(node: Node) -> None:
    async def released() -> bool:
        return all(record.pending == 0 and not record.unread for record in await node.store.sessions(UserId("ann")))

    await until(released, 10_000, "everything is acked in the store")


async def survive(node: Node, proxy: Proxy, log: Log, *, tear: bool, **options: Any) -> int:
    """Publishes 2,000 events in bursts and ends the connection at random moments; returns how many ended."""
    chance = random.Random(SEED)
    cuts = published = 0

    async def consume() -> None:
        async for delivery in subscriber:
            log.take(delivery)
            for _ in range(chance.choice((0, 0, 3, 40))):  # so that a cut finds events queued and in hand
                await asyncio.sleep(0)

    async with client(proxy, log, **options) as subscriber, background(consume):
        while published < EVENTS:
            burst = min(chance.randint(1, 40), EVENTS - published)
            publishing = asyncio.ensure_future(publish(node, *range(published, published + burst)))
            for _ in range(chance.randint(0, 200)):
                await asyncio.sleep(0)
            if tear and chance.random() < 0.5:
                # Within a frame: of the events, or of the acks.
                way, most = chance.choice(((proxy.to_client, 6_000), (proxy.to_server, 400)))
                way.cut_after_bytes = chance.randint(1, most)
            elif chance.random() < 0.7:
                cuts += proxy.open
                proxy.cut()
            await publishing
            published += burst
            if chance.random() < 0.5:
                await until(lambda wanted=published: len(log.numbers) >= wanted, 10_000)  # type: ignore[misc]
        proxy.heal()
        await until(lambda: len(log.numbers) >= EVENTS, 20_000, lambda: f"{len(log.numbers)} came, seed {SEED}")
        await nothing_pending(node)
    return max(cuts, log.states.count(State.WAITING))


@pytest.mark.requirement("R8")
@pytest.mark.requirement("R2")
@FORMATS
async def test_random_cuts_every_event_exactly_once_and_in_order(
    node: Node, proxy: Proxy, log: Log, wire_format: str
) -> None:
    ended = await survive(node, proxy, log, tear=False, format=wire_format, window=64)
    assert log.numbers == list(range(EVENTS)), f"seed {SEED}"
    assert ended >= 20, f"only {ended} connections ended: nothing was tried, seed {SEED}"
    assert any(delivery.redelivered for delivery in log.deliveries), "no cut hit while events were pending"
    assert log.errors == []


@pytest.mark.requirement("R8")
@pytest.mark.requirement("R2")
@FORMATS
async def test_connections_torn_within_frames_every_event_exactly_once_and_in_order(
    node: Node, proxy: Proxy, log: Log, wire_format: str
) -> None:
    ended = await survive(node, proxy, log, tear=True, format=wire_format, window=16)
    assert log.numbers == list(range(EVENTS)), f"seed {SEED}"
    assert ended >= 20, f"only {ended} connections ended: nothing was tried, seed {SEED}"
    assert log.errors == []


@pytest.mark.requirement("R8")
async def test_cuts_while_handlers_fail_every_event_succeeds_exactly_once(node: Node, proxy: Proxy, log: Log) -> None:
    chance, failed = random.Random(SEED), set[int]()

    async def handle(delivery: Delivery) -> None:
        number: int = delivery.event.data["number"]
        if chance.random() < 0.3:
            await asyncio.sleep(0)
        if number not in failed and chance.random() < 0.1:
            failed.add(number)
            raise ValueError("once")
        log.take(delivery)

    subscriber = client(proxy, log, on_event=handle, nack_delay_ms=20, on_error=None)
    async with background(subscriber.run):
        for begin in range(0, 600, 30):
            await publish(node, *range(begin, begin + 30))
            await until(lambda wanted=begin: len(log.numbers) > wanted // 2, 10_000)  # type: ignore[misc]
            proxy.cut()
        await until(lambda: len(log.numbers) >= 600, 20_000)
        await nothing_pending(node)
        await subscriber.close()
    assert sorted(log.numbers) == list(range(600)), f"seed {SEED}"
    assert len(failed) > 20


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R8")
async def test_a_half_open_connection_is_replaced_and_nothing_is_lost(node: Node, proxy: Proxy, log: Log) -> None:
    """Both ends believe in the connection. The client's clock is the test's; the node's is real."""
    clock = ManualClock()
    async with following(proxy, log, clock=clock) as subscriber:
        await publish(node, 1, 2)
        await log.has(1, 2)
        await until(lambda: subscriber.state is State.LIVE)
        proxy.half_open()
        await publish(node, 3, 4)
        await until(lambda: proxy.to_client.swallowed_bytes > 0)
        await clock.pass_time(1_000)
        await until(lambda: proxy.to_server.swallowed_bytes > 0, message="the client asks")
        await clock.pass_time(10_000)
        await until(lambda: State.WAITING in log.states)
        proxy.heal()
        await clock.pass_time(1_000)
        await log.has(1, 2, 3, 4)
    assert [delivery.redelivered for delivery in log.deliveries] == [False, False, True, True]


@pytest.mark.requirement("R2")
async def test_acks_swallowed_by_a_dying_connection_are_given_again(node: Node, proxy: Proxy, log: Log) -> None:
    async with following(proxy, log):
        await publish(node, 1)
        await log.has(1)
        await nothing_pending(node)
        proxy.to_server.swallow = True
        await publish(node, *range(2, 30))
        await log.has(*range(1, 30))
        records = await node.store.sessions(UserId("ann"))
        assert [record.pending for record in records] == [28]
        proxy.heal()
        proxy.cut()
        await nothing_pending(node)
    assert log.numbers == list(range(1, 30))


@pytest.mark.requirement("R2")
async def test_a_stalled_and_slow_network_only_delays(node: Node, proxy: Proxy, log: Log) -> None:
    async with following(proxy, log):
        await publish(node, *range(50))
        proxy.to_client.delay_ms = proxy.to_server.delay_ms = 30
        await publish(node, *range(50, 100))
        await until(lambda: len(log.numbers) > 50)
        proxy.stall()
        await publish(node, *range(100, 150))
        proxy.to_client.flow()
        proxy.to_server.flow()
        await log.has(*range(150))
        await nothing_pending(node)
    assert log.states.count(State.WAITING) == 0


@pytest.mark.requirement("R2")
async def test_nobody_there_for_a_while_is_no_end(node: Node, proxy: Proxy, log: Log) -> None:
    async with following(proxy, log):
        await publish(node, 1)
        await log.has(1)
        proxy.refuse()
        await publish(node, 2)
        await until(lambda: log.states.count(State.WAITING) >= 4)
        proxy.heal()
        await log.has(1, 2)


@pytest.mark.requirement("R25")
async def test_the_end_is_bounded_when_the_network_is_dead(node: Node, proxy: Proxy, log: Log) -> None:
    """R25: acks cannot leave and the close is not answered."""
    async with client(proxy, log) as subscriber:
        await publish(node, 1, 2)
        await anext(subscriber)
        proxy.half_open()
        await anext(subscriber)
        async with within(6):
            await subscriber.close()
    assert subscriber.state is State.CLOSED


# --- nodes that die, freeze and drain, in processes of their own ------------------------------------------------------


@asynccontextmanager
async def application(installation: Installation, log: Log, **options: Any) -> AsyncIterator[Subscriber]:
    """A subscriber of the installation's user, and everything acked in the store at its end."""
    chance = random.Random(SEED)
    given = {
        "token": installation.token,
        "session": "desk",
        "on_state": log.on_state,
        "random": lambda: chance.random() * 0.02,  # waits of at most 300 ms, though connections are short
        **options,
    }
    async with Subscriber(installation.url, **given) as subscriber, background(lambda: log.follow(subscriber)):
        # A node that is frozen before its welcome has not said yet how often it beats.
        await until(lambda: subscriber.state is State.LIVE, 20_000, "it is live")
        yield subscriber


def counted(log: Log) -> Callable[[], Awaitable[int]]:
    async def arrived() -> int:
        return len(log.deliveries)

    return arrived


def handed_over(installation: Installation, log: Log) -> None:
    assert [delivery.event.id for delivery in log.deliveries] == installation.published, f"seed {SEED}"
    assert [delivery.entry for delivery in log.deliveries] == list(installation.entries.values()), f"seed {SEED}"


@pytest.mark.requirement("R10")
@FORMATS
async def test_a_drained_node_hands_its_session_to_the_next(
    new_installation: NewInstallation, log: Log, wire_format: str
) -> None:
    """R10, R7: told when to come back, resumed there, nothing lost and nothing twice."""
    gaps: list[Gap] = []
    installation = await new_installation(nodes=2)
    async with application(installation, log, format=wire_format, on_gap=gaps.append) as subscriber:
        await installation.publish(50)
        await until(lambda: len(log.numbers) == 50)
        async with asyncio.TaskGroup() as group:
            group.create_task(installation.publish(200, pace_s=0.005))
            await until(lambda: len(log.numbers) > 80)
            old, _ = installation.switch()
            old.child.terminate()
        await until(lambda: len(log.numbers) == 250, 10_000, lambda: f"{len(log.numbers)} of 250 came")
        assert await old.child.wait() == 0
        await installation.all_acked()
        await until(lambda: subscriber.state is State.LIVE)
    handed_over(installation, log)
    assert gaps == []
    waits = [detail for detail, state in zip(log.details, log.states, strict=True) if state is State.WAITING]
    assert len(waits) == 1, waits
    assert waits[0].reason in ("goaway", "the node is draining")


@pytest.mark.slow
@pytest.mark.requirement("R8")
@pytest.mark.requirement("R2")
@pytest.mark.parametrize("wire_format", ["json", pytest.param("msgpack", marks=pytest.mark.soak)])
@pytest.mark.timeout(180)
async def test_a_storm_of_everything_every_event_exactly_once_and_in_order(
    new_installation: NewInstallation, log: Log, wire_format: str
) -> None:
    """R2, R8: kill -9, SIGSTOP and SIGTERM of nodes, cut, torn, refused and lossy connections; 2,000 events."""
    installation = await new_installation(nodes=2)
    gaps: list[Gap] = []
    storm = Storm(installation, SEED, EVENTS, counted(log))
    async with application(installation, log, format=wire_format, on_gap=gaps.append):
        await storm.run("cut", "torn", "refused", "lossy", "killed", "drained", "cut", "killed")
        await until(lambda: len(log.deliveries) >= len(installation.published), 20_000)
        await installation.all_acked()
    handed_over(installation, log)
    assert len(installation.published) >= EVENTS
    assert gaps == []
    assert storm.struck >= 6


@pytest.mark.slow
@pytest.mark.requirement("R2")
@pytest.mark.timeout(120)
async def test_a_frozen_node_is_left_for_another(new_installation: NewInstallation, log: Log) -> None:
    """SIGSTOP: its sockets stand and nothing comes. The node says in its welcome that it beats every second."""
    installation = await new_installation(nodes=2)
    storm = Storm(installation, SEED, 200, counted(log))
    async with application(installation, log):
        await storm.run("frozen")
        await until(lambda: len(log.deliveries) >= len(installation.published), 20_000)
        await installation.all_acked()
    handed_over(installation, log)
