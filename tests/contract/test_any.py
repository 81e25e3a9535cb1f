"""`deliver: any`: the first ack of any session releases an event for all; and acks through another door (D11, D19)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgpack
import pytest

from eventbus.config import ConfirmationRecords
from eventbus.event import Level
from eventbus.ids import ENTRY_ZERO, ConnectionId, EntryId, EventId, RunId, SessionId, UserId
from eventbus.store import (
    AckRequest,
    Append,
    Confirmed,
    ConfirmRequest,
    EntryFacts,
    Fence,
    ReleaseReason,
    Start,
)
from eventbus.store.mending import Order
from tests.contract.worlds import ALICE, NODE, OTHER_NODE, World, fence_of, stored
from tests.support.waiting import until

PHONE = fence_of("c1")
LAPTOP = fence_of("c2", session=SessionId("laptop"))
TABLET = fence_of("c3", session=SessionId("tablet"))
SHARED = EntryFacts("note", shared=True)


@dataclass
class Heard:
    """What a node was told."""

    released_here: list[tuple[SessionId, tuple[EntryId, ...]]] = field(default_factory=list)
    acked_here: list[tuple[SessionId, tuple[EntryId, ...]]] = field(default_factory=list)
    stands: bool = False

    def woken(self, user: UserId) -> None:
        pass

    def displaced(self, user: UserId, session: SessionId, connection: ConnectionId) -> None:
        pass

    def acked_elsewhere(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        assert user == ALICE
        self.acked_here.append((session, tuple(entries)))

    def released(self, user: UserId, session: SessionId, entries: Sequence[EntryId]) -> None:
        assert user == ALICE
        self.released_here.append((session, tuple(entries)))

    def text_came(self, user: UserId, run: RunId) -> None:
        pass

    def revoked(self) -> None:
        pass

    def ordered(self, order: Order) -> None:
        """No operator is at work here."""

    def probed(self, token: str) -> None:
        pass

    def subscribed(self) -> None:
        self.stands = True

    def resubscribed(self, concerns: Callable[[UserId], bool]) -> None:
        """One primary has it all."""

    def unsubscribed(self, reason: str) -> None:
        pass


async def listen(world: World) -> Heard:
    """The ears of the other node."""
    heard = Heard()
    await world.store.listen(OTHER_NODE, heard)
    await until(lambda: heard.stands, message="the subscription stands")
    return heard


async def publish_any(world: World, *names: str, **fields: object) -> list[EntryId]:
    """Stores events that are for any session."""
    events = []
    for name in names:
        envelope = {"id": name, "type": "note", "user": ALICE, "time_ms": 1, "data": {}, "deliver": "any", "v": 1}
        body: bytes = msgpack.packb(envelope | fields)
        events.append(Append(user=ALICE, event=EventId(name), body=body, type="note"))
    return [stored(result).entry for result in await world.append(*events)]


async def ack(world: World, fence: Fence, *entries: EntryId, facts: EntryFacts | None = SHARED) -> int:
    """What the session's own connection acks."""
    request = AckRequest(
        user=fence.user,
        session=fence.session,
        entries=entries,
        facts=[facts] * len(entries),
        connection=fence.connection,
    )
    (result,) = await world.store.ack_many([request])
    assert isinstance(result, int), result
    return result


async def records(world: World) -> list[tuple[str, str, tuple[EntryId, ...]]]:
    found = await world.store.confirmations(ALICE, ENTRY_ZERO, 1000)
    return [(record.session, record.level, tuple(record.entries)) for _, record in found]


@pytest.mark.corner("D19")
@pytest.mark.requirement("R1")
async def test_first_ack_releases_a_shared_entry_for_every_session_that_has_it_in_flight(world: World) -> None:
    for fence in (PHONE, LAPTOP, TABLET):
        await world.open(fence, node=OTHER_NODE if fence is LAPTOP else NODE)
    heard = await listen(world)
    entries = await publish_any(world, "a", "b")
    for fence in (PHONE, LAPTOP):
        assert len((await world.read(fence)).entries) == 2

    assert await ack(world, PHONE, entries[0]) == 1

    for fence in (PHONE, LAPTOP):
        assert [entry for entry, _ in await world.waiting(fence)] == [entries[1]]
    await until(lambda: heard.released_here, message="the node of the other session is told")
    assert heard.released_here == [("laptop", (entries[0],))]
    assert heard.acked_here == []
    assert sorted(await records(world)) == [
        ("laptop", "released", (entries[0],)),
        ("phone", "received", (entries[0],)),
    ]


@pytest.mark.corner("D19")
@pytest.mark.requirement("R1")
async def test_a_released_entry_is_told_to_those_who_read_it_later(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    first, second = await publish_any(world, "a", "b")
    (each,) = await world.publish("c")
    await world.read(PHONE)
    await ack(world, PHONE, first)

    read = await world.read(LAPTOP)

    assert [entry.id for entry in read.entries] == [first, second, each]
    assert list(read.released) == [first]
    assert read.gap is None
    page = await world.page(LAPTOP)
    assert [(entry.id, entry.released) for entry in page.entries] == [(first, True), (second, False), (each, False)]
    assert await world.store.release(LAPTOP, [first], ReleaseReason.RELEASED) == 1
    await world.open(TABLET, start=Start.EARLIEST)
    assert list((await world.read(TABLET)).released) == [first], "a session that begins later"


@pytest.mark.corner("D19")
async def test_of_two_sessions_that_ack_at_once_exactly_one_released_it(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    (entry,) = await publish_any(world, "a")
    await world.read(PHONE)
    await world.read(LAPTOP)

    answers = await asyncio.gather(ack(world, PHONE, entry), ack(world, LAPTOP, entry))

    assert sorted(answers) == [0, 1]
    assert sorted(level for _, level, _ in await records(world)) == ["received", "released"]


@pytest.mark.corner("D19")
async def test_an_ack_of_what_another_session_released_before_it_was_read_is_no_confirmation(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    (entry,) = await publish_any(world, "a")
    await world.read(PHONE)
    await ack(world, PHONE, entry)
    await world.read(LAPTOP)

    assert await ack(world, LAPTOP, entry) == 0

    assert await world.waiting(LAPTOP) == []
    assert await records(world) == [("phone", "received", (entry,)), ("laptop", "released", (entry,))]


@pytest.mark.corner("D19")
async def test_a_displayed_releases_a_shared_entry_as_an_ack_does(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    (entry,) = await publish_any(world, "a")
    await world.read(PHONE)
    await world.read(LAPTOP)
    request = ConfirmRequest(
        user=ALICE, session=PHONE.session, level=Level.DISPLAYED, entries=[entry], connection=PHONE.connection
    )

    assert list(await world.store.confirm_many([request])) == [Confirmed(1, 1)]

    assert await world.waiting(LAPTOP) == []
    assert sorted(await records(world)) == [
        ("laptop", "released", (entry,)),
        ("phone", "displayed", (entry,)),
        ("phone", "received", (entry,)),
    ]


@pytest.mark.corner("D19")
@pytest.mark.parametrize("reason", [ReleaseReason.FILTERED, ReleaseReason.EXPIRED])
async def test_a_nodes_own_ack_releases_a_shared_entry_for_nobody_else(world: World, reason: ReleaseReason) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    (entry,) = await publish_any(world, "a")
    await world.read(PHONE)
    await world.read(LAPTOP)

    assert await world.store.release(PHONE, [entry], reason, [SHARED]) == 1

    assert [waiting for waiting, _ in await world.waiting(LAPTOP)] == [entry]
    await world.open(TABLET)
    assert list((await world.read(TABLET)).released) == []


async def test_an_entry_for_each_session_is_released_for_the_one_that_acked_it(world: World) -> None:
    await world.open(PHONE)
    await world.open(LAPTOP)
    entries = await world.publish("a")
    await world.read(PHONE)
    await world.read(LAPTOP)

    assert await ack(world, PHONE, *entries, facts=EntryFacts("note")) == 1

    assert [entry for entry, _ in await world.waiting(LAPTOP)] == entries


@pytest.mark.corner("D19")
async def test_the_store_looks_at_an_entry_of_which_the_caller_knows_nothing(world: World) -> None:
    """An ack for an earlier connection, or through another door."""
    await world.open(PHONE)
    await world.open(LAPTOP)
    (entry,) = await publish_any(world, "a")
    await world.read(PHONE)
    await world.read(LAPTOP)

    assert await ack(world, PHONE, entry, facts=None) == 1

    assert await world.waiting(LAPTOP) == []


@pytest.mark.corner("D11")
async def test_an_ack_through_another_door_is_told_to_the_node_that_has_the_session(world: World) -> None:
    await world.open(PHONE, node=OTHER_NODE)
    await world.open(LAPTOP, node=OTHER_NODE)
    heard = await listen(world)
    entries = await world.publish("a", "b", "c")
    await world.read(PHONE)

    assert await ack(world, PHONE, entries[0], facts=None) == 1
    assert await world.store.ack(ALICE, PHONE.session, [entries[1], entries[0]]) == 1
    assert await world.store.ack(ALICE, PHONE.session, [entries[1]]) == 0
    confirm = ConfirmRequest(user=ALICE, session=PHONE.session, level=Level.CONFIRMED, entries=[entries[2]])
    assert list(await world.store.confirm_many([confirm])) == [Confirmed(1, 1)]

    await until(lambda: len(heard.acked_here) == 2, message="the owner is told")
    assert heard.acked_here == [("phone", (entries[1],)), ("phone", (entries[2],))], "what it said itself it knows"


@pytest.mark.corner("D11")
async def test_an_ack_for_a_session_that_is_away_is_told_to_nobody(world: World) -> None:
    await world.open(PHONE, node=OTHER_NODE)
    heard = await listen(world)
    entries = await world.publish("a", "b")
    await world.read(PHONE)
    await world.store.detach(PHONE, ENTRY_ZERO)

    assert await world.store.ack(ALICE, PHONE.session, [entries[0]]) == 1

    await world.open(LAPTOP, node=OTHER_NODE)
    await world.read(LAPTOP)
    assert await world.store.ack(ALICE, LAPTOP.session, [entries[1]]) == 1
    await until(lambda: heard.acked_here, message="the next one is told")
    assert heard.acked_here == [("laptop", (entries[1],))]


@pytest.mark.requirement("R13")
async def test_where_only_demanded_confirmations_are_recorded_others_leave_no_record(
    make_world: Callable[..., Awaitable[World]],
) -> None:
    world = await make_world(confirmation_records=ConfirmationRecords.REQUIRED)
    await world.open(PHONE)
    (plain,) = await publish_any(world, "a")
    demanded, unknown = await publish_any(world, "b", "c", require={"level": "displayed", "within_ms": 1000})
    await world.read(PHONE)

    assert await ack(world, PHONE, plain) == 1
    assert await ack(world, PHONE, demanded, facts=EntryFacts("note", shared=True, demanded=True)) == 1
    assert await ack(world, PHONE, unknown, facts=None) == 1
    confirm = ConfirmRequest(
        user=ALICE, session=PHONE.session, level=Level.DISPLAYED, entries=[plain, demanded], connection=PHONE.connection
    )
    assert list(await world.store.confirm_many([confirm])) == [Confirmed(0, 1)]

    assert await records(world) == [
        ("phone", "received", (demanded,)),
        ("phone", "received", (unknown,)),
        ("phone", "displayed", (demanded,)),
    ]


@pytest.mark.corner("D19", "D4")
async def test_what_a_failover_took_back_is_not_released_by_its_old_ack(world: World) -> None:
    await world.open(PHONE)
    (kept,) = await publish_any(world, "a")
    await world.read(PHONE)
    await ack(world, PHONE, kept)
    snapshot = await world.power.snapshot(ALICE)
    (lost,) = await publish_any(world, "b")
    await world.read(PHONE)
    await ack(world, PHONE, lost)

    await world.power.roll_back(ALICE, snapshot)
    await publish_any(world, "c")
    await world.open(LAPTOP)

    assert list((await world.read(LAPTOP)).released) == [kept]
