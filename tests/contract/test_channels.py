"""What nodes are told: wake-ups, takeovers, probes; each only to those whom it concerns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

import pytest

from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, NodeName, RunId, SessionId, UserId
from eventbus.store import Append
from eventbus.store.mending import Order
from tests.contract.conftest import MakeWorld
from tests.contract.timely import timely
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, PHONE, World, fence_of, stored
from tests.support.waiting import until

BOB = UserId("bob")
FIRST, SECOND = fence_of("c1"), fence_of("c2")
DESK = fence_of("c3", session=SessionId("desk"))


class Ear:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.wakes: list[UserId] = []
        self.displacements: list[tuple[UserId, SessionId, ConnectionId]] = []
        self.probes: list[str] = []
        self.subscriptions = 0

    def woken(self, user: UserId) -> None:
        self.wakes.append(user)

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        self.displacements.append((user, session, connection))

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        raise AssertionError("nobody acked through another door")

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        """No event of it is for any one session."""

    def text_came(self, user: UserId, run: RunId) -> None:
        """No run streams to it."""

    def revoked(self) -> None:
        """Nothing is revoked here."""

    def ordered(self, order: Order) -> None:
        """No operator is at work here."""

    def probed(self, token: str) -> None:
        self.probes.append(token)

    def has_probe(self, token: str) -> bool:
        return token in self.probes

    def subscribed(self) -> None:
        self.subscriptions += 1

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        """Everything was subscribed before."""

    def unsubscribed(self, reason: str) -> None:
        raise AssertionError(f"the subscription broke: {reason}")


Listen = Callable[[World, NodeName], Awaitable[Ear]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Listens as a node, and returns when all its channels are subscribed."""
    async with AsyncExitStack() as stack:

        async def start(world: World, node: NodeName) -> Ear:
            ear = Ear()
            listening = await world.store.listen(node, ear)
            stack.push_async_callback(listening.aclose)
            await until(lambda: ear.subscriptions, message=f"{node} is subscribed")
            return ear

        yield start


async def quiet(world: World, *ears: tuple[NodeName, Ear]) -> None:
    """Returns when everything sent so far was heard: what comes through a connection comes in its order."""
    for node, ear in ears:
        token = f"quiet-{len(ear.probes)}"
        await world.store.probe(node, token)
        await until(partial(ear.has_probe, token), message=f"{node} hears its probe")


async def test_wake_up_reaches_the_node_of_a_live_session(world: World, listen: Listen) -> None:
    ear = await listen(world, NODE)
    await world.open(FIRST)

    (result,) = await world.append(Append(user=ALICE, event=EventId("e1"), body=b"e1"))

    await until(lambda: ear.wakes, message="the wake-up comes")
    await quiet(world, (NODE, ear))
    assert ear.wakes == [ALICE]
    assert stored(result).woken == 1


async def test_node_is_woken_once_however_many_sessions_it_has(world: World, listen: Listen) -> None:
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)
    await world.open(FIRST)
    await world.open(DESK)
    await world.open(fence_of("c4", session=SessionId("tv")), node=OTHER_NODE)

    (result,) = await world.append(Append(user=ALICE, event=EventId("e1"), body=b"e1"))

    await quiet(world, (NODE, ear), (OTHER_NODE, other))
    assert (ear.wakes, other.wakes) == ([ALICE], [ALICE])
    assert stored(result).woken == 2


async def test_node_without_a_session_of_the_user_is_left_alone(world: World, listen: Listen) -> None:
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)
    await world.open(FIRST)
    await world.open(fence_of("c4", user=BOB), node=OTHER_NODE)

    await world.publish("for bob", user=BOB)

    await quiet(world, (NODE, ear), (OTHER_NODE, other))
    assert (ear.wakes, other.wakes) == ([], [BOB])


async def test_user_who_is_away_wakes_nobody(world: World, listen: Listen) -> None:
    ear = await listen(world, NODE)
    await world.open(FIRST)
    await world.store.detach(FIRST, ENTRY_ZERO)

    (result,) = await world.append(Append(user=ALICE, event=EventId("e1"), body=b"e1"))

    await quiet(world, (NODE, ear))
    assert (ear.wakes, stored(result).woken) == ([], 0)


@pytest.mark.corner("D16")
@timely
async def test_session_that_was_silent_for_too_long_wakes_nobody(make_world: MakeWorld, listen: Listen) -> None:
    """Also while another session of the user keeps the hash alive."""
    world = await make_world(live_ttl_ms=600)
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)
    await world.open(FIRST)
    await world.open(DESK, node=OTHER_NODE)
    await world.pass_time(350)
    await world.store.heartbeat([DESK], OTHER_NODE)
    await world.pass_time(350)

    await world.publish("e0")

    await quiet(world, (NODE, ear), (OTHER_NODE, other))
    assert (ear.wakes, other.wakes) == ([], [ALICE])


async def test_session_that_moved_wakes_its_new_node(world: World, listen: Listen) -> None:
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)
    await world.open(FIRST)
    await world.open(SECOND, node=OTHER_NODE)

    await world.publish("e0")

    await quiet(world, (NODE, ear), (OTHER_NODE, other))
    assert (ear.wakes, other.wakes) == ([], [ALICE])


@pytest.mark.corner("D2")
async def test_takeover_is_told_to_the_node_that_held_the_session(world: World, listen: Listen) -> None:
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)
    await world.open(FIRST)

    await world.open(SECOND, node=OTHER_NODE)

    await quiet(world, (NODE, ear), (OTHER_NODE, other))
    assert ear.displacements == [(ALICE, PHONE, SECOND.connection)]
    assert other.displacements == []


async def test_resume_and_re_attach_displace_nobody(world: World, listen: Listen) -> None:
    ear = await listen(world, NODE)
    await world.open(FIRST)
    await world.reattach(FIRST)
    await world.store.detach(FIRST, ENTRY_ZERO)
    await world.open(SECOND)

    await quiet(world, (NODE, ear))
    assert ear.displacements == []


@pytest.mark.requirement("R30")
async def test_probe_comes_back_to_its_node_alone(world: World, listen: Listen) -> None:
    ear, other = await listen(world, NODE), await listen(world, OTHER_NODE)

    await world.store.probe(NODE, "p1")
    await world.store.probe(NODE, "p2")

    await until(lambda: len(ear.probes) == 2, message="both probes come back")
    await quiet(world, (OTHER_NODE, other))
    assert ear.probes == ["p1", "p2"]
    assert (ear.wakes, other.probes) == ([], ["quiet-0"])


@pytest.mark.requirement("R30")
async def test_probe_of_a_deaf_node_does_not_fail(world: World, listen: Listen) -> None:
    """The write and the read worked; that nothing came back is for the node to see, and nothing comes later."""
    await world.store.probe(NODE, "p1")

    ear = await listen(world, NODE)
    await quiet(world, (NODE, ear))
    assert ear.probes == ["quiet-0"]


async def test_closed_subscription_hears_nothing_more(world: World, listen: Listen) -> None:
    still = await listen(world, OTHER_NODE)
    gone = Ear()
    listening = await world.store.listen(NODE, gone)
    await until(lambda: gone.subscriptions)
    await world.open(FIRST)
    await listening.aclose()
    await listening.aclose()

    await world.publish("e0")
    await world.store.probe(NODE, "p1")

    await quiet(world, (OTHER_NODE, still))
    assert (gone.wakes, gone.probes) == ([], [])


async def test_subscription_covers_every_partition(make_world: MakeWorld, listen: Listen) -> None:
    world = await make_world(partitions=7)
    ear = await listen(world, NODE)
    users = [UserId(f"user{number}") for number in range(40)]
    for user in users:
        await world.open(fence_of("c1", user=user))

    for user in users:
        await world.publish("e0", user=user)

    await until(lambda: len(ear.wakes) >= len(users), message="everyone's wake-up comes")
    await quiet(world, (NODE, ear))
    assert sorted(ear.wakes) == sorted(users)
