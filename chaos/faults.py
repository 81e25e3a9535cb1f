"""The faults: what each does to an installation, how long, and how it is healed. A fault returns when it is healed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from chaos.installation import Installation, Node
from chaos.stores import TOPOLOGIES, ClusterStore, ReplicatedStore, SingleStore

__all__ = ["FAULTS", "FaultKind", "Harm", "names_for"]

CLOCK_JUMP_MS: Final = 4 * 60_000


class Harm:
    """What a fault is given.

    Attributes:
        world: what it harms.
        chance: its own, from the seed of the run.
        target: set by the fault: whom it chose.
        began: called when the harm begins, with its target.
    """

    def __init__(self, world: Installation, chance: random.Random, began: Callable[[str], None]) -> None:
        self.world = world
        self.chance = chance
        self.began = began

    async def wait(self, low_s: float, high_s: float) -> None:
        """The harm lasts."""
        await asyncio.sleep(self.chance.uniform(low_s, high_s))

    def away_ms(self, low: int, high: int) -> int:
        """How long a server is away."""
        return self.chance.randint(low, high)

    def node(self) -> Node:
        """A node that nothing harms now."""
        free = [node for node in self.world.nodes if not node.lock.locked()]
        return self.chance.choice(free or self.world.nodes)


Run = Callable[[Harm], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        group: at most one fault of a group at a time, two of `node`.
        what: for the page of guarantees.
        weight: how often it comes in a mix.
        topologies: where it can be staged.
        why_not: in words, for the others.
    """

    name: str
    group: str
    what: str
    run: Run
    weight: int = 2
    topologies: tuple[str, ...] = TOPOLOGIES
    why_not: str = ""


# --- nodes and the load balancer --------------------------------------------------------------------------------------


async def _node_kill(harm: Harm) -> None:
    node = harm.node()
    async with node.lock:
        harm.began(node.name)
        harm.world.kill_node(node)
        await harm.wait(0.2, 3)
        await harm.world.start_node(node)


async def _node_freeze(harm: Harm) -> None:
    node = harm.node()
    async with node.lock:
        harm.began(node.name)
        node.process.freeze()
        try:
            await harm.wait(1, 9)
        finally:
            node.process.thaw()


async def _node_drain(harm: Harm) -> None:
    node = harm.node()
    async with node.lock:
        harm.began(node.name)
        await harm.world.drain_node(node)
        await harm.world.start_node(node)


async def _balancer_kill(harm: Harm) -> None:
    harm.began("haproxy")
    harm.world.kill_balancer()
    await harm.wait(0.1, 1.5)
    await harm.world.start_balancer()


# --- the store --------------------------------------------------------------------------------------------------------


async def _store_restart(harm: Harm) -> None:
    harm.began("a primary")
    # Where somebody could take over, it is back before that.
    most_ms = 3_000 if isinstance(harm.world.store, SingleStore) else 300
    await harm.world.store.restart(harm.chance, harm.away_ms(0, most_ms))
    await harm.world.store.healed()


async def _store_restart_all(harm: Harm) -> None:
    harm.began("all servers")
    await harm.world.store.restart_all(harm.away_ms(0, 1_500))
    await harm.world.store.healed()


async def _store_freeze(harm: Harm) -> None:
    harm.began("a primary")
    await harm.world.store.freeze(harm.chance, harm.away_ms(500, 6_000))
    await harm.world.store.healed()


async def _store_cut(harm: Harm) -> None:
    harm.began("all connections")
    for _ in range(harm.chance.randint(1, 4)):
        await harm.world.store.cut()
        await harm.wait(0.05, 0.8)


def _links(harm: Harm) -> list[str]:
    """The networks between some processes and the single server: of one, or of all."""
    store = harm.world.store
    assert isinstance(store, SingleStore)
    names = sorted(store.links)
    return names if harm.chance.random() < 0.3 else [harm.chance.choice(names)]


async def _store_half_open(harm: Harm) -> None:
    store = harm.world.store
    assert isinstance(store, SingleStore)
    names = _links(harm)
    harm.began(", ".join(names))
    both = harm.chance.random() < 0.5
    for name in names:
        if both:
            store.links[name].half_open()
        else:
            store.links[name].to_client.swallow = True
    await harm.wait(1, 6)
    for name in names:
        store.links[name].heal()
        store.links[name].cut()


async def _store_slow(harm: Harm) -> None:
    store = harm.world.store
    assert isinstance(store, SingleStore)
    names = _links(harm)
    harm.began(", ".join(names))
    for name in names:
        store.links[name].to_client.delay_ms = harm.chance.randint(20, 400)
        store.links[name].to_server.delay_ms = harm.chance.randint(0, 100)
    await harm.wait(2, 6)
    for name in names:
        store.links[name].heal()


def _replicated(harm: Harm) -> ReplicatedStore:
    store = harm.world.store
    assert isinstance(store, ReplicatedStore)
    return store


async def _failover(harm: Harm) -> None:
    harm.began("a primary")
    await _replicated(harm).fail_over(harm.chance)
    await harm.world.store.healed()


async def _primary_kill(harm: Harm) -> None:
    harm.began("a primary")
    await _replicated(harm).kill_primary(harm.chance)
    await harm.world.store.healed()


async def _rollback(harm: Harm) -> None:
    harm.began("a primary")
    await _replicated(harm).roll_back(harm.chance, harm.away_ms(300, 1_500))
    await harm.world.store.healed()


async def _slot_move(harm: Harm) -> None:
    store = harm.world.store
    assert isinstance(store, ClusterStore)
    harm.began("a slot")
    await store.move_slot(harm.chance, harm.world.users)
    await store.healed()


# --- clients and their network ----------------------------------------------------------------------------------------


async def _client_cut(harm: Harm) -> None:
    harm.began("the clients' network")
    for _ in range(harm.chance.randint(1, 3)):
        harm.world.door.cut()
        await harm.wait(0.2, 1.5)


async def _client_half_open(harm: Harm) -> None:
    door = harm.world.door
    harm.began("the clients' network")
    if harm.chance.random() < 0.5:
        door.half_open()
    else:
        harm.chance.choice((door.to_client, door.to_server)).swallow = True
    await harm.wait(2, 8)
    door.heal()
    door.cut()


async def _client_slow(harm: Harm) -> None:
    door = harm.world.door
    harm.began("the clients' network")
    door.to_client.delay_ms, door.to_server.delay_ms = harm.chance.randint(50, 600), harm.chance.randint(0, 300)
    await harm.wait(2, 8)
    door.heal()


async def _client_freeze(harm: Harm) -> None:
    child = harm.chance.choice(harm.world.clients)
    harm.began(child.name)
    child.freeze()
    try:
        await harm.wait(1, 8)
    finally:
        child.thaw()


async def _churn(harm: Harm) -> None:
    harm.began("clients")
    for _ in range(3):
        harm.world.churn()
        await harm.wait(0.3, 1.5)


# --- publishers and clocks --------------------------------------------------------------------------------------------


async def _publisher_kill(harm: Harm) -> None:
    harm.began("a publisher")
    await harm.world.kill_publisher(harm.chance)


async def _flood(harm: Harm) -> None:
    harm.began("one user")
    await harm.world.flood(harm.chance, harm.chance.randint(500, 1_500))


async def _clock_jump(harm: Harm) -> None:
    offset_ms = harm.chance.choice((-1, 1)) * harm.chance.randint(1_000, CLOCK_JUMP_MS)
    name, right = harm.world.skew(harm.chance, offset_ms)
    harm.began(f"{name} by {offset_ms / 1000:+.0f} s")
    try:
        await harm.wait(2, 10)
    finally:
        right()


_REPLICAS: Final = ("sentinel", "cluster")
_NO_REPLICA: Final = "there is no replica"
_ANNOUNCED: Final = "not staged: clients connect to the addresses that servers announce, past any proxy"

FAULTS: Final = {
    kind.name: kind
    for kind in (
        FaultKind(name="node-kill", group="node", what="`kill -9` of a node", run=_node_kill, weight=3),
        FaultKind(
            name="node-freeze", group="node", what="a node stands still for 1 to 9 s", run=_node_freeze, weight=3
        ),
        FaultKind(name="node-drain", group="node", what="a node is drained and started again", run=_node_drain),
        FaultKind(name="balancer-kill", group="network", what="`kill -9` of HAProxy", run=_balancer_kill, weight=1),
        FaultKind(
            name="store-restart",
            group="store",
            what="`kill -9` of a primary, which is back before anybody takes over",
            run=_store_restart,
        ),
        FaultKind(
            name="store-restart-all",
            group="store",
            what="`kill -9` of every server at once",
            run=_store_restart_all,
            weight=1,
        ),
        FaultKind(
            name="store-freeze",
            group="store",
            what="a primary stands still for 0.5 to 6 s, and comes back",
            run=_store_freeze,
        ),
        FaultKind(name="store-cut", group="store", what="the servers close every connection", run=_store_cut),
        FaultKind(
            name="store-half-open",
            group="store",
            what="connections of nodes and publishers to the store stand and are dead",
            run=_store_half_open,
            topologies=("single",),
            why_not=_ANNOUNCED,
        ),
        FaultKind(
            name="store-slow",
            group="store",
            what="the network to the store is slow by up to 0.5 s",
            run=_store_slow,
            topologies=("single",),
            why_not=_ANNOUNCED,
        ),
        FaultKind(
            name="failover",
            group="store",
            what="failover by command",
            run=_failover,
            topologies=_REPLICAS,
            why_not=_NO_REPLICA,
        ),
        FaultKind(
            name="primary-kill",
            group="store",
            what="`kill -9` of a primary, until its replica has taken over",
            run=_primary_kill,
            topologies=_REPLICAS,
            why_not=_NO_REPLICA,
        ),
        FaultKind(
            name="rollback",
            group="store",
            what="a replica is cut off for 0.3 to 1.5 s, its primary is killed, it takes over without the last writes",
            run=_rollback,
            weight=1,
            topologies=_REPLICAS,
            why_not=_NO_REPLICA,
        ),
        FaultKind(
            name="slot-move",
            group="store",
            what="a slot in use moves to another primary, key by key or atomically",
            run=_slot_move,
            topologies=("cluster",),
            why_not="there are no slots",
        ),
        FaultKind(name="client-cut", group="network", what="clients' connections are reset", run=_client_cut, weight=3),
        FaultKind(
            name="client-half-open",
            group="network",
            what="clients' connections stand and are dead in one or both directions",
            run=_client_half_open,
        ),
        FaultKind(
            name="client-slow", group="network", what="clients' network is slow by up to 0.9 s", run=_client_slow
        ),
        FaultKind(
            name="client-freeze",
            group="client",
            what="a process of clients stands still for 1 to 8 s",
            run=_client_freeze,
        ),
        FaultKind(
            name="churn",
            group="client",
            what="a third of the connections end, three times; sessions come and go",
            run=_churn,
        ),
        FaultKind(name="publisher-kill", group="publisher", what="`kill -9` of a publisher", run=_publisher_kill),
        FaultKind(
            name="flood", group="publisher", what="500 to 1,500 events for one user as fast as it goes", run=_flood
        ),
        FaultKind(
            name="clock-jump",
            group="clock",
            what="the clock of a node or a publisher is wrong by up to 4 minutes",
            run=_clock_jump,
        ),
    )
}


def names_for(topology: str) -> list[str]:
    """The faults that can be staged with a topology."""
    return [name for name, kind in FAULTS.items() if topology in kind.topologies]
