"""What a node does for its sessions when its wake-ups do not come, and when it can not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from eventbus.errors import CloseCode, StoreMisconfigured, StoreUnavailable
from eventbus.ids import NodeName
from eventbus.store import NodeRecord
from eventbus.testing import ManualClock
from gateway.delivery.keeper import Keeper
from gateway.readiness.moving import MOVE_AFTER_MS, Moving
from gateway.readiness.probes import DEAF_AFTER_MS
from gateway.readiness.sweep import SESSIONS_A_TICK, Sweep
from gateway.sessions.hub import Hub
from gateway.sessions.session import Session
from tests.support.bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(clock=ManualClock()) as made:
        yield made


def node(state: str) -> NodeRecord:
    return NodeRecord(node=NodeName("n2"), address="a", version="1", state=state, started_ms=1, figures={})


async def prove(bench: Bench) -> asyncio.Task[None]:
    """Has the node probe its path, until the task is cancelled."""
    task = asyncio.create_task(bench.node.readiness.run())
    await bench.node.readiness.first.wait()
    return task


def deaf(bench: Bench) -> bool:
    return bench.node.readiness.is_deaf


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R2")
async def test_a_round_reads_for_every_session_what_no_wake_up_told_of(bench: Bench) -> None:
    ann, bob = await bench.open("ann"), await bench.open("bob")
    await bench.deafen()
    await bench.publish(2, "ann")
    await bench.publish(1, "bob")
    assert ann.events() == bob.events() == []
    assert bench.node.sweep.tick() == 2
    await bench.settle()
    assert (len(ann.events()), len(bob.events())) == (2, 1)
    # The next round begins a second later.
    assert [bench.node.sweep.tick() for _ in range(4)] == [0, 0, 0, 2]


async def test_a_tick_asks_for_a_bounded_number_of_sessions(bench: Bench) -> None:
    class Many:
        is_open = True

    class Asked:
        count = 0

        def beat(self, session: object) -> None:
            self.count += 1

    many, asked = cast(Hub[Session], [Many()] * (SESSIONS_A_TICK + 7)), Asked()
    sweep = Sweep(many, cast(Keeper, asked), bench.node.readiness)
    assert [sweep.tick() for _ in range(2)] == [SESSIONS_A_TICK, 7]
    assert asked.count == SESSIONS_A_TICK + 7


@pytest.mark.requirement("R30")
async def test_a_node_is_deaf_from_the_loss_of_its_subscription_until_a_probe_comes_back(bench: Bench) -> None:
    probing = await prove(bench)
    assert not deaf(bench)
    bench.node.hearing.unsubscribed("cut")
    assert deaf(bench)
    bench.node.readiness.probe_at_once()
    await bench.settle()
    assert not deaf(bench)
    await end(probing)


@pytest.mark.requirement("R30")
async def test_a_node_is_deaf_when_a_probe_was_written_and_is_not_heard_in_time(bench: Bench) -> None:
    probing = await prove(bench)
    await bench.deafen()
    bench.node.readiness.probe_at_once()
    await bench.settle()
    assert not deaf(bench)
    bench.clock.advance(DEAF_AFTER_MS)
    assert deaf(bench)
    assert bench.node.readiness.problem() is None, "it is deaf before it is not ready"
    await end(probing)


class Elsewhere:
    """What other nodes there are."""

    def __init__(self, bench: Bench) -> None:
        self.records: Sequence[NodeRecord] = ()
        node = bench.node
        self.moving = Moving(node.hub, node.readiness, others=self.ask)

    async def ask(self) -> Sequence[NodeRecord]:
        return self.records


async def _can_not_read(bench: Bench, elsewhere: Elsewhere) -> None:
    """Time passes in which no probe can read."""
    bench.store.fail(StoreMisconfigured("no rights"))
    bench.node.readiness.probe_at_once()
    await bench.settle()
    assert await elsewhere.moving.look() == 0
    bench.clock.advance(MOVE_AFTER_MS)


@pytest.mark.requirement("R30")
async def test_sessions_of_a_node_that_can_not_read_are_told_when_to_come_back_elsewhere(bench: Bench) -> None:
    probing = await prove(bench)
    clients = [await bench.open(user) for user in ("ann", "bob")]
    elsewhere = Elsewhere(bench)
    elsewhere.records = [node("ready")]
    await _can_not_read(bench, elsewhere)
    assert await elsewhere.moving.look() == 2
    for client in clients:
        assert client.of("goaway")[0]["reason"] == "rebalance"
        assert client.close_code() == CloseCode.STORE_UNAVAILABLE
    bench.store.heal()
    await end(probing)


@pytest.mark.requirement("R30")
@pytest.mark.parametrize("records", [[], [node("not_ready")], [node("draining")]])
async def test_where_no_other_node_is_ready_everybody_stays(bench: Bench, records: list[NodeRecord]) -> None:
    probing = await prove(bench)
    client = await bench.open()
    elsewhere = Elsewhere(bench)
    elsewhere.records = records
    await _can_not_read(bench, elsewhere)
    assert await elsewhere.moving.look() == 0
    assert client.close_code() is None
    bench.store.heal()
    await end(probing)


@pytest.mark.requirement("R30")
async def test_a_node_whose_store_does_not_answer_or_is_slow_moves_nobody(bench: Bench) -> None:
    """It may be busy: its sessions would make the others busy too."""
    probing = await prove(bench)
    client = await bench.open()
    elsewhere = Elsewhere(bench)
    elsewhere.records = [node("ready")]
    bench.store.fail(StoreUnavailable("no answer"))
    bench.node.readiness.probe_at_once()
    await bench.settle()
    bench.clock.advance(MOVE_AFTER_MS)
    assert bench.node.readiness.problem() is not None
    assert await elsewhere.moving.look() == 0
    assert client.close_code() is None
    bench.store.heal()
    await end(probing)


@pytest.mark.requirement("R30")
async def test_a_node_that_is_only_deaf_or_ready_again_moves_nobody(bench: Bench) -> None:
    probing = await prove(bench)
    client = await bench.open()
    elsewhere = Elsewhere(bench)
    elsewhere.records = [node("ready")]
    await _can_not_read(bench, elsewhere)
    bench.store.heal()
    bench.node.readiness.probe_at_once()
    await bench.settle()
    assert await elsewhere.moving.look() == 0
    bench.node.hearing.unsubscribed("cut")
    bench.clock.advance(MOVE_AFTER_MS)
    assert await elsewhere.moving.look() == 0
    assert client.close_code() is None
    await end(probing)
