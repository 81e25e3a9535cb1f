"""How a node ends: the order, its bounds, and what it does not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from eventbus.clock import Clock
from eventbus.errors import CloseCode, StoreUnavailable
from eventbus.ids import NodeName
from eventbus.store import Attach, Attached, AttachRefused, NodeRecord
from eventbus.testing import ManualClock, MemoryStore
from gateway.drain import ANNOUNCE_MS, LINGER_MS, SPREAD_MAX_MS, drain, reconnect_after_ms, taken_per_second
from tests.support.bench import Bench, BenchClient
from tests.support.waiting import until


class Drained:
    """A bench seen by a drain; writes down what is done to it, in order.

    Attributes:
        log: what happened.
        clients: whose sockets `close_sockets` closes.
        announce_hangs: whether the store does not answer the announcement.
    """

    def __init__(self, bench: Bench, *clients: BenchClient) -> None:
        self.bench = bench
        self.clock: Clock = bench.clock
        self.hub = bench.node.hub
        self.reader = bench.node.reader
        self.sending = bench.node.sending
        self.drain_ms = 10_000
        self.clients = clients
        self.log: list[str] = []
        self.announce_hangs = False
        self.announce_error: Exception | None = None
        self.other_nodes: Sequence[NodeRecord] = ()

    async def announce(self, state: str) -> None:
        self.log.append(state)
        if self.announce_hangs:
            await asyncio.Event().wait()
        if self.announce_error is not None:
            raise self.announce_error

    def close_sockets(self, code: CloseCode, reason: str) -> None:
        self.log.append("close")
        for client in self.clients:
            client.socket.close(code, reason)

    async def others(self) -> Sequence[NodeRecord]:
        return self.other_nodes

    async def wait_closed(self, timeout_ms: int) -> bool:
        self.log.append("wait")
        self.bench.clock.advance(LINGER_MS)
        return True

    async def leave(self) -> None:
        self.log.append("leave")

    async def run(self) -> None:
        """Drains; the second for which the listener goes on answering passes while the sockets close."""
        await drain(self)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(clock=ManualClock()) as made:
        yield made


@pytest.mark.requirement("R10")
async def test_a_drain_tells_then_settles_then_gives_holds_up_then_closes_then_leaves(bench: Bench) -> None:
    client = await bench.open()
    node = Drained(bench, client)
    held: list[Any] = []
    close = node.close_sockets

    def close_and_look(code: CloseCode, reason: str) -> None:
        held.append((len(bench.node.hub), bench.node.reader.is_busy))
        close(code, reason)

    node.close_sockets = close_and_look  # type: ignore[method-assign]
    await node.run()
    assert node.log == ["draining", "close", "wait", "leave"]
    assert client.of("goaway")[0]["reason"] == "draining"
    assert client.close_code() == 4001
    assert held == [(0, False)], "the holds are given up before the close"
    assert await bench.live() is None


class GatedStore(MemoryStore):
    """Opens sessions of `late` only when the gate is open."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.gate = asyncio.Event()

    async def attach(self, request: Attach) -> Attached | AttachRefused:
        if request.fence.user == "late":
            await self.gate.wait()
        return await super().attach(request)


@pytest.mark.requirement("R10")
async def test_a_client_whose_session_opens_while_the_node_drains_is_told_too_and_comes_after_the_others() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with Bench(store, clock) as bench:
        early = await bench.open()
        (entry,) = await bench.publish()
        late = bench.connect("late")
        late.say("hello", session="tab")
        node = Drained(bench, early, late)
        draining = asyncio.create_task(node.run())
        await until(lambda: early.of("goaway"))
        store.gate.set()
        await until(lambda: late.session.is_open)
        early.say("ack", ids=[entry])
        await draining
        (told,) = late.of("goaway")
        assert told["reconnect_after_ms"] >= early.of("goaway")[0]["reconnect_after_ms"]
        assert len(early.of("goaway")) == 1
        assert (early.close_code(), late.close_code()) == (4001, 4001)


@pytest.mark.requirement("R10")
@pytest.mark.requirement("R28")
async def test_a_client_whose_session_opens_while_its_node_is_held_is_told_too() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with Bench(store, clock) as bench:
        early, late = await bench.open(), bench.connect("late")
        late.say("hello", session="tab")
        await store.hold_node(bench.node.name, "ops", "new disk")
        looking = asyncio.create_task(bench.node.holding.look())
        await until(lambda: early.of("goaway"))
        store.gate.set()
        await until(lambda: late.session.is_open)
        await looking
        assert [frame["reason"] for frame in early.of("goaway") + late.of("goaway")] == ["draining", "draining"]
        assert (early.close_code(), late.close_code()) == (4001, 4001)


@pytest.mark.requirement("R10")
async def test_acks_that_come_within_the_grace_are_stored(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(2)
    node = Drained(bench, client)
    draining = asyncio.create_task(node.run())
    await until(lambda: client.of("goaway"))
    client.say("ack", ids=entries[:1])
    client.say("ack", ids=entries[1:], ref=1)
    await draining
    assert await bench.pending() == []


@pytest.mark.requirement("R10")
async def test_a_draining_node_reads_nothing_new(bench: Bench) -> None:
    client = await bench.open()
    node = Drained(bench, client)
    draining = asyncio.create_task(node.run())
    await until(lambda: client.of("goaway"))
    await bench.publish()
    await draining
    assert client.events() == []


@pytest.mark.requirement("R25")
async def test_a_store_that_is_away_costs_only_bounded_time(bench: Bench) -> None:
    client = await bench.open()
    entries = await bench.publish(1)
    bench.store.fail()
    client.say("ack", ids=entries)
    node = Drained(bench, client)
    node.announce_hangs = True
    node.drain_ms = 1_000
    async with asyncio.timeout(ANNOUNCE_MS / 1000 + 5):
        await node.run()
    assert client.close_code() == 4001
    assert node.log[-1] == "leave"


async def test_an_announcement_that_fails_stops_nothing(bench: Bench) -> None:
    client = await bench.open()
    node = Drained(bench, client)
    node.announce_error = StoreUnavailable("down")
    await node.run()
    assert client.close_code() == 4001


async def test_sessions_that_are_not_open_yet_are_told_nothing_and_end_too(bench: Bench) -> None:
    bench.store.hang()
    attaching, silent = bench.connect(), bench.connect("bob")
    attaching.say("hello", session="tab")
    await bench.settle()
    node = Drained(bench, attaching, silent)
    node.drain_ms = 1_000
    draining = asyncio.create_task(node.run())
    await until(lambda: "close" in node.log)
    bench.store.resume()
    await draining
    for client in (attaching, silent):
        assert client.ops() == []
        assert client.close_code() == 4001
    await until(lambda: not bench.node.reader.is_busy)
    assert await bench.live() is None


async def test_a_drain_without_any_client_takes_the_same_steps(bench: Bench) -> None:
    node = Drained(bench)
    await node.run()
    assert node.log == ["draining", "close", "wait", "leave"]


def node(state: str = "ready", **figures: int) -> NodeRecord:
    return NodeRecord(node=NodeName("n2"), address="a", version="1", state=state, started_ms=1, figures=figures)


@pytest.mark.requirement("R10")
def test_the_more_nodes_take_clients_and_the_more_each_takes_the_sooner_they_are_back() -> None:
    roomy = node(room=50_000, handshakes_per_second=2_000)
    assert taken_per_second(10_000, [roomy, roomy]) == 1_000
    assert taken_per_second(10_000, [roomy, node(room=50_000, handshakes_per_second=400)]) == 600
    assert taken_per_second(10_000, [roomy, node("not_ready"), node("draining")]) == 500
    assert reconnect_after_ms(9_999, 10_000, 1_000) == pytest.approx(10_000, abs=60)


@pytest.mark.requirement("R10")
def test_clients_for_whom_there_is_no_room_come_back_as_slowly_as_they_may() -> None:
    full = node(room=100, handshakes_per_second=2_000)
    assert reconnect_after_ms(999, 1_000, taken_per_second(1_000, [full, full])) > SPREAD_MAX_MS - 60


@pytest.mark.requirement("R10")
def test_what_nobody_tells_is_taken_as_500_a_second() -> None:
    assert taken_per_second(10, []) == 500
    assert taken_per_second(10, [node("draining")]) == 500
    assert taken_per_second(10_000, [node(connections=7)]) == 500, "a release that does not tell its room"
    assert taken_per_second(10_000, [node(room=50_000, handshakes_per_second=0)]) == 500, "no limit"


@pytest.mark.requirement("R10")
async def test_the_waits_that_clients_are_told_follow_from_what_the_other_nodes_take(bench: Bench) -> None:
    clients = [await bench.open(session=f"s{number}") for number in range(4)]
    drained = Drained(bench, *clients)
    drained.other_nodes = [node(room=50_000, handshakes_per_second=4)]
    await drained.run()
    waits = sorted(client.of("goaway")[0]["reconnect_after_ms"] for client in clients)
    assert waits == [50, 1_050, 2_050, 3_050]


@pytest.mark.requirement("R10")
@pytest.mark.parametrize("count", [1, 10, 1_000, 100_000])
def test_clients_come_back_evenly_spread_and_at_most_500_a_second(count: int) -> None:
    waits = [reconnect_after_ms(index, count) for index in range(count)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert waits[-1] <= SPREAD_MAX_MS + 50
    spread_ms = waits[-1] - waits[0]
    assert spread_ms >= min(2 * (count - 1), SPREAD_MAX_MS) * 0.9
