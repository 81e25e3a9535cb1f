"""What follows for a node and its clients when the store, or a part of it, is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from eventbus.errors import CloseCode, StoreMisconfigured, StoreUnavailable
from eventbus.ids import NodeName, UserId
from eventbus.store import NodeRecord
from eventbus.store.commands import NODE_LIFE_MS
from eventbus.store.revoking import RevocationMark, RevocationPage
from eventbus.testing import ManualClock, MemoryStore
from tests.support.bench import Bench
from tests.support.waiting import until

AWAY = "away"
DOWN_MS = 60_000


class TwoPrimaries(MemoryStore):
    """Users whose names begin with `away` are on the second one, and so are tokens that begin with a letter.

    Attributes:
        away: the second one does not answer.
        list_error: what reading the revocations ends with.
        list_nodes_error: what reading the list of nodes ends with.
    """

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.away = False
        self.list_error: Exception | None = None
        self.list_nodes_error: Exception | None = None

    def lane_of(self, user: UserId) -> int:
        return 7 if user[0].isalpha() and user != "here" else 2

    async def probe(self, node: NodeName, token: str) -> None:
        if self.away and self.lane_of(UserId(token)) == 7:
            raise StoreUnavailable("a primary is away")
        await super().probe(node, token)

    async def nodes(self) -> Sequence[NodeRecord]:
        if self.list_nodes_error is not None:
            raise self.list_nodes_error
        return await super().nodes()

    async def revocations(self, mark: RevocationMark, count: int) -> RevocationPage:
        if self.list_error is not None:
            raise self.list_error
        return await super().revocations(mark, count)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    clock = ManualClock()
    async with Bench(TwoPrimaries(clock), clock, store_down_ms=DOWN_MS) as made:
        node = made.node
        tasks = [asyncio.create_task(node.readiness.run()), asyncio.create_task(node.revocations.run())]
        await until(lambda: len(node.readiness.proven) == 2)
        yield made
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def store_of(bench: Bench) -> TwoPrimaries:
    return cast(TwoPrimaries, bench.store)


async def pass_time(bench: Bench, ms: int) -> None:
    """In steps in which what answers is proven anew, and the revocations are read."""
    while ms > 0:
        bench.clock.advance(1_000)
        ms -= 1_000
        bench.node.readiness.probe_at_once()
        bench.node.revocations.look_at_once()
        await bench.settle()


@pytest.mark.requirement("R25")
@pytest.mark.requirement("R2")
async def test_connections_whose_primary_is_away_for_too_long_end_and_others_stay(bench: Bench) -> None:
    """They may find a node that reaches it; and nobody waits without end."""
    away, here = await bench.open(AWAY), await bench.open("here")
    store_of(bench).away = True
    await pass_time(bench, DOWN_MS - 1_000)
    assert bench.node.health.close_stranded() == 0
    assert bench.node.health.problem() is None
    assert not bench.node.store_is_down
    await pass_time(bench, 2_000)
    here.alive()
    assert bench.node.health.close_stranded() == 1
    assert (away.close_code(), here.close_code()) == (CloseCode.STORE_UNAVAILABLE, None)
    assert bench.node.health.close_stranded() == 0


@pytest.mark.requirement("R25")
async def test_a_node_looks_by_itself_whose_primary_is_away_for_too_long(bench: Bench) -> None:
    away, here = await bench.open(AWAY), await bench.open("here")
    store_of(bench).away = True
    await pass_time(bench, DOWN_MS + 1_000)
    task = asyncio.create_task(bench.node.health.run())
    await until(lambda: away.close_code() == CloseCode.STORE_UNAVAILABLE)
    assert here.close_code() is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R23")
async def test_revocations_on_a_primary_that_is_away_cost_readiness_only_when_nobody_is_let_in_any_more(
    bench: Bench,
) -> None:
    """Nobody can revoke while it is. A node that may be the only one that is cut off from it ends all the same."""
    store_of(bench).away = True
    store_of(bench).list_error = StoreUnavailable("a primary is away")
    await pass_time(bench, DOWN_MS - 1_000)
    assert bench.node.health.problem() is None
    await pass_time(bench, 2_000)
    assert bench.node.store_is_down
    assert "revocations" in (bench.node.health.problem() or "")
    store_of(bench).list_error = None
    await pass_time(bench, 1_000)
    assert bench.node.health.problem() is None


@pytest.mark.requirement("R30")
async def test_revocations_that_may_not_be_read_are_the_nodes_own_fault(bench: Bench) -> None:
    store_of(bench).list_error = StoreMisconfigured("no rights")
    await pass_time(bench, 5_000)
    assert "revocations" in (bench.node.health.problem() or "")


# --- cut off alone ----------------------------------------------------------------------------------------------------


async def other_tells(bench: Bench, *, state: str = "ready", **figures: int) -> None:
    """Another node says how it stands."""
    record = NodeRecord(
        node=NodeName("other"), address="10.0.0.2:8080", version="1", state=state, started_ms=0, figures=figures
    )
    await bench.store.beat_node(record)


async def be_away(bench: Bench, ms: int, *, state: str = "ready", **figures: int) -> None:
    """A primary is away from this node; the other one goes on telling."""
    store_of(bench).away = True
    while ms > 0:
        await other_tells(bench, state=state, **figures)
        await pass_time(bench, min(ms, 5_000))
        ms -= 5_000
        await bench.node.cut_off.look()


@pytest.mark.requirement("R30")
@pytest.mark.requirement("R2")
async def test_a_node_that_is_cut_off_alone_leaves_the_load_balancer_and_its_users_there_go_to_others(
    bench: Bench,
) -> None:
    away, here = await bench.open(AWAY), await bench.open("here")
    after_ms = bench.node.cut_off.after_ms
    assert NODE_LIFE_MS < after_ms < DOWN_MS / 2, "while what others said before may be there still nothing is known"
    await be_away(bench, after_ms - 2_000, lanes_away=0)
    assert bench.node.health.problem() is None
    assert bench.node.health.close_stranded() == 0
    await be_away(bench, 3_000, lanes_away=0)
    assert "away from this node" in (bench.node.health.problem() or "")
    assert not bench.node.store_is_down
    here.alive()
    assert bench.node.health.close_stranded() == 1
    assert (away.close_code(), here.close_code()) == (CloseCode.STORE_UNAVAILABLE, None)

    store_of(bench).away = False
    await pass_time(bench, 1_000)
    await bench.node.cut_off.look()
    assert bench.node.health.problem() is None


@pytest.mark.requirement("R30")
@pytest.mark.parametrize(
    "state, figures",
    [
        pytest.param("ready", {"lanes_away": 1}, id="misses-it-too"),
        pytest.param("not_ready", {"lanes_away": 0}, id="is-not-ready"),
        pytest.param("draining", {"lanes_away": 0}, id="drains"),
        pytest.param("ready", {}, id="does-not-tell"),
    ],
)
async def test_a_node_stays_ready_when_no_other_could_serve_the_users_of_the_part_that_is_away(
    bench: Bench, state: str, figures: dict[str, int]
) -> None:
    """One dead primary never takes all nodes out of the load balancer."""
    away = await bench.open(AWAY)
    await be_away(bench, DOWN_MS - 5_000, state=state, **figures)
    assert bench.node.health.problem() is None
    assert bench.node.health.close_stranded() == 0
    assert away.close_code() is None


async def test_a_node_that_died_with_the_primary_is_no_witness(bench: Bench) -> None:
    """They stood on one machine: it was well when it was heard of last."""
    await other_tells(bench, lanes_away=0)
    store_of(bench).away = True
    for _ in range(DOWN_MS // 1_000 - 5):
        await pass_time(bench, 1_000)
        await bench.node.cut_off.look()
        assert bench.node.health.problem() is None


async def test_a_node_that_can_not_ask_the_others_stays_ready(bench: Bench) -> None:
    await be_away(bench, bench.node.cut_off.after_ms + 1_000, lanes_away=0)
    assert bench.node.health.problem() is not None
    store_of(bench).list_nodes_error = StoreUnavailable("the list is there too")
    await bench.node.cut_off.look()
    assert bench.node.health.problem() is None


async def test_a_node_tells_the_others_of_how_many_lanes_it_misses(bench: Bench) -> None:
    store_of(bench).away = True
    await pass_time(bench, 10_000)
    await bench.node.announce("ready")
    [record] = await bench.store.nodes()
    assert record.figures["lanes_away"] == 1
